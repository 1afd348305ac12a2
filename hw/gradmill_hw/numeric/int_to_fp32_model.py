"""Golden model of :mod:`gradmill_hw.numeric.int_to_fp32`."""

import numpy as np


__all__ = ["int_to_f32", "int_to_fp32"]


def int_to_f32(integer, exponent):
    """``integer * 2**exponent`` as float32, exact for ``abs(integer) <= 2**24``.

    Too large becomes infinity, smaller than 2**-126 becomes zero, both of the sign of
    ``integer``; the integer 0 gives +0.
    """
    biased = np.clip(np.asarray(exponent, dtype=np.int64), -1022, 1023) + 1023
    scale = (biased << 52).view(np.float64)
    with np.errstate(all="ignore"):
        value = np.asarray(integer, dtype=np.float64) * scale
        value = np.where(np.abs(value) < 2.0**-126, value * 0.0, value)
        return value.astype(np.float32)


def int_to_fp32(integer, exponent, nan=False):
    """:func:`int_to_f32` as storage bits; the canonical NaN where ``nan`` is set."""
    bits = int_to_f32(integer, exponent).view(np.uint32)
    return np.where(nan, np.uint32(0x7FC00000), bits)
