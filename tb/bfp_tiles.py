"""Random tiles of binary32 values that reach the corners of quantisation."""

import numpy as np

from gradmill_hw.numeric.bfp_model import quantise_tiles, random_bits
from tb.bfp_reference import quantise_tile


__all__ = ["Traffic", "corner_tiles"]


class Traffic:
    """Random tiles and what a quantiser must give for them, both by row.

    ``rows``, ``random``, ``stochastic`` and ``tags`` go in; ``expected`` holds tuples of
    mantissas, exponent, tag, saturated and nonfinite.
    """

    def __init__(self, rng, n, mantissa_bits, tiles):
        self.n = n
        bits = random_bits(mantissa_bits)
        self.rows = corner_tiles(rng, n, mantissa_bits, tiles)
        self.random = rng.integers(0, 1 << bits, self.rows.shape, dtype=np.uint16)
        # Numbers at the ends carry always, or never.
        self.random[rng.random(self.rows.shape) < 0.1] = (1 << bits) - 1
        self.random[rng.random(self.rows.shape) < 0.1] = 0
        self.stochastic = rng.integers(0, 2, tiles).repeat(n)
        self.tags = rng.integers(0, 1 << 16, tiles * n)
        self.expected = []
        for first in range(0, tiles * n, n):
            part = slice(first, first + n)
            rounding = bool(self.stochastic[first]), self.random[part]
            mantissa, exponent = quantise_tiles(self.rows[part], n, mantissa_bits, *rounding)
            _, _, events = quantise_tile(self.rows[part].ravel().tolist(), mantissa_bits,
                                         self.random[part].ravel().tolist() if rounding[0]
                                         else None)
            saturated = np.reshape(events, (n, n)).any(axis=1)
            self.expected += zip(mantissa.tolist(), exponent.tolist(), self.tags[part].tolist(),
                                 saturated.tolist(), (exponent == 255).tolist(), strict=True)

    def is_last(self, row):
        """Whether ``row`` closes its tile."""
        return row % self.n == self.n - 1


def corner_tiles(rng, n, mantissa_bits, count):
    """``count`` tiles as storage bits, shape (count * n, n), of kinds chosen at random."""
    return np.concatenate([_tile(rng, n, mantissa_bits) for _ in range(count)])


def _tile(rng, n, mantissa_bits):
    shape = (n, n)
    sign = rng.integers(0, 2, shape, dtype=np.uint32) << 31
    fraction = rng.integers(0, 1 << 23, shape, dtype=np.uint32)
    # Few leading bits, or few missing, so that ties and carries are frequent.
    cut = rng.integers(8, 23, shape)
    few = fraction >> cut << cut
    many = few | ((1 << cut) - 1).astype(np.uint32)
    fraction = np.choose(rng.integers(0, 3, shape), [fraction, few, many]).astype(np.uint32)

    top = int(rng.choice([1, 2, 5, 14, 17, 40, 127, 200, 254, rng.integers(1, 255)]))
    spread = int(rng.choice([1, 4, 12, 20, 40, 254]))
    exponent = np.clip(top - rng.integers(0, spread, shape), 0, 254).astype(np.uint32)
    bits = sign | exponent << 23 | fraction

    kind = rng.integers(0, 9)
    if kind == 0:
        # Rounds up beyond the largest mantissa, with either sign, somewhere.
        where = rng.random(shape) < 0.2
        bits[where] = sign[where] | top << 23 | 0x7fffff
    elif kind == 1:
        bits[rng.random(shape) < 0.7] = 0
    elif kind == 2:
        bits &= 1 << 31
        if rng.random() < 0.5:
            bits |= fraction
    elif kind == 3:
        special = [0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffffffff]
        bits[tuple(rng.integers(0, n, 2))] = rng.choice(special)
    elif kind == 4:
        # One large element among elements that are exactly one half of a mantissa.
        bits = sign | (np.uint32(max(top, 20) - mantissa_bits + 1) << 23)
        bits[tuple(rng.integers(0, n, 2))] = max(top, 20) << 23
    elif kind == 5:
        # The largest exponent only in the first or the last row.
        bits = sign | np.minimum(exponent, max(top, 2) - 1) << 23 | fraction
        bits[rng.choice([0, n - 1]), rng.integers(0, n)] = max(top, 2) << 23
    elif kind in (6, 7):
        # Exactly between two mantissas, or off by a single lower bit at any place.
        top = max(top, 20)
        distance = rng.integers(0, mantissa_bits - 1, shape)
        half = (24 - mantissa_bits + distance).astype(np.uint32)
        lower = np.uint32(1) << (rng.random(shape) * half).astype(np.uint32)
        lower[rng.random(shape) < 0.3] = 0
        fraction = fraction >> half << half | np.uint32(1) << half | lower
        fraction &= ~(np.uint32(1) << half + np.uint32(1))
        bits = sign | (top - distance).astype(np.uint32) << 23 | fraction & 0x7fffff
        bits[tuple(rng.integers(0, n, 2))] = top << 23
    return bits.astype(np.uint32)
