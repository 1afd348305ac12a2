"""What the RTL reports that it did: spans, passes, sets, periods."""

import json

import numpy as np
import pytest

import gradmill as gm
from gradmill.timeline import Span, Timeline, Work, read_trace, record
from gradmill_hw.isa import Opcode, Queue
from tests.test_pipeline import CHAIN, network


WIDTHS, SIZE, SUB, BATCHES = (12, 16, 12, 5), 24, 4, 5
COUNT = SIZE // SUB


@pytest.fixture(scope="module")
def run():
    """A recorded epoch on the chain: timeline, trainer, counters and sets of each tile."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE * BATCHES, WIDTHS[0])).astype(np.float32)
    y = rng.integers(0, WIDTHS[-1], len(x))
    with gm.open("verilator", CHAIN, watchdog=100_000) as device:
        trainer = gm.Trainer(network(WIDTHS), device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                             virtual_minibatch=SIZE, sub_minibatch=SUB)
        device.clear_counters()
        with record(device) as timeline:
            trainer.fit(x, y, epochs=1)
        yield (timeline, trainer, [device.counters(tile) for tile in device.tiles],
               [device.stash(tile) for tile in device.tiles])


@pytest.mark.rtl
def test_spans_agree_with_the_counters(run):
    timeline, _, counters, _ = run
    for tile in timeline.tiles:
        for queue in CHAIN.queues:
            name = queue.name.lower()
            spans = [span for span in timeline.spans if (span.tile, span.queue) == (tile, queue)]
            assert len(spans) == counters[tile][f"instructions_{name}"] > 0
            running = np.zeros(timeline.cycles[1] + 2, bool)
            for span in spans:
                running[span.start:span.end] = True
            assert abs(int(running.sum()) - counters[tile][f"busy_{name}"]) <= len(spans)


@pytest.mark.rtl
def test_sets_over_time_reach_what_the_register_says(run):
    timeline, trainer, _, stash = run
    for tile in timeline.tiles:
        cycles, sets = timeline.sets(tile)
        assert (sets[-1], sets.max()) == stash[tile]
        assert sets.min() == sets[-1] == 0 < sets.max() <= trainer.plan.limits[tile]
        assert len(cycles) == 2 * COUNT * BATCHES
        assert (np.diff(cycles) >= 0).all()


@pytest.mark.rtl
def test_products_are_told_apart(run):
    """Every tile has as many passes of each kind as the plan's order, each kind in order."""
    timeline, trainer, _, _ = run
    assert len(timeline.starts(COUNT)) == BATCHES
    kinds = {Work.FORWARD: "F", Work.DATA_GRADIENT: "B", Work.WEIGHT_GRADIENT: "W"}
    for tile in timeline.tiles:
        passes = []
        for span in sorted(timeline.spans, key=lambda span: span.start):
            if span.tile == tile and span.queue is Queue.MATRIX:
                entry = kinds[span.work], span.sub
                if entry not in passes:
                    passes.append(entry)
        expected = [(kind, v * COUNT + j) for v in range(BATCHES)
                    for t, kind, j in trainer.plan.order if t == tile and (tile or kind != "B")]
        for kind in "FBW":
            assert [entry for entry in passes if entry[0] == kind] == [
                entry for entry in expected if entry[0] == kind]


@pytest.mark.rtl
@pytest.mark.parametrize("schedule", ["zero-bubble", "sequential"])
def test_tiles_compute_at_the_same_time(schedule):
    """At least two have a product in four of five cycles from the second virtual minibatch to the
    third, in sequence seldom."""
    widths, size, sub = (8, 32, 32, 40, 32, 8), 256, 8
    rng = np.random.default_rng(1)
    with gm.open("verilator", CHAIN, watchdog=100_000) as device:
        trainer = gm.Trainer(network(widths), device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                             virtual_minibatch=size, sub_minibatch=sub, schedule=schedule)
        with record(device) as timeline:
            trainer.fit(rng.normal(size=(3 * size, widths[0])).astype(np.float32),
                        rng.integers(0, widths[-1], 3 * size), epochs=1)
    first, last = timeline.starts(size // sub)[1:]
    computing = np.zeros((CHAIN.tiles, timeline.cycles[1] + 1), bool)
    for span in timeline.spans:
        if span.opcode is Opcode.MATMUL:
            computing[span.tile, span.start:span.end] = True
    together = (computing[:, first:last].sum(axis=0) >= 2).mean()
    assert together > 0.8 if schedule == "zero-bubble" else together < 0.2, together


@pytest.mark.rtl
def test_a_trace_comes_back_as_it_was(run, tmp_path):
    timeline = run[0]
    path = timeline.write_trace(tmp_path / "trace.json")
    again = read_trace(path)
    assert again.spans == timeline.spans and again.tiles == timeline.tiles
    events = json.loads(path.read_text())["traceEvents"]
    names = {(event["pid"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    assert (2, "tile 2") in names and (0, "link in") in names


def _forward(start, tile=0, sets=1):
    return Span(tile, Queue.MATRIX, Opcode.MATMUL, 0, start, start + 5, Work.FORWARD, sets)


def test_the_period_is_that_of_the_second_half():
    timeline = Timeline(range(1), [_forward(start) for start in (0, 9, 100, 130, 160, 170, 190)])
    assert timeline.starts(1) == [0, 9, 100, 130, 160, 170, 190]
    assert timeline.period(1) == (190 - 130) / 3
    assert timeline.starts(2) == [0, 100, 160, 190]
    assert timeline.period(2) == (190 - 100) / 2
    assert timeline.period(7) is None
    assert [span.start for span in timeline.between(14, 160).spans] == [100, 130]
    both = Timeline(range(2), [_forward(0), _forward(2, tile=1), _forward(3, sets=0)])
    assert both.starts(1) == [0]


def test_the_emulator_has_no_clock():
    with gm.open("emulator", "nano") as device, pytest.raises(ValueError, match="has no clock"), \
            record(device):
        pass
