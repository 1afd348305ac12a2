"""Parts of the stash codec on their own."""

import random

import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.lib import data
from amaranth.sim import Simulator
from gradmill_hw.stash.block_ring import BlockRing
from gradmill_hw.stash.body_rank import BodyRank
from gradmill_hw.stash.compact import Compact
from gradmill_hw.stash.formats import from_tag
from gradmill_hw.stash.ones import ones
from gradmill_hw.stash.outlier_model import body_exponent
from gradmill_hw.stash.tag import decode_tag


SEED = 20240903


def simulate(dut, bench, *others):
    sim = Simulator(dut)
    if not isinstance(dut, Module):
        sim.add_clock(1e-6)
    for other in others:
        sim.add_testbench(other, background=True)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("width", [1, 4, 6, 7, 8, 11])
def test_ones(width):
    m = Module()
    bits, count = Signal(width), Signal(5)
    m.d.comb += count.eq(ones(bits))

    async def bench(ctx):
        for value in range(1 << width):
            ctx.set(bits, value)
            assert ctx.get(count) == value.bit_count()

    simulate(m, bench)


def test_tags():
    m = Module()
    tag = Signal(8)
    info = decode_tag(m, tag, "info")

    async def bench(ctx):
        for value in range(256):
            ctx.set(tag, value)
            found, entry = ctx.get(info), from_tag(value)
            assert found.legal == (entry is not None)
            if entry is None:
                assert found.as_bits() == 0
                continue
            assert found.planes == entry.planes and found.packed == entry.packed
            assert found.signed == entry.kind.signed != found.positive
            assert found.exponent == entry.kind.exponent
            assert found.hierarchical == entry.hierarchical
            assert (found.outlier, found.four) == (bool(entry.outliers), entry.outliers == 4)
            assert (found.nonuniform, found.slot) == (entry.table is not None, entry.slot)

    simulate(m, bench)


@pytest.mark.parametrize("holds", [False, True])
def test_units_leave_whole(holds):
    """Rows in order, each with the summary of its unit, never one before its summary."""
    row = data.StructLayout({"number": 16, "last": 1})
    dut = BlockRing(row, 8, depth=8, holds=holds)
    rng = random.Random(SEED)
    units = [rng.choice([1, 2, 4]) for _ in range(60)]
    expected = [
        (unit & 255, place == size - 1) for unit, size in enumerate(units) for place in range(size)
    ]
    summarised = [0]

    async def feed(ctx):
        number = 0
        for unit, size in enumerate(units):
            for place in range(size):
                ctx.set(dut.summary_valid, 0)
                while rng.random() < 0.3 or not ctx.get(dut.room):
                    await ctx.tick()
                ctx.set(dut.claim, 1)
                ctx.set(dut.i_valid, 1)
                ctx.set(dut.i_row, {"number": number, "last": place == size - 1})
                number += 1
                if place < size - 1:
                    await ctx.tick()
                    ctx.set(dut.claim, 0)
                    ctx.set(dut.i_valid, 0)
            late = rng.random() < 0.5
            if late:
                await ctx.tick()
                ctx.set(dut.claim, 0)
                ctx.set(dut.i_valid, 0)
                await ctx.tick()
            ctx.set(dut.summary_valid, 1)
            ctx.set(dut.summary, unit & 255)
            await ctx.tick()
            summarised[0] += 1
            ctx.set(dut.claim, 0)
            ctx.set(dut.i_valid, 0)
            ctx.set(dut.summary_valid, 0)

    async def bench(ctx):
        seen = 0
        while seen < len(expected):
            go = rng.random() < 0.6
            ctx.set(dut.go, go)
            _, _, valid, number, last, summary = await ctx.tick().sample(
                dut.o_valid, dut.o_row.number, dut.o_row.last, dut.o_summary
            )
            if valid and (go or not holds):
                assert (number, summary, last) == (seen, *expected[seen])
                assert summarised[0] > sum(end for _, end in expected[:seen])
                seen += 1

    simulate(dut, bench, feed)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_marked_codes_stand_together(n):
    rng = np.random.default_rng([SEED, n])
    dut = Compact(n)
    units = [int(rng.integers(1, 7)) for _ in range(60)]
    rows = sum(units)
    codes = rng.integers(0, 256, (rows, n))
    density = rng.choice([0, 0.3, 0.8, 1], (rows, 1))
    marks = rng.random((rows, n)) < density
    firsts = np.zeros(rows, bool)
    firsts[np.cumsum([0, *units[:-1]])] = True
    lasts = np.roll(firsts, -1)
    groups, current = [np.full(n, -1)], 0

    async def feed(ctx):
        for row in range(rows):
            ctx.set(dut.i_valid, 1)
            ctx.set(dut.first, bool(firsts[row]))
            ctx.set(dut.last, bool(lasts[row]))
            ctx.set(dut.codes, codes[row].tolist())
            ctx.set(dut.marks, int((marks[row] << np.arange(n)).sum()))
            await ctx.tick()
            ctx.set(dut.i_valid, 0)
            if rng.random() < 0.3:
                await ctx.tick().repeat(2)

    async def bench(ctx):
        nonlocal current
        for _ in range(3 * rows + 20):
            _, _, valid, following, full, ended, values = await ctx.tick().sample(
                dut.o_valid, dut.o_next, dut.o_full, dut.o_ended, dut.o_codes
            )
            while len(groups) < current + 3:
                groups.append(np.full(n, -1))
            for lane in range(n):
                if valid >> lane & 1:
                    group = groups[current + (following >> lane & 1)]
                    assert group[lane] == -1
                    group[lane] = values[lane]
            current += full + ended

    simulate(dut, bench, feed)
    expected, row = [], 0
    for size in units:
        unit = slice(row, row + size)
        kept = codes[unit][marks[unit]]
        kept = np.concatenate([kept, np.full(-len(kept) % n, -1)])
        expected += kept.reshape(-1, n).tolist()
        row += size
    assert [group.tolist() for group in groups[:current]] == expected


