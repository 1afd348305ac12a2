"""The memory bus of several tiles: turns, and who holds up whom."""

import pytest

from gradmill.banks import Access, Passage
from gradmill.cycle_model import _Clock
from gradmill.shared_bus import Mover, SharedBus
from gradmill.unit_times import Memory, TransferTimes, Units
from gradmill_hw.config import TILE
from gradmill_hw.isa import Queue

LATENCY = 16
BANK = Access.ACC_WRITE(0)


@pytest.fixture
def clock():
    return _Clock()


def shared(clock, **options):
    return SharedBus(clock, Memory(LATENCY), **{"listed": 3, "burst_beats": 16, **options})


def taker(found, name, passed=0):
    """Notes when the beats are there, takes them until ``passed``."""
    def comes(now, run, begin, end):
        found[name] = begin, end
        return Passage(Queue.LOAD, passed, 0, {})
    return comes


def test_clients_take_turns_run_by_run(clock):
    bus, found = shared(clock), {}
    for k in range(4):
        bus.ask(0, "long", 16, taker(found, f"long {k}"))
    clock.at(1, lambda now: bus.ask(now, "short", 1, taker(found, "short")))
    clock.run()
    assert found["long 0"] == (LATENCY, LATENCY + 16)
    assert found["short"] == (64, 65), "three runs had been granted"
    assert found["long 3"] == (65, 81)


def test_who_does_not_take_its_beats_holds_up_the_others(clock):
    bus, found = shared(clock), {}
    bus.ask(0, "slow", 16, taker(found, "slow", passed=500), buffered=100)
    bus.ask(0, "other", 16, taker(found, "other"))
    clock.run()
    assert found["slow"] == (LATENCY, LATENCY + 16)
    assert found["other"][0] == 400


def test_a_unit_moves_runs_in_order_whichever_bus_they_come_from(clock):
    """The second bus is idle, but its run waits for that of the busy one."""
    near, far = shared(clock), shared(clock)
    units, ends = Units(TILE, [near, near, far, far]), []
    mover = Mover(clock, units)
    near.ask(0, "another tile", 300, taker({}, "another tile"))
    for bus in (near, far):
        mover.start(0, TransferTimes(Queue.LOAD, bus, 1, 16, 16, {BANK: 1}, 1),
                    lambda passage: ends.append(passage.passed))
    clock.run()
    first, second = ends
    assert first == LATENCY + 300 + 16
    assert second == first + 16


def test_tiles_do_not_wait_for_each_other_at_two_memories(clock):
    """One loads from near memory, then from far memory, the other one from far, then from near,
    behind a transfer that keeps both memories busy."""
    near, far = shared(clock, listed=1), shared(clock, listed=1)
    ended = []
    for bus in (near, far):
        bus.ask(0, "another tile", 16, taker({}, "another tile"))
    for order in ((near, far), (far, near)):
        mover = Mover(clock, Units(TILE, [near, near, far, far]))
        for bus in order:
            mover.start(0, TransferTimes(Queue.LOAD, bus, 2, 16, 16, {BANK: 1}, 1), ended.append)
    clock.run()
    assert len(ended) == 4
