# amaranth: UnusedElaboratable=no

"""Both ends of a link: order, throughput against the round trip, and what is lost or invented."""

import random
from collections import deque

import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import NANO
from gradmill_hw.link.endpoints import LINK_CREDITS, ROUND_TRIP, LinkReceiver, LinkSender
from gradmill_hw.link.row import LinkRow
from tests.link_bench import Link, feed, take


SHAPE = LinkRow(NANO)
BITS = SHAPE.size


def words(count, seed=0):
    rng = random.Random(seed)
    return [rng.getrandbits(BITS) for _ in range(count)]


def run(dut, rows, *, stall_in=0.0, stall_out=0.0, cycles=None, events=None, seed=0):
    """Rows that arrive within ``cycles``, or until all have; and how many cycles it took.

    ``events`` is a function of the context and the cycle that may set inputs.
    """
    print(f"{seed=}")
    pending, came = deque(map(SHAPE.from_bits, rows)), []
    took = 0

    async def watch(ctx):
        nonlocal took
        while took < cycles if cycles is not None else len(came) < len(rows):
            if events is not None:
                events(ctx, took)
            await ctx.tick()
            took += 1
            assert took < 100_000, "no end"

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed(dut.i, pending, seed=seed, stall=stall_in), background=True)
    simulator.add_testbench(take(dut.o, came, seed=seed + 1, stall=stall_out), background=True)
    simulator.add_testbench(watch)
    simulator.run()
    return came, took


@pytest.mark.parametrize("stages", [(0, 0), (2, 0), (1, 3), (9, 9)])
@pytest.mark.parametrize(("stall_in", "stall_out"), [(0, 0.5), (0.5, 0), (0.2, 0.8), (0.8, 0.2)])
@pytest.mark.parametrize("credits", [3, LINK_CREDITS])
def test_order(credits, stall_in, stall_out, stages):
    dut = Link(NANO, credits=credits, there=stages[0], back=stages[1])
    rows = words(60, credits)
    errors = []

    def look(ctx, cycle):
        errors.append(ctx.get(dut.sender_error) or ctx.get(dut.receiver_error))

    came, _ = run(dut, rows, stall_in=stall_in, stall_out=stall_out, events=look)
    assert came == rows
    assert not any(errors)


@pytest.mark.parametrize("stages", [(0, 0), (1, 0), (0, 1), (5, 5), (6, 5), (11, 0)])
def test_full_rate(stages):
    """Eleven register stages cost no throughput; a row is under way for three cycles and them."""
    there, back = stages
    rows = words(100)
    came, cycles = run(Link(NANO, there=there, back=back), rows)
    assert came == rows
    assert cycles == len(rows) + 3 + there


@pytest.mark.parametrize(("credits", "stages"), [(3, (0, 0)), (4, (0, 0)), (4, (1, 2)),
                                                 (16, (6, 6)), (16, (10, 20))])  # fmt: skip
def test_round_trip_limits_the_rate(credits, stages):
    there, back = stages
    rows = words(20 * credits)
    came, cycles = run(Link(NANO, credits=credits, there=there, back=back), rows)
    assert came == rows
    assert cycles == 19 * (ROUND_TRIP + there + back) + credits + 3 + there


@pytest.mark.parametrize("stages", [(0, 0), (2, 3)])
def test_lost_credits(stages):
    """Each one makes the link slower, the last one stops it; no row is lost or repeated."""
    dut = Link(NANO, there=stages[0], back=stages[1])
    rows = words(400)
    rng = random.Random(3)
    hands, loses = [], []

    def lose(ctx, cycle):
        hands.append(ctx.get(dut.in_hand))
        loses.append(cycle > 20 and rng.random() < 0.1)
        ctx.set(dut.lose, loses[-1])

    came, _ = run(dut, rows, stall_out=0.1, cycles=1500, events=lose)
    assert LINK_CREDITS < len(came) < len(rows)
    assert came == rows[: len(came)]
    assert hands[-1] == 0


def test_one_lost_credit_lowers_the_rate():
    dut = Link(NANO, credits=5)
    rows = words(200)

    def lose(ctx, cycle):
        ctx.set(dut.lose, cycle == 10)

    came, cycles = run(dut, rows, events=lose)
    assert came == rows
    assert abs(cycles - len(rows) * ROUND_TRIP / 4) < 2 * ROUND_TRIP


@pytest.mark.parametrize("at", [0, 200])
def test_excess_credit(at):
    """It is an error for good, and is not used."""
    dut = Link(NANO)
    rows = words(60)
    errors, hands = [], []

    def add(ctx, cycle):
        errors.append(ctx.get(dut.sender_error))
        hands.append(ctx.get(dut.in_hand))
        ctx.set(dut.credit, cycle == at)

    came, _ = run(dut, rows, cycles=400, events=add)
    assert came == rows
    assert errors == [cycle > at for cycle in range(400)]
    assert max(hands) == LINK_CREDITS


def test_row_without_credit():
    """It is an error for good, and no row that had a credit suffers."""
    dut = Link(NANO)
    rows = words(LINK_CREDITS)
    errors = []

    def add(ctx, cycle):
        errors.append(ctx.get(dut.receiver_error))
        ctx.set(dut.row, cycle == 100)

    async def watch(ctx):
        ctx.set(dut.o.ready, 0)
        for cycle in range(200):
            add(ctx, cycle)
            await ctx.tick()
        ctx.set(dut.o.ready, 1)
        for row in rows:
            _, _, valid, bits = await ctx.tick().sample(dut.o.valid, dut.o.payload.as_value())
            assert valid and bits == row
        await ctx.tick().repeat(20)
        assert not ctx.get(dut.o.valid)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    pending = deque(map(SHAPE.from_bits, rows))
    simulator.add_testbench(feed(dut.i, pending), background=True)
    simulator.add_testbench(watch)
    simulator.run()
    assert errors == [cycle > 100 for cycle in range(200)]


@pytest.mark.parametrize(("component", "credits"), [(LinkSender, 0), (LinkReceiver, 2)])
def test_refused(component, credits):
    with pytest.raises(ValueError, match=f"not {credits}"):
        component(NANO, credits)
