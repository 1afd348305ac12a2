"""Rules of the house that a machine can check."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from gradmill_hw.config import CONFIGS


ROOT = Path(__file__).parents[1]
LONGEST = 400


def _sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _imports(path):
    """Absolute names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def _packages(path):
    return {name.split(".")[0] for name in _imports(path)}


def _run(code):
    environment = {"PYTHONPATH": f"{ROOT / 'hw'}:{ROOT / 'sw'}:{ROOT}", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)


_NO_AMARANTH = "\nassert 'amaranth' not in sys.modules, 'amaranth was imported'\n"


def test_training_on_the_emulator_never_imports_the_rtl_language():
    _run("""
import sys
import numpy as np
import gradmill as gm
import gradmill.cli
with gm.open("emulator", "tile") as device:
    trainer = gm.Trainer(gm.Sequential(gm.Linear(3, 2)), device, optimizer=gm.SGD(lr=0.1),
                         virtual_minibatch=4, sub_minibatch=2)
    trainer.fit(np.ones((8, 3), np.float32), np.arange(8) % 2, epochs=1)
    gm.ops.matmul(device, np.ones((3, 4), np.float32), np.ones((4, 2), np.float32))
""" + _NO_AMARANTH)


def test_models_never_import_the_rtl_language():
    models = [path.relative_to(ROOT / "hw").with_suffix("") for path in _sources("hw")
              if path.stem.endswith("_model")]
    assert len(models) >= 8
    names = [".".join(path.parts) for path in models]
    names += [f"gradmill_hw.{name}" for name in ("config", "isa", "regs")]
    _run("import sys\n" + "\n".join(f"import {name}" for name in names) + _NO_AMARANTH)


@pytest.mark.parametrize(("folder", "forbidden"), [
    ("hw", {"gradmill", "tb", "tests", "bench", "cocotb", "pytest"}),
    ("sw", {"amaranth", "tb", "tests", "bench", "cocotb", "pytest"}),
    ("tb", {"gradmill", "tests", "bench"}),
])
def test_imports_point_one_way(folder, forbidden):
    paths = _sources(folder)
    assert paths
    wrong = {str(path.relative_to(ROOT)): sorted(found) for path in paths
             if (found := _packages(path) & forbidden)}
    assert not wrong


def test_models_need_nothing_but_numpy():
    allowed = set(sys.stdlib_module_names) | {"numpy"}
    wrong = {path.name: sorted(found) for path in _sources("hw") if path.stem.endswith("_model")
             if (found := _packages(path) - allowed)}
    assert not wrong


def test_models_share_no_code_with_the_circuits():
    """Beside the contract, a model imports models and tables only."""
    contract = {"config", "isa", "isa_layout", "regs", "regmap"}
    for path in _sources("hw"):
        if path.stem.endswith("_model"):
            names = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level:
                    module = (node.module or "").split(".")[-1]
                    whole = module in ("", "numeric")  # a package: its modules are named
                    names |= {alias.name for alias in node.names} if whole else {module}
            shared = "_model", "tables", "formats"
            wrong = {name for name in names - contract if not name.endswith(shared)}
            assert not wrong, f"{path.name} imports {wrong}"


def test_a_wheel_holds_every_file_of_the_packages(tmp_path):
    wheel, = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {str(path.relative_to(folder)) for folder in (ROOT / "hw", ROOT / "sw")
              for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert any(name.endswith(".html") for name in wanted)
    assert wanted <= held, wanted - held


def test_files_are_short():
    paths = _sources("hw", "sw", "tb", "tests", "bench", "examples")
    assert len(paths) > 100
    long = {str(path.relative_to(ROOT)): lines for path in paths
            if (lines := len(path.read_text().splitlines())) > LONGEST}
    assert not long


def test_files_say_what_they_are():
    for path in _sources("hw", "sw", "tb"):
        text = path.read_text()
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_nothing_is_left_undone():
    marks = [f"{left}{right}" for left, right in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"),
                                                  ("no", "qa"))]
    for path in _sources("hw", "sw", "tb", "tests", "bench", "examples"):
        text = path.read_text()
        assert not [mark for mark in marks if mark in text], path


def test_public_names_exist():
    import gradmill as gm

    assert all(getattr(gm, name) is not None for name in gm.__all__)


def test_configurations_are_named_after_themselves():
    assert all(config.name == name for name, config in CONFIGS.items())
