"""Golden model of binary32 arithmetic: round to nearest even, subnormals flushed, one NaN.

Every operator exists twice: on ``uint32`` storage bits (``add``) and on ``float32`` arrays
(``add_f32``). The rule is the same: subnormal operands count as zero of the same sign, NumPy
computes the IEEE 754 result, a subnormal result becomes zero of the same sign, and any NaN
becomes ``CANONICAL_NAN``. A result that rounds up to 2**-126 is not subnormal and is kept.
"""

import numpy as np


__all__ = ["CANONICAL_NAN", "add", "add_f32", "flush", "flush_f32", "maximum", "maximum_f32",
           "minimum", "minimum_f32", "mul", "mul_f32", "round_bf16_f32"]


CANONICAL_NAN = np.uint32(0x7FC00000)

_NAN = CANONICAL_NAN.view(np.float32)
_TINY = np.float32(2.0**-126)
_ZERO = np.float32(0)


def _f32(bits):
    return np.asarray(bits, dtype=np.uint32).view(np.float32)


def _flush_in_place(x):
    small = np.abs(x) < _TINY
    if small.any():
        np.multiply(x, _ZERO, out=x, where=small)
    return x


def _finish(x):
    """Flush subnormals of the array ``x`` and replace its NaNs, in place."""
    _flush_in_place(x)
    if np.isnan(x.min(initial=0)):
        x[np.isnan(x)] = _NAN
    return x


def _operand(x):
    """``x`` with subnormals flushed; ``x`` itself when it has none."""
    x = np.asarray(x, dtype=np.float32)
    small = np.abs(x) < _TINY
    return np.where(small, x * _ZERO, x) if small.any() else x


def flush_f32(x):
    """Zero of the same sign for subnormals, :data:`CANONICAL_NAN` for NaNs, else ``x``."""
    with np.errstate(all="ignore"):
        return _finish(np.array(x, dtype=np.float32))


def add_f32(x, y, *, flushed=False):
    """``x + y``. ``flushed`` promises that no operand is subnormal, which saves time."""
    with np.errstate(all="ignore"):
        if not flushed:
            x, y = _operand(x), _operand(y)
        return _finish(np.asarray(np.add(x, y, dtype=np.float32)))


def mul_f32(x, y, *, flushed=False):
    """``x * y``. ``flushed`` promises that no operand is subnormal, which saves time."""
    with np.errstate(all="ignore"):
        if not flushed:
            x, y = _operand(x), _operand(y)
        return _finish(np.asarray(np.multiply(x, y, dtype=np.float32)))


def _ordered(x):
    """Integers in the order of ``x``, -0 before +0."""
    bits = x.view(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _select_f32(x, y, take_x):
    x, y = np.broadcast_arrays(flush_f32(x), flush_f32(y))
    chosen = np.where(take_x(_ordered(x), _ordered(y)), x, y)
    return np.where(np.isnan(x) | np.isnan(y), _NAN, chosen)


def maximum_f32(x, y):
    """The larger operand, +0 over -0; NaN if either is NaN."""
    return _select_f32(x, y, np.greater)


def minimum_f32(x, y):
    """The smaller operand, -0 over +0; NaN if either is NaN."""
    return _select_f32(x, y, np.less)


def round_bf16_f32(x):
    """``x`` rounded to the nearest bfloat16 (ties to even), still in binary32."""
    bits = flush_f32(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))
    rounded &= np.uint32(0xFFFF0000)
    return np.where(bits == CANONICAL_NAN, bits, rounded).view(np.float32)


def flush(a):
    """:func:`flush_f32` on storage bits."""
    return flush_f32(_f32(a)).view(np.uint32)


def add(a, b):
    """:func:`add_f32` on storage bits."""
    return add_f32(_f32(a), _f32(b)).view(np.uint32)


def mul(a, b):
    """:func:`mul_f32` on storage bits."""
    return mul_f32(_f32(a), _f32(b)).view(np.uint32)


def maximum(a, b):
    """:func:`maximum_f32` on storage bits."""
    return maximum_f32(_f32(a), _f32(b)).view(np.uint32)


def minimum(a, b):
    """:func:`minimum_f32` on storage bits."""
    return minimum_f32(_f32(a), _f32(b)).view(np.uint32)
