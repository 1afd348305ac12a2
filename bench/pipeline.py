"""Tiles in a pipeline: speed-up, period beside its bound, busy shares, error of the cycle model.

The network is balanced: on four tiles, F, B and W of each take nearly the same number of products.
All cycles are those of a virtual minibatch in steady state, by RTL counters: those of a longer run
less those of a shorter one. Further virtual minibatches and chains are those of the cycle model.
"""

import numpy as np
from gradmill_hw.config import TILE
from gradmill_hw.isa import Queue
from rich.table import Table

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.timeline import Work, record

from . import pipeline_model as chains


WIDTHS, SUB, VIRTUAL = (8, 64, 64, 72, 64, 64, 8), 16, 1024
#: Virtual minibatches of the shorter and of the longer run.
RUNS = 1, 2
#: Sub-minibatches of the run in which each is alone.
ALONE = 4


def run(console):
    """Print the tables: one tile on a machine of one, two and four on a chain of four; then what
    the cycle model expects of others."""
    chain, found = TILE.replace(tiles=4), []
    for config, tiles, size in ((chain, 4, VIRTUAL), (chain, 4, 256), (chain, 4, 128),
                                (TILE, 1, VIRTUAL), (chain, 2, VIRTUAL), (chain, 2, 128)):
        found.append(_measure(config, tiles, size, console.log))
        console.print(f"{tiles} tiles, B = {size}: {found[-1]['cycles']:,.0f} cycles")
    found.sort(key=lambda one: (-one["count"], one["tiles"]))
    console.print(_periods(found), _stages(found))
    console.print("T = max(m(F+B+W), (m+p-1)(F+B)+W), m = B/M, for the slowest tile. Array rows: "
                  "F, B, W are cycles in which its array takes rows. Stage times: cycles in which "
                  "a unit of it is at work on the pass, one sub-minibatch at a time.\nArray busy: "
                  "cycles with a row; tile busy: with an instruction in the matrix or vector unit.")
    chains.run(console)


def _periods(found):
    table = Table(title=f"MLP {'-'.join(map(str, WIDTHS))}, M = {SUB}, n = {TILE.n}: cycles per "
                        "virtual minibatch of m sub-minibatches in steady state")
    for column in ("m", "tiles", "cycles", "speed-up", "T (array rows)", "above", "T (stage times)",
                   "above", "predicted", "error", "array busy", "tile busy"):
        table.add_column(column, justify="right")
    for one in found:
        cycles, alone = one["cycles"], found[0]
        table.add_row(
            str(one["count"]), str(one["tiles"]), f"{cycles:,.0f}",
            f"{alone['cycles'] / cycles:.3f}" if one["count"] == alone["count"] else "",
            f"{one['rows_bound']:,}", f"{cycles / one['rows_bound'] - 1:+.2%}",
            f"{one['stage_bound']:,.0f}", f"{cycles / one['stage_bound'] - 1:+.2%}",
            f"{one['predicted']:,.0f}", f"{one['predicted'] / cycles - 1:+.2%}",
            *(" ".join(f"{share:.1%}" for share in one[name]) for name in ("array", "busy")))
    return table


def _stages(found):
    table = Table(title="F, B, W of each tile for a sub-minibatch: array rows, stage times")
    for column in ("tiles", "tile", "F", "B", "W"):
        table.add_column(column, justify="right")
    for one in (one for one in found if one["count"] == found[0]["count"]):
        for tile, pair in enumerate(zip(one["rows"], one["stages"], strict=True)):
            table.add_row(str(one["tiles"]), str(tile), *(f"{rows:,}, {cycles:,.0f}" for
                                                          rows, cycles in zip(*pair, strict=True)))
    return table


def _trainer(tiles, device, size, schedule=None):
    return gm.Trainer(chains.network(WIDTHS), device, tiles=tiles, schedule=schedule,
                      optimizer=gm.SGD(0.05, 0.9), virtual_minibatch=size, sub_minibatch=SUB)


