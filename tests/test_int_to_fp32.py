# amaranth: UnusedElaboratable=no
"""Integer conversion: the model against fractions, the RTL against the model."""

import re
from fractions import Fraction

import numpy as np
import pytest

from gradmill_hw.numeric.int_to_fp32 import IntToFp32
from gradmill_hw.numeric.int_to_fp32_model import int_to_fp32
from tb.pipeline import run_pipeline

SEED = 3085


def vectors(width, count):
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    limit = 1 << width - 1
    integer = rng.integers(-limit, limit, count) >> rng.integers(0, width, count)
    corners = [-limit, limit - 1, -1, 0, 1, -limit + 1]
    integer[::7] = np.resize(corners, integer[::7].shape)
    exponent = rng.integers(-160, 140, count)
    exponent[::5] = rng.integers(-1024, 1024, exponent[::5].shape)
    # A third lands next to the smallest or the largest exponent.
    edge = np.where(rng.integers(0, 2, count), -126, 127) + rng.integers(-2, 3, count)
    length = np.frexp(np.abs(integer))[1] - 1
    exponent[1::3] = (edge - length)[1::3]
    return integer, exponent, rng.integers(0, 16, count) == 0


def exact(integer, exponent):
    value = abs(Fraction(integer)) * Fraction(2)**exponent
    sign = 0x80000000 if integer < 0 else 0
    if value < Fraction(2)**-126:
        return sign
    if value >= 2**128:
        return sign | 0x7F800000
    e = value.numerator.bit_length() - value.denominator.bit_length()
    e -= value < Fraction(2)**e
    mantissa = value / Fraction(2)**(e - 23)
    assert mantissa.denominator == 1
    return sign | e + 127 << 23 | mantissa.numerator - (1 << 23)


@pytest.mark.parametrize("width", [9, 20, 25])
def test_model(width):
    integer, exponent, nan = vectors(width, 5000)
    expected = [0x7FC00000 if n else exact(i, e)
                for i, e, n in zip(integer.tolist(), exponent.tolist(), nan, strict=True)]
    np.testing.assert_array_equal(int_to_fp32(integer, exponent, nan), expected)


@pytest.mark.parametrize("width", [2, 9, 20, 25])
def test_stream(width):
    integer, exponent, nan = vectors(width, 2500)
    results = run_pipeline(IntToFp32(width=width), integer=integer, exponent=exponent, nan=nan)
    np.testing.assert_array_equal(results, int_to_fp32(integer, exponent, nan))


def test_width_is_checked():
    with pytest.raises(ValueError, match=re.escape("width must be 2 to 25, not 26")):
        IntToFp32(width=26)
