"""Stash format ``nonuniform``: codes of unevenly spaced bins of a block's magnitudes.

One exponent E, the largest of the block. A magnitude is rounded to an integer of 8 bits in units
of ``2**(E - 127 - 7)``; the bin it falls in, by the thresholds of a table, is its code. A code
reads as ``low + 2**spread // 2`` of its bin, or, with random bits r, as ``low + r mod 2**spread``.
"""

import numpy as np

from .elements_model import (CODE_BITS, NONFINITE, Coded, Values, exponents, quantise,
                             shared_exponent)


__all__ = ["decode", "encode"]


def encode(entry, elements, random, tables):
    """:class:`Coded` of elements (blocks, rows, n)."""
    exponent = shared_exponent(exponents(elements).max(axis=(1, 2)), elements.bad.any(axis=1))
    mag = quantise(elements, exponent[:, None, None], CODE_BITS, random=random)
    mag[exponent == NONFINITE] = 0
    codes = tables[entry.table].codes[mag >> 2]
    return Coded([[exponent]], codes << 1 | elements.neg & (mag > 0))


def decode(entry, prefixes, codes, keep, random, tables):
    """:class:`Values` of codes (blocks, rows, n)."""
    table = tables[entry.table]
    low, spread = np.asarray(table.low), np.asarray(table.spread)
    mag = low[codes >> 1]
    width = 1 << spread[codes >> 1]
    mag = mag + (width >> 1 if random is None else random & width - 1) & (1 << CODE_BITS) - 1
    exponent = prefixes[0][0][:, None, None]
    return Values(mag, codes & 1 == 1, np.broadcast_to(exponent, codes.shape),
                  np.broadcast_to(exponent[..., 0], codes.shape[:2]))
