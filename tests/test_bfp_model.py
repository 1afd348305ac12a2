"""Block floating point: the model against exact fractions and against OCP MXINT8."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gradmill_hw.numeric.bfp_model import (dequantise, dequantize, quantise_events,
                                           quantise_tiles, quantize, random_bits)
from tb import bfp_reference
from tb.bfp_tiles import corner_tiles


SEED = 20240611
HW = Path(__file__).parents[1] / "hw"


def bits_of(values):
    return np.asarray(values, np.float32).view(np.uint32)


def check(rows, n, mantissa_bits, random=None):
    """Compare every tile of ``rows`` (storage bits) with the reference."""
    mantissa, exponent, saturated, nonfinite = quantise_events(
        rows, n, mantissa_bits, random is not None, random)
    assert mantissa.dtype == np.int16 and exponent.dtype == np.uint8
    any_saturated = any_nonfinite = False
    for tile in range(len(rows) // n):
        part = slice(tile * n, (tile + 1) * n)
        expected, shared, events = bfp_reference.quantise_tile(
            rows[part].ravel().tolist(), mantissa_bits,
            None if random is None else random[part].ravel().tolist())
        assert mantissa[part].ravel().tolist() == expected
        assert exponent[part].tolist() == [shared] * n
        any_saturated |= any(events)
        any_nonfinite |= shared == 255
    assert (saturated, nonfinite) == (any_saturated, any_nonfinite)


@pytest.mark.parametrize("mantissa_bits", range(4, 10))
@pytest.mark.parametrize("n", [4, 8])
def test_corner_tiles(n, mantissa_bits):
    rng = np.random.default_rng(SEED)
    for rows in np.split(corner_tiles(rng, n, mantissa_bits, count=60), 60):
        check(rows, n, mantissa_bits)
        numbers = rng.integers(0, 1 << random_bits(mantissa_bits), rows.shape)
        check(rows, n, mantissa_bits, numbers.astype(np.uint16))
        check(rows, n, mantissa_bits, np.zeros(rows.shape, np.uint16))
        ones = np.full(rows.shape, (1 << random_bits(mantissa_bits)) - 1, np.uint16)
        check(rows, n, mantissa_bits, ones)


@pytest.mark.parametrize("mantissa_bits", [4, 8, 9])
@pytest.mark.parametrize("shared", [1, 3, 130, 254])
def test_every_exponent_and_leading_fraction(mantissa_bits, shared):
    # Ties, sticky bits and signs below every distance from the exponent of the tile.
    fraction = np.array([0, 1, 0x400000, 0x400001, 0x3fffff, 0x7fffff, 0x7f8000, 0x7f7fff,
                         0x008000, 0x018000, 0x010000, 0x010001, 0x555555], np.uint32)
    exponent = np.arange(max(0, shared - 30), shared + 1, dtype=np.uint32)
    bits = (exponent[:, None] << 23 | fraction).ravel()
    bits = np.concatenate([bits, bits | 1 << 31])
    rows = np.zeros((-(-bits.size // 15), 16), np.uint32)
    rows.ravel()[:bits.size] = bits
    rows[:, 15] = shared << 23
    rows = rows.reshape(-1, 4, 4)
    rows[:, 3, 3] = shared << 23
    check(rows.reshape(-1, 4), 4, mantissa_bits)


@pytest.mark.parametrize("mantissa_bits", range(4, 10))
def test_random_values(mantissa_bits):
    rng = np.random.default_rng(SEED + 1)
    rows = rng.normal(size=(64, 8)).astype(np.float32)
    rows *= np.exp2(rng.integers(-12, 12, rows.shape)).astype(np.float32)
    check(rows.view(np.uint32), 8, mantissa_bits)
    check(rng.integers(0, 1 << 32, (64, 8), dtype=np.uint32), 8, mantissa_bits)


def test_float_and_storage_bits_are_the_same():
    rows = np.random.default_rng(SEED).normal(size=(8, 8)).astype(np.float32)
    for a, b in zip(quantise_tiles(rows, 8, 9), quantise_tiles(bits_of(rows), 8, 9),
                    strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="float64"):
        quantise_tiles(rows.astype(np.float64), 8, 9)


def test_ml_dtypes_integers():
    # Eight bits are OCP MXINT8: a power-of-two scale, and an int8 worth 1/64. With the scale
    # taken out, rounding to MXINT8 is rounding to an integer of ml_dtypes' nearest even.
    rng = np.random.default_rng(SEED + 2)
    rows = rng.uniform(-1.98, 1.98, (800, 8)).astype(np.float32)
    rows[::8, 0] = 1.5
    mantissa, exponent = quantise_tiles(rows, 8, 8)
    assert (exponent == 127).all()
    assert np.array_equal(mantissa, np.rint(rows * 64).astype(np.int8))
    scale = exponent.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    ocp = scale[:, None] * mantissa.astype(np.int8).astype(np.float32) / 64
    assert np.array_equal(bits_of(dequantise(mantissa, exponent, 8)), bits_of(ocp))


def test_e8m0_scales():
    # The exponent byte is an OCP E8M0 scale, NaN included.
    exponent = np.arange(1, 256, dtype=np.uint8)
    mantissa = np.full((255, 8), 64, np.int16)
    scale = exponent.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    values = dequantise(mantissa, exponent, 8)
    assert np.array_equal(values[:254, 0], scale[:254])
    assert np.isnan(scale[254]) and bits_of(values)[254].tolist() == [0x7fc00000] * 8


@pytest.mark.parametrize("mantissa_bits", range(4, 10))
def test_dequantise_everything(mantissa_bits):
    limit = 2**(mantissa_bits - 1) - 1
    every = np.arange(-limit, limit + 1, dtype=np.int16)
    exponent = np.arange(256, dtype=np.uint8)
    got = bits_of(dequantise(np.tile(every, (256, 1)), exponent, mantissa_bits))
    assert got.tolist() == [[bfp_reference.element_bits(int(m), e, mantissa_bits) for m in every]
                            for e in range(256)]


@pytest.mark.parametrize("mantissa_bits", range(4, 10))
def test_what_was_quantised_stays(mantissa_bits):
    rng = np.random.default_rng(SEED + 3)
    limit = 2**(mantissa_bits - 1) - 1
    mantissa = rng.integers(-limit, limit + 1, (80, 8)).astype(np.int16)
    mantissa[::8, 3] = limit
    exponent = rng.integers(20, 255, 10).astype(np.uint8).repeat(8)
    values = dequantise(mantissa, exponent, mantissa_bits)
    again = quantise_events(values, 8, mantissa_bits)
    assert np.array_equal(again[0], mantissa) and np.array_equal(again[1], exponent)
    assert again[2:] == (False, False)


@pytest.mark.parametrize("mantissa_bits", [4, 5, 9])
def test_stochastic_is_unbiased(mantissa_bits):
    rng = np.random.default_rng(SEED + 4)
    bits, trials = random_bits(mantissa_bits), 40000
    tile = rng.uniform(-1, 1, (8, 8)).astype(np.float32)
    tile *= np.exp2(-rng.integers(0, 9, (8, 8))).astype(np.float32)
    tile[0, 0] = 1.25
    rows = np.tile(tile, (trials, 1))
    numbers = rng.integers(0, 1 << bits, rows.shape, dtype=np.uint16)
    mantissa, _ = quantise_tiles(rows, 8, mantissa_bits, stochastic=True, random=numbers)
    mean = mantissa.reshape(trials, 8, 8).mean(axis=0)
    exact = tile.astype(np.float64) * 2**(mantissa_bits - 2)
    # The standard deviation of one trial is at most a half.
    assert (np.abs(mean - exact) < 2.0**-bits + 5 * 0.5 / np.sqrt(trials)).all()
    # Over all random numbers, the mean is the value with bits below 2**-R dropped.
    every = np.arange(1 << bits, dtype=np.uint16).repeat(64).reshape(-1, 8)
    whole, _ = quantise_tiles(np.tile(tile, (1 << bits, 1)), 8, mantissa_bits, True, every)
    total = whole.reshape(-1, 8, 8).sum(axis=0, dtype=np.int64)
    assert np.array_equal(total, np.trunc(exact * (1 << bits)))


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (9, 7), (16, 24), (3, 40), (0, 5)])
@pytest.mark.parametrize("n", [4, 8])
def test_matrix(shape, n):
    rng = np.random.default_rng(SEED + 5)
    a = rng.normal(size=shape).astype(np.float32)
    mantissa, exponent = quantize(a, n=n)
    assert mantissa.shape == shape and mantissa.dtype == np.int16
    assert exponent.shape == (-(-shape[0] // n), -(-shape[1] // n)) and exponent.dtype == np.uint8
    for row in range(exponent.shape[0]):
        for column in range(exponent.shape[1]):
            part = np.s_[row * n:row * n + n, column * n:column * n + n]
            expected, shared, _ = bfp_reference.quantise_tile(bits_of(a[part]).ravel().tolist(), 9)
            assert mantissa[part].ravel().tolist() == expected
            assert exponent[row, column] == shared
    back = dequantize(mantissa, exponent, n=n)
    assert back.shape == shape and back.dtype == np.float32
    again = quantize(back, n=n)
    assert np.array_equal(again[0], mantissa) and np.array_equal(again[1], exponent)


def test_matrix_may_be_a_view():
    a = np.random.default_rng(SEED).normal(size=(24, 17)).astype(np.float32)
    for view in (a.T, a[::2, 1::3]):
        for x, y in zip(quantize(view), quantize(view.copy()), strict=True):
            assert np.array_equal(x, y)
    mantissa, exponent = quantize(a)
    transposed = quantize(a.T)
    assert np.array_equal(mantissa.T, transposed[0])
    assert np.array_equal(exponent.T, transposed[1])


def test_errors():
    a = np.zeros((8, 8), np.float32)
    mantissa, exponent = quantize(a)
    for call, words in [
        (lambda: quantize(a.astype(np.float64)), "float64"),
        (lambda: quantize([[1.0]]), "list"),
        (lambda: quantize(a[0]), "1 dimensions"),
        (lambda: quantize(a, mantissa_bits=10), "4 to 9"),
        (lambda: quantize(a, n=0), "n=0"),
        (lambda: quantize(a, n=2.0), "n=2.0"),
        (lambda: dequantize(mantissa.astype(np.int32), exponent), "int32"),
        (lambda: dequantize(mantissa, exponent.astype(np.int16)), "int16"),
        (lambda: dequantize(mantissa, exponent, n=4), r"\(1, 1\), not \(2, 2\)"),
        (lambda: dequantize(mantissa + np.int16(256), exponent), "-255 to 255"),
        (lambda: dequantize(mantissa + np.int16(8), exponent, mantissa_bits=4), "-7 to 7"),
        (lambda: dequantize(mantissa, exponent, mantissa_bits=3), "4 to 9"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_import_is_numpy_only():
    code = ("import sys, gradmill_hw.numeric.bfp_model, gradmill_hw.numeric.counter_rng_model; "
            "sys.exit('amaranth' in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(HW)})
