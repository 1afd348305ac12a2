"""Functions shared by lanes: every lane gets the result of its own operand."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradmill_hw.config import TILE
from gradmill_hw.isa import FunctionOp
from gradmill_hw.numeric import functions_model
from gradmill_hw.vector.shared_functions import SharedFunctions

ROWS = 40


@pytest.mark.parametrize(("n", "lanes"), [(4, 1), (4, 2), (4, 4), (8, 4), (8, 8)])
def test_rows(n, lanes):
    config = TILE.replace(n=n, bus_bits=32 * n, lanes_per_function=lanes)
    dut = SharedFunctions(config)
    rng = np.random.default_rng(10 * n + lanes)
    operands = rng.uniform(0.01, 20, (ROWS, n)).astype(np.float32).view(np.uint32)
    expected = functions_model.log(operands)
    gaps = lanes + rng.integers(0, 3, ROWS) * rng.integers(0, 2, ROWS)
    starts = np.cumsum(gaps)
    results = {}

    async def bench(ctx):
        ctx.set(dut.op, FunctionOp.LOG)
        row_at = dict(zip(starts.tolist(), operands, strict=True))
        for cycle in range(starts[-1] + dut.latency + 1):
            row = row_at.get(cycle)
            ctx.set(dut.load, row is not None)
            for j in range(n):
                noise = int(rng.integers(1 << 32))
                ctx.set(dut.i[j], noise if row is None else int(row[j]))
            results[cycle] = [ctx.get(dut.o[j]) for j in range(n)]
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    got = [results[start + dut.latency] for start in starts.tolist()]
    np.testing.assert_array_equal(got, expected)
