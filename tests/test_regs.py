"""The register map, its counters, and the manuals made from it."""

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from gradmill_hw.config import CARD, NANO
from gradmill_hw.isa import Class
from gradmill_hw.manual import main, manuals
from gradmill_hw.regmap import Access, Field, Register, RegisterMap
from gradmill_hw.regs import (
    COUNTER_INDEX,
    COUNTER_OFFSET,
    COUNTERS,
    MAGIC,
    REGS,
    TILE_BYTES,
    Error,
    Tier,
    byte_counter,
)


DOCS = Path(__file__).parents[1] / "docs"


def test_addresses():
    offsets = [reg.offset for reg in REGS]
    assert all(low + 4 <= high for low, high in pairwise(offsets))
    assert offsets[-1] < TILE_BYTES
    for reg in REGS:
        assert (reg.offset >= COUNTER_OFFSET) == reg.name.startswith("counter_")


def test_pack_and_unpack():
    status = REGS["status"]
    assert status.pack(busy=1, locked=1) == 0b10001
    assert status.unpack(0b00110) == {"busy": 0, "done": 1, "error": 1, "resetting": 0, "locked": 0}
    with pytest.raises(ValueError, match="does not fit in 1 bits"):
        status.pack(busy=2)
    with pytest.raises(ValueError, match="no field idle"):
        status.pack(idle=1)
    assert REGS["id"].reset(NANO) == MAGIC
    array = REGS["config_array"]
    sizes = array.unpack(array.reset(CARD))
    assert sizes == {name: getattr(CARD, name) for name in sizes}


def test_bad_maps():
    one = Field("value", 32, Access.RW, "")
    with pytest.raises(ValueError, match="wider than 32"):
        Register(0, "a", "", (one, one))
    with pytest.raises(ValueError, match="when='later'"):
        Register(0, "a", "", (one,), when="later")
    with pytest.raises(ValueError, match="not a word"):
        Register(2, "a", "", (one,))
    for offset, name in ((0, "b"), (4, "a")):
        with pytest.raises(ValueError, match="share"):
            RegisterMap([Register(0, "a", "", (one,)), Register(offset, name, "", (one,))])


def test_counters():
    assert [counter.index for counter in COUNTERS] == sorted(COUNTER_INDEX.values())
    for tier in Tier:
        for write in range(2):
            for cls in Class:
                name = f"{tier.name}_{('read', 'write')[write]}_{cls.name}_bytes".lower()
                assert COUNTER_INDEX[name] == byte_counter(tier, write, cls)
                assert REGS[f"counter_{name}_lo"].offset == 0x400 + 8 * COUNTER_INDEX[name]
    timed = {counter.name for counter in COUNTERS if counter.timing}
    assert timed == {
        name for name in COUNTER_INDEX if re.match(r"cycles|busy_|wait_|.*_stall", name)
    }


def test_errors():
    assert Error(3) is Error.ALIGNMENT and Error.ALIGNMENT == 3
    assert all(error.doc for error in Error)


@pytest.mark.parametrize("name", manuals())
def test_manual_is_current(name):
    assert (DOCS / name).read_text() == manuals()[name], "run `make docs`"


def test_manuals_are_written(tmp_path):
    main([str(tmp_path / "new")])
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(manuals())


def test_header_compiles(tmp_path):
    """The header says what the map says, as a compiler reads it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    checks = [f'_Static_assert(GRADMILL_{reg.name.upper()} == {reg.offset}, "");' for reg in REGS]
    checks += [f'_Static_assert(GRADMILL_ERROR_{e.name} == {e.value}, "");' for e in Error]
    checks.append('_Static_assert(GRADMILL_STATUS_ERROR_LSB == 2, "");')
    checks.append('_Static_assert(GRADMILL_INSTRUCTION_VECTOR_SCALAR1_WIDTH == 32, "");')
    source = tmp_path / "check.c"
    source.write_text('#include "gradmill.h"\n' + "\n".join(checks))
    command = [compiler, "-std=c11", "-Wall", "-Werror", "-fsyntax-only", f"-I{DOCS}", source]
    subprocess.run(command, check=True)


def test_plain_data_does_not_need_amaranth():
    code = (
        "import sys, gradmill_hw.regs, gradmill_hw.sequencer_model, gradmill_hw.manual\n"
        "assert not any(name.startswith('amaranth') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DOCS.parent / "hw")
