"""Mask unit: kinds, alternatives and padding against element by element arithmetic."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradmill_hw.config import NANO, TILE
from gradmill_hw.isa import Alternative, MaskKind
from gradmill_hw.vector.mask import MaskUnit

VALUES = [0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000,
          0xffc00000, 0x7f800001, 0xff812345, 0x00000001, 0x807fffff, 0x007fffff, 0x00800000,
          0x80800000, 0x7f7fffff, 0xff7fffff, 0x42280000]
SCALAR = 0xc1234567


def expected_lane(kind, alternative, pad, value, bit, column, cols):
    """(result, keep) of one lane of a row that is not padding."""
    if column >= cols:
        return (0xff800000 if pad else 0), 0
    magnitude = value & 0x7fffffff
    keep = {
        MaskKind.MEMORY: bit,
        MaskKind.POSITIVE: magnitude > 0x7f800000 or 0x00800000 <= value <= 0x7f800000,
    }.get(kind, 1)
    if keep:
        return value, 1
    return {Alternative.NEG_INFINITY: 0xff800000, Alternative.SCALAR: SCALAR}.get(alternative,
                                                                                 0), 0


def run(config, rows, blocks, cols, padded, kind, alternative, pad, rng):
    n = config.n
    dut = MaskUnit(config)
    issued = -(-rows // n) * n if padded else rows
    stimulus = [(block, row, rng.choice(VALUES, n).tolist(), rng.integers(0, 2, n).tolist())
                for block in range(blocks) for row in range(issued)]

    async def drive(ctx):
        ctx.set(dut.control, {"rows": rows, "cols": cols, "padded": padded, "kind": kind,
                              "alternative": alternative, "pad": pad, "scalar": SCALAR})
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for _, _, values, bits in stimulus:
            ctx.set(dut.i_valid, 0)
            while rng.random() < 0.3:
                await ctx.tick()
            ctx.set(dut.i_valid, 1)
            ctx.set(dut.i_row, values)
            ctx.set(dut.i_mask, bits)
            await ctx.tick()
        ctx.set(dut.i_valid, 0)

    async def check(ctx):
        for block, row, values, bits in stimulus:
            row_out, keep_out, padding_out, last, nonfinite = await ctx.tick().sample(
                dut.o_row, dut.o_keep, dut.o_padding, dut.o_last,
                dut.o_nonfinite).until(dut.o_valid)
            lanes = [expected_lane(kind, alternative, pad, values[j], bits[j], block * n + j, cols)
                     for j in range(n)]
            padding = row >= rows
            if padding:
                lanes = [(0, 0)] * n
            got = [(row_out[j], keep_out[j]) for j in range(n)]
            assert got == lanes, (block, row)
            assert padding_out == padding
            assert last == (row % n == n - 1)
            assert nonfinite == any(keep and value >> 23 & 255 == 255 for value, keep in lanes)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(check)
    sim.run()


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("alternative", range(4))
def test_kinds_and_alternatives(kind, alternative):
    rng = np.random.default_rng(10 + 4 * kind + alternative)
    run(NANO, 30, 1, 4, 0, kind, alternative, 0, rng)


@pytest.mark.parametrize("config", [NANO, TILE], ids=["n4", "n8"])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("padded", [0, 1])
@pytest.mark.parametrize(("rows", "cols"), [(5, 19), (1, 7), (8, 0), (4, 12), (3, 65535)])
def test_padding(config, pad, padded, rows, cols):
    rng = np.random.default_rng(rows)
    run(config, rows, 4, cols, padded, MaskKind.MEMORY, Alternative.SCALAR, pad, rng)
