"""Stash formats: the models against a second implementation, and what they keep of a signal."""

from fractions import Fraction

import numpy as np
import pytest
from gradmill import codec
from gradmill_hw.config import TILE
from gradmill_hw.stash import codec_model, formats
from gradmill_hw.stash.elements_model import decode_random, encode_random, from_float, to_float
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import stash_reference as reference
from tb.stash_runs import blocks_of_rows


SEED = 20240815
ALL = [entry for tag in range(256) if (entry := formats.from_tag(tag))]
KEY = (7, 11, 13)


def fractions(mantissa, exponent, mantissa_bits):
    return [
        [
            Fraction(int(m)) * reference.two(int(e) - 127 - mantissa_bits + 2) * (e != 255)
            for m in row
        ]
        for row, e in zip(mantissa, exponent, strict=True)
    ]


def as_bits(encoded):
    return np.unpackbits(encoded.raw, bitorder="little")[: encoded.bits].tolist()


def check(entry, mantissa, exponent, mantissa_bits, key):
    """Model and reference agree on the bits, on the values and on the rows read back."""
    rows, n = mantissa.shape
    config = TILE.replace(n=n, bus_bits=8 * n, mantissa_bits=mantissa_bits)
    encoded = codec_model.encode_rows(config, entry, mantissa, exponent, key=key)
    tags = [entry.tag] * -(-rows // entry.rows(n))
    bad = [bool(e == 255) for e in exponent]
    index = np.arange(rows)
    drawn = (
        (None, None)
        if key is None
        else [source(key, index, n).tolist() for source in (encode_random, decode_random)]
    )
    values = fractions(mantissa, exponent, mantissa_bits)
    bits = reference.encode(tags, values, bad, drawn[0], n)
    assert as_bits(encoded) == bits
    low, high = entry.granules(rows, n)
    assert low * n <= encoded.bits <= high * n
    expected = reference.to_rows(*reference.decode(bits, rows, n, drawn[1]), n, mantissa_bits)
    found = codec_model.decode_rows(config, encoded.raw, rows, key=key)
    assert found[0].tolist() == expected[0] and found[1].tolist() == expected[1]


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_matches_the_reference(entry):
    rng = np.random.default_rng([SEED, entry.tag])
    n = (4, 8, 16)[entry.tag % 3]
    rows = int(rng.integers(1, 3 * entry.rows(n)))
    mantissa, exponent = blocks_of_rows(rng, n, 9, rows)
    check(entry, mantissa, exponent, 9, None)
    check(entry, mantissa, exponent, 9, KEY)


@pytest.mark.parametrize("entry", [e for e in ALL if e.block == 32], ids=str)
@pytest.mark.parametrize("mantissa_bits", [4, 7, 9])
def test_matches_the_reference_at_every_width(entry, mantissa_bits):
    rng = np.random.default_rng([SEED, 1, entry.tag])
    for n in (4, 8, 16):
        mantissa, exponent = blocks_of_rows(rng, n, mantissa_bits, int(rng.integers(1, 14)))
        check(entry, mantissa, exponent, mantissa_bits, None)


def test_binary32_matches_the_reference():
    rng = np.random.default_rng(SEED)
    x = (rng.normal(size=(48, 8)) * 2.0 ** rng.integers(-140, 120, (48, 1))).astype(np.float32)
    x[5] = 0
    for entry in ALL:
        encoded = codec_model.encode(entry, from_float(x))
        flushed = np.where(np.abs(x) < 2.0**-126, 0, x)
        values = [[Fraction(float(v)) for v in row] for row in flushed]
        tags = [entry.tag] * (48 // entry.rows(8))
        assert as_bits(encoded) == reference.encode(tags, values, [False] * 48, None, 8)


def test_every_block_of_its_own_format():
    rng = np.random.default_rng(SEED + 1)
    for n in (4, 8, 16):
        tags = [ALL[k].tag for k in rng.permutation(len(ALL))[:60]]
        rows = sum(formats.from_tag(tag).rows(n) for tag in tags)
        mantissa, exponent = blocks_of_rows(rng, n, 9, rows)
        bad = [bool(e == 255) for e in exponent]
        bits = reference.encode(tags, fractions(mantissa, exponent, 9), bad, None, n)
        raw = np.packbits(np.array(bits, np.uint8), bitorder="little")
        config = TILE.replace(n=n, bus_bits=8 * n)
        found = codec_model.decode_rows(config, raw, rows)
        expected = reference.to_rows(*reference.decode(bits, rows, n), n, 9)
        assert found[0].tolist() == expected[0] and found[1].tolist() == expected[1]


@pytest.mark.parametrize("entry", [e for e in ALL if e.block == 32], ids=str)
def test_truncated_blocks_are_named(entry):
    rng = np.random.default_rng([SEED, 2, entry.tag])
    mantissa, exponent = blocks_of_rows(rng, 8, 9, 3 * entry.rows(8))
    raw = codec_model.encode_rows(TILE, entry, mantissa, exponent).raw
    for size in range(0, len(raw), 1 + len(raw) // 40):
        with pytest.raises(codec.CodecError, match="ends after") as caught:
            codec_model.decode_rows(TILE, raw[:size], len(mantissa))
        assert 0 <= caught.value.block < 3


def test_bad_tags_are_named():
    mantissa, exponent = blocks_of_rows(np.random.default_rng(SEED), 8, 9, 24)
    entry = formats.Format("bfp", 4)
    raw = codec_model.encode_rows(TILE, entry, mantissa, exponent).raw
    second = entry.granules(8, 8)[0]
    for tag in range(256):
        raw[second] = tag
        if formats.from_tag(tag) is None:
            with pytest.raises(codec.CodecError, match=f"block 1: tag {tag:#04x}"):
                codec_model.decode_rows(TILE, raw, 24)


def test_noise_never_crashes():
    rng = np.random.default_rng(SEED + 3)
    for _ in range(300):
        raw = rng.integers(0, 256, 200).astype(np.uint8)
        try:
            mantissa, exponent = codec_model.decode_rows(TILE, raw, 40)
        except codec.CodecError:
            continue
        assert mantissa.shape == (40, 8) and np.abs(mantissa).max() <= 255
        assert exponent.shape == (40,)


# Quality


def decibels(signal, error):
    power, noise = (np.sum(np.square(part, dtype=float)) for part in (signal, error))
    return 10 * np.log10(power / max(noise, 1e-30 * power))


def quality(name, x, **parameters):
    back = codec.decode(codec.encode(name, x, **parameters))
    return decibels(x, back.astype(float) - x)


@pytest.mark.parametrize(("name", "expected"), [("mx9", 46.5), ("mx6", 28.3), ("mx4", 15.7)])
def test_mx_on_normal_values(name, expected):
    for seed in (1, 2):
        x = np.random.default_rng(seed).normal(size=1 << 17).astype(np.float32)
        assert abs(quality(name, x) - expected) < 0.3


BOUNDS = {"mx9": 34.7, "mx6": 16.7, "mx4": 4.6}


@pytest.mark.parametrize(("name", "bound"), BOUNDS.items())
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mx_bound_on_any_values(name, bound, data):
    numbers = st.floats(min_value=-(2.0**20), max_value=2.0**20, width=32, allow_subnormal=False)
    # Far below the largest of their group values cost nothing in decibels, near it they do.
    near = st.sampled_from([1.0, -1.0, 0.5, 0.49, 0.2499, 0.125, 1.99, 1.97, 0.99, 0.75, 0.0039])
    x = np.array(data.draw(st.lists(numbers | near, min_size=16, max_size=16)), np.float32)
    if np.abs(x).max() > 2.0**-100:
        assert quality(name, x) > bound


@pytest.mark.parametrize(("name", "bound"), BOUNDS.items())
def test_mx_bound_on_the_worst_values(name, bound):
    """Hill climbing towards the worst group, from many bad ones."""
    rng = np.random.default_rng(SEED)
    step = 2.0 ** (1 - formats.Format(name).magnitude_bits)
    start = [1.0, 0.5, step / 2, step / 4, 0.1, 1.96]
    x = rng.choice(start, (4096, 16)) * rng.uniform(0.95, 1.05, (4096, 16))
    x[0] = [1, step / 2, *[step / 4] * 14]  # one exact value, half a step lost in all others
    x = x.astype(np.float32)

    def ratio(x):
        back = codec.decode(codec.encode(name, x, block=16))
        return np.sum(x.astype(float) ** 2, 1) / np.maximum(
            np.sum((back - x.astype(float)) ** 2, 1), 1e-30
        )

    worst = ratio(x)
    for change in np.geomspace(0.3, 0.001, 100):
        other = x * (1 + change * rng.normal(size=x.shape) * (rng.random(x.shape) < 0.3))
        other = other.astype(np.float32)
        found = ratio(other)
        better = found < worst
        x[better], worst[better] = other[better], found[better]
    low = 10 * np.log10(worst.min())
    print(f"worst {name}: {low:.2f} dB")
    assert bound < low < bound + 2.1


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3, 1.7])
def test_outliers(scale):
    rng = np.random.default_rng(SEED)
    x = (rng.normal(size=1 << 16) * scale).astype(np.float32)
    outlier = rng.random(x.shape) < 0.01
    x[outlier] *= 30
    stored = codec.encode("outlier", x, bits=3, block=128, outliers=4)
    assert stored.bits_per_value == 4.5
    back = codec.decode(stored)
    assert decibels(x[~outlier], (back - x)[~outlier]) >= 15
    assert stored.dropped < 0.06 * len(x) / 128
    for bits in (3, 4):  # three bits with the sign, and three without
        plain = codec.decode(codec.encode("bfp", x, bits=bits, block=128))
        assert decibels(x[~outlier], (plain - x)[~outlier]) < 5


def test_more_outliers_than_room():
    x = np.full(128, 1.0, np.float32)
    x[[3, 40, 41, 90, 100, 127]] = [100, -4000, 900, 70, -130, 2000]
    stored = codec.encode("outlier", x, bits=3, block=128, outliers=4)
    back = codec.decode(stored)
    assert stored.dropped == 2
    kept = [40, 41, 100, 127]
    assert np.all(np.abs(back[kept] / x[kept] - 1) < 1 / 2)
    assert abs(back[40] / x[40] - 1) < 1 / 32
    # The body's exponent is 7 below the largest, 11: seven times two to the 11 - 7 - 2.
    assert back[[3, 90]].tolist() == [28, 28]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("table", ["lite", "normal", "aggressive"])
def test_random_decode_is_unbiased(table, seed):
    # Integers of 8 bits, spread evenly over where each bin decodes to; one of them sets E.
    rng = np.random.default_rng(seed)
    low, spread = (
        np.array(part)
        for part in (codec_model.PRESETS[table].low, codec_model.PRESETS[table].spread)
    )
    bins = rng.integers(0, len(low), 1 << 16)
    x = low[bins] + rng.integers(0, 1 << spread[bins])
    x[::64] = 128 + rng.integers(0, 64, len(x[::64]))
    part = np.arange(len(x)) % 64 != 0
    stored = codec.encode("nonuniform", x.astype(np.float32), table=table)
    error = codec.decode(stored, seed=seed)[part] - x[part]
    print(f"{table}: mean {error.mean():.4f}, three sigma {3 * error.std() / 256:.4f}")
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(part.sum())
    fixed = codec.decode(stored)[part] - x[part]
    assert error.std() > fixed.std()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("table", ["lite", "normal", "aggressive"])
def test_random_decode_of_normal_values_is_unbiased(table, seed):
    x = np.random.default_rng(seed).normal(size=1 << 16).astype(np.float32)
    error = codec.decode(codec.encode("nonuniform", x, table=table), seed=seed) - x
    assert abs(error.mean()) < 3 * error.std() / 256


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["bfp", "ubfp"])
def test_stochastic_rounding_is_unbiased(name, seed):
    # Positive values; what lies above the largest code of its block would saturate.
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1.5, (1 << 10, 64)).astype(np.float32)
    x[:, 0] = 1.0
    stored = codec.encode(name, x, bits=3 if name == "bfp" else 2, seed=seed)
    error = codec.decode(stored) - x
    # 8 random bits: short of the exact mean by 1/512 of a step.
    assert abs(error.mean() + 0.5 / 512) < 3 * error.std() / 256 + 0.5 / 512


