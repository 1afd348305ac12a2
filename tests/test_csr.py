"""The register bank behind AXI4-Lite, against the map."""

import random

import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import TILE
from gradmill_hw.control.csr import RegisterBank, port_name
from gradmill_hw.regmap import Access
from gradmill_hw.regs import COUNTER_OFFSET, REGS, TILE_BYTES, UNLOCKED
from tests.control_bench import Host

GENERATED = [reg for reg in REGS if reg.offset < COUNTER_OFFSET]
OKAY, SLVERR = 0, 2


def simulate(scenario, *, seed=1):
    dut = RegisterBank(TILE, taps=lambda reg: not reg.name.startswith("argument"))
    rng = random.Random(seed)

    async def bench(ctx):
        await scenario(ctx, dut, Host(ctx, dut.bus, rng), rng)

    async def counters(ctx):
        port = dut.counters
        while True:
            ctx.set(port.ready, rng.random() < 0.3)
            ctx.set(port.data, 0xC000_0000 | ctx.get(port.index) << 1 | ctx.get(port.high))
            await ctx.delay(1e-8)
            ctx.set(port.data, 0xC000_0000 | ctx.get(port.index) << 1 | ctx.get(port.high))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.add_testbench(counters, background=True)
    sim.run()


def test_after_reset():
    """Every register reads as the map says, every other address is refused."""

    async def scenario(ctx, dut, host, rng):
        for reg in GENERATED:
            expected = reg.reset(TILE)
            assert await host.read_address(reg.offset) == (expected, OKAY), reg.name
        offsets = {reg.offset for reg in GENERATED}
        holes = [offset for offset in range(0, COUNTER_OFFSET, 4) if offset not in offsets]
        for offset in rng.sample(holes, 30):
            assert (await host.read_address(offset))[1] == SLVERR
            assert await host.write_address(offset, 1) == SLVERR
        for offset in (COUNTER_OFFSET, COUNTER_OFFSET + 0x3FC):
            word = 0xC000_0000 | (offset - COUNTER_OFFSET) // 4
            assert await host.read_address(offset) == (word, OKAY)
            assert await host.write_address(offset, 1) == SLVERR
        for offset in (COUNTER_OFFSET + 0x400, TILE_BYTES - 4):
            assert await host.read_address(offset) == (0, SLVERR)

    simulate(scenario)


@pytest.mark.parametrize("seed", range(2))
def test_random_access(seed):
    """Words written read back masked; outputs follow; inputs are seen; strobes must be whole."""

    async def scenario(ctx, dut, host, rng):
        words = {reg.name: reg.reset(TILE) for reg in GENERATED if reg.stored}
        for reg in GENERATED:
            for field in reg.fields:
                if field.access is Access.RO and reg.name != "status":
                    ctx.set(
                        getattr(dut, port_name(reg, field)),
                        reg.offset * 0x1234567 & (1 << field.width) - 1,
                    )
        for _ in range(250):
            reg = rng.choice(GENERATED)
            if reg.name == "window_lock":
                continue
            word = rng.getrandbits(32)
            if rng.getrandbits(1):
                strobe = rng.choice([15] * 9 + [7])
                good = strobe == 15 and reg.writable
                response = await host.write_address(reg.offset, word, strobe)
                assert response == (OKAY if good else SLVERR), reg.name
                if reg.stored and good:
                    words[reg.name] = word & (1 << sum(f.width for f in reg.fields)) - 1
            elif reg.stored:
                assert await host.read_address(reg.offset) == (words[reg.name], OKAY), reg.name
            elif all(field.access is Access.RO for field in reg.fields):
                values = reg.unpack((await host.read_address(reg.offset))[0])
                for field in reg.fields:
                    expected = reg.offset * 0x1234567 & (1 << field.width) - 1
                    assert values[field.name] == expected
        for name, word in words.items():
            for lsb, field in REGS[name].items():
                if not name.startswith("argument"):
                    value = ctx.get(getattr(dut, port_name(REGS[name], field)))
                    assert value == word >> lsb & (1 << field.width) - 1

    simulate(scenario, seed=seed)


def test_strobes_and_pulses():
    """Set wins over clear; pulses last a cycle; bits not written stay."""

    async def scenario(ctx, dut, host, rng):
        pulses = []

        async def strike(name, cycles=1):
            ctx.set(getattr(dut, name), 1)
            await ctx.tick().repeat(cycles)
            ctx.set(getattr(dut, name), 0)

        await strike("flags_saturated")
        await strike("flags_vector_nonfinite")
        await host.write("flags", saturated=1)
        assert await host.read("flags") == {
            "matrix_nonfinite": 0,
            "vector_nonfinite": 1,
            "saturated": 0,
        }
        ctx.set(dut.flags_vector_nonfinite, 1)
        await host.write("flags", vector_nonfinite=1)
        ctx.set(dut.flags_vector_nonfinite, 0)
        assert (await host.read("flags"))["vector_nonfinite"]

        for name in ("start", "soft_reset", "clear_counters"):
            dut_port = getattr(dut, f"ctrl_{name}")
            host.rng = None
            ctx.set(dut.bus.bready, 1)
            ctx.set(dut.bus.awaddr, REGS["ctrl"].offset)
            ctx.set(dut.bus.wdata, REGS["ctrl"].pack(**{name: 1}))
            ctx.set(dut.bus.wstrb, 15)
            ctx.set(dut.bus.awvalid, 1)
            ctx.set(dut.bus.wvalid, 1)
            count = 0
            await ctx.tick().until(dut.bus.awready)
            ctx.set(dut.bus.awvalid, 0)
            ctx.set(dut.bus.wvalid, 0)
            for _ in range(6):
                count += ctx.get(dut_port)
                await ctx.tick()
            pulses.append(count)
        assert pulses == [1, 1, 1]
        assert await host.read("ctrl") == {"start": 0, "soft_reset": 0, "clear_counters": 0}

    simulate(scenario)


def test_frozen_and_locked():
    async def scenario(ctx, dut, host, rng):
        ctx.set(dut.busy, 1)
        for reg in GENERATED:
            if reg.writable:
                response = await host.write_address(reg.offset, reg.reset(TILE))
                assert response == (OKAY if reg.when == "always" else SLVERR), reg.name
        ctx.set(dut.busy, 0)
        await host.write("far_window2_base_hi", value=0x55)
        await host.write("window_lock", value=UNLOCKED ^ 0x80)
        assert (await host.read("status"))["locked"]
        for value in (UNLOCKED, 0):
            assert await host.write_address(REGS["window_lock"].offset, value) == SLVERR
        assert await host.write_address(REGS["far_window2_base_hi"].offset, 1) == SLVERR
        assert await host.read("far_window2_base_hi") == {"value": 0x55}
        assert ctx.get(dut.far_window2_base_hi) == 0x55
        await host.write("seed", value=1)

    simulate(scenario)


def test_stored_writes():
    """Those who keep a copy see the clearing after reset, then every accepted write."""

    async def scenario(ctx, dut, host, rng):
        copy = {}

        async def watch():
            _, _, valid, addr, word = await ctx.tick().sample(
                dut.stored.valid, dut.stored.addr, dut.stored.data
            )
            if valid:
                copy[4 * addr] = word

        for _ in range(COUNTER_OFFSET // 4 + 4):
            await watch()
        assert len(copy) == COUNTER_OFFSET // 4
        for reg in GENERATED:
            assert copy[reg.offset] == (reg.reset(TILE) if reg.stored else 0)

    simulate(scenario)
