"""``gradmill bench``: cycles of the simulated RTL."""

from typing import Annotated

import typer
from rich.table import Table

from .common import ConfigName, Size, Sizes, clear_errors, configured, console


__all__ = ["gemm"]


def gemm(
    products: Annotated[list[str] | None, typer.Argument(help="Products as MxKxC.")] = None,
    config: ConfigName = "tile",
    sizes: Sizes = None,
    n: Size = None,
) -> None:
    """Cycles of matrix products with operands on chip, beside the bound, for all three variants."""
    from ..gemm import measure_gemm

    with clear_errors():
        table = Table(title="C = A·B, operands on chip")
        for column in ("m x k x c", "variant", "cycles", "bound", "utilisation"):
            table.add_column(column, justify="right")
        shapes = [_shape(size) for size in products or ("128x128x128", "100x100x100", "13x17x19")]
        for entry in measure_gemm(configured(config, sizes, n=n), shapes):
            table.add_row("x".join(map(str, entry.shape)), entry.variant, f"{entry.cycles}",
                          f"{entry.bound}", f"{entry.utilisation:.1%}")
        console.print(table)


def _shape(text):
    """``MxKxC`` as three positive integers."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{text!r} is no product: write three positive sizes, as in 128x64x10")
    return tuple(map(int, parts))
