"""Number of ones."""

from amaranth import *


__all__ = ["ones"]


def ones(bits):
    """Number of ones among ``bits``, from tables of six inputs: no carry chain."""
    bits = Value.cast(bits)
    if len(bits) <= 6:
        return _table(bits, lambda value: value.bit_count())
    low, high = ones(bits[:6]), ones(bits[6:])
    if len(low) + len(high) <= 6:
        width = len(low)
        mask = (1 << width) - 1
        return _table(Cat(low, high), lambda value: (value & mask) + (value >> width))
    return low + high


def _table(index, function):
    values = [function(value) for value in range(1 << len(index))]
    width = max(values).bit_length() or 1
    return Array(Const(value, width) for value in values)[index]
