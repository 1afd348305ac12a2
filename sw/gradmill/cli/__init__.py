"""The ``gradmill`` command."""

import typer

from . import bench, hardware
from .plan import plan
from .report import report
from .train import train


__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
                  help="Gradmill: train neural networks on an open training accelerator.")
measure = typer.Typer(no_args_is_help=True, help="Measure on the simulated RTL.")
app.add_typer(measure, name="bench")
for command in (train, plan, report, hardware.verilog, hardware.info):
    app.command()(command)
measure.command("gemm")(bench.gemm)