def test_body_rank():
    rng = np.random.default_rng([SEED, 1])
    n, dut = 8, BodyRank(8)
    units, expected, found = [], [], []
    for _ in range(80):
        rows = int(rng.integers(1, 17))
        mag = np.minimum(np.abs(rng.normal(size=(rows, n)) * rng.choice([1, 3, 20])), 255)
        mag[rng.random((rows, n)) < 0.05] = rng.choice([0, 40, 255])
        mag = mag.astype(int)
        distance = np.full(rows, 7) + np.arange(rows) // 8 * int(rng.integers(0, 4))
        largest = int(rng.choice([3, 100]))
        most = int(rng.choice([2, 4]))
        bits = np.array([[int(v).bit_length() for v in row] for row in mag])
        exponent = (largest - (distance[:, None] - 7) + bits - 8).reshape(1, -1)
        nonzero = mag.reshape(1, -1) > 0
        body = body_exponent(np.where(nonzero, exponent, -99), nonzero, np.array([largest]))
        near = [(nonzero & (exponent >= largest - d)).sum() for d in range(7)]
        classes = sum(count <= most for count in near)
        quota = most - (near[classes - 1] if classes else 0)
        units.append((mag, distance, largest, most))
        expected.append((largest - int(body[0]), classes, quota))

    async def feed(ctx):
        for mag, distance, largest, most in units:
            for row in range(len(mag)):
                ctx.set(dut.i_valid, 1)
                ctx.set(dut.mag, mag[row].tolist())
                ctx.set(dut.distance, int(distance[row]))
                ctx.set(dut.largest, largest)
                ctx.set(dut.four, most == 4)
                ctx.set(dut.last, row == len(mag) - 1)
                await ctx.tick()
        ctx.set(dut.i_valid, 0)

    async def bench(ctx):
        while len(found) < len(units):
            _, _, valid, body = await ctx.tick().sample(dut.body_valid, dut.body)
            if valid:
                found.append((body.drop, body.classes, body.quota))

    simulate(dut, bench, feed)
    assert found == expected
