"""Matrix products: on chip beside the allowed cycles, and from near memory."""

from gradmill_hw.config import EDGE, TILE
from rich.table import Table

from gradmill.gemm import measure_from_memory, measure_gemm


SHAPES = ((128, 128, 128), (100, 100, 100), (13, 17, 19))


def run(console):
    """Print both tables."""
    _print(console, "operands on chip, sim; bound = ceil(k/n)·ceil(c/n)·max(m, n) + 2n + 16",
           measure_gemm(TILE, SHAPES))
    for config in (TILE, EDGE):
        _print(console, f"BFP operands and float32 result in near memory, {config.name}, bus "
               f"{config.bus_bits} bits; bound = cycles of the array alone",
               measure_from_memory(config, SHAPES[0]))


def _print(console, title, measurements):
    table = Table(title=title)
    for column in ("m x k x c", "variant", "cycles", "bound", "useful MACs / (n·n·cycles)"):
        table.add_column(column, justify="right")
    for entry in measurements:
        table.add_row("x".join(map(str, entry.shape)), entry.variant, f"{entry.cycles:,}",
                      f"{entry.bound:,}", f"{entry.utilisation:.1%}")
    console.print(table)
