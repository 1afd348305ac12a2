"""Stash format ``outlier``: the shared exponent follows the body of the block.

Let E2 be the largest exponent of the block and D the distance from it to the median of the
exponents of all values that are not zero: half of them, rounded up, are at most D below E2; D
counts as 9 if it is more. The exponent of the body is ``E1 = E2 - max(D - 2, 0)``, at least 0.

Values with an exponent above E1 are outliers. The T largest are kept: by exponent, and among equals
in order of their index; the others saturate. With b magnitude bits

- the code c of a body value means ``± c * 2**(E1 - 127 - b + 1)``;
- a kept outlier has a magnitude of b + 3 bits in units of ``2**(E2 - 127 - b - 2)``: its lower b
  bits stand in the place of its code, its upper 3 in a list of (index, upper bits).
"""

import numpy as np

from .elements_model import (CODE_BITS, NONFINITE, Coded, Values, exponents, quantise,
                             shared_exponent)
from .formats import HIGH_BITS


__all__ = ["BODY_ABOVE_MEDIAN", "DISTANCE_MAX", "body_exponent", "decode", "encode"]

#: The body reaches two octaves above its median, 2.7 to 5.4 sigma of a normal distribution.
BODY_ABOVE_MEDIAN = 2
DISTANCE_MAX = 9


def body_exponent(found, nonzero, largest):
    """E1 of blocks of exponents ``found`` (blocks, values)."""
    distance = largest[:, None] - found
    half = (nonzero.sum(axis=1) + 1) // 2
    steps = np.arange(DISTANCE_MAX)
    near = ((distance[:, :, None] <= steps) & nonzero[:, :, None]).sum(axis=1)
    median = (near < half[:, None]).sum(axis=1)
    return np.maximum(largest - np.maximum(median - BODY_ABOVE_MEDIAN, 0), 0)


def encode(entry, elements, random, tables):
    """:class:`Coded` of elements (blocks, rows, n)."""
    shape = elements.mag.shape
    bits, kept = entry.magnitude_bits, entry.outliers
    found = exponents(elements).reshape(shape[0], -1)
    nonzero = elements.mag.reshape(shape[0], -1) > 0
    bad = elements.bad.any(axis=1)
    largest = shared_exponent(found.max(axis=1), np.zeros_like(bad))
    body = np.where(bad, NONFINITE, body_exponent(found, nonzero, largest))

    # Place of each outlier among those of its block.
    outlier = found > body[:, None]
    order = np.argsort(np.where(outlier, -found, 1), axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable")
    keep = outlier & (place < kept)
    second = np.where(keep.any(axis=1), largest, 0)

    mag = quantise(elements, body[:, None, None], bits, random=random)
    mag[bad] = 0
    wide = quantise(elements, largest[:, None, None], bits + HIGH_BITS, random=random)
    keep = keep.reshape(shape)
    mag = np.where(keep, wide, mag)
    codes = (mag & (1 << bits) - 1) << 1 | elements.neg & (mag > 0)

    # The list in order of index; what is left of it repeats the last entry.
    keep, wide = keep.reshape(shape[0], -1), wide.reshape(shape[0], -1)
    count = keep.sum(axis=1)
    index = np.argsort(~keep, axis=1, kind="stable")[:, :kept]
    last = np.clip(np.minimum(np.arange(kept), count[:, None] - 1), 0, None)
    index = np.take_along_axis(index, last, axis=1)
    high = np.take_along_axis(wide, index, axis=1) >> bits
    index[count == 0] = high[count == 0] = 0
    entries = [part[:, k] for k in range(kept) for part in (index, high)]
    return Coded([[body, second, *entries]], codes,
                 dropped=int(outlier.sum() - count.sum()))


def decode(entry, prefixes, codes, keep, random, tables):
    """:class:`Values` of codes (blocks, rows, n)."""
    blocks, rows, n = codes.shape
    body, second, *entries = prefixes[0]
    bits = entry.magnitude_bits
    mag = codes >> 1 << CODE_BITS - bits
    exponent = np.broadcast_to(body[:, None, None], codes.shape).copy()
    shared = np.broadcast_to(body[:, None], (blocks, rows)).copy()
    listed = second > 0
    for index, high in zip(entries[::2], entries[1::2], strict=True):
        which = np.flatnonzero(listed & (index < rows * n))
        place = which, index[which] // n, index[which] % n
        low = codes[place] >> 1
        mag[place] = (high[which] << bits | low) << CODE_BITS - bits - HIGH_BITS
        exponent[place] = second[which]
        # A row that holds an outlier asks for its exponent.
        np.maximum.at(shared, place[:2], second[which])
    return Values(mag, codes & 1 == 1, exponent, shared)
