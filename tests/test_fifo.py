# amaranth: UnusedElaboratable=no

import random

import pytest
from amaranth import Value
from amaranth.lib import data
from amaranth.sim import Simulator
from gradmill_hw.memory.fifo import StreamFifo


SEED = 11
PAIR = data.StructLayout({"a": 3, "b": 9})

QUEUES = {
    "fifo": lambda: StreamFifo(12, depth=8),
    "smallest": lambda: StreamFifo(12, depth=2),
    "odd": lambda: StreamFifo(PAIR, depth=5),
    "unbuffered": lambda: StreamFifo(PAIR, depth=4, buffered=False),
    "register": lambda: StreamFifo(12, depth=1, buffered=False),
}


def run(dut, words, *, stall_in, stall_out):
    """Send 12-bit ``words`` through ``dut``; returns what arrives, and the cycles it took."""
    rng = random.Random(SEED)
    received = []
    cycles = 0

    async def send(ctx):
        for word in words:
            while rng.random() < stall_in:
                await ctx.tick()
            ctx.set(dut.i.valid, 1)
            ctx.set(Value.cast(dut.i.payload), word)
            await ctx.tick().until(dut.i.ready)
            ctx.set(dut.i.valid, 0)

    async def receive(ctx):
        nonlocal cycles
        while len(received) < len(words):
            ready = rng.random() >= stall_out
            ctx.set(dut.o.ready, ready)
            _, _, valid, word = await ctx.tick().sample(dut.o.valid, Value.cast(dut.o.payload))
            if valid and ready:
                received.append(word)
            cycles += 1
            assert cycles < 1000 + 100 * len(words)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(send)
    simulator.add_testbench(receive)
    simulator.run()
    return received, cycles


@pytest.mark.parametrize("stall_out", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("stall_in", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("name", QUEUES)
def test_order(name, stall_in, stall_out):
    print(f"seed={SEED}")
    words = [random.Random(SEED + i).getrandbits(12) for i in range(60)]
    received, _ = run(QUEUES[name](), words, stall_in=stall_in, stall_out=stall_out)
    assert received == words


@pytest.mark.parametrize(
    ("name", "latency"), [("fifo", 2), ("odd", 2), ("unbuffered", 1)]
)
def test_full_rate(name, latency):
    words = list(range(40))
    received, cycles = run(QUEUES[name](), words, stall_in=0, stall_out=0)
    assert received == words
    assert cycles == len(words) + latency


@pytest.mark.parametrize(("depth", "buffered"), [(1, False), (3, False), (2, True), (5, True)])
def test_level(depth, buffered):
    """The queue takes ``depth`` words while nothing leaves, and counts them."""
    dut = StreamFifo(4, depth=depth, buffered=buffered)

    async def testbench(ctx):
        ctx.set(dut.i.valid, 1)
        for expected in range(depth):
            assert ctx.get(dut.level) == expected
            await ctx.tick().until(dut.i.ready)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.level) == depth
        assert not ctx.get(dut.i.ready)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def test_payload_keeps_its_shape():
    dut = StreamFifo(PAIR, depth=2)

    async def testbench(ctx):
        ctx.set(dut.i.payload, {"a": 5, "b": 300})
        ctx.set(dut.i.valid, 1)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.o.payload) == PAIR.from_bits(5 | 300 << 3)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


@pytest.mark.parametrize(("depth", "buffered"), [(0, False), (1, True), (2.0, True)])
def test_refused(depth, buffered):
    with pytest.raises(ValueError, match=f"depth={depth}"):
        StreamFifo(4, depth=depth, buffered=buffered)
