"""``make area``: what Yosys makes of the units, for Xilinx UltraScale+ and ECP5.

LUTs are the cells LUT1 to LUT6 of ``synth_xilinx -family xcup`` (one LUT6 site each; two small ones
may share a site in the vendor's tool), plus the LUT sites of distributed RAM and shift registers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from gradmill.heartbeat import heartbeat
from gradmill_hw.config import TILE, get_config
from gradmill_hw.control.control import ControlPath
from gradmill_hw.emit import emit
from gradmill_hw.matrix.matrix import MatrixUnit
from gradmill_hw.matrix.systolic import SystolicArray
from gradmill_hw.memory.copy import Copy
from gradmill_hw.memory.load import Load
from gradmill_hw.memory.store import Store
from gradmill_hw.numeric.quantiser import TileQuantiser
from gradmill_hw.stash.decoder import Decoder
from gradmill_hw.stash.encoder import Encoder
from gradmill_hw.vector.vector import VectorUnit
from rich.console import Console
from rich.table import Table


class Unit(NamedTuple):
    """What is synthesised: component of a configuration (None: the device) with or without the
    parts that are optional, and what its LUTs are divided by, with the allowed quotient."""

    build:   Callable
    options: dict
    per:     str | None = None
    count:   Callable = lambda config: 1
    allowed: int | None = None


_PLAIN  = {"stash": False, "copy": False}
_FULL   = {"stash": True, "copy": True}
_MACS   = "MAC", lambda config: config.tiles * config.n**2
_LANES  = "lane", lambda config: config.n
UNITS = {
    "array":        Unit(SystolicArray, _PLAIN, *_MACS, 75),
    "quantiser":    Unit(lambda c: TileQuantiser(c, tag_bits=0), _PLAIN, *_LANES, 117),
    "matrix":       Unit(MatrixUnit, _PLAIN, *_MACS),
    "vector":       Unit(VectorUnit, _PLAIN, *_LANES),
    "control":      Unit(ControlPath, _PLAIN),
    "load":         Unit(Load, _PLAIN),
    "store":        Unit(Store, _PLAIN),
    "load, codec":  Unit(Load, _FULL),
    "store, codec": Unit(Store, _FULL),
    "encoder":      Unit(Encoder, _FULL, *_LANES),
    "decoder":      Unit(Decoder, _FULL, *_LANES),
    "copy":         Unit(Copy, _FULL),
    "device":       Unit(lambda config: None, _PLAIN, *_MACS, 446),
    "device, codec and copy": Unit(lambda config: None, _FULL, *_MACS),
}
_ECP5 = "synth_lattice -family ecp5 -top gradmill -run"
#: Without the purge, abc9 of Yosys 0.70 stops at wires that nothing reads.
_SYNTH = {"xcup": "synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top gradmill",
          "ecp5": f"{_ECP5} begin:map_luts; opt_clean -purge; {_ECP5} map_luts:check"}
#: Runs the passes of a script; a process of its own gives its memory back.
_YOSYS = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.argv[1].split(";"):
    libyosys.run_pass(command.strip(), design)
"""
#: LUT sites of cells that are not LUTs.
_SITES = {"RAM32M": 4, "RAM32M16": 8, "RAM64M": 4, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2,
          "RAM128X1D": 4, "RAM256X1D": 8, "SRL16E": 1, "SRLC32E": 1,
          "CCU2C": 2, "TRELLIS_DPR16X4": 4, "LUT4": 1}


def cells(config, component, family):
    """Number of cells by type."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "stat.json"
        _synthesise(emit(config, component), family,
                    f"tee -q -o {report} stat -json; check -assert")
        return json.loads(report.read_text())["design"]["num_cells_by_type"]


def netlist(verilog, family, path):
    """Write the synthesised netlist of a Verilog text as JSON."""
    _synthesise(verilog, family, f"autoname; blackbox =A:whitebox; write_json {path}")


def _synthesise(verilog, family, then):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "unit.v"
        source.write_text(verilog)
        subprocess.run([sys.executable, "-c", _YOSYS,
                        f"read_verilog {source}; {_SYNTH[family]}; {then}"],
                       check=True, stdout=subprocess.DEVNULL)


def summary(found, family):
    """LUT sites, those of them that are memory, flip-flops, DSPs, block RAMs and latches."""
    def count(*prefixes):
        return sum(number for name, number in found.items() if name.startswith(prefixes))

    memory = sum(found.get(name, 0) * sites for name, sites in _SITES.items()
                 if name.startswith(("RAM", "SRL", "TRELLIS_DPR")))
    luts = count("LUT") + memory + (2 * found.get("CCU2C", 0) if family == "ecp5" else 0)
    return {"LUT": luts, "of it memory": memory,
            "FF": count("FD", "TRELLIS_FF"), "DSP": count("DSP", "MULT"),
            "BRAM": count("RAMB", "DP16KD"), "latch": count("LD", "$_DLATCH")}


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.area", description=__doc__)
    parser.add_argument("units", nargs="*", help=f"some of {', '.join(UNITS)}; all by default")
    parser.add_argument("--config", default=TILE.name)
    parser.add_argument("--family", choices=[*_SYNTH, "both"], default="both")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.units) - set(UNITS)):
        parser.error(f"no unit {unknown[0]!r}; there are {', '.join(UNITS)}")
    config, console = get_config(arguments.config), Console(width=110)
    families = list(_SYNTH) if arguments.family == "both" else [arguments.family]
    found = _measure(console, config, arguments.units or list(UNITS), families)
    for family, of_family in found.items():
        console.print(_table(config, family, of_family))


def _measure(console, config, names, families):
    """``found[family][name]``: what :func:`summary` says; a line for each unit when it is done."""
    found = {family: dict.fromkeys(names) for family in families}
    wanted = [(family, name) for name in reversed(names) for family in families]
    left = len(wanted)

    def say(text):
        console.print(text, highlight=False)

    with (ProcessPoolExecutor(os.cpu_count()) as pool,
          heartbeat(lambda seconds: say(f"{left} units left after {seconds:.0f} s"))):
        jobs = {pool.submit(_unit, config, name, family): (family, name)
                for family, name in wanted}
        for job in as_completed(jobs):
            family, name = jobs[job]
            found[family][name] = job.result()
            left -= 1
            say(f"{family}, {name}: {found[family][name]['LUT']:,} LUT")
    return found


def _unit(config, name, family):
    unit = UNITS[name]
    own = config.replace(**unit.options)
    return summary(cells(own, unit.build(own), family), family)


def _table(config, family, found):
    table = Table(title=f"{family}, configuration {config.name}, n = {config.n}")
    for column in ("unit", "LUT", "of it memory", "FF", "DSP", "BRAM", "latch", "LUT per",
                   "allowed"):
        table.add_column(column, justify="right")
    for name, values in found.items():
        unit = UNITS[name]
        quotient = (f"{values['LUT'] / unit.count(config):.1f} / {unit.per}" if unit.per else "")
        table.add_row(name, *(f"{value:,}" for value in values.values()), quotient,
                      f"{unit.allowed}" if unit.allowed and family == "xcup" else "")
    return table


if __name__ == "__main__":
    main()
