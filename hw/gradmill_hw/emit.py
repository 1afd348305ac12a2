"""Verilog of a configuration: one file, flat ports with the standard AXI names.

``python -m gradmill_hw.emit --config edge --out gradmill.v``; ``--config`` also takes a file, or
the fields of a Config as JSON. :mod:`~gradmill_hw.export` writes manuals beside it.

``verilator --lint-only`` has no warning; ``-Wall`` has, of signals and processes that the back end
writes for every bit of the circuit, used or not. Three of its rules are switched off in the file,
because the back end writes what has an explicit width in the circuit in another form:

- WIDTHEXPAND: constants in their shortest form, operands that Verilog extends to the result;
- WIDTHTRUNC: ``!`` of several bits for "is zero";
- CASEINCOMPLETE: cases without a default, whose outputs were assigned before.
"""

import argparse
import gc
import json
import re
from dataclasses import asdict
from itertools import count
from pathlib import Path

from amaranth import *
from amaranth.back import verilog
from amaranth.lib.wiring import Out

from .config import Config, get_config
from .tile import Tile
from .top import TILE_MODULE, Gradmill


__all__ = ["command_line", "emit", "parse_config"]

#: Rules of Verilator that the text would break.
_LINT = "".join(f"/* verilator lint_off {rule} */\n" for rule in (
    "CASEINCOMPLETE", "WIDTHEXPAND", "WIDTHTRUNC"))
#: Declarations of values without bits, which nothing refers to.
_EMPTY = re.compile(r"\n *wire (?:signed )?\[-1:0\] \S+? ?;")
#: Contents of a memory that is zero at power-up, row by row.
_ZEROS = re.compile(r" *initial begin\n((?: *(\S+? ?)\[\d+\] = (\d+'h0+);\n)+) *end\n")
#: Interfaces that FPGA tools connect to the clock.
_BUSES = "s_axil:m_axi_near:m_axi_far"


def emit(config, component=None, *, name="gradmill"):
    """Verilog text of a device, or of ``component``, as module ``name``.

    Ports: ``clk``, ``rst`` (synchronous, active high), ``irq``, ``s_axil_*``, ``m_axi_near_*``,
    ``m_axi_far_*``. The module of a tile stands before that of the device.
    """
    if component is None:
        text = _module(Tile(config), TILE_MODULE) + _module(Gradmill(config), name)
    else:
        text = _module(component, name)
    return _LINT + _short_zeros(_EMPTY.sub("", text))


def _short_zeros(text):
    """``text`` with a loop for every memory that is cleared row by row.

    Rows of the large memories would be half of the text, and much of the time of whoever reads it.
    """
    numbers = count()

    def loop(match):
        rows, name, zero = match[1].splitlines(), match[2], match[3]
        if rows != [f"    {name}[{row}] = {zero};" for row in range(len(rows))]:
            return match[0]
        return (f"  initial begin : zeros{next(numbers)}\n    integer zeroed;\n"
                f"    for (zeroed = 0; zeroed < {len(rows)}; zeroed = zeroed + 1)\n"
                f"      {name}[zeroed] = {zero};\n  end\n")

    return _ZEROS.sub(loop, text)


def _module(component, name):
    """Verilog text of ``component`` and what it is made of, with flat ports."""
    m = Module()
    clk = Signal(attrs={"X_INTERFACE_INFO": "xilinx.com:signal:clock:1.0 clk CLK",
                        "X_INTERFACE_PARAMETER": f"ASSOCIATED_BUSIF {_BUSES}, "
                                                 "ASSOCIATED_RESET rst"})
    rst = Signal(attrs={"X_INTERFACE_INFO": "xilinx.com:signal:reset:1.0 rst RST",
                        "X_INTERFACE_PARAMETER": "POLARITY ACTIVE_HIGH"})
    m.domains.sync = ClockDomain()
    m.d.comb += [ClockSignal().eq(clk), ResetSignal().eq(rst)]
    m.submodules.device = component
    ports = [clk, rst]
    for path, member, value in component.signature.flatten(component):
        inner = Value.cast(value)
        port = Signal(inner.shape(), name="_".join(map(str, path)))
        m.d.comb += port.eq(inner) if member.flow is Out else inner.eq(port)
        ports.append(port)
    return verilog.convert(m, name=name, ports=ports, emit_src=False,
                           strip_internal_attrs=True)


def parse_config(text):
    """The configuration that ``text`` names, or whose fields it has as JSON."""
    return Config(**json.loads(text)) if text.startswith("{") else get_config(text)


def command_line(description):
    """Configuration and file of a command line that writes one; the collector of garbage is off
    from here on, because nothing of a netlist becomes garbage before the end, and looking takes a
    third of the time."""
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    parser.add_argument("--config", required=True, help="name of a configuration, file or JSON")
    parser.add_argument("--out", required=True, type=Path, help="Verilog file to write")
    arguments = parser.parse_args()
    gc.disable()
    return parse_config(arguments.config), arguments.out


def main():
    """Command line."""
    config, out = command_line(__doc__)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"// Gradmill, configuration {asdict(config)}\n" + emit(config))


if __name__ == "__main__":
    main()
