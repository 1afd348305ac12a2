"""Golden model of :mod:`gradmill_hw.numeric.functions`: table and quadratic, all in integers.

Every function takes and returns binary32 storage bits and flushes subnormals to zero of the same
sign. The largest error seen is 1.73 ulp; see docs/numerics.md for the algorithm in words.
"""

import numpy as np

from . import functions_tables as tables


__all__ = ["exp", "log", "recip", "rsqrt"]


CANONICAL_NAN = 0x7FC00000
INFINITY = 0x7F800000
SIGN = 0x80000000

_C0, _C1, _C2 = np.array(tables.polynomials(), dtype=np.int64).T
_LN2_LOW, _LN2_HIGH = np.array(tables.ln2_multiples(), dtype=np.int64)
_OCTAVES_INT, _OCTAVES_FRAC = (np.array(t, dtype=np.int64) for t in tables.octave_multiples())


def _fields(bits):
    bits = np.asarray(bits, dtype=np.uint32).astype(np.int64)
    return bits >> 31, bits >> 23 & 255, bits & 0x7FFFFF


def _bit_length(value):
    """Bits of positive integers below 2**53."""
    return np.frexp(value.astype(np.float64))[1].astype(np.int64)


def _polynomial(address, d):
    """Value of a table entry in units of 2**-26; ``d`` has units of 2**-18."""
    c1 = _C1[address] + (_C2[address] * (d >> 6) >> 11)
    return 2 * _C0[address] + (c1 * d >> 15)


def _fraction(frac, shift):
    """The low bits of a mantissa as position in its interval, from the middle."""
    return (frac << shift & 0x3FFFF) - 0x20000


def _pack(value, exponent):
    """Binary32 bits of ``value * 2**(exponent - 26 - 127)``, half up."""
    value = np.maximum(value, 1)
    length = _bit_length(value)
    mantissa = np.where(length >= 25, value >> np.maximum(length - 25, 0), value << 1) + 1 >> 1
    bits = (exponent + length - 28 << 23) + mantissa
    return np.where(bits >= INFINITY, INFINITY, np.where(bits < 1 << 23, 0, bits))


def _ln2(k):
    """``k * ln2`` in units of 2**-29."""
    return _LN2_LOW[k & 15] + _LN2_HIGH[k >> 4]


def _storage(bits):
    return bits.astype(np.uint32)


def exp(i):
    """Natural exponential."""
    sign, exponent, frac = _fields(i)
    e = exponent - 127

    # |x| = k ln2 +- r, |r| <= 3/8. Truncated to 27 bits below the point.
    x = (0x800000 | frac) << 10 >> np.clip(6 - e, 0, 63)
    k = _OCTAVES_INT[x >> 27 & 127] + _OCTAVES_FRAC[x >> 22 & 31] >> 6
    r = 4 * x - _ln2(k)
    r = np.where(sign, ~r, r)
    address = 128 + (r >> 22 & 127)
    value = _polynomial(address, (r >> 4 & 0x3FFFF) - 0x20000)
    result = _pack(value, 127 + np.where(sign, -k, k) - (r < 0))

    result = np.where(e >= 7, np.where(sign, 0, INFINITY), result)
    return _storage(np.where((exponent == 255) & (frac != 0), CANONICAL_NAN, result))


def recip(i):
    """Reciprocal."""
    sign, exponent, frac = _fields(i)
    result = _pack(_polynomial(frac >> 16, _fraction(frac, 2)), 253 - exponent)
    result = np.where(exponent == 255, 0, np.where(exponent == 0, INFINITY, result))
    return _storage(np.where((exponent == 255) & (frac != 0), CANONICAL_NAN, result | sign << 31))


def rsqrt(i):
    """Reciprocal of the square root; of a negative number NaN, of -0 negative infinity."""
    sign, exponent, frac = _fields(i)
    address = 256 + ((1 - exponent & 1) << 7) + (frac >> 16)
    result = _pack(_polynomial(address, _fraction(frac, 2)), 380 - exponent >> 1)
    result = np.where(exponent == 255, 0, result)
    result = np.where(exponent == 0, INFINITY | sign << 31, result)
    nan = (sign == 1) & (exponent != 0) | (exponent == 255) & (frac != 0)
    return _storage(np.where(nan, CANONICAL_NAN, result))


def log(i):
    """Natural logarithm; of a negative number NaN, of -0 negative infinity."""
    sign, exponent, frac = _fields(i)
    half = frac >> 22
    e = exponent - 127 + half
    negative = exponent < 127

    # The distance from 1 of x / 2**e, less one unit of 2**-24 if below 1, in units of 2**-27.
    distance = np.where(half, frac ^ 0x7FFFFF, frac)
    x = np.where(half, distance << 3, distance << 4)
    addend = np.where(half ^ negative, _ln2(np.abs(e)) - 4 * x - 1, _ln2(np.abs(e)) + 4 * x)
    address = 512 + (frac >> 15)
    d = _fraction(frac, 3)
    scale = np.full_like(frac, 3)

    # Near 1 the distance takes the place of e ln2 + x, with its leading one at 2**26.
    zeros = 23 - np.where(distance, _bit_length(np.maximum(distance, 1)), 0)
    near = (e == 0) & (x < 1 << 24)
    tiny = near & (x < 1 << 17)
    addend = np.where(near, distance << zeros + 4, addend)
    address = np.where(near, 768 + np.where(half, 128 + (frac >> 14 & 127), frac >> 13 & 127),
                       address)
    d = np.where(near, np.where(half, _fraction(frac, 4), _fraction(frac, 5)), d)
    scale = np.where(near, zeros + 1 + half, scale)
    address = np.where(tiny, 128 + np.where(half, 64, 48) + zeros % 16, address)
    d = np.where(tiny, (addend >> 8 & 0x3FFFF) - 0x20000, d)

    value = _polynomial(address, d)
    value = np.where(negative, addend + value, addend - value)
    result = _pack(value, 127 - scale) | negative << 31
    result = np.where((exponent == 127) & (frac == 0), 0, result)
    result = np.where(exponent == 255, INFINITY, result)
    result = np.where(exponent == 0, INFINITY | SIGN, result)
    nan = (sign == 1) & (exponent != 0) | (exponent == 255) & (frac != 0)
    return _storage(np.where(nan, CANONICAL_NAN, result))
