# amaranth: UnusedElaboratable=no

import pytest
from amaranth import ResetInserter, Signal
from amaranth.sim import Simulator
from gradmill_hw.memory.banked import BankedMemory
from gradmill_hw.memory.ports import READ_LATENCY
from tests.memory_traffic import RowMemory, check_traffic


@pytest.mark.parametrize(
    ("banks", "readers", "writers", "paths"),
    [
        (1, 2, 2, None),
        (2, 1, 1, None),
        (4, 4, 3, None),
        (8, 3, 2, None),
        (4, 4, 3, (3, 2)),
        (2, 4, 4, (2, 1)),
    ],
)
def test_random_traffic(banks, readers, writers, paths):
    depth = 64
    paths = paths or (readers, writers)
    dut = BankedMemory(
        24,
        depth=depth,
        banks=banks,
        readers=readers,
        writers=writers,
        read_paths=paths[0],
        write_paths=paths[1],
    )
    seen = check_traffic(
        dut, RowMemory(24), paths=paths, depth=depth, banks=banks, cycles=800, seed=banks
    )
    assert all(seen[what] > 10 for what in ("read", "write", "collided", "fault"))
    assert seen["waited"] > 10 or readers == writers == 1


def test_whole_address_space():
    dut = BankedMemory(4, depth=1 << 16, banks=2, readers=2, writers=1)
    seen = check_traffic(
        dut, RowMemory(4), paths=(2, 1), depth=1 << 16, banks=2, cycles=300, seed=3, beyond=0
    )
    assert seen["read"] > 200


def test_full_rate():
    """Ports in different banks never wait."""
    dut = BankedMemory(8, depth=64, banks=4, readers=4, writers=4)
    rows = list(range(16))

    async def testbench(ctx):
        for number, port in enumerate(dut.write):
            ctx.set(port.valid, 1)
            ctx.set(dut.read[number].valid, 1)
        for step in range(len(rows) + READ_LATENCY + 1):
            for number in range(4):
                bank = 16 * ((number + 1) % 4)
                ctx.set(dut.write[number].valid, step < len(rows))
                ctx.set(dut.write[number].addr, bank + step % 16)
                ctx.set(dut.write[number].data, bank + step)
                ctx.set(dut.read[number].addr, bank + (step - 1) % 16)
                assert ctx.get(dut.write[number].ready)
                assert ctx.get(dut.read[number].ready)
                if step > READ_LATENCY:
                    # Granted READ_LATENCY cycles ago: the row written the cycle before that.
                    assert ctx.get(dut.read[number].data) == bank + step - READ_LATENCY - 1
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def test_reset_keeps_rows():
    dut = BankedMemory(8, depth=8, banks=2, readers=1, writers=1)
    reset = Signal()

    async def testbench(ctx):
        ctx.set(dut.write[0].data, 0x5A)
        ctx.set(dut.write[0].addr, 5)
        ctx.set(dut.write[0].valid, 1)
        await ctx.tick()
        ctx.set(dut.write[0].valid, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        ctx.set(dut.read[0].addr, 5)
        await ctx.tick().repeat(READ_LATENCY)
        assert ctx.get(dut.read[0].data) == 0x5A

    simulator = Simulator(ResetInserter(reset)(dut))
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 48}, "depth=48: choose a power of two"),
        ({"depth": 1 << 17}, "depth=131072: choose a power of two from 1 to 65536"),
        ({"banks": 3}, "banks=3: choose a power of two"),
        ({"banks": 128}, "banks=128: choose a power of two from 1 to 64"),
        ({"readers": 0}, "readers=0"),
        ({"writers": 0}, "writers=0"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BankedMemory(8, **{"depth": 64, "banks": 4, "readers": 1, "writers": 1, **arguments})
