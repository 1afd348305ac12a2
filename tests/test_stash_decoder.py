"""The stash decoder against its model: rows, errors, order, rate."""

import numpy as np
import pytest
from gradmill_hw.config import TILE
from gradmill_hw.stash.codec_model import CodecError
from gradmill_hw.stash.decoder import Decoder
from gradmill_hw.stash.formats import SLOTS, Format, from_tag
from gradmill_hw.stash.tables import PRESETS, Table
from tb.run import run_bench
from tb.stash_runs import EVERY, Run, blocks_of_rows, random_runs
from tests.stash_bench import decode


SEED = 20240902


def configuration(n=8, mantissa_bits=9):
    return TILE.replace(n=n, bus_bits=8 * n, mantissa_bits=mantissa_bits)


def stream(config, encoded):
    return int.from_bytes(encoded.raw.tobytes(), "little"), encoded.bits // config.n


def rows_of(words):
    return (
        [list(word.row.mantissa) for word in words],
        [word.row.exponent for word in words],
        [word.error for word in words],
    )


def check(config, runs, *, tables=PRESETS, dut=None, **options):
    """Decode what the model encoded and compare; return the cycles."""
    encoded = [run.encoded(config, tables, plain=True) for run in runs]
    streams = [stream(config, found) for found in encoded]
    words, cycles = decode(dut or Decoder(config), config, runs, streams, **options)
    at = 0
    for run, found in zip(runs, encoded, strict=True):
        mantissa, exponent, error = rows_of(words[at : at + len(run)])
        at += len(run)
        expected = run.decoded(config, found.raw, tables)
        assert mantissa == expected[0].tolist(), run.entry
        assert exponent == expected[1].tolist() and not any(error)
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
    rng = np.random.default_rng([SEED, 4])
    config = configuration()
    mantissa, exponent = blocks_of_rows(rng, 8, 9, 128)
    names = [
        "bfp(8)/16",
        "mx9/16",
        "mask+bfp(3)/32",
        "outlier(3, 4)/128",
        "mask/64",
        "nonuniform-lite+zeros/128",
    ]
    runs = [Run(Format.parse(name), mantissa, exponent, True, 1, 5) for name in names]
    rows = sum(len(run) for run in runs)
    assert rows < check(config, runs) <= rows + 40


@pytest.mark.parametrize("n", [4, 8, 16])
def test_every_block_of_its_own_format(n):
    rng = np.random.default_rng([SEED, 5, n])
    config = configuration(n)
    bits = granules = 0
    mantissas, exponents, entries = [], [], shuffled(rng, EVERY)[:60]
    for entry in entries:
        mantissa, exponent = blocks_of_rows(rng, n, 9, entry.rows(n))
        found = stream(config, Run(entry, mantissa, exponent, False, 0, 0).encoded(config))
        bits |= found[0] << granules * n
        granules += found[1]
        mantissas.append(mantissa)
        exponents.append(exponent)
    whole = Run(None, np.concatenate(mantissas), np.concatenate(exponents), True, 3, 1 << 35)
    raw = np.frombuffer(bits.to_bytes(-(-granules * n // 8), "little"), np.uint8)
    words, _ = decode(Decoder(config), config, [whole], [(bits, granules)])
    expected = whole.decoded(config, raw)
    assert rows_of(words)[:2] == (expected[0].tolist(), expected[1].tolist())


def corrupt(rng, config, entry, kind):
    """A run that breaks, as (run, stream), and its first row that cannot be read."""
    size = entry.rows(config.n)
    mantissa, exponent = blocks_of_rows(rng, config.n, 9, 2 * size + 1)
    run = Run(entry, mantissa, exponent, False, 0, 0)
    bits, granules = stream(config, run.encoded(config, plain=True))
    first = Run(entry, mantissa[:size], exponent[:size], False, 0, 0).encoded(config, plain=True)
    if kind == "tag":
        illegal = [tag for tag in range(256) if from_tag(tag) is None]
        place = first.bits
        bits &= ~(0xFF << place)
        return run, (bits | int(rng.choice(illegal)) << place, granules), size
    cut = int(rng.integers(0, granules))
    return run, (bits & (1 << cut * config.n) - 1, cut), None


@pytest.mark.parametrize("kind", ["tag", "cut"])
def test_corrupted_runs(kind):
    """Rows with an error from the corrupted row to the end of the run; the next run is whole."""
    rng = np.random.default_rng([SEED, 6, len(kind)])
    config = configuration()
    runs, streams, broken = [], [], []
    for entry in shuffled(rng, EVERY)[:30]:
        run, found, row = corrupt(rng, config, entry, kind)
        runs.append(run)
        streams.append(found)
        broken.append(row)
        runs += random_runs(rng, config, [entry], blocks=1)
        streams.append(stream(config, runs[-1].encoded(config, plain=True)))
        broken.append(len(runs[-1]))
    words, _ = decode(Decoder(config), config, runs, streams, stall_in=0.2, stall_out=0.2)
    at = 0
    for run, row, (bits, granules) in zip(runs, broken, streams, strict=True):
        mantissa, exponent, error = rows_of(words[at : at + len(run)])
        at += len(run)
        raw = np.frombuffer(bits.to_bytes(granules, "little"), np.uint8)
        if row == len(run):
            expected = run.decoded(config, raw)
            assert (mantissa, exponent) == (expected[0].tolist(), expected[1].tolist())
            assert not any(error)
            continue
        with pytest.raises(CodecError):
            run.decoded(config, raw)
        good = error.index(1)
        assert all(error[good:])
        assert good == row if row is not None else good < len(run)


def test_noise_ends():
    """Any bits: one row out for each row wanted, nothing read beyond the run."""
    rng = np.random.default_rng([SEED, 7])
    config = configuration()
    runs, streams = [], []
    for _ in range(60):
        rows = int(rng.integers(1, 40))
        runs.append(Run(None, np.zeros((rows, 8), np.int16), np.zeros(rows, np.uint8), False, 0, 0))
        granules = int(rng.integers(0, 120))
        streams.append((int.from_bytes(rng.bytes(granules), "little"), granules))
    words, _ = decode(Decoder(config), config, runs, streams)
    at = 0
    for run, (bits, granules) in zip(runs, streams, strict=True):
        error = rows_of(words[at : at + len(run)])[2]
        at += len(run)
        try:
            run.decoded(config, np.frombuffer(bits.to_bytes(granules, "little"), np.uint8))
        except CodecError:
            assert any(error)
        else:
            assert not any(error)


def test_tables_can_be_written():
    rng = np.random.default_rng([SEED, 8])
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
    dut = Decoder(config)

    async def write(ctx):
        for slot, name in enumerate(SLOTS):
            for code, (low, spread) in enumerate(
                zip(tables[name].low, tables[name].spread, strict=True)
            ):
                ctx.set(dut.entry, {"code": code, "slot": slot, "low": low, "spread": spread})
                ctx.set(dut.entry_valid, 1)
                await ctx.tick()
        ctx.set(dut.entry_valid, 0)

    runs = random_runs(rng, config, [e for e in EVERY if e.table and e.block == 32])
    check(config, runs, tables=tables, dut=dut, write_tables=write)


@pytest.mark.rtl
@pytest.mark.parametrize("n", [8, pytest.param(4, marks=pytest.mark.long)])
def test_rtl(tmp_path, n):
    component = Decoder(configuration(n))
    run_bench(component, "tb.tb_stash_decoder", tmp_path, seed=SEED, n=n)
