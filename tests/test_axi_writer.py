"""AXI writer: stalls on every channel, errors in any burst, bytes that must not change."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, Config
from gradmill_hw.memory.axi_writer import AxiWriter
from tests.axi_memory import AxiMemory


CONFIGS = {"nano": NANO, "sim": Config(), "short": Config(burst_beats=2, reads_in_flight=1)}
MEMORY_BYTES = 1 << 15


def write_all(dut, requests, reports, *, seed, stall):
    """Testbenches of a client: requests (addr, [(data, strobe)]), their beats, their reports."""

    def rng_of(channel):
        return random.Random(f"{seed} {channel}")

    async def offer(ctx, port, payloads, rng):
        for payload in payloads:
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(port.payload, payload)
            ctx.set(port.valid, 1)
            await ctx.tick().until(port.ready)
            ctx.set(port.valid, 0)

    async def ask(ctx):
        await offer(
            ctx,
            dut.client.request,
            [{"addr": addr, "beats": len(beats)} for addr, beats in requests],
            rng_of("a"),
        )

    async def fill(ctx):
        await offer(
            ctx,
            dut.client.data,
            [{"data": bits, "strobe": strobe} for _, beats in requests for bits, strobe in beats],
            rng_of("w"),
        )

    async def report(ctx):
        done, rng = dut.client.done, rng_of("b")
        while len(reports) < len(requests):
            ready = rng.random() >= stall
            ctx.set(done.ready, ready)
            _, _, valid, error = await ctx.tick().sample(done.valid, done.payload)
            if valid and ready:
                reports.append(error)
        ctx.set(done.ready, 1)
        for _ in range(20):
            _, _, valid, busy = await ctx.tick().sample(done.valid, dut.busy)
            assert not valid and not busy

    return [ask, fill, report]


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("name", CONFIGS)
def test_memory_and_reports(name, stall):
    config, rng = CONFIGS[name], random.Random(f"{name} {stall}")
    step = config.beat_bytes
    data = np.frombuffer(rng.randbytes(MEMORY_BYTES), np.uint8).copy()
    expected = data.copy()
    bad = {rng.randrange(0, MEMORY_BYTES, step) for _ in range(40)}
    requests, errors = [], []
    for _ in range(40):
        count = rng.choice([1, rng.randint(1, 8), rng.randint(1, 3 * config.burst_beats)])
        addr = rng.randrange(0, MEMORY_BYTES - count * step, step)
        beats = [
            (rng.getrandbits(8 * step), rng.choice([(1 << step) - 1, rng.getrandbits(step)]))
            for _ in range(count)
        ]
        requests.append((addr, beats))
        errors.append(any(addr + k * step in bad for k in range(count)))
        for k, (bits, strobe) in enumerate(beats):
            place = addr + k * step
            if place not in bad:
                for j in range(step):
                    if strobe >> j & 1:
                        expected[place + j] = bits >> 8 * j & 0xFF

    dut = AxiWriter(config)
    memory = AxiMemory(config, data, seed=3, stall=stall, bad=bad)
    reports = []
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(memory.writer(dut.axi), background=True)
    for bench in write_all(dut, requests, reports, seed=name, stall=stall):
        sim.add_testbench(bench)
    sim.run()
    assert reports == errors
    assert np.array_equal(data, expected)


def test_bus_is_kept_full():
    """Short requests, a memory 30 cycles away: a beat nearly every cycle."""
    config = Config()
    dut = AxiWriter(config)
    memory = AxiMemory(config, np.zeros(MEMORY_BYTES, np.uint8), latency_cycles=30)
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(memory.writer(dut.axi), background=True)
    requests = [(512 * k, [(k, 1)] * 8) for k in range(50)]
    for bench in write_all(dut, requests, [], seed=0, stall=0):
        sim.add_testbench(bench)
    cycles = 0

    async def count(ctx):
        nonlocal cycles
        while memory.write_beats < 400:
            await ctx.tick()
            cycles += 1

    sim.add_testbench(count)
    sim.run()
    assert 400 / (cycles - 5) >= 0.9
