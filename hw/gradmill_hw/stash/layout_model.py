"""Blocks as bits: tags, prefixes, planes and zero packing.

Everything is in granules of n bits. A row is a prefix (in the first row of a block or group), a
bitmap if the format packs, and planes of codes: plane b holds bit b of the n codes of a row, or of
the next n codes that are stored, whatever rows they belong to.
"""

import numpy as np

from .formats import GROUP


__all__ = ["deserialise", "serialise"]


def _bits(values, width):
    """Bits of ``values`` (blocks,) as (blocks, width), lowest first."""
    return values[:, None] >> np.arange(width) & 1


def _prefix(entry, head, fields, blocks, n):
    """A prefix as granules (blocks, granules, n)."""
    parts = [_bits(np.full(blocks, entry.tag), 8)] if head else []
    parts += [_bits(field, width) for field, width in zip(fields, entry.fields, strict=True)]
    size = entry.prefix_granules(head, n) * n
    bits = np.zeros((blocks, size), np.uint8)
    joined = np.concatenate(parts, axis=1)
    bits[:, :joined.shape[1]] = joined
    return bits.reshape(blocks, -1, n)


def _compact(codes, keep):
    """The kept codes of each block from the first place on, as (blocks, rows, n)."""
    flat, kept = codes.reshape(len(codes), -1), keep.reshape(len(codes), -1)
    order = np.argsort(~kept, axis=1, kind="stable")
    flat = np.where(kept, flat, 0)
    return np.take_along_axis(flat, order, axis=1).reshape(codes.shape)


def serialise(entry, coded):
    """Bits of whole blocks (or of one shorter block), as an array of uint8."""
    codes = coded.codes
    blocks, rows, n = codes.shape
    keep = codes != 0 if coded.keep is None else coded.keep
    if entry.packed:
        codes = _compact(codes, keep)
        taken = keep.sum(axis=2).cumsum(axis=1)
        groups = -(-taken // n)  # stored by the end of each row
        before = np.concatenate([np.zeros((blocks, 1), int), groups[:, :-1]], axis=1)
    planes = codes[:, :, None, :] >> np.arange(entry.planes)[:, None] & 1

    parts, present = [], []

    def add(bits, where=None):
        parts.append(bits.astype(np.uint8))
        where = np.ones(blocks, bool) if where is None else where
        present.append(np.broadcast_to(where[:, None], bits.shape[:2]))

    prefixes = iter(coded.prefixes)
    for row in range(rows):
        if row == 0 or (entry.hierarchical and row % (GROUP // n) == 0):
            add(_prefix(entry, row == 0, next(prefixes), blocks, n))
        if entry.packed:
            add(keep[:, row, None])
            add(planes[np.arange(blocks), before[:, row]], groups[:, row] > before[:, row])
        else:
            add(planes[:, row])
    return np.concatenate(parts, axis=1)[np.concatenate(present, axis=1)].reshape(-1)


class _Short(Exception):
    """The bits end within a block."""


class _Cursor:
    """Reads granules of several blocks at once; ``at`` is the place in the first of them."""

    def __init__(self, bits, first, stride, blocks, n):
        self.bits, self.n, self.at = bits, n, first
        self.starts = np.arange(blocks) * stride

    def take(self, granules):
        """The next granules, (blocks, granules, n)."""
        if int(self.starts[-1]) + self.at + granules > len(self.bits):
            raise _Short
        index = self.starts[:, None] + self.at + np.arange(granules)
        self.at += granules
        return self.bits[index].astype(np.int64)

    def fields(self, widths, skip, granules):
        """Numbers in the next granules."""
        bits = self.take(granules).reshape(len(self.starts), -1)
        values = []
        for width in widths:
            values.append(bits[:, skip:skip + width] @ (1 << np.arange(width)))
            skip += width
        return values


def deserialise(entry, granules, first, blocks, rows, n):
    """Read ``blocks`` blocks of ``rows`` rows from ``granules`` (count, n), granule ``first`` on.

    Several blocks must be of a format that does not pack. Returns prefixes, codes, the bitmaps, the
    place of the last row and the place behind; ``None`` if the bits end before.
    """
    stride = entry.granules(rows, n)[0]
    cursor = _Cursor(granules, first, stride, blocks, n)
    weights = 1 << np.arange(entry.planes)
    prefixes = []
    codes = np.zeros((blocks, rows, n), np.int64)
    keep = np.zeros(codes.shape, bool)
    held = np.zeros(0, np.int64)
    try:
        for row in range(rows):
            last = cursor.at
            if row == 0 or (entry.hierarchical and row % (GROUP // n) == 0):
                prefixes.append(cursor.fields(entry.fields, 8 * (row == 0),
                                              entry.prefix_granules(row == 0, n)))
            if entry.packed:
                keep[0, row] = cursor.take(1)[0, 0]
                wanted = keep[0, row].sum()
                if wanted > len(held):
                    held = np.concatenate([held, weights @ cursor.take(entry.planes)[0]])
                codes[0, row, keep[0, row]] = held[:wanted]
                held = held[wanted:]
            else:
                codes[:, row] = np.einsum("k,bkj->bj", weights, cursor.take(entry.planes))
    except _Short:
        return None
    before = (blocks - 1) * stride
    return prefixes, codes, keep, before + last, before + cursor.at
