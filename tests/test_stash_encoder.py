"""The stash encoder against its model: bits, sizes, order, rate."""

import numpy as np
import pytest
from gradmill_hw.config import TILE
from gradmill_hw.stash.encoder import Encoder
from gradmill_hw.stash.formats import Format
from gradmill_hw.stash.tables import PRESETS, STEPS, Table
from tb.run import run_bench
from tb.stash_runs import EVERY, Run, blocks_of_rows, random_runs
from tests.stash_bench import encode, joined


SEED = 20240901


def configuration(n=8, mantissa_bits=9):
    return TILE.replace(n=n, bus_bits=8 * n, mantissa_bits=mantissa_bits)


def check(config, runs, *, tables=PRESETS, **options):
    """Encode ``runs`` and compare everything; return the cycles."""
    words, dropped, cycles = encode(Encoder(config), runs, **options)
    at = lost = 0
    for run in runs:
        pieces, at = words[at : at + len(run)], at + len(run)
        expected = run.encoded(config, tables)
        bits = np.unpackbits(expected.raw, bitorder="little")[: expected.bits].tolist()
        assert joined(pieces, config.n) == bits, run.entry
        assert [piece.last for piece in pieces] == [0] * (len(run) - 1) + [1]
        lost += expected.dropped
    assert dropped == lost
    return cycles


def shuffled(rng, entries):
    return [entries[k] for k in rng.permutation(len(entries))]


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_every_format(block):
    print(f"seed {SEED}")
    rng = np.random.default_rng([SEED, block])
    entries = [entry for entry in EVERY if entry.block == block]
    check(configuration(), random_runs(rng, configuration(), shuffled(rng, entries), blocks=1))


@pytest.mark.parametrize(("n", "mantissa_bits"), [(4, 9), (16, 9), (8, 4), (8, 7), (4, 5)])
def test_every_size(n, mantissa_bits):
    rng = np.random.default_rng([SEED, n, mantissa_bits])
    config = configuration(n, mantissa_bits)
    check(config, random_runs(rng, config, shuffled(rng, EVERY)[:40], blocks=1))


@pytest.mark.parametrize(("stall_in", "stall_out"), [(0.5, 0.0), (0.0, 0.6), (0.4, 0.4)])
def test_stalls(stall_in, stall_out):
    rng = np.random.default_rng([SEED, 3])
    config = configuration()
    runs = random_runs(rng, config, shuffled(rng, EVERY)[:25], blocks=1)
    check(config, runs, stall_in=stall_in, stall_out=stall_out)


def test_one_row_per_cycle():
    """Of every format, whole blocks: what is not a row is the wait for the first block."""
    rng = np.random.default_rng([SEED, 4])
    config = configuration()
    for block, names in (
        (16, ["bfp(8)", "mx9", "mask+bfp(3)", "mask"]),
        (128, ["outlier(3, 4)", "nonuniform-lite+zeros", "mx4", "ubfp(1)"]),
    ):
        mantissa, exponent = blocks_of_rows(rng, 8, 9, 5 * block // 8)
        runs = [
            Run(Format.parse(f"{name}/{block}"), mantissa, exponent, True, 1, 5) for name in names
        ]
        cycles = check(config, runs)
        rows = sum(len(run) for run in runs)
        assert rows < cycles <= rows + 3 * (block // 8) + 30


@pytest.mark.parametrize(
    "name", ["bfp(4)", "mx6", "outlier(3, 4)", "mask+bfp(2)", "nonuniform-normal", "bfp(2)+zeros"]
)
def test_hard_blocks(name):
    """All zero, all equal, one outlier, largest values, tiny values, NaN, extreme exponents."""
    config = configuration()
    cases = []
    for fill, exponent in ((0, 130), (7, 3), (255, 254), (-255, 0), (1, 1), (-1, 200)):
        mantissa = np.full((16, 8), fill, np.int16)
        exponents = np.full(16, exponent, np.uint8)
        cases.append((mantissa[:5], exponents[:5], 16))
        single = mantissa.copy()
        single[11, 5] = -255
        cases.append((single, exponents, 128))
        exponents = exponents.copy()
        exponents[8:] = 255 - exponent
        cases.append((mantissa[5:11], exponents[5:11], 128))
    runs = [
        Run(Format.parse(f"{name}/{block}"), mantissa, exponent, index % 2 == 1, 0, 0)
        for index, (mantissa, exponent, block) in enumerate(cases)
    ]
    check(config, runs)


def test_more_outliers_than_room():
    rng = np.random.default_rng([SEED, 5])
    config = configuration()
    runs = []
    for count in (1, 3, 4, 5, 6, 11):
        for kept in (2, 4):
            mantissa = rng.integers(-3, 4, (16, 8)).astype(np.int16)
            where = rng.permutation(128)[:count] if count % 2 else np.arange(count) + 8
            mantissa.reshape(-1)[where] = rng.choice([-255, 130, 90, 70, 66, 40], count)
            exponent = np.full(16, 140, np.uint8)
            runs.append(Run(Format("outlier", 3, 128, kept), mantissa, exponent, False, 0, 0))
    check(config, runs)


def test_tables_can_be_written():
    rng = np.random.default_rng([SEED, 6])
    config = configuration()
    tables = {
        "lite": Table(
            (4, 8, 60, 100, 128, 200, 252),
            (0, 4, 9, 60, 110, 130, 210, 255),
            (0, 1, 2, 3, 4, 5, 4, 0),
        ),
        "normal": Table((8, 60, 200), (0, 20, 100, 220), (0, 2, 3, 4)),
        "aggressive": Table((128,), (0, 150), (0, 5)),
    }
    dut = Encoder(config)

    async def write(ctx):
        for step in range(STEPS):
            codes = {slot: int(table.codes[step]) for slot, table in tables.items()}
            ctx.set(dut.entry, {"step": step, "codes": codes})
            ctx.set(dut.entry_valid, 1)
            await ctx.tick()
        ctx.set(dut.entry_valid, 0)

    runs = random_runs(rng, config, [e for e in EVERY if e.table and e.block == 32])
    words, _, _ = encode(dut, runs, write_tables=write)
    at = 0
    for run in runs:
        expected = run.encoded(config, tables)
        bits = np.unpackbits(expected.raw, bitorder="little")[: expected.bits].tolist()
        assert joined(words[at : at + len(run)], 8) == bits
        at += len(run)


@pytest.mark.rtl
@pytest.mark.parametrize("n", [8, pytest.param(4, marks=pytest.mark.long)])
def test_rtl(tmp_path, n):
    component = Encoder(configuration(n))
    run_bench(component, "tb.tb_stash_encoder", tmp_path, seed=SEED, n=n)
