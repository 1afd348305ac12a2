"""``gradmill verilog`` and ``gradmill info``."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from gradmill_hw.config import CONFIGS
from rich.table import Table

from ..datasets import TASKS
from .common import Backend, ConfigName, Size, Sizes, Tiles, clear_errors, configured, console


__all__ = ["info", "verilog"]


def verilog(
    config: ConfigName = "edge",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("build/verilog"),
    sizes: Sizes = None,
    n: Size = None,
    tiles: Tiles = None,
) -> None:
    """Write one Verilog file with standard AXI port names, and its manuals, to OUT.

    The manuals, ports.md, registers.md, instructions.md and the C header gradmill.h, have the
    values of that configuration.
    """
    with clear_errors():
        made = configured(config, sizes, n=n, tiles=tiles)
    target = out / f"gradmill_{re.sub(r'[^A-Za-z0-9]+', '_', made.name)}.v"
    subprocess.run([sys.executable, "-m", "gradmill_hw.export", "--config",
                    json.dumps(asdict(made)), "--out", str(target)], check=True)
    console.print(f"wrote {target} and beside it ports.md, registers.md, instructions.md and "
                  "gradmill.h", soft_wrap=True, highlight=False)


def info(
    config: Annotated[str | None, typer.Option(help="One configuration: a name or a .toml or "
                                               ".json file; by default all that have a name.")]
        = None,
    sizes: Sizes = None,
    n: Size = None,
    tiles: Tiles = None,
    mhz: Annotated[float | None, typer.Option(
        min=0, help="Clock, for the peak in GOPS; see `python -m bench.fmax`.")] = None,
) -> None:
    """Show what configurations are made of; list devices and tasks."""
    with clear_errors():
        if config is None and (sizes or n or tiles):
            raise ValueError("say of which configuration the sizes are others: --config "
                             f"{'|'.join(CONFIGS)}")
        shown = CONFIGS.values() if config is None else [
            configured(config, sizes, n=n, tiles=tiles)]
    table = Table(title="configurations", caption="above the line: the fields of a Config, as "
                                                  "--set takes them; below: what follows")
    table.add_column("", no_wrap=True)
    for one in shown:
        table.add_column(one.name, justify="right")
    for rows in ([_fields(one) for one in shown], [_amounts(one, mhz) for one in shown]):
        for name in rows[0]:
            table.add_row(name, *(row[name] for row in rows))
        table.add_section()
    console.print(table)
    console.print("LUTs, DSPs and block RAM: docs/performance.md, `python -m bench.area --config "
                  "CONFIG`; clock: `python -m bench.fmax`", soft_wrap=True, highlight=False)
    console.print("devices:", ", ".join(Backend), " tasks:", ", ".join(TASKS))


def _fields(config):
    """Fields but the name, as text."""
    return {name: f"{value}".lower() for name, value in asdict(config).items() if name != "name"}


def _amounts(config, mhz):
    """What a device of ``config`` has, as name -> text."""
    macs, memory = config.n ** 2 * config.tiles, config.memory_bytes
    peak = {} if mhz is None else {f"peak GOPS, {mhz:g} MHz": f"{2 * macs * mhz / 1000:,.1f}"}
    return {
        "PEs of a tile": f"{config.n ** 2}", "vector lanes": f"{config.n}",
        "exp/log units": f"{config.n // config.lanes_per_function}",
        "memory of a tile, KiB": f"{memory / 1024:,.1f}",
        "of all tiles, KiB": f"{config.tiles * memory / 1024:,.1f}",
        "MACs per cycle": f"{macs:,}", **peak,
    }
