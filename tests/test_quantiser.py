"""Tile quantiser: the RTL against the model, row by row and cycle by cycle."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradmill_hw.config import TILE
from gradmill_hw.numeric.quantiser import TileQuantiser
from tb.run import run_bench
from tb.bfp_tiles import Traffic


SEED = 20240612


def run(n, mantissa_bits, tiles, gap, seed):
    """Stream random tiles through the quantiser and check every output of every cycle.

    ``gap(rng, row)`` gives the idle cycles before a row.
    """
    dut = TileQuantiser(TILE.replace(n=n, bus_bits=8 * n, mantissa_bits=mantissa_bits))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    traffic = Traffic(rng, n, mantissa_bits, tiles)
    due = {}

    async def feed(ctx):
        cycle = 0
        for row in range(tiles * n):
            idle = gap(rng, row)
            for _ in range(idle):
                # What is not valid may be anything.
                ctx.set(dut.i_row, rng.integers(0, 1 << 32, n).tolist())
                ctx.set(dut.i_last, int(rng.integers(0, 2)))
                await ctx.tick()
            cycle += idle
            last = traffic.is_last(row)
            if last:
                for k in range(n):
                    due[cycle + dut.delay + k] = row - n + 1 + k
            ctx.set(dut.i_valid, 1)
            ctx.set(dut.i_row, traffic.rows[row].tolist())
            ctx.set(dut.i_last, last)
            ctx.set(dut.i_stochastic, int(traffic.stochastic[row]))
            ctx.set(dut.i_random, traffic.random[row].tolist())
            ctx.set(dut.i_tag, int(traffic.tags[row]))
            await ctx.tick()
            cycle += 1
            ctx.set(dut.i_valid, 0)
        await ctx.tick().repeat(dut.delay + n + 4)

    async def check(ctx):
        cycle = seen = 0
        while seen < tiles * n:
            valid = ctx.get(dut.o_valid)
            assert valid == (cycle in due)
            flags = ctx.get(dut.o_saturated), ctx.get(dut.o_nonfinite)
            if valid:
                assert due[cycle] == seen
                assert ([ctx.get(mantissa) for mantissa in dut.o_mantissa],
                        ctx.get(dut.o_exponent), ctx.get(dut.o_tag),
                        *flags) == traffic.expected[seen]
                seen += 1
            else:
                assert flags == (0, 0)
            await ctx.tick()
            cycle += 1

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(feed)
    sim.add_testbench(check)
    sim.run()


SIZES = [(4, 4), (4, 9), (8, 5), (8, 9)]


@pytest.mark.parametrize(("n", "mantissa_bits"), [*SIZES, (8, 4), (8, 6), (8, 7), (8, 8), (16, 9)])
def test_back_to_back(n, mantissa_bits):
    run(n, mantissa_bits, 40, lambda rng, row: 0, SEED)


@pytest.mark.parametrize(("n", "mantissa_bits"), SIZES)
def test_random_gaps(n, mantissa_bits):
    run(n, mantissa_bits, 24, lambda rng, row: int(rng.integers(0, 4)), SEED + 10)


def test_pauses():
    # Longer than the delay, inside a tile and between tiles.
    run(4, 9, 24, lambda rng, row: int(rng.choice([0, 0, 0, 0, 1, 30])), SEED + 20)


@pytest.mark.rtl
@pytest.mark.parametrize(("n", "mantissa_bits"), [(8, 9), (4, 5)])
def test_rtl(tmp_path, n, mantissa_bits):
    config = TILE.replace(n=n, bus_bits=8 * n, mantissa_bits=mantissa_bits)
    run_bench(TileQuantiser(config), "tb.tb_quantiser", tmp_path, seed=SEED, n=n,
              mantissa_bits=mantissa_bits)
