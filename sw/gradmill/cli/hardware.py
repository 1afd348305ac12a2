"""``gradmill verilog`` and ``gradmill info``."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from gradmill_hw.config import CONFIGS, get_config
from rich.table import Table

from ..datasets import TASKS
from .common import Backend, ConfigName, clear_errors, console


__all__ = ["info", "verilog"]


def verilog(
    config: ConfigName = "edge",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("build/verilog"),
) -> None:
    """Write one Verilog file with standard AXI port names, and its manuals, to OUT."""
    with clear_errors():
        get_config(config)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"gradmill_{config}.v"
    for command in (["gradmill_hw.emit", "--config", config, "--out", str(target)],
                    ["gradmill_hw.manual", str(out)]):
        subprocess.run([sys.executable, "-m", *command], check=True)
    console.print(f"wrote {target} and the register and instruction manuals beside it")


def info() -> None:
    """List configurations, devices and tasks."""
    table = Table(title="configurations")
    for column in ("name", "n", "tiles", "mantissa", "tensor rows", "acc rows", "mask rows", "bus"):
        table.add_column(column, justify="right")
    for c in CONFIGS.values():
        table.add_row(c.name, *(str(v) for v in (c.n, c.tiles, c.mantissa_bits, c.tensor_rows,
                                                 c.acc_rows, c.mask_rows, c.bus_bits)))
    console.print(table)
    console.print("devices:", ", ".join(Backend), " tasks:", ", ".join(TASKS))
