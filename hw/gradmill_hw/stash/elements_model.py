"""Exact values of rows and the arithmetic that every stash format shares.

An element is an integer magnitude times a power of two: ``± mag * 2**(lsb - 127)``. Its exponent is
``lsb + bits(mag) - 1``. Nothing here is a float: what is decided is decided on integers.
"""

from dataclasses import dataclass

import numpy as np

from ..numeric.counter_rng_model import random_rows
from .formats import ROW_NUMBERS


__all__ = [
    "CODE_BITS",
    "DECODE_STREAM",
    "ENCODE_STREAM",
    "NONFINITE",
    "RANDOM_BITS",
    "Elements",
    "Values",
    "decode_random",
    "encode_random",
    "exponents",
    "from_float",
    "from_rows",
    "quantise",
    "shared_exponent",
    "to_float",
    "to_rows",
]

#: Shared exponent of a block with a NaN or an infinity; its codes are zero.
NONFINITE = 255
#: Magnitude bits of a decoded value: ``magnitude * 2**(exponent - 127 - 7)``.
CODE_BITS = 8
#: Random bits of one value.
RANDOM_BITS = 8

#: The two random streams lie in row numbers that no tensor reaches.
ENCODE_STREAM = 1 << 39
DECODE_STREAM = 3 << 38
_EMPTY = -(1 << 14)


@dataclass
class Elements:
    """Rows of exact values, of any leading shape.

    ``mag`` int64 and ``neg`` bool have the same shape, ``lsb`` int32 broadcasts to it. ``bad`` has
    one bool for each row: a NaN or an infinity is in it, its magnitudes are zero.
    """
    mag: np.ndarray
    neg: np.ndarray
    lsb: np.ndarray
    bad: np.ndarray

    def reshape(self, *shape):
        """The same rows as ``shape`` of rows of n."""
        n = self.mag.shape[-1]
        lsb = np.broadcast_to(self.lsb, self.mag.shape)
        return Elements(*(part.reshape(*shape, n) for part in (self.mag, self.neg, lsb)),
                        self.bad.reshape(shape))

    def __getitem__(self, rows):
        lsb = np.broadcast_to(self.lsb, self.mag.shape)
        return Elements(self.mag[rows], self.neg[rows], lsb[rows], self.bad[rows])

    def positive(self):
        """The same with negative values replaced by zeros."""
        return Elements(np.where(self.neg, 0, self.mag), np.zeros_like(self.neg), self.lsb,
                        self.bad)


@dataclass
class Coded:
    """Blocks before they become bits.

    ``prefixes`` lists the fields of each prefix, one number for each block; ``codes`` int64
    (blocks, rows, n), a sign as lowest bit where the format has signs. ``keep``: the values whose
    codes are stored if the format packs; codes that are not zero unless it says otherwise.
    ``dropped`` counts outliers that found no room.
    """
    prefixes: list
    codes: np.ndarray
    keep: np.ndarray | None = None
    dropped: int = 0


@dataclass
class Values:
    """Decoded values: ``± mag * 2**(exponent - 127 - 7)``, mag of 8 bits, exponent per value.

    ``shared`` is the exponent that a row asks of its tile: the largest that its block can mean.
    """
    mag: np.ndarray
    neg: np.ndarray
    exponent: np.ndarray
    shared: np.ndarray


def from_rows(mantissa, exponent, mantissa_bits):
    """Rows of block floating point: int16 (rows, n), uint8 (rows)."""
    mag = np.minimum(np.abs(mantissa.astype(np.int64)), (1 << mantissa_bits - 1) - 1)
    bad = exponent == NONFINITE
    mag[bad] = 0
    lsb = exponent.astype(np.int32)[..., None] - (mantissa_bits - 2)
    return Elements(mag, mantissa < 0, lsb, bad)


def from_float(rows):
    """Rows of binary32; subnormals count as zeros."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32).astype(np.int64)
    field = bits >> 23 & 255
    bad = (field == NONFINITE).any(-1)
    mag = np.where(field > 0, bits & 0x7fffff | 0x800000, 0)
    mag[bad] = 0
    return Elements(mag, bits >> 31 == 1, field.astype(np.int32) - 23, bad)


def exponents(elements):
    """Exponent of each element; far below every real one where it is zero."""
    bits = np.frexp(elements.mag.astype(np.float64))[1]
    return np.where(elements.mag > 0, elements.lsb + bits - 1, _EMPTY)


def shared_exponent(largest, bad):
    """A shared exponent from the ``largest`` of its values: at least 0, 255 where ``bad``."""
    return np.where(bad, NONFINITE, np.maximum(largest, 0)).astype(np.int32)


def quantise(elements, exponent, bits, *, random=None, between=False):
    """Magnitudes as integers of ``bits`` bits: units of ``2**(exponent - 127 - bits + 1)``.

    Eight fraction bits f and an OR of all lower bits are kept. To nearest even; with ``random``
    bits r, floor(f + r / 256). ``between``: codes mean the middle of their interval, so that
    nearest is floor(f), and random is floor(f + r / 256 - 1/2), at least 0.
    Above ``2**bits - 1`` saturates.
    """
    # A shift left of a value beyond what is representable saturates all the same.
    right = exponent - bits + 1 - elements.lsb - RANDOM_BITS
    left = np.clip(-right, 0, 30)
    right = np.clip(right, 0, 40)
    wide = elements.mag << left
    fixed = wide >> right
    if random is not None:
        rounded = fixed + random - (128 if between else 0) >> RANDOM_BITS
    elif between:
        rounded = fixed >> RANDOM_BITS
    else:
        sticky = fixed << right != wide
        rounded = fixed + 127 + (sticky | fixed >> RANDOM_BITS & 1) >> RANDOM_BITS
    return np.clip(rounded, 0, (1 << bits) - 1)


def to_float(values):
    """Values as float32: exact, but magnitudes below ``2**-126`` are zeros; 255 gives NaN."""
    result = np.ldexp(values.mag.astype(np.float32), values.exponent - 127 - (CODE_BITS - 1))
    result[np.abs(result) < np.float32(2.0**-126)] = 0
    result = np.where(values.neg, -result, result)
    result[np.broadcast_to(values.shared[..., None] == NONFINITE, result.shape)] = np.nan
    return result


def to_rows(values, mantissa_bits):
    """Values of (rows, n) as rows of block floating point, one exponent for each tile of n rows.

    The exponent of a tile is the largest that one of its rows asks for. Bits below the last of a
    mantissa are cut off towards zero.
    """
    rows, n = values.mag.shape
    tiles = -(-rows // n)
    padded = np.zeros(tiles * n, np.int32)
    padded[:rows] = values.shared
    exponent = padded.reshape(tiles, n).max(axis=1).repeat(n)[:rows]
    down = exponent[:, None] - values.exponent + CODE_BITS - (mantissa_bits - 1)
    mantissa = values.mag.astype(np.int32) >> np.clip(down, 0, 31)
    mantissa[exponent == NONFINITE] = 0
    return np.where(values.neg, -mantissa, mantissa).astype(np.int16), exponent.astype(np.uint8)


def encode_random(key, rows, n):
    """Random bits that encoding takes for ``rows``; ``key`` is (seed, step, layer)."""
    return random_rows(*key, rows % ROW_NUMBERS + ENCODE_STREAM, n, RANDOM_BITS).astype(np.int64)


def decode_random(key, rows, n):
    """Random bits that decoding takes for ``rows``."""
    return random_rows(*key, rows % ROW_NUMBERS + DECODE_STREAM, n, RANDOM_BITS).astype(np.int64)
