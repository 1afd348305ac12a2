"""The systolic array against exact integer products, with tiles loaded behind the rows."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradmill_hw.config import Config
from gradmill_hw.matrix.systolic import SystolicArray, sum_bits


def config(n, mantissa_bits):
    return Config(n=n, mantissa_bits=mantissa_bits, bus_bits=8 * n, burst_beats=16)


def schedule(rng, n, tiles):
    """``(cycle, kind, tile, row)`` of random but legal traffic, in order of time.

    A tile is loaded in n cycles; it may be swapped in from the cycle after its first row on, and
    its successor is loaded from that cycle on.
    """
    plan, free, swap = [], 0, 0
    for tile in range(tiles):
        start = max(free, swap) + rng.choice([0, 0, 1, n])
        plan += [(start + row, "load", tile, row) for row in range(n)]
        free = start + n
        swap = max(start + 1, swap + 1) + rng.choice([0, 0, 1, n])
        plan.append((swap, "swap", tile, 0))
        for row in range(rng.choice([0, 1, n - 1, n, 2 * n])):
            swap += 1 + (rng.random() < 0.2)
            plan.append((swap, "row", tile, row))
    return plan


@pytest.mark.parametrize("mantissa_bits", [4, 9])
@pytest.mark.parametrize("n", [4, 8])
def test_products(n, mantissa_bits):
    rng = random.Random(f"{n} {mantissa_bits}")
    dut = SystolicArray(config(n, mantissa_bits))
    low = -1 << mantissa_bits - 1  # one below the smallest mantissa: the array is exact for it too
    values = [low, -low - 1, 0, 1, -1, *range(low, -low)]
    weights = [[[rng.choice(values) for _ in range(n)] for _ in range(n)] for _ in range(12)]
    weights[0] = [[low] * n] * n

    plan = schedule(rng, n, len(weights))
    last = max(cycle for cycle, *_ in plan)
    loads, swaps, rows = (
        {cycle: (tile, row) for cycle, kind, tile, row in plan if kind == which}
        for which in ("load", "swap", "row")
    )
    operands = {
        cycle: [low] * n if tile == 0 else [rng.choice(values) for _ in range(n)]
        for cycle, (tile, _) in rows.items()
    }
    noise = [rng.choice(values) for _ in range(n)]

    async def bench(ctx):
        results = {}
        for cycle in range(last + dut.latency + 1):
            tile, row = loads.get(cycle, (0, rng.randrange(n)))
            ctx.set(dut.load, cycle in loads)
            ctx.set(dut.load_row, row)
            ctx.set(dut.w, weights[tile][row] if cycle in loads else noise)
            ctx.set(dut.swap, cycle in swaps)
            ctx.set(dut.a, operands.get(cycle, noise))
            if cycle - dut.latency in rows:
                results[cycle - dut.latency] = [ctx.get(o) for o in dut.o]
            await ctx.tick()
        for cycle, (tile, _) in rows.items():
            expected = np.array(operands[cycle]) @ np.array(weights[tile])
            assert results[cycle] == expected.tolist(), f"row of tile {tile} in cycle {cycle}"

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("products", [1, 3, 4, 5, 32])
def test_sum_bits(products):
    largest = products * 256**2
    bits = sum_bits(Config(), products)
    assert largest < 1 << bits - 1
    assert largest >= 1 << bits - 2
