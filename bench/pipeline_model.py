"""Tiles in a pipeline by the cycle model: short virtual minibatches, long chains, unequal tiles."""

from itertools import pairwise

from gradmill_hw.config import TILE
from rich.progress import track
from rich.table import Table

import gradmill as gm
from gradmill.forecast import forecast
from gradmill.planning import plan


__all__ = ["BALANCED", "BROAD", "DEEP", "ROOMY", "UNEQUAL", "array_rows", "bound", "network", "run"]

#: Memories for seven activation sets of 64 samples; inputs of all fill no more than a bank.
DEEP = TILE.replace(tensor_rows=32768, mask_rows=8192)
#: Memories in which weight gradients of broad layers leave banks to others.
ROOMY = DEEP.replace(acc_rows=16384)
#: Memories for 2p - 1 activation sets of many tiles.
LARGE = TILE.replace(tensor_rows=65536, mask_rows=16384, acc_rows=16384, queue_depth=16)


def _equal(tiles, width):
    """Widths of as many equal tiles: the first and the last have a small layer more."""
    return 8, *[width] * (tiles + 1), 8


def _unequal(tiles, width):
    """Widths of layers of three sizes."""
    return 8, *[width * (8, 8, 5, 8, 6)[s % 5] // 8 for s in range(tiles + 1)], 8


#: Widths that are balanced on two and on four tiles, others that are not.
BALANCED, UNEQUAL = (8, 64, 64, 72, 64, 64, 8), (8, 64, 40, 72, 64, 48, 8)
#: Balanced, with layers of four times the weights.
BROAD = 8, 128, 128, 136, 128, 128, 8
#: Name -> configuration, tiles, widths, M, sub-minibatches.
CASES = {
    "2 tiles": (TILE, 2, BALANCED, 16, (8, 16, 32, 64)),
    "2 tiles, M = 64": (DEEP, 2, BALANCED, 64, (8, 16)),
    "4 tiles": (TILE, 4, BALANCED, 16, (8, 16, 32, 64)),
    "4 tiles, M = 64": (DEEP, 4, BALANCED, 64, (8, 16)),
    "4 tiles, unequal": (TILE, 4, UNEQUAL, 16, (16, 64)),
    "8 tiles": (LARGE, 8, _equal(8, 64), 16, (16, 64)),
    "8 tiles, broad": (LARGE, 8, _equal(8, 128), 32, (15,)),
    "8 tiles, broad, unequal": (LARGE, 8, _unequal(8, 128), 32, (15,)),
    "16 tiles, broad": (LARGE, 16, _equal(16, 128), 16, (24, 31)),
    "16 tiles, broad, unequal": (LARGE, 16, _unequal(16, 128), 16, (31,)),
}


def run(console):
    """Print how far virtual minibatches are above T."""
    table = Table(title=f"Cycle model, n = {TILE.n}: cycles of a virtual minibatch in steady state")
    for column in ("", "M", "sub-minibatches", "cycles", "T", "above", "rows of the tiles"):
        table.add_column(column, justify="right")
    cases = [(name, *case, count) for name, (*case, counts) in CASES.items() for count in counts]
    for name, config, tiles, widths, sub, count in track(cases, "cycle model", console=console):
        cycles, rows = predicted(config.replace(tiles=tiles), widths, sub, count)
        least, work = bound(rows, count), [sum(tile) for tile in rows]
        table.add_row(name, str(sub), str(count), f"{cycles:,.0f}", f"{least:,}",
                      f"{cycles / least - 1:.1%}", f"{min(work):,} - {max(work):,}")
    console.print(table)


def network(widths):
    """Layers with a ReLU between each two."""
    layers = [layer for pair in pairwise(widths) for layer in (gm.Linear(*pair), gm.ReLU())]
    return gm.Sequential(*layers[:-1], seed=0)


def predicted(config, widths, sub, count):
    """Cycles of a virtual minibatch of ``count`` sub-minibatches of ``sub`` samples;
    :func:`array_rows`."""
    model, rest = network(widths), (gm.CrossEntropy(), gm.SGD(lr=0.05, momentum=0.9))
    made = plan(model, config, virtual_minibatch=count * sub, sub_minibatch=sub, loss=rest[0],
                optimizer=rest[1])
    return forecast(made, model, config, *rest).cycles, array_rows(made, model, sub, config.n)


def array_rows(made, model, sub, n):
    """F, B, W of each tile of a plan: cycles in which its array takes rows of ``sub`` samples."""
    def blocks(size):
        return -(-size // n)

    tiles = []
    for first, last in made.spans:
        layers = [model.stages[s].linear for s in range(first, last + 1)]
        forward = [sub * blocks(layer.inputs) * blocks(layer.outputs) for layer in layers]
        tiles.append((sum(forward), sum(forward[first == 0:]), sum(
            layer.outputs * blocks(sub) * blocks(layer.inputs) for layer in layers)))
    return tiles


def bound(tiles, count):
    """T = max(m(F+B+W), (m+p-1)(F+B)+W), for the tile with the most work; ``count`` is m."""
    return max(max(count * (forward + backward + weight),
                   (count + len(tiles) - 1) * (forward + backward) + weight)
               for forward, backward, weight in tiles)
