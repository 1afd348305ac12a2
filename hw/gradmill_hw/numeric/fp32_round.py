"""Rounding of binary32 values to bfloat16 precision as a combinational expression."""

from amaranth import *

from .fp32_format import CANONICAL_NAN, Fp32


__all__ = ["fp32_round_bf16"]


def fp32_round_bf16(value):
    """32-bit ``value`` rounded to the nearest bfloat16, ties to even, still in binary32.

    Subnormals become zero of the same sign and NaNs the canonical NaN; see
    :func:`fp32_model.round_bf16`.
    """
    value = Fp32(value)
    bits = value.as_value()
    up = bits[15] & (bits[:15].any() | bits[16])
    rounded = Cat(C(0, 16), (bits[16:31] + up)[:15], value.sign)
    zero = Cat(C(0, 31), value.sign)
    return Mux(value.is_nan, CANONICAL_NAN, Mux(value.is_zero, zero, rounded))[:32]
