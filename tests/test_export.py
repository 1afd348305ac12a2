"""What lies beside an exported Verilog file: manuals with the values of the configuration."""

import re
import shutil
import subprocess

import pytest

from gradmill_hw import export
from gradmill_hw.config import NANO
from gradmill_hw.manual import c_header, register_manual


CHAIN = NANO.replace(tiles=3, address_bits=36, stash=True, name="board")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything but the circuit, which tests/test_verilog.py emits."""
    path = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "emit", lambda config: f"module gradmill; // {config.n}\n")
        export.export(CHAIN, path / "new" / "gradmill_board.v")
    return path / "new"


def _rows(text):
    """Cells of the first three columns of every row of a table."""
    return {tuple(cell.strip() for cell in line.split("|")[1:4])
            for line in text.splitlines() if line.startswith("|")}


def test_ports_have_their_widths(folder):
    text = (folder / "ports.md").read_text()
    assert "for configuration board" in text
    rows = _rows(text)
    assert {("`clk`", "in", "1"), ("`rst`", "in", "1"), ("`irq`", "out", "1"),
            ("`s_axil_araddr`", "in", "14"), ("`m_axi_near_araddr`", "out", "36"),
            ("`m_axi_far_rdata`", "in", "32"), ("`m_axi_far_wstrb`", "out", "4")} <= rows
    assert "16,384 bytes, 4,096 for each tile" in text
    assert "4 bytes, `axsize` = 2), 1 to 16 beats" in text


def test_the_verilog_says_its_sizes(folder):
    text = (folder / "gradmill_board.v").read_text()
    assert "//   tiles = 3\n" in text and text.endswith("module gradmill; // 4\n")
    assert max(map(len, text.splitlines())) <= 100


def test_manuals_have_values(folder):
    text = (folder / "registers.md").read_text()
    assert text == register_manual(CHAIN) and "make docs" not in text
    assert re.search(r"`n` \| 7:0 \| const \| 4 \|", text)
    assert re.search(r"`stash` \| 24 \| const \| 1 \|", text)
    assert (folder / "instructions.md").is_file()


def test_the_header_has_the_sizes(folder):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    assert (folder / "gradmill.h").read_text() == c_header(CHAIN)
    checks = [f'_Static_assert(GRADMILL_SIZE_{name} == {value}, "");' for name, value in (
        ("N", 4), ("TILES", 3), ("ADDRESS_BITS", 36), ("STASH", 1), ("COPY", 0))]
    (folder / "check.c").write_text('#include "gradmill.h"\n' + "\n".join(checks))
    subprocess.run([compiler, "-std=c11", "-Wall", "-Werror", "-fsyntax-only",
                    folder / "check.c"], check=True)
