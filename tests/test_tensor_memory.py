# amaranth: UnusedElaboratable=no

import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import EDGE, NANO
from gradmill_hw.memory.ports import READ_LATENCY
from gradmill_hw.memory.tensor_memory import TensorMemory
from tb.run import run_bench
from tests.memory_traffic import TileMemory, check_traffic


SEED = 7

CONFIGS = {
    "nano": NANO.replace(tensor_rows=64),
    "edge": EDGE.replace(tensor_rows=64),
    "narrow": EDGE.replace(tensor_rows=32, banks=2, mantissa_bits=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_random_traffic(name):
    config = CONFIGS[name]
    seen = check_traffic(
        TensorMemory(config, readers=4, writers=2),
        TileMemory(config),
        paths=(TensorMemory.READ_PATHS, TensorMemory.WRITE_PATHS),
        depth=config.tensor_rows,
        banks=config.banks,
        cycles=800,
        seed=SEED,
        hot=0.2,
    )
    assert all(seen[what] > 10 for what in ("read", "write", "waited", "collided", "fault"))


@pytest.mark.parametrize("transpose", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_full_rate(name, transpose):
    """A tile leaves by rows or by columns in as many cycles as it has rows."""
    config = CONFIGS[name]
    n, first = config.n, config.tensor_rows // 2 + config.n
    dut = TensorMemory(config, readers=1, writers=1)
    half = 1 << config.mantissa_bits - 1
    tile = [[(row * n + column) % (2 * half) - half for column in range(n)] for row in range(n)]

    async def testbench(ctx):
        ctx.set(dut.write[0].valid, 1)
        for row, mantissas in enumerate(tile):
            ctx.set(dut.write[0].addr, first + row)
            ctx.set(dut.write[0].data, {"mantissa": mantissas, "exponent": 100 + row})
            assert ctx.get(dut.write[0].ready)
            await ctx.tick()
        ctx.set(dut.write[0].valid, 0)

        ctx.set(dut.read[0].valid, 1)
        ctx.set(dut.read[0].transpose, transpose)
        for step in range(n + READ_LATENCY):
            ctx.set(dut.read[0].addr, first + step % n)
            assert ctx.get(dut.read[0].ready)
            if step >= READ_LATENCY:
                index = step - READ_LATENCY
                wanted = [row[index] for row in tile] if transpose else tile[index]
                row = ctx.get(dut.read[0].data)
                assert list(row.mantissa) == wanted
                assert row.exponent == (100 if transpose else 100 + index)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


@pytest.mark.parametrize("ports", [{"readers": 0, "writers": 1}, {"readers": 1, "writers": 0}])
def test_refused(ports):
    with pytest.raises(ValueError, match="must be positive"):
        TensorMemory(NANO, **ports)


@pytest.mark.rtl
@pytest.mark.parametrize("name", ["nano", "edge"])
def test_bench(name, tmp_path):
    config = CONFIGS[name]
    run_bench(
        TensorMemory(config, readers=4, writers=2),
        "tb.tb_memory",
        tmp_path,
        seed=SEED,
        n=config.n,
        mantissa_bits=config.mantissa_bits,
        rows=config.tensor_rows,
    )
