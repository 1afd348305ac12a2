"""AXI reader: two clients, stalls on every channel, errors in any beat."""

import random
from collections import deque

import numpy as np
import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, Config
from gradmill_hw.memory.axi_reader import AxiReader
from gradmill_hw.memory.bursts import beats_bits
from tests.axi_memory import AxiMemory


CONFIGS = {"nano": NANO, "sim": Config(), "short": Config(burst_beats=2, reads_in_flight=1)}
MEMORY_BYTES = 1 << 15


def ask(client, requests, *, seed, stall):
    """Testbench that puts ``requests`` (addr, beats) to a client port."""
    rng = random.Random(seed)

    async def bench(ctx):
        for addr, beats in requests:
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(client.request.payload, {"addr": addr, "beats": beats})
            ctx.set(client.request.valid, 1)
            await ctx.tick().until(client.request.ready)
            ctx.set(client.request.valid, 0)

    return bench


def take(client, beats, received, *, seed, stall):
    """Testbench that takes ``beats`` beats as (data, last, error)."""
    rng = random.Random(seed)

    async def bench(ctx):
        data = client.data
        while len(received) < beats:
            ready = rng.random() >= stall
            ctx.set(data.ready, ready)
            _, _, valid, bits, last, error = await ctx.tick().sample(
                data.valid, data.p.data, data.p.last, data.p.error
            )
            if valid and ready:
                received.append((bits, last, error))
        ctx.set(data.ready, 0)

    return bench


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("name", CONFIGS)
def test_beats_reach_their_client(name, stall):
    config, rng = CONFIGS[name], random.Random(f"{name} {stall}")
    step = config.beat_bytes
    data = np.frombuffer(rng.randbytes(MEMORY_BYTES), np.uint8).copy()
    bad = {rng.randrange(0, MEMORY_BYTES, step) for _ in range(60)}
    requests = [[], []]
    for wanted in requests:
        for _ in range(25):
            beats = rng.choice([1, rng.randint(1, 8), rng.randint(1, 3 * config.burst_beats)])
            wanted.append((rng.randrange(0, MEMORY_BYTES - beats * step, step), beats))

    dut = AxiReader(config, clients=2)
    memory = AxiMemory(config, data, seed=2, stall=stall, bad=bad)
    received = [[], []]
    total = [sum(beats for _, beats in wanted) for wanted in requests]
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(memory.reader(dut.axi), background=True)
    for k, client in enumerate(dut.clients):
        sim.add_testbench(ask(client, requests[k], seed=k, stall=stall))
        sim.add_testbench(take(client, total[k], received[k], seed=10 + k, stall=stall))

    async def rest(ctx):
        while memory.read_beats < sum(total):
            await ctx.tick()
        for _ in range(20):
            await ctx.tick()
            assert not ctx.get(dut.busy)

    sim.add_testbench(rest)
    sim.run()
    for wanted, beats in zip(requests, received, strict=True):
        beats = deque(beats)
        for addr, count in wanted:
            for k in range(count):
                bits, last, error = beats.popleft()
                place = addr + k * step
                assert last == (k == count - 1)
                assert error == (place in bad)
                if not error:
                    raw = data[place : place + step].tobytes()
                    assert bits == int.from_bytes(raw, "little")


def test_bus_is_kept_full():
    """Short requests of two clients, a memory 30 cycles away: a beat nearly every cycle."""
    config = Config()
    dut = AxiReader(config, clients=2)
    memory = AxiMemory(config, np.zeros(MEMORY_BYTES, np.uint8), latency_cycles=30)
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(memory.reader(dut.axi), background=True)
    requests = [(512 * k, 8) for k in range(30)]
    for k, client in enumerate(dut.clients):
        sim.add_testbench(ask(client, requests, seed=k, stall=0))
        sim.add_testbench(take(client, 240, [], seed=k, stall=0))
    cycles = 0

    async def count(ctx):
        nonlocal cycles
        while memory.read_beats < 480:
            await ctx.tick()
            cycles += 1

    sim.add_testbench(count)
    sim.run()
    assert 480 / (cycles - 35) >= 0.9


def test_longest_request_fits():
    for config in CONFIGS.values():
        assert config.run_bytes("fp32", 65535) // config.beat_bytes < 1 << beats_bits(config)
