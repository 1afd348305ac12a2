"""Counters against sums in Python, read while they run."""

import random
from collections import Counter

import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import NANO
from gradmill_hw.control.counters import Counters
from gradmill_hw.isa import Class
from gradmill_hw.regs import COUNTER_INDEX, COUNTERS, Tier, byte_counter


async def read(ctx, port, index, high=0):
    ctx.set(port.index, index)
    ctx.set(port.high, high)
    ctx.set(port.valid, 1)
    (word,) = await ctx.tick().sample(port.data).until(port.ready)
    ctx.set(port.valid, 0)
    return word


async def read_counter(ctx, port, index):
    return await read(ctx, port, index) | await read(ctx, port, index, 1) << 32


def simulate(dut, *benches):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for bench, background in benches:
        sim.add_testbench(bench, background=background)
    sim.run()


CONFIGS = {
    "nano": NANO,
    "wide": NANO.replace(n=8, bus_bits=256, copy=True),
    "widest": NANO.replace(n=32, bus_bits=1024),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_random(name):
    config = CONFIGS[name]
    dut = Counters(config)
    rng = random.Random(1)
    want = Counter()
    state = {"run": True, "cleared": False}

    async def events(ctx):
        shape = dut.events.shape()
        names = list(shape.members)
        await ctx.tick().repeat(2)
        while state["run"]:
            now = {key: rng.randrange(1 + (config.n**2 if key == "macs" else 1)) for key in names}
            ctx.set(dut.events, now)
            want.update(now)
            for direction, port in [*(("read", port) for port in dut.read),
                                    *(("write", port) for port in dut.write)]:
                tier, cls = rng.choice([*Tier]), rng.choice([*Class])
                amount = config.beat_bytes * rng.choice([0, 0, 1, 5, 60000])
                ctx.set(port, {"bytes": amount, "tier": tier, "cls": cls})
                want[f"{tier.name}_{direction}_{cls.name}_bytes".lower()] += amount
            instruction = rng.getrandbits(1)
            ctx.set(dut.instruction, instruction)
            want["near_read_command_bytes"] += 64 * instruction
            await ctx.tick()
        ctx.set(dut.events, {})
        ctx.set(dut.instruction, 0)
        for port in (*dut.read, *dut.write):
            ctx.set(port.bytes, 0)

    async def host(ctx):
        await ctx.tick().repeat(2)
        last = Counter()
        for _ in range(150):
            counter = rng.choice(COUNTERS)
            value = await read_counter(ctx, dut.port, counter.index)
            assert last[counter.name] <= value <= want[counter.name]
            last[counter.name] = value
        state["run"] = False
        await ctx.tick().repeat(3)
        for counter in COUNTERS:
            assert await read_counter(ctx, dut.port, counter.index) == want[counter.name]
        for index in set(range(128)) - set(COUNTER_INDEX.values()):
            assert await read_counter(ctx, dut.port, index) == 0
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        ctx.set(dut.events, dict.fromkeys(dut.events.shape().members, 1))
        await ctx.tick()
        ctx.set(dut.events, {})
        for counter in COUNTERS:
            once = counter.index < byte_counter(Tier.NEAR, False, 0)
            assert await read_counter(ctx, dut.port, counter.index) == once, counter.name

    simulate(dut, (host, False), (events, True))


def test_beyond_a_word():
    """Sums carry into the high word, which a read of the low word freezes."""
    dut = Counters(NANO)
    index = byte_counter(Tier.FAR, True, Class.STASH)
    most = (1 << len(dut.write[0].bytes)) - NANO.beat_bytes

    async def bench(ctx):
        await ctx.tick().repeat(2)
        ctx.set(dut.write[0], {"bytes": most, "tier": 1, "cls": Class.STASH})
        await ctx.tick().repeat(3000)
        low = await read(ctx, dut.port, index)
        await ctx.tick().repeat(5000)
        assert await read(ctx, dut.port, index, 1) << 32 | low == 3000 * most
        assert await read_counter(ctx, dut.port, index) == 8002 * most

    simulate(dut, (bench, False))
