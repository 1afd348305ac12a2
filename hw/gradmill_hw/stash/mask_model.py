"""Stash formats ``mask`` and ``mask+bfp``: a bit per value, and codes of the positive values.

The bit of a value says that it is positive. ``mask`` is that bit alone and reads as 1 or 0.
``mask+bfp`` with b bits stores a code c of each positive value; E is their largest exponent
and c means ``(c + 1/2) * 2**(E - 127 - b + 1)``.
"""

import numpy as np

from .elements_model import (CODE_BITS, NONFINITE, Coded, Values, exponents, quantise,
                             shared_exponent)


__all__ = ["decode", "encode"]

_ONE = 127


def encode(entry, elements, random, tables):
    """:class:`Coded` of elements (blocks, rows, n)."""
    elements = elements.positive()
    keep = elements.mag > 0
    if not entry.kind.bitmap:
        return Coded([[]], keep.astype(np.int64))
    exponent = shared_exponent(exponents(elements).max(axis=(1, 2)), elements.bad.any(axis=1))
    codes = quantise(elements, exponent[:, None, None], entry.magnitude_bits, random=random,
                     between=True)
    keep &= (exponent != NONFINITE)[:, None, None]
    return Coded([[exponent]], np.where(keep, codes, 0), keep)


def decode(entry, prefixes, codes, keep, random, tables):
    """:class:`Values` of codes (blocks, rows, n) and, for ``mask+bfp``, which values have one."""
    if entry.kind.bitmap:
        exponent = prefixes[0][0]
        mag = np.where(keep, 2 * codes + 1 << CODE_BITS - 1 - entry.magnitude_bits, 0)
    else:
        exponent = np.full(len(codes), _ONE)
        mag = codes << CODE_BITS - 1
    return Values(mag, np.zeros(codes.shape, bool),
                  np.broadcast_to(exponent[:, None, None], codes.shape),
                  np.broadcast_to(exponent[:, None], codes.shape[:2]))
