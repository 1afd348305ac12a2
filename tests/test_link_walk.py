"""Addresses of a transfer at the limits of its fields, against loops."""

import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, TILE
from gradmill_hw.link.walk import LinkWalk


def walk(config, *commands):
    """(tensor row, mask row, masked, last) of each row; commands follow each other at once."""
    dut = LinkWalk(config)
    rows = []

    async def testbench(ctx):
        for command in commands:
            assert not ctx.get(dut.active)
            ctx.set(dut.cmd, command)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.cmd, {})
            ctx.set(dut.next, ctx.get(dut.active))
            while ctx.get(dut.active):
                rows.append(
                    (
                        ctx.get(dut.tensor_addr),
                        ctx.get(dut.mask_addr),
                        ctx.get(dut.masked),
                        ctx.get(dut.last),
                    )
                )
                await ctx.tick()
            ctx.set(dut.next, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return rows


def expected(config, command):
    padded = -(-command["rows"] // config.n) * config.n
    for block in range(command["blocks"]):
        for row in range(padded):
            yield (
                (command["op0"] + block * command["t_stride"] + row) % (1 << 16),
                (command["op4"] + block * command["k_stride"] + row) % (1 << 16),
                command["masked"] and row < command["rows"],
                block == command["blocks"] - 1 and row == padded - 1,
            )


def command(rows, blocks, op0=0, t_stride=0, op4=0, k_stride=0, masked=1):
    return {
        "rows": rows, "blocks": blocks, "op0": op0, "t_stride": t_stride, "op4": op4,
        "k_stride": k_stride, "masked": masked,
    }  # fmt: skip


@pytest.mark.parametrize("config", [NANO, TILE], ids=lambda config: config.name)
@pytest.mark.parametrize(
    ("rows", "blocks"), [(1, 1), (1, 2), (7, 3), (8, 3), (9, 2), (1, 1024), (4099, 1), (2051, 2)]
)
def test_rows_and_blocks(config, rows, blocks):
    first = command(rows, blocks, 0xFFF1, 0x1235, 0x8003, 0xFFF9)
    second = command(5, 2, 3, 0xFFFF, 0xFFFF, 1, masked=0)
    assert walk(config, first, second, first) == [
        row for each in (first, second, first) for row in expected(config, each)
    ]


@pytest.mark.parametrize(("rows", "blocks"), [(1, 4095), ((1 << 16) - 1, 1)])
def test_limits(rows, blocks):
    last = command(rows, blocks, t_stride=16, k_stride=0xFFFF)
    assert walk(NANO, last) == list(expected(NANO, last))


@pytest.mark.parametrize(("rows", "blocks"), [(0, 5), (5, 0), (0, 0)])
def test_nothing(rows, blocks):
    assert walk(NANO, command(rows, blocks), command(4, 1)) == list(expected(NANO, command(4, 1)))
