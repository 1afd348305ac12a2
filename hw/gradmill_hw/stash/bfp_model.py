"""Stash formats ``bfp`` and ``ubfp``: narrower block floating point.

One exponent E, the largest of the block; with b magnitude bits a code c means
``± c * 2**(E - 127 - b + 1)``. ``ubfp`` has no signs: what is negative counts as zero.
"""

import numpy as np

from .elements_model import (CODE_BITS, NONFINITE, Coded, Values, exponents, quantise,
                             shared_exponent)


__all__ = ["decode", "encode"]


def encode(entry, elements, random, tables):
    """:class:`Coded` of elements (blocks, rows, n)."""
    if not entry.kind.signed:
        elements = elements.positive()
    exponent = shared_exponent(exponents(elements).max(axis=(1, 2)), elements.bad.any(axis=1))
    codes = quantise(elements, exponent[:, None, None], entry.magnitude_bits, random=random)
    codes[exponent == NONFINITE] = 0
    if entry.kind.signed:
        codes = codes << 1 | elements.neg & (codes > 0)
    return Coded([[exponent]], codes)


def decode(entry, prefixes, codes, keep, random, tables):
    """:class:`Values` of codes (blocks, rows, n)."""
    exponent = prefixes[0][0][:, None, None]
    neg = np.zeros(codes.shape, bool)
    if entry.kind.signed:
        neg, codes = codes & 1 == 1, codes >> 1
    return Values(codes << CODE_BITS - entry.magnitude_bits, neg,
                  np.broadcast_to(exponent, codes.shape),
                  np.broadcast_to(exponent[..., 0], codes.shape[:2]))
