"""cocotb bench of the stash encoder: free-running source and sink, every format, switched often."""

import random

import cocotb
import numpy as np
from gradmill_hw.config import TILE
from gradmill_hw.stash.assemble import Piece
from gradmill_hw.stash.measure import RowToEncode
from tb.stash_runs import EVERY, SEED, STEP, random_runs
from tb.stream import Sink, Source, stalls, start


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall_in=[0.0, 0.5], stall_out=[0.0, 0.7])
async def matches_model(dut, stall_in, stall_out):
    n = int(cocotb.plusargs["n"])
    config = TILE.replace(n=n, bus_bits=8 * n)
    rng = np.random.default_rng(random.getrandbits(32))
    runs = random_runs(rng, config, [EVERY[k] for k in rng.permutation(len(EVERY))])

    dut.i__valid.value = dut.o__ready.value = dut.entry_valid.value = 0
    dut.seed.value, dut.step.value = SEED, STEP
    await start(dut)
    source = Source(dut, "i", RowToEncode(config), stalls(stall_in))
    sink = Sink(dut, "o", Piece(n), stalls(stall_out))
    for run in runs:
        source.put(*(run.to_encode(row) for row in range(len(run))))
    for run in runs:
        expected = run.encoded(config)
        bits = []
        for row in range(len(run)):
            piece = await sink.recv()
            bits += [piece.bits >> k & 1 for k in range(piece.size * n)]
            assert piece.last == (row == len(run) - 1)
        wanted = np.unpackbits(expected.raw, bitorder="little")[: expected.bits]
        assert bits == wanted.tolist(), run.entry
    assert sink.queue.empty()
