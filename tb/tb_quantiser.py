"""cocotb bench of the tile quantiser: free-running producer with gaps, every cycle checked."""

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge
from cocotb.utils import get_sim_time

from gradmill_hw.config import TILE
from gradmill_hw.numeric.quantiser import TileQuantiser
from tb.bfp_tiles import Traffic
from tb.stream import pack, stalls, start


TILES = 150
PERIOD_NS = 10


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(gaps=[0.0, 0.1, 0.6])
async def matches_model(dut, gaps):
    n = int(cocotb.plusargs["n"])
    mantissa_bits = int(cocotb.plusargs["mantissa_bits"])
    quantiser = TileQuantiser(TILE.replace(n=n, bus_bits=8 * n, mantissa_bits=mantissa_bits))
    shapes = {name: member.shape for name, member in quantiser.signature.members.items()}
    traffic = Traffic(np.random.default_rng(random.getrandbits(32)), n, mantissa_bits, TILES)
    gap = stalls(gaps)
    edge = RisingEdge(dut.clk)
    due = {}

    def now():
        return round(get_sim_time("ns") / PERIOD_NS)

    async def feed():
        for row in range(TILES * n):
            dut.i_valid.value = 0
            while gap():
                # What is not valid may be anything.
                dut.i_row.value = random.getrandbits(32 * n)
                dut.i_last.value = random.getrandbits(1)
                await edge
            dut.i_valid.value = 1
            dut.i_row.value = pack(shapes["i_row"], traffic.rows[row].tolist())
            dut.i_random.value = pack(shapes["i_random"], traffic.random[row].tolist())
            dut.i_stochastic.value = int(traffic.stochastic[row])
            dut.i_tag.value = int(traffic.tags[row])
            dut.i_last.value = traffic.is_last(row)
            await edge
            if traffic.is_last(row):
                for k in range(n):
                    due[now() + quantiser.delay + k] = row - n + 1 + k
        dut.i_valid.value = 0

    dut.i_valid.value = 0
    await start(dut, period_ns=PERIOD_NS)
    cocotb.start_soon(feed())
    seen = 0
    while seen < TILES * n:
        await edge
        valid = int(dut.o_valid.value)
        assert valid == (now() in due), f"cycle {now()}"
        flags = bool(dut.o_saturated.value), bool(dut.o_nonfinite.value)
        if not valid:
            assert flags == (False, False)
            continue
        assert due[now()] == seen
        mantissa, exponent, tag, *events = traffic.expected[seen]
        assert int(dut.o_mantissa.value) == pack(shapes["o_mantissa"], mantissa)
        assert (int(dut.o_exponent.value), int(dut.o_tag.value)) == (exponent, tag)
        assert flags == tuple(events)
        seen += 1
