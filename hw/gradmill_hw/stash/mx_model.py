"""Stash formats ``mx9``, ``mx6``, ``mx4``: shared microexponents.

16 values share the exponent E, the largest of them; each pair of neighbours has a bit t that is 1
if both exponents are smaller than E. With b = 7, 4, 2 magnitude bits a code c means
``± c * 2**(E - t - 127 - b + 1)``. After Rouhani et al., "With Shared Microexponents, A Little
Shifting Goes a Long Way", ISCA 2023.
"""

import numpy as np

from .elements_model import (CODE_BITS, NONFINITE, Coded, Values, exponents, quantise,
                             shared_exponent)
from .formats import GROUP


__all__ = ["decode", "encode"]


def encode(entry, elements, random, tables):
    """:class:`Coded` of elements (blocks, rows, n)."""
    blocks, rows, n = elements.mag.shape
    group = GROUP // n
    codes = np.zeros(elements.mag.shape, np.int64)
    prefixes = []
    for first in range(0, rows, group):
        part = elements[:, first:first + group]
        found = exponents(part).reshape(blocks, -1, 2).max(axis=2)
        exponent = shared_exponent(found.max(axis=1), part.bad.any(axis=1))
        micro = found < exponent[:, None]
        prefixes.append([exponent, (micro << np.arange(micro.shape[1])).sum(axis=1)])
        scale = exponent[:, None] - micro
        scale = scale.repeat(2, axis=1).reshape(part.mag.shape)
        mag = quantise(part, scale, entry.magnitude_bits, random=_rows(random, first, group))
        mag[exponent == NONFINITE] = 0
        codes[:, first:first + group] = mag << 1 | part.neg & (mag > 0)
    return Coded(prefixes, codes)


def decode(entry, prefixes, codes, keep, random, tables):
    """:class:`Values` of codes (blocks, rows, n)."""
    blocks, rows, n = codes.shape
    group = GROUP // n
    shared = np.stack([exponent for exponent, _ in prefixes], axis=1).repeat(group, axis=1)
    bits = np.arange(GROUP // 2)
    micro = np.stack([word[:, None] >> bits & 1 for _, word in prefixes], axis=1)
    micro = micro.repeat(2, axis=2).reshape(blocks, -1, n)[:, :rows]
    shared = shared[:, :rows]
    mag = codes >> 1 << CODE_BITS - entry.magnitude_bits
    return Values(mag, codes & 1 == 1, shared[:, :, None] - micro, shared)


def _rows(random, first, count):
    return None if random is None else random[:, first:first + count]
