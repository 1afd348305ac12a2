"""Order of binary32 values as combinational expressions."""

from amaranth import *

from .fp32_format import CANONICAL_NAN, Fp32


__all__ = ["fp32_less", "fp32_max", "fp32_min"]


def _flushed(value):
    """Magnitude of ``value`` with subnormals as zero."""
    return Mux(value.is_zero, 0, value.magnitude)


def _before(a, b):
    """``a < b`` when neither is NaN."""
    larger = Mux(a.sign, _flushed(b) < _flushed(a), _flushed(a) < _flushed(b))
    return Mux(a.sign == b.sign, larger, a.sign)


def _select(a, b, take_a):
    a, b = Fp32(a), Fp32(b)
    chosen = Mux(take_a(a, b), Cat(_flushed(a), a.sign), Cat(_flushed(b), b.sign))
    return Mux(a.is_nan | b.is_nan, CANONICAL_NAN, chosen)[:32]


def fp32_less(a, b):
    """1 if ``a < b``, with -0 < +0; 0 if either is NaN. Operands are 32 bits."""
    a, b = Fp32(a), Fp32(b)
    return _before(a, b) & ~(a.is_nan | b.is_nan)


def fp32_max(a, b):
    """The larger of two 32-bit operands, see :func:`fp32_model.maximum`."""
    return _select(a, b, lambda a, b: ~_before(a, b))


def fp32_min(a, b):
    """The smaller of two 32-bit operands, see :func:`fp32_model.minimum`."""
    return _select(a, b, _before)
