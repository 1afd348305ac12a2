"""Tools read the emitted Verilog without a warning; its ports have the standard names."""

import json
import subprocess

import pytest

from gradmill.verilator.build import find_verilator
from gradmill_hw.config import EDGE, NANO
from gradmill_hw.emit import emit
from tests.formal.prove import run_yosys


CONFIGS = {"all units": NANO.replace(stash=True, copy=True), "nano": NANO,
           "chain": NANO.replace(tiles=2), "edge": EDGE}
#: Signals of AXI4 and of AXI4-Lite, by channel.
ADDRESS = {"addr", "valid", "ready", "prot"}
BURST = ADDRESS | {"id", "len", "size", "burst", "lock", "cache", "qos"}
FULL = {"aw": BURST, "w": {"data", "strb", "last", "valid", "ready"},
        "b": {"id", "resp", "valid", "ready"}, "ar": BURST,
        "r": {"id", "data", "resp", "last", "valid", "ready"}}
LITE = {"aw": ADDRESS, "w": {"data", "strb", "valid", "ready"}, "b": {"resp", "valid", "ready"},
        "ar": ADDRESS, "r": {"data", "resp", "valid", "ready"}}
PORTS = {f"{bus}_{channel}{signal}"
         for bus, channels in (("s_axil", LITE), ("m_axi_near", FULL), ("m_axi_far", FULL))
         for channel, signals in channels.items() for signal in signals}

pytestmark = pytest.mark.rtl


@pytest.fixture(scope="module", params=[
    "all units", *(pytest.param(name, marks=pytest.mark.long) for name in list(CONFIGS)[1:])])
def folder(request, tmp_path_factory):
    """Folder with the Verilog of a configuration."""
    path = tmp_path_factory.mktemp("verilog")
    (path / "gradmill.v").write_text(emit(CONFIGS[request.param]))
    return path


def test_verilator_has_no_warning(folder):
    lint = subprocess.run([find_verilator().command, "--lint-only", "--top-module", "gradmill",
                           folder / "gradmill.v"], capture_output=True, text=True)
    assert (lint.stderr, lint.returncode) == ("", 0)


def test_yosys_reads_the_standard_ports(folder):
    good, log = run_yosys("read_verilog gradmill.v\nhierarchy -check -top gradmill\n"
                          "select gradmill\nwrite_json -selected ports.json\n", folder)
    assert good and "Warning" not in log, log[-3000:]
    module = json.loads((folder / "ports.json").read_text())["modules"]["gradmill"]
    assert set(module["ports"]) == PORTS | {"clk", "rst", "irq", "activity"}
