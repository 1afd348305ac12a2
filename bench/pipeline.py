"""Tiles in a pipeline: speed-up, period beside its bound, busy shares, error of the cycle model.

The network is balanced, F, B and W of each tile take nearly the same number of products, or not.
All cycles are those of a virtual minibatch in steady state, by RTL counters: those of a longer run
less those of a shorter one. Further virtual minibatches and chains are those of the cycle model.
"""

import numpy as np
from gradmill_hw.config import TILE
from gradmill_hw.isa import Queue
from rich.table import Table

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.timeline import record

from . import pipeline_model as chains


#: Virtual minibatches of the shorter and of the longer run.
RUNS = 1, 2


def run(console):
    """Print the tables: one tile on a machine of one, two and four on a chain of four; then what
    the cycle model expects of others."""
    chain, deep, roomy = (config.replace(tiles=4) for config in (TILE, chains.DEEP, chains.ROOMY))
    for widths, cases in (
            (chains.BALANCED, (
                (chain, 4, 16, 64), (chain, 4, 16, 16), (chain, 4, 16, 8), (TILE, 1, 16, 64),
                (chain, 2, 16, 64), (chain, 2, 16, 8), (deep, 4, 64, 16), (deep, 4, 64, 8),
                (deep, 2, 64, 8))),
            (chains.BROAD, ((roomy, 4, 32, 7), (roomy, 2, 32, 7))),
            (chains.UNEQUAL, ((chain, 4, 16, 64), (chain, 2, 16, 64)))):
        found = []
        for config, tiles, sub, count in cases:
            found.append(_measure(config, widths, tiles, sub, count, console.log))
            console.print(f"{tiles} tiles, M = {sub}, m = {count}: "
                          f"{found[-1]['cycles']:,.0f} cycles")
        found.sort(key=lambda one: (one["sub"], -one["count"], one["tiles"]))
        console.print(_periods(widths, found))
    console.print("T = max(m(F+B+W), (m+p-1)(F+B)+W), m = B/M: F, B, W are the cycles in which the "
                  "array of the slowest tile takes rows.\nArray busy: cycles with a row; tile "
                  "busy: with an instruction in the matrix or vector unit.")
    chains.run(console)


def _periods(widths, found):
    table = Table(title=f"MLP {'-'.join(map(str, widths))}, n = {TILE.n}: cycles per "
                        "virtual minibatch of m sub-minibatches of M samples in steady state")
    for column in ("M", "m", "tiles", "cycles", "speed-up", "T", "above T",
                   "predicted", "error", "array busy", "tile busy"):
        table.add_column(column, justify="right")
    for one in found:
        cycles, alone = one["cycles"], found[0]
        compared = alone["tiles"] == 1 and alone["count"] == one["count"]
        table.add_row(
            str(one["sub"]), str(one["count"]), str(one["tiles"]), f"{cycles:,.0f}",
            f"{alone['cycles'] / cycles:.3f}" if compared else "",
            f"{one['bound']:,}", f"{cycles / one['bound'] - 1:+.2%}",
            f"{one['predicted']:,.0f}", f"{one['predicted'] / cycles - 1:+.2%}",
            *(" ".join(f"{share:.1%}" for share in one[name]) for name in ("array", "busy")))
    return table


def _trainer(widths, tiles, device, sub, size):
    return gm.Trainer(chains.network(widths), device, tiles=tiles,
                      optimizer=gm.SGD(0.05, 0.9), virtual_minibatch=size, sub_minibatch=sub)


def _measure(config, widths, tiles, sub, count, tell):
    """Cycles of a virtual minibatch, measured and predicted, and what the tiles did; ``tell(text)``
    what is being done."""
    rng, totals, size = np.random.default_rng(0), [], count * sub
    name = f"{tiles} of {config.tiles} tiles, B = {size}, M = {sub}"
    tell(f"{name}: building the simulator")
    with gm.open("verilator", config, watchdog=1_000_000) as device:
        tell(f"{name}: programs")
        trainer = _trainer(widths, tiles, device, sub, size)
        trainer.predict(np.zeros((sub, widths[0]), np.float32))  # loads the weights too
        for virtual in RUNS:
            tell(f"{name}: {virtual} virtual minibatches on the RTL")
            device.clear_counters()
            with record(device) as timeline:
                trainer.fit(*_samples(rng, widths, virtual * size), epochs=1)
            totals.append(device.counters()["cycles"])
        used = device.tiles[:tiles]
        cycles = (totals[1] - totals[0]) / (RUNS[1] - RUNS[0])
        taken = [device.counters(tile)["array_rows"] / RUNS[1] for tile in used]
        busy = [_busy(timeline, tile, cycles) for tile in used]
        tell(f"{name}: cycle model")
        predicted = [_predicted(trainer, virtual) for virtual in RUNS]
    rows = chains.array_rows(trainer.plan, trainer.model, sub, config.n)
    return {"tiles": tiles, "sub": sub, "count": count, "cycles": cycles,
            "busy": busy, "array": [row / cycles for row in taken],
            "bound": chains.bound(rows, count),
            "predicted": (predicted[1] - predicted[0]) / (RUNS[1] - RUNS[0])}


def _covered(spans, first, last):
    """Cycles from ``first`` to ``last`` in which at least one of ``spans`` runs."""
    total, reached = 0, first
    for start, end in sorted((span.start, span.end) for span in spans):
        start, end = max(start, reached), min(end, last)
        if end > start:
            total, reached = total + end - start, end
    return total


def _samples(rng, widths, count):
    return (rng.normal(size=(count, widths[0])).astype(np.float32),
            rng.integers(0, widths[-1], count))


def _predicted(trainer, count):
    lowering = trainer._lowering
    size = trainer.virtual_minibatch
    batch = lowering.batch("train", size)
    strides = tuple(len(batch.rows) * size for size in (batch.data_bytes, batch.label_bytes))
    return predict(lowering.train(size, count, strides, trainer._regions, trainer._losses_at),
                   trainer.device.config).cycles


def _busy(timeline, tile, period):
    """Share of a period, from the middle of the first one on, in which matrix or vector unit of
    ``tile`` have an instruction."""
    spans = [span for span in timeline.spans if span.tile == tile
             and span.queue in (Queue.MATRIX, Queue.VECTOR)]
    first = min(span.start for span in spans) + period / 2
    return _covered(spans, first, first + period) / period