def _measure(config, tiles, size, tell):
    """Cycles of a virtual minibatch, measured and predicted, and what the tiles did; ``tell(text)``
    what is being done."""
    rng, totals = np.random.default_rng(0), []
    name = f"{tiles} of {config.tiles} tiles, B = {size}"
    tell(f"{name}: building the simulator")
    with gm.open("verilator", config, watchdog=1_000_000) as device:
        tell(f"{name}: programs")
        trainer = _trainer(tiles, device, size)
        trainer.predict(np.zeros((SUB, WIDTHS[0]), np.float32))  # loads the weights too
        for count in RUNS:
            tell(f"{name}: {count} virtual minibatches on the RTL")
            device.clear_counters()
            with record(device) as timeline:
                trainer.fit(*_samples(rng, count * size), epochs=1)
            totals.append(device.counters()["cycles"])
        used = device.tiles[:tiles]
        cycles = (totals[1] - totals[0]) / (RUNS[1] - RUNS[0])
        taken = [device.counters(tile)["array_rows"] / RUNS[1] for tile in used]
        busy = [_busy(timeline, tile, cycles) for tile in used]
        tell(f"{name}: one sub-minibatch at a time on the RTL")
        stages = _alone(tiles, device, rng)
        tell(f"{name}: cycle model")
        predicted = [_predicted(trainer, count) for count in RUNS]
    rows, count = chains.array_rows(trainer.plan, trainer.model, SUB, config.n), size // SUB
    return {"tiles": tiles, "count": count, "cycles": cycles,
            "busy": busy, "array": [row / cycles for row in taken],
            "rows": rows, "rows_bound": chains.bound(rows, count),
            "stages": stages, "stage_bound": chains.bound(stages, count),
            "predicted": (predicted[1] - predicted[0]) / (RUNS[1] - RUNS[0])}


def _alone(tiles, device, rng):
    """F, B, W of each tile in cycles in which a unit of it is at work: the mean of the inner
    sub-minibatches of a virtual minibatch which has one of them in the pipeline at a time."""
    trainer = _trainer(tiles, device, ALONE * SUB, "sequential")
    trainer.predict(np.zeros((SUB, WIDTHS[0]), np.float32))
    with record(device) as timeline:
        trainer.fit(*_samples(rng, ALONE * SUB), epochs=1)
    return [np.mean([stage_times(timeline, tile, sub, last=tile == tiles - 1)
                     for sub in range(1, ALONE - 1)], axis=0).tolist() for tile in range(tiles)]


def stage_times(timeline, tile, sub, *, last):
    """Cycles in which ``tile`` works on F, B, W of a sub-minibatch that is alone: with an
    instruction in its matrix or vector unit, or rows on their way to a neighbour.

    F ends when its outputs have left, on the ``last`` tile with the loss; B when its data gradient
    has left. Tile 0 sends none; its data gradients are part of W.
    """
    spans = [span for span in timeline.spans if span.tile == tile
             and span.queue in (Queue.MATRIX, Queue.VECTOR, Queue.LINK_OUT)]

    def first(work, of=sub):
        return min((span.start for span in spans if span.sub == of and span.work is work),
                   default=None)

    start, following = first(Work.FORWARD), first(Work.FORWARD, of=sub + 1)
    back = first(Work.DATA_GRADIENT) or first(Work.WEIGHT_GRADIENT)

    def sent(work):
        return max(span.end for span in spans if span.queue is Queue.LINK_OUT
                   and span.work is work and start <= span.start < following)

    forward = back if last else sent(Work.FORWARD)
    returned = sent(Work.DATA_GRADIENT) if tile else max(back, forward)
    return [_covered(spans, *window) for window in
            ((start, forward), (forward, returned), (returned, following))]


def _covered(spans, first, last):
    """Cycles from ``first`` to ``last`` in which at least one of ``spans`` runs."""
    total, reached = 0, first
    for start, end in sorted((span.start, span.end) for span in spans):
        start, end = max(start, reached), min(end, last)
        if end > start:
            total, reached = total + end - start, end
    return total


def _samples(rng, count):
    return (rng.normal(size=(count, WIDTHS[0])).astype(np.float32),
            rng.integers(0, WIDTHS[-1], count))


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