def test_zero_packing_loses_nothing():
    rng = np.random.default_rng(SEED)
    x = (np.maximum(rng.normal(size=4096), 0) * (rng.random(4096) < 0.4)).astype(np.float32)
    for entry in ALL:
        if entry.pack:
            plain = formats.Format(entry.name, entry.bits, entry.block, entry.outliers, entry.table)
            packed = codec.encode(entry, x)
            assert np.array_equal(codec.decode(packed), codec.decode(codec.encode(plain, x)))
            assert packed.bits < codec.encode(plain, x).bits or entry.planes == 1


def test_fitted_tables_are_better():
    rng = np.random.default_rng(SEED)
    x = rng.laplace(size=1 << 14).astype(np.float32)
    for bits, slot in ((1, "aggressive"), (2, "normal"), (3, "lite")):
        table = codec.fit_table(x, bits)
        fitted = codec.encode("nonuniform", x, table=table)
        assert fitted.format.table == slot and fitted.tables[slot] == table
        assert decibels(x, codec.decode(fitted) - x) > quality("nonuniform", x, table=slot)
    named = codec.encode("nonuniform", x, table="lite", tables={"lite": table})
    assert np.array_equal(named.raw, fitted.raw)


def test_nothing_finite_becomes_nan_and_nan_stays():
    x = np.ones((4, 64), np.float32)
    x[1, 3] = np.nan
    for entry in ALL:
        if entry.block == 64 and entry.kind.exponent:
            back = codec.decode(codec.encode(entry, x))
            assert np.isnan(back[1]).any() and np.isfinite(back[[0, 2, 3]]).all()


