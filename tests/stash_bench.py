"""Runs the stash circuits in Amaranth's simulator, all ends free of each other."""

import random

from amaranth.sim import Simulator
from gradmill_hw.stash.formats import piece_granules
from tb.stash_runs import SEED, STEP


def _simulate(dut, total, setup, benches, idle_out, *, limit):
    """Run until ``total`` words have come from ``dut.o`` and none more; return them and cycles."""
    words, cycles = [], [0]

    async def take(ctx):
        for signal, value in setup:
            ctx.set(signal, value)
        while len(words) < total:
            ctx.set(dut.o.ready, not idle_out())
            _, _, valid, ready, word = await ctx.tick().sample(
                dut.o.valid, dut.o.ready, dut.o.payload
            )
            cycles[0] += 1
            if valid and ready:
                words.append(word)
            assert cycles[0] < limit, f"stuck after {len(words)} of {total}"
        ctx.set(dut.o.ready, 1)
        for _ in range(80):
            _, _, valid = await ctx.tick().sample(dut.o.valid)
            assert not valid

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for bench in benches:
        sim.add_testbench(bench, background=True)
    sim.add_testbench(take)
    sim.run()
    return words, cycles[0]


async def _transfer(ctx, port, payload, *sampled):
    """Offer ``payload`` until it is taken; return ``sampled`` of that cycle."""
    ctx.set(port.payload, payload)
    ctx.set(port.valid, 1)
    ready = 0
    while not ready:
        _, _, ready, *values = await ctx.tick().sample(port.ready, *sampled)
    ctx.set(port.valid, 0)
    return values


def encode(dut, runs, *, stall_in=0.0, stall_out=0.0, write_tables=None, seed=1):
    """Pieces of all rows, bits and size, the outliers dropped, and the cycles."""
    rng_in, rng_out = random.Random(seed), random.Random(seed + 1)
    dropped = [0]

    async def feed(ctx):
        if write_tables is not None:
            await write_tables(ctx)
        for run in runs:
            for row in range(len(run)):
                while rng_in.random() < stall_in:
                    await ctx.tick()
                await _transfer(ctx, dut.i, run.to_encode(row))

    async def count(ctx):
        async for _, _, found in ctx.tick().sample(dut.dropped):
            dropped[0] += found

    total = sum(len(run) for run in runs)
    words, cycles = _simulate(
        dut,
        total,
        [(dut.seed, SEED), (dut.step, STEP)],
        [feed, count],
        lambda: rng_out.random() < stall_out,
        limit=2000 + 60 * total,
    )
    return words, dropped[0], cycles


def decode(dut, config, runs, streams, *, stall_in=0.0, stall_out=0.0, write_tables=None, seed=1):
    """Rows of all runs, and the cycles; ``streams`` lists (bits as an integer, granules)."""
    rng_in, rng_want, rng_out = (random.Random(seed + k) for k in range(3))
    most = piece_granules(config.n)
    ended = [0]

    async def feed(ctx):
        for number, (bits, granules) in enumerate(streams):
            at = 0
            while ended[0] <= number:
                if rng_in.random() >= stall_in:
                    ctx.set(
                        dut.i.payload,
                        {
                            "bits": bits >> at * config.n & (1 << most * config.n) - 1,
                            "left": min(most, granules - at),
                        },
                    )
                    ctx.set(dut.i.valid, 1)
                taken = 0
                while not taken and ended[0] <= number:
                    _, _, valid, ready, sizes, ends = await ctx.tick().sample(
                        dut.i.valid, dut.i.ready, dut.sizes, dut.ends
                    )
                    taken = valid and ready
                    if taken:
                        at += sizes.long if sizes.begins else sizes.short
                    ended[0] += ends
                    if not valid:
                        break
                if taken or ended[0] > number:
                    ctx.set(dut.i.valid, 0)
                at = min(at, granules)

    async def want(ctx):
        if write_tables is not None:
            await write_tables(ctx)
        for run in runs:
            for row in range(len(run)):
                while rng_want.random() < stall_in:
                    await ctx.tick()
                await _transfer(ctx, dut.wanted, run.to_decode(row))

    total = sum(len(run) for run in runs)
    return _simulate(
        dut,
        total,
        [(dut.seed, SEED), (dut.step, STEP)],
        [feed, want],
        lambda: rng_out.random() < stall_out,
        limit=2000 + 60 * total,
    )


def joined(words, n):
    """Pieces as bits."""
    bits = []
    for word in words:
        bits += [word.bits >> k & 1 for k in range(word.size * n)]
    return bits
