"""Tables of the non-uniform format: presets, tables fitted to data, and what a table must obey."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .formats import SLOTS, FormatError


__all__ = ["DECODE_BITS", "PRESETS", "STEPS", "HeldTable", "Table", "all_tables", "fit",
           "slot_of"]

#: Steps of the encoding table: an 8-bit magnitude is looked up without its lowest two bits.
STEPS = 64
#: Bits of a decoded magnitude.
DECODE_BITS = 8


@dataclass(frozen=True)
class Table:
    """Bins of magnitudes 0 to 255, where 128 to 255 are the values with the block's exponent.

    Parameters
    ----------
    thresholds : tuple of int
        First magnitude of bins 1, 2, ...; ascending multiples of 4. 1, 3 or 7 of them.
    low : tuple of int
        Smallest decoded magnitude of each bin, 0 to 255, ascending.
    spread : tuple of int
        Random decoding is uniform over ``low`` to ``low + 2**spread - 1``; without random bits the
        result is ``low + 2**spread // 2``.
    """
    thresholds: tuple
    low:        tuple
    spread:     tuple

    def __post_init__(self):
        bins = len(self.thresholds) + 1
        if bins not in (2, 4, 8) or len(self.low) != bins or len(self.spread) != bins:
            raise FormatError(f"a table of {len(self.thresholds)} thresholds, {len(self.low)} low "
                              f"and {len(self.spread)} spread: give 1, 3 or 7 thresholds and one "
                              f"low and spread more")
        edges = (0, *self.thresholds, 256)
        if any(a >= b for a, b in pairwise(edges)) or any(edge % 4 for edge in edges):
            raise FormatError(f"thresholds {self.thresholds}: give ascending multiples of 4, "
                              f"4 to 252")
        if any(a >= b for a, b in pairwise(self.low)):
            raise FormatError(f"low {self.low} is not monotonic: give ascending numbers")
        for low, spread in zip(self.low, self.spread, strict=True):
            if low < 0 or not 0 <= spread < DECODE_BITS or low + (1 << spread) > 256:
                raise FormatError(f"low {low}, spread {spread}: a bin decodes to 0..255, "
                                  f"spread is 0 to {DECODE_BITS - 1}")

    @property
    def bits(self):
        """Magnitude bits of a code."""
        return len(self.thresholds).bit_length()

    @property
    def codes(self):
        """Code of each of the 64 steps: what the encoder holds."""
        steps = np.arange(STEPS) * (256 // STEPS)
        return np.searchsorted(self.thresholds, steps, side="right")

    @property
    def entries(self):
        """Low and mask of the random bits for each code: what the decoder holds."""
        return [low | (1 << spread) - 1 << DECODE_BITS
                for low, spread in zip(self.low, self.spread, strict=True)]


#: What the slots hold after reset.
PRESETS = {
    "lite":       Table((8, 16, 32, 64, 96, 128, 192),
                        (0, 8, 16, 32, 64, 96, 128, 192), (0, 3, 4, 5, 5, 5, 6, 6)),
    "normal":     Table((32, 64, 128), (0, 32, 64, 128), (0, 5, 6, 7)),
    "aggressive": Table((64,), (0, 96), (0, 7)),
}


@dataclass
class HeldTable:
    """A table as a tile holds it, whatever has been written: arrays by step and by code."""
    codes:  np.ndarray
    low:    np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, table):
        """What a :class:`Table` is there."""
        low, spread = np.zeros((2, 1 << max(SLOTS.values())), int)
        low[:len(table.low)], spread[:len(table.low)] = table.low, table.spread
        return cls(table.codes, low, spread)


def slot_of(table):
    """Name of the slot that has codes of as many bits as ``table``."""
    return next(slot for slot, bits in SLOTS.items() if bits == table.bits)


def all_tables(tables):
    """Slot -> :class:`Table`: the presets, with ``tables`` in their place."""
    for slot, table in dict(tables).items():
        if slot not in SLOTS or not isinstance(table, Table) or table.bits != SLOTS[slot]:
            what = f"codes of {table.bits} bits" if isinstance(table, Table) else repr(table)
            raise FormatError(f"table slot {slot!r} with {what}: give a Table for one of the "
                              f"slots, whose codes have these bits: {SLOTS}")
    return {**PRESETS, **dict(tables)}


def fit(magnitudes, bits, *, rounds=50):
    """Table for samples of magnitudes 0 to 255: least squared error of the middle (Lloyd, Max).

    Bin 0 decodes to zero, so that zeros stay zeros.

    Parameters
    ----------
    magnitudes : array of integers
        Magnitudes in units of 1/128 of two to the exponent of their block.
    bits : int
        Bits of a code, 1 to 3.
    """
    if bits not in (1, 2, 3):
        raise FormatError(f"bits={bits!r}: a table has codes of 1 to 3 bits")
    magnitudes = np.asarray(magnitudes).reshape(-1)
    weight = np.bincount(magnitudes, minlength=256)[:256].astype(float)
    value = np.arange(256)
    levels = np.linspace(0, 256, 2 << bits)[::2].copy()
    levels[0] = 0
    for _ in range(rounds):
        edges = _edges(levels)
        for k in range(1, len(levels)):
            part = slice(edges[k - 1], edges[k] if k < len(edges) else 256)
            if weight[part].sum():
                levels[k] = (weight[part] * value[part]).sum() / weight[part].sum()
    edges = _edges(levels)
    low, spread = [0], [0]
    for k in range(1, len(levels)):
        first, last = edges[k - 1], edges[k] if k < len(edges) else 256
        centre = min(max(round(levels[k]), first), last - 1)
        room = max(1, 2 * min(centre - first, last - centre))
        power = min(room.bit_length() - 1, DECODE_BITS - 1)
        low.append(centre - (1 << power) // 2)
        spread.append(power)
    return Table(tuple(edges), tuple(low), tuple(spread))


def _edges(levels):
    """Thresholds half way between levels, as distinct multiples of 4."""
    middle = np.rint((levels[1:] + levels[:-1]) / 8).astype(int) * 4
    first = 4 * np.arange(1, len(middle) + 1)
    edges = np.maximum.accumulate(middle - first) + first
    return [int(edge) for edge in np.clip(edges, first, 256 - first[::-1])]