def test_float_reading_is_exact():
    values = codec_model.decode(codec.encode("mx9", np.float32([1.5, -0.75] * 8)).raw, 2, 8)
    assert to_float(values).tolist() == [[1.5, -0.75] * 4] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: codec.encode("bfq", np.float32([1])), "unknown stash format"),
        (lambda: codec.encode("bfp", np.float32([1]), bits=9), "bits=9"),
        (lambda: codec.encode("bfp", np.float32([1])), "bits=None"),
        (lambda: codec.encode("mx9", np.float32([1]), bits=6), "bits=6"),
        (lambda: codec.encode("mask", np.float32([1]), block=48), "block=48"),
        (lambda: codec.encode("mask", np.float32([1]), pack=True), "no zero packing"),
        (lambda: codec.encode("outlier", np.float32([1]), bits=3, outliers=3), "outliers=3"),
        (lambda: codec.encode("nonuniform", np.float32([1]), table="loose"), "table='loose'"),
        (lambda: codec.encode("mx9", np.float32([1]), n=32), "n=32"),
        (lambda: codec.encode("mx9", np.float64([1])), "float64"),
        (lambda: codec.encode("mx9", np.float32([1]), depth=3), "depth"),
        (lambda: codec.Table((8, 8, 16), (0, 1, 2, 3), (0, 0, 0, 0)), "ascending multiples of 4"),
        (lambda: codec.Table((8,), (9, 4), (0, 0)), "not monotonic"),
        (lambda: codec.Table((8,), (0, 200), (0, 6)), "0..255"),
        (lambda: codec.Table((8, 16), (0, 1, 2), (0, 0, 0)), "1, 3 or 7"),
        (lambda: codec.Format.parse("9mx"), "write a name"),
    ],
)
def test_errors_say_what_is_allowed(call, message):
    with pytest.raises(codec.FormatError, match=message):
        call()


def test_names_are_read_back():
    for entry in ALL:
        assert formats.Format.parse(str(entry)) == entry
    assert formats.from_tag(0) is None
    assert {e.bits for e in ALL if e.name == "bfp"} == set(range(2, 9))
