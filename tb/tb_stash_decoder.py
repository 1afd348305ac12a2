"""cocotb bench of the stash decoder: a memory that offers views, free of who wants the rows."""

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge
from gradmill_hw.config import TILE
from gradmill_hw.stash.decoder import DecodedRow, RowToDecode
from gradmill_hw.stash.formats import piece_granules
from gradmill_hw.stash.parse import RowSizes, View
from tb.stash_runs import EVERY, SEED, STEP, random_runs
from tb.stream import Sink, Source, pack, stalls, start


async def offer(dut, n, streams, stall):
    """Views of ``streams`` (bits, granules), one run after the other."""
    most, edge = piece_granules(n), RisingEdge(dut.clk)
    for bits, granules in streams:
        at, ended = 0, False
        while not ended:
            dut.i__valid.value = 0
            while stall() and not ended:
                await edge
                ended = bool(dut.ends.value)
            if ended:
                break
            dut.i__payload.value = pack(
                View(n),
                {"bits": bits >> at * n & (1 << most * n) - 1, "left": min(most, granules - at)},
            )
            dut.i__valid.value = 1
            taken = False
            while not taken and not ended:
                await edge
                taken, ended = bool(dut.i__ready.value), bool(dut.ends.value)
            if taken:
                sizes = RowSizes(n).from_bits(int(dut.sizes.value))
                at = min(granules, at + (sizes.long if sizes.begins else sizes.short))
        dut.i__valid.value = 0


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall_in=[0.0, 0.5], stall_out=[0.0, 0.7])
async def matches_model(dut, stall_in, stall_out):
    n = int(cocotb.plusargs["n"])
    config = TILE.replace(n=n, bus_bits=8 * n)
    rng = np.random.default_rng(random.getrandbits(32))
    runs = random_runs(rng, config, [EVERY[k] for k in rng.permutation(len(EVERY))])
    encoded = [run.encoded(config, plain=True) for run in runs]
    streams = [
        (int.from_bytes(found.raw.tobytes(), "little"), found.bits // n) for found in encoded
    ]
    cut = [int(k) for k in rng.permutation(len(runs))[:20]]
    for k in cut:  # some runs end too early
        granules = int(rng.integers(0, streams[k][1]))
        streams[k] = streams[k][0] & (1 << granules * n) - 1, granules

    dut.i__valid.value = dut.o__ready.value = dut.entry_valid.value = dut.wanted__valid.value = 0
    dut.seed.value, dut.step.value = SEED, STEP
    await start(dut)
    wanted = Source(dut, "wanted", RowToDecode(), stalls(stall_in))
    sink = Sink(dut, "o", DecodedRow(config), stalls(stall_out))
    cocotb.start_soon(offer(dut, n, streams, stalls(stall_in)))
    for run in runs:
        wanted.put(*(run.to_decode(row) for row in range(len(run))))
    for k, (run, found) in enumerate(zip(runs, encoded, strict=True)):
        words = await sink.recv_many(len(run))
        mantissa, exponent = run.decoded(config, found.raw)
        errors = [word.error for word in words]
        good = errors.index(1) if k in cut else len(run)
        assert errors == [0] * good + [1] * (len(run) - good)
        # The rows of a tile have its exponent, corrupted ones included.
        whole = good if good == len(run) else good - good % n
        assert [list(word.row.mantissa) for word in words[:whole]] == mantissa[:whole].tolist()
        assert [word.row.exponent for word in words[:whole]] == exponent[:whole].tolist()
    assert sink.queue.empty()
