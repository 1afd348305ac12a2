"""Occupancy of both memories and idle causes, from what ran."""

import numpy as np
import pytest

import gradmill as gm
from bench.memory import CONFIG, network
from gradmill.report.figures import tiers
from gradmill.report.tiers import idle, measured, occupancy
from gradmill.timeline import Span, Timeline, Work, read_trace, record
from gradmill_hw.isa import Opcode, Queue
from gradmill_hw.regs import Tier


NEAR, FAR = Tier


def span(queue, opcode, start, end, *moved):
    return Span(0, queue, opcode, 0, start, end, Work.OTHER, 0, moved=moved)


def stored(start, end, address, count=1):
    return span(Queue.STORE, Opcode.STORE, start, end, (0, 1, address, 64, count, 64))


def loaded(start, end, address, count=1):
    return span(Queue.LOAD, Opcode.LOAD, start, end, (0, 0, address, 64, count, 64))


def copied(start, end, address, *, out):
    near, far = (0, int(not out), address, 64, 1, 64), (1, int(out), 4096, 64, 1, 64)
    return span(Queue.COPY, Opcode.COPY, start, end, *((near, far) if out else (far, near)))


def test_a_place_is_taken_from_its_write_to_the_last_read():
    held = occupancy([stored(10, 20, 0, 2), copied(20, 60, 0, out=True), loaded(70, 75, 64),
                      stored(80, 90, 0), loaded(90, 95, 0), copied(100, 140, 64, out=False),
                      loaded(140, 150, 64)])
    assert held[NEAR] == ([10, 60, 75, 80, 95, 100, 150], [128, 64, 0, 64, 0, 64, 0])
    assert held[FAR] == ([20, 140], [64, 0])


def test_what_the_record_cuts_off_was_there_and_stays():
    held = occupancy([loaded(10, 20, 0), loaded(22, 25, 0), stored(30, 40, 0), loaded(0, 5, 128),
                      loaded(50, 60, 192)])
    assert held[NEAR] == ([0, 5, 25, 30, 60], [192, 128, 64, 128, 0])


def test_idle_cycles_have_a_cause():
    product = span(Queue.MATRIX, Opcode.MATMUL, 0, 40)
    vector = span(Queue.VECTOR, Opcode.VECTOR, 20, 50)
    later = span(Queue.MATRIX, Opcode.MATMUL, 90, 100)
    found = idle([product, vector, loaded(45, 60, 0), copied(30, 80, 0, out=False), later])
    assert found == {"vector unit works": 0.1, "near memory moves": 0.1, "far memory moves": 0.2,
                     "nothing runs": 0.1}


@pytest.mark.rtl
@pytest.mark.long
def test_the_rtl_holds_what_the_manager_planned(tmp_path):
    rng = np.random.default_rng(1)
    widths = (8, *[16] * 6, 4)
    x = rng.normal(size=(3 * 32, 8)).astype(np.float32)
    y = rng.integers(0, 4, len(x))
    with gm.open("verilator", CONFIG, near_bytes=1 << 21, bandwidth=(None, 0.1)) as device:
        trainer = gm.Trainer(network(widths), device, optimizer=gm.SGD(0.05, 0.9),
                             virtual_minibatch=32, sub_minibatch=16, fast_memory="40%")
        trainer.fit(x[:32], y[:32], epochs=1)
        with record(device) as timeline:
            trainer.fit(x[32:], y[32:], epochs=1)
    memory = trainer.memory
    found = measured(timeline)
    size = CONFIG.run_bytes("bfp", 16)
    assert found["most_bytes"] == {"near": memory.count * size, "far": memory.excess * size}
    assert 0 < sum(found["idle"].values()) < 1
    again = read_trace(timeline.write_trace(tmp_path / "timeline.json"))
    assert occupancy(again.spans) == occupancy(timeline.spans)
    picture = tiers(Timeline(timeline.tiles, again.spans), memory.count * memory.place)
    assert "far memory moves" in picture and "near, KiB" in picture
