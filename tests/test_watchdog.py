"""The watchdog counts cycles without progress."""

import random

import pytest
from amaranth.sim import Simulator
from gradmill_hw.control.watchdog import Watchdog


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 30])
def test_random(limit):
    dut = Watchdog(width=8)
    rng = random.Random(limit)

    async def bench(ctx):
        ctx.set(dut.limit, limit)
        await ctx.tick().repeat(2)
        quiet = expired = 0
        for _ in range(3000):
            active, progress = rng.random() < 0.98, rng.random() < 0.03
            ctx.set(dut.active, active)
            ctx.set(dut.progress, progress)
            _, _, now = await ctx.tick().sample(dut.expired)
            assert now == (limit != 0 and quiet >= limit)
            expired += now
            quiet = quiet + 1 if active and not progress else 0
        assert bool(expired) == bool(limit)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
