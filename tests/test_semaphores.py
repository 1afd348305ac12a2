# amaranth: UnusedElaboratable=no
"""Semaphores against counters in Python; the rules themselves are proved in tests/formal."""

import random
from collections import Counter

import pytest
from amaranth.sim import Simulator
from gradmill_hw.control.semaphores import Semaphores
from gradmill_hw.isa import TILE_QUEUES, legal_tokens
from gradmill_hw.regs import SEMAPHORE_MAX


@pytest.mark.parametrize("maximum, posts", [(3, 0.3), (3, 0.1), (SEMAPHORE_MAX, 0.9)])
def test_random(maximum, posts):
    dut = Semaphores(maximum=maximum)
    rng = random.Random(maximum)
    tokens = Counter()
    seen = Counter()

    async def bench(ctx):
        for _ in range(600):
            wait = [
                rng.getrandbits(16) & rng.getrandbits(16) & rng.getrandbits(16) for _ in TILE_QUEUES
            ]
            post = [sum((rng.random() < posts) << bit for bit in range(16)) for _ in TILE_QUEUES]
            take = [rng.getrandbits(1) for _ in TILE_QUEUES]
            for queue in TILE_QUEUES:
                ctx.set(dut.wait[queue], wait[queue])
                ctx.set(dut.post[queue], post[queue])
                ctx.set(dut.take[queue], take[queue])
            change, overflow = Counter(), [0] * len(TILE_QUEUES)
            for queue in TILE_QUEUES:
                legal = legal_tokens(queue)
                wanted = [bit for bit in range(16) if wait[queue] & legal & 1 << bit]
                missing = sum(1 << bit for bit in wanted if not tokens[bit // 2, queue, bit % 2])
                assert ctx.get(dut.missing[queue]) == missing
                assert ctx.get(dut.available[queue]) == (not missing)
                if take[queue] and not missing:
                    seen["taken"] += len(wanted) > 1
                    change.update({(bit // 2, queue, bit % 2): -1 for bit in wanted})
                change.update(
                    {
                        (queue, bit // 2, bit % 2): 1
                        for bit in range(16)
                        if post[queue] & legal & 1 << bit
                    }
                )
            for key, amount in change.items():
                tokens[key] += amount
                if tokens[key] > maximum:
                    tokens[key] = maximum
                    overflow[key[0]] = 1
                    seen["overflow"] += 1
            assert [ctx.get(dut.overflow[queue]) for queue in TILE_QUEUES] == overflow
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert seen["taken"] and seen["overflow"]


def test_maximum():
    with pytest.raises(ValueError, match="power of two, not 4"):
        Semaphores(maximum=4)
