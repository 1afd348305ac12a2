"""The example that looks into one unit runs and shows right sums."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from gradmill_hw.numeric.fp32_add import Fp32Add


EXAMPLE = Path(__file__).parents[1] / "examples" / "peek.py"


@pytest.mark.rtl
@pytest.mark.skipif(importlib.util.find_spec("pyverilator") is None,
                    reason="needs the extra 'peek'")
def test_peek(tmp_path):
    run = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True,
                         timeout=600)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()[-7:]
    assert "a = 1.5, b = 2.25" in lines[0]
    for k, word in enumerate(("0x40700000", "0x4cbebc20", "0x7fc00000")):
        assert f"o = {word}" in lines[Fp32Add.latency + k], run.stdout
    assert not list(tmp_path.iterdir())
