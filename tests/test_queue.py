# amaranth: UnusedElaboratable=no
"""A command queue with a unit and a source that come and go; its rules are proved in formal."""

import random
from collections import deque

import pytest
from amaranth.sim import Simulator
from gradmill_hw.control.queue import CommandQueue
from gradmill_hw.isa import Queue, legal_tokens


@pytest.mark.parametrize("depth", [2, 8])
@pytest.mark.parametrize("busy", [0.0, 0.7])
def test_random(depth, busy):
    """Order, masks, places; nothing is started without a grant or while stopped."""
    dut = CommandQueue(Queue.VECTOR, depth=depth)
    legal = legal_tokens(Queue.VECTOR)
    rng = random.Random(depth)
    count = 400

    async def bench(ctx):
        pushed, waiting, head, running = 0, deque(), None, deque()
        ended = places = granted = 0
        for _ in range(60000):
            wait, post = rng.getrandbits(16), rng.getrandbits(16)
            push = pushed < count and ctx.get(dut.ready) and rng.random() >= busy
            fetched = ctx.get(dut.fetch) and rng.random() >= busy / 2
            stop = rng.random() < 0.1
            done = bool(running) and rng.random() >= busy
            accept = rng.random() >= busy
            ctx.set(dut.push, push)
            ctx.set(dut.push_wait, wait)
            ctx.set(dut.push_post, post)
            ctx.set(dut.stop, stop)
            ctx.set(dut.done, done)
            ctx.set(dut.accept, accept)
            if fetched and not ctx.get(dut.fetch):
                fetched = False
            ctx.set(dut.fetched, fetched)
            grant = rng.random() < 0.7
            ctx.set(dut.granted, grant)

            unfinished = len(waiting) + (head is not None) + len(running)
            assert ctx.get(dut.ready) == (unfinished < depth)
            assert ctx.get(dut.empty) == (unfinished == 0)
            assert ctx.get(dut.executing) == bool(running)
            assert ctx.get(dut.oldest) == ended % depth
            assert ctx.get(dut.post) == (running[0][1] & legal if done else 0)
            assert ctx.get(dut.start) == granted
            if ctx.get(dut.request):
                assert head is not None and not stop and not granted
                assert ctx.get(dut.wait) == head[0] & legal
            if fetched:
                assert ctx.get(dut.fetch_place) == places % depth
            if push:
                assert ctx.get(dut.push_place) == pushed % depth

            take = ctx.get(dut.start) and accept
            granted = (granted and not take) or (ctx.get(dut.request) and grant)
            await ctx.tick()
            if done:
                running.popleft()
                ended += 1
            if take:
                running.append(head)
                head = None
            if fetched:
                head = waiting.popleft()
                places += 1
            if push:
                waiting.append((wait, post))
                pushed += 1
            if ended == count:
                return
        raise AssertionError(f"{ended} of {count} commands ended")

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def test_start_interval():
    """A start every second cycle; the first one three cycles after the push."""
    dut = CommandQueue(Queue.LOAD, depth=4)

    async def bench(ctx):
        for signal in (dut.push, dut.granted, dut.accept, dut.done):
            ctx.set(signal, 1)
        starts = []
        for cycle in range(20):
            ctx.set(dut.push, ctx.get(dut.ready))
            ctx.set(dut.fetched, ctx.get(dut.fetch))
            if ctx.get(dut.start):
                starts.append(cycle)
            await ctx.tick()
        assert starts[:4] == [3, 5, 7, 9]

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def test_failure():
    """A failed command stays the oldest; nothing is started, posted or ended after it."""
    dut = CommandQueue(Queue.LOAD, depth=4)

    async def bench(ctx):
        ctx.set(dut.granted, 1)
        ctx.set(dut.accept, 1)
        for k in range(60):
            ctx.set(dut.push, ctx.get(dut.ready))
            ctx.set(dut.push_post, 0xFFFF)
            ctx.set(dut.fetched, ctx.get(dut.fetch))
            ctx.set(dut.done, k > 20 and ctx.get(dut.executing))
            ctx.set(dut.failed, k == 25)
            if k == 25:
                failed = ctx.get(dut.oldest)
            if k > 25:
                assert ctx.get(dut.oldest) == failed
                assert not ctx.get(dut.post) and not ctx.get(dut.request)
                assert ctx.get(dut.settled)
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def test_depth():
    with pytest.raises(ValueError, match="power of two from 2, not 3"):
        CommandQueue(Queue.LOAD, depth=3)
