"""Tiles in a pipeline: speed-up, period beside its bound, busy shares, error of the cycle model.

The network is balanced: on four tiles, F, B and W of each take nearly the same number of products.
All cycles are those of a virtual minibatch in steady state, by RTL counters: those of a longer run
less those of a shorter one.
"""

from itertools import pairwise

import numpy as np
from gradmill_hw.config import TILE
from gradmill_hw.isa import Queue
from rich.table import Table

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.timeline import record


WIDTHS, SUB, VIRTUAL = (8, 64, 64, 72, 64, 64, 8), 16, 1024
#: Virtual minibatches of the shorter and of the longer run.
RUNS = 1, 2


def run(console):
    """Print the table: one tile on a machine of one, two and four on a chain of four."""
    chain, found = TILE.replace(tiles=4), []
    for config, tiles in ((chain, 4), (TILE, 1), (chain, 2)):
        found.append(_measure(config, tiles, console.log))
        console.print(f"{tiles} tiles: {found[-1]['cycles']:,.0f} cycles")
    alone = next(one["cycles"] for one in found if one["tiles"] == 1)
    table = Table(title=f"MLP {'-'.join(map(str, WIDTHS))}, B = {VIRTUAL}, M = {SUB}, n = "
                        f"{TILE.n}: cycles per virtual minibatch in steady state")
    for column in ("tiles", "cycles", "speed-up", "T", "above T", "predicted", "error",
                   "array busy", "tile busy"):
        table.add_column(column, justify="right")
    for one in sorted(found, key=lambda one: one["tiles"]):
        cycles = one["cycles"]
        table.add_row(
            str(one["tiles"]), f"{cycles:,.0f}", f"{alone / cycles:.3f}", f"{one['bound']:,}",
            f"{cycles / one['bound'] - 1:.2%}", f"{one['predicted']:,.0f}",
            f"{one['predicted'] / cycles - 1:+.2%}",
            *(" ".join(f"{share:.1%}" for share in one[name]) for name in ("array", "busy")))
    console.print(table)
    console.print("T = max(m(F+B+W), (m+p-1)(F+B)+W): F, B, W are the cycles in which the array of "
                  "the slowest tile takes rows, m = B/M.\nArray busy: cycles with a row; tile "
                  "busy: with an instruction in the matrix or vector unit.")


def _trainer(tiles, device):
    layers = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [gm.Linear(inputs, outputs), gm.ReLU()]
    return gm.Trainer(gm.Sequential(*layers[:-1], seed=0), device, tiles=tiles,
                      optimizer=gm.SGD(0.05, 0.9), virtual_minibatch=VIRTUAL, sub_minibatch=SUB)


def _measure(config, tiles, tell):
    """Cycles of a virtual minibatch, measured and predicted, and what the tiles did; ``tell(text)``
    what is being done."""
    rng, totals, name = np.random.default_rng(0), [], f"{tiles} of {config.tiles} tiles"
    tell(f"{name}: building the simulator")
    with gm.open("verilator", config, watchdog=1_000_000) as device:
        tell(f"{name}: programs")
        trainer = _trainer(tiles, device)
        trainer.predict(np.zeros((SUB, WIDTHS[0]), np.float32))  # loads the weights too
        for count in RUNS:
            tell(f"{name}: {count} virtual minibatches of {VIRTUAL} on the RTL")
            device.clear_counters()
            with record(device) as timeline:
                trainer.fit(*_samples(rng, count * VIRTUAL), epochs=1)
            totals.append(device.counters()["cycles"])
        used = device.tiles[:tiles]
        cycles = (totals[1] - totals[0]) / (RUNS[1] - RUNS[0])
        rows = [device.counters(tile)["array_rows"] / RUNS[1] for tile in used]
        busy = [_busy(timeline, tile, cycles) for tile in used]
        tell(f"{name}: cycle model")
        predicted = [_predicted(trainer, count) for count in RUNS]
    return {"tiles": tiles, "cycles": cycles, "bound": _bound(trainer), "busy": busy,
            "array": [row / cycles for row in rows],
            "predicted": (predicted[1] - predicted[0]) / (RUNS[1] - RUNS[0])}


def _samples(rng, count):
    return (rng.normal(size=(count, WIDTHS[0])).astype(np.float32),
            rng.integers(0, WIDTHS[-1], count))


def _predicted(trainer, count):
    lowering = trainer._lowering
    batch = lowering.batch("train", VIRTUAL)
    strides = tuple(len(batch.rows) * size for size in (batch.data_bytes, batch.label_bytes))
    return predict(lowering.train(VIRTUAL, count, strides, trainer._regions, trainer._losses_at),
                   trainer.device.config).cycles


def _busy(timeline, tile, period):
    """Share of a period, from the middle of the first one on, in which matrix or vector unit of
    ``tile`` have an instruction."""
    spans = sorted((span.start, span.end) for span in timeline.spans if span.tile == tile
                   and span.queue in (Queue.MATRIX, Queue.VECTOR))
    first = spans[0][0] + period / 2
    last, total, reached = first + period, 0, first
    for start, end in spans:
        start, end = max(start, reached), min(end, last)
        if end > start:
            total, reached = total + end - start, end
    return total / period


def _bound(trainer):
    """The formula, for the tile with the most work."""
    n, stages = trainer.device.config.n, trainer.model.stages
    m, p = -(-VIRTUAL // SUB), len(trainer.plan.spans)

    def blocks(size):
        return -(-size // n)

    bounds = []
    for first, last in trainer.plan.spans:
        layers = [stages[s].linear for s in range(first, last + 1)]
        forward = sum(SUB * blocks(layer.inputs) * blocks(layer.outputs) for layer in layers)
        backward = sum(SUB * blocks(layer.inputs) * blocks(layer.outputs)
                       for s, layer in enumerate(layers, first) if s)
        weight = sum(layer.outputs * blocks(SUB) * blocks(layer.inputs) for layer in layers)
        bounds.append(max(m * (forward + backward + weight),
                          (m + p - 1) * (forward + backward) + weight))
    return max(bounds)
