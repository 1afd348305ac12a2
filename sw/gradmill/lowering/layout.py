"""Where matrices lie: column blocks on chip and in memory."""

from dataclasses import dataclass

import numpy as np

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Kind


__all__ = ["Arena", "Matrix", "Region", "blocks", "pack_rows", "unpack_rows"]


def blocks(count, n):
    """Tiles of ``n`` that cover ``count``."""
    return -(-count // n)


@dataclass(frozen=True)
class Matrix:
    """``rows x cols`` at on-chip row ``base``; column block b starts at ``base + b·stride``."""

    base:   int
    rows:   int
    cols:   int
    stride: int
    n:      int

    @property
    def blocks(self):
        """Column blocks."""
        return blocks(self.cols, self.n)

    @property
    def extent(self):
        """On-chip rows from the first to the last."""
        return self.blocks * self.stride

    def from_block(self, block, count):
        """Column blocks ``block`` to ``block + count - 1`` as a matrix of their own."""
        cols = min(self.cols - block * self.n, count * self.n)
        return Matrix(self.base + block * self.stride, self.rows, cols, self.stride, self.n)


class Arena:
    """Hands out rows of one on-chip memory, lowest address first from a preferred bank."""

    def __init__(self, name, rows, banks):
        self.name, self.rows, self.bank_rows = name, rows, rows // banks
        self._used = []  # sorted, disjoint (start, end, owner)

    def take(self, rows, owner, *, bank=0, align=1):
        """First row of ``rows`` free ones; ``bank`` is where the search starts."""
        for origin in (bank * self.bank_rows, 0):
            start = self._fit(rows, origin, align)
            if start is not None:
                self._used = sorted([*self._used, (start, start + rows, owner)])
                return start
        holders = ", ".join(f"{owner} {end - start}" for start, end, owner in self._used)
        free = self.rows - sum(end - start for start, end, _ in self._used)
        raise ConfigError(
            f"{self.name} has {self.rows} rows, {free} of them free, but {owner} needs {rows} in "
            f"one piece (held: {holders or 'nothing'}). Use a smaller sub_minibatch or network, "
            f"or a Config with more {self.name.split()[0]}_rows")

    def owners(self, rows):
        """Owners of the rows with these numbers, each once."""
        starts = np.array([start for start, _, _ in self._used])
        found = np.unique(np.searchsorted(starts, rows, side="right") - 1)
        return [self._used[k][2] for k in found.tolist()]

    def _fit(self, rows, origin, align):
        start = -(-origin // align) * align
        for used_start, used_end, _ in self._used:
            if used_end <= start:
                continue
            if used_start >= start + rows:
                break
            start = -(-used_end // align) * align
        return start if start + rows <= self.rows else None


@dataclass(frozen=True)
class Region:
    """A stored matrix in memory: column blocks of ``rows`` rows, each a run of whole beats."""

    address: int
    kind:    Kind
    rows:    int
    cols:    int
    config:  object

    @property
    def stride(self):
        """Bytes from one column block to the next."""
        return self.config.run_bytes(self.kind.name.lower(), self.rows)

    @property
    def blocks(self):
        """Column blocks."""
        return blocks(self.cols, self.config.n)

    @property
    def nbytes(self):
        """Bytes in all."""
        return self.blocks * self.stride


def pack_rows(values, config):
    """Bytes of samples as the DMA reads them: ``(..., rows, cols)`` float32 or bool to column
    blocks ``(..., blocks, stride)`` uint8, each block's rows packed and padded to whole beats."""
    n = config.n
    *lead, rows, cols = values.shape
    width = blocks(cols, n) * n
    padded = np.zeros((*lead, rows, width), values.dtype)
    padded[..., :cols] = values
    split = np.moveaxis(padded.reshape(*lead, rows, width // n, n), -2, -3)
    if values.dtype == np.bool_:
        flat = split.reshape(*lead, width // n, rows * n)
        raw = np.packbits(flat, axis=-1, bitorder="little")
        kind = "mask"
    else:
        raw = np.ascontiguousarray(split, "<f4").reshape(*lead, width // n, rows * n).view(np.uint8)
        kind = "fp32"
    out = np.zeros((*lead, width // n, config.run_bytes(kind, rows)), np.uint8)
    out[..., :raw.shape[-1]] = raw
    return out


def unpack_rows(raw, rows, cols, config):
    """Inverse of :func:`pack_rows` for float32: ``(..., blocks, stride)`` uint8 to samples."""
    n = config.n
    data = np.ascontiguousarray(raw[..., :rows * 4 * n]).view("<f4")
    data = data.reshape(*raw.shape[:-1], rows, n)
    data = np.moveaxis(data, -3, -2)
    return data.reshape(*raw.shape[:-2], rows, raw.shape[-2] * n)[..., :cols].astype(np.float32)
