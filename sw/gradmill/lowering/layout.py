"""Where matrices lie: column blocks on chip and in memory."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Kind
from gradmill_hw.regs import Tier


__all__ = ["Arena", "Matrix", "Piece", "Region", "blocks", "pack_batches", "pack_rows",
           "parameter_regions", "place_region", "somewhere", "unpack_batches", "unpack_rows"]


def blocks(count, n):
    """Tiles of ``n`` that cover ``count``."""
    return -(-count // n)


class Piece(NamedTuple):
    """Rows and column blocks of a matrix that are computed, and sent, at once."""
    row:    int
    rows:   int
    block:  int
    blocks: int


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

    def part(self, piece):
        """The rows and column blocks of a :class:`Piece`."""
        whole = self.from_block(piece.block, piece.blocks)
        return Matrix(whole.base + piece.row, piece.rows, whole.cols, whole.stride, whole.n)


#: Holders of rows that an error names.
_NAMED = 4


class Arena:
    """Hands out rows of one on-chip memory, lowest address first from a preferred bank."""

    def __init__(self, name, rows, banks):
        self.name, self.rows, self.bank_rows = name, rows, rows // banks
        self._used = []  # sorted, disjoint (start, end, owner)

    def take(self, rows, owner, *, bank=0, align=1, parts=1):
        """First row of ``rows`` free ones; ``bank`` is where the search starts. Each of ``parts``
        equal parts is told apart by :meth:`owners`."""
        for origin in (bank * self.bank_rows, 0):
            start = self._fit(rows, origin, align)
            if start is not None:
                size = rows // parts
                self._used = sorted([*self._used, *(
                    (start + k * size, start + (k + 1) * size,
                     f"{owner}, part {k}" if parts > 1 else owner) for k in range(parts))])
                return start
        free = self.rows - self.used
        raise ConfigError(
            f"{self.name} has {self.rows} rows, {free} of them free, but {owner} needs {rows} in "
            f"one piece (held: {self._holders()}). Use a smaller sub_minibatch or network, "
            f"or a Config with more {self.name.split()[0]}_rows")

    def _holders(self):
        """Who holds most rows, in words."""
        held = sorted(((end - start, owner) for start, end, owner in self._used), reverse=True)
        words = [f"{owner} {rows}" for rows, owner in held[:_NAMED]]
        if held[_NAMED:]:
            words.append(f"and {sum(rows for rows, _ in held[_NAMED:])} by "
                         f"{len(held) - _NAMED} more")
        return ", ".join(words) or "nothing"

    @property
    def used(self):
        """Rows that are taken."""
        return sum(end - start for start, end, _ in self._used)

    def owners(self, rows, grain):
        """``(owner, piece)`` of the rows with these numbers, each once; a piece has ``grain``
        rows."""
        starts = np.array([start for start, _, _ in self._used])
        found = np.searchsorted(starts, rows, side="right") - 1
        pieces = np.unique(found << 20 | (rows - starts[found]) // grain)
        return [(self._used[k >> 20][2], k & 0xfffff) for k in pieces.tolist()]

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
    tier:    Tier = Tier.NEAR

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

    def pack(self, values):
        """Bytes of a float32 array of as many elements."""
        return pack_rows(np.ascontiguousarray(values, np.float32).reshape(self.rows, self.cols),
                         self.config)

    def unpack(self, raw):
        """Inverse of :meth:`pack`, as ``(rows, cols)``."""
        return unpack_rows(raw.reshape(self.blocks, -1), self.rows, self.cols, self.config)


def parameter_regions(stage, config, momentum, place, tier=Tier.NEAR):
    """Name -> :class:`Region` of the master parameters of a stage, and of their momentum if
    wanted; ``place(name, nbytes)`` gives the address of each in ``tier``."""
    shapes = {"weight": (stage.linear.outputs, stage.linear.inputs)}
    if stage.linear.bias:
        shapes["bias"] = (1, stage.linear.outputs)
    return {name + kind: place_region(rows, cols, config, partial(place, name + kind), tier=tier)
            for name, (rows, cols) in shapes.items()
            for kind in (("", "_momentum") if momentum else ("",))}


def place_region(rows, cols, config, place, *, kind=Kind.FP32, tier=Tier.NEAR, copies=1):
    """A :class:`Region` at the address that ``place(nbytes)`` gives for ``copies``."""
    nbytes = blocks(cols, config.n) * config.run_bytes(kind.name.lower(), rows)
    return Region(place(copies * nbytes), kind, rows, cols, config, tier)


def somewhere(stages, config, optimizer, *, first=0):
    """Places for programs that are counted, not run: the parameters of ``stages``, numbered from
    ``first`` up, and one mean loss."""
    taken = [0]

    def place(nbytes):
        taken.append(taken[-1] + nbytes)
        return taken[-2]

    regions = {s: parameter_regions(stage, config, optimizer.momentum, lambda _, n: place(n))
               for s, stage in enumerate(stages, first)}
    return regions, place_region(1, config.n, config, place)


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


def pack_batches(values, sub, config):
    """``(batches, samples, cols)`` to bytes ``(batches, nbytes)``: whole sub-minibatches of ``sub``
    samples, then the short one."""
    batches, samples, cols = values.shape
    whole = samples // sub * sub
    parts = []
    if whole:
        split = values[:, :whole].reshape(batches, -1, sub, cols)
        parts.append(pack_rows(split, config).reshape(batches, -1))
    if whole < samples:
        parts.append(pack_rows(values[:, whole:], config).reshape(batches, -1))
    return np.concatenate(parts, axis=1)


def unpack_rows(raw, rows, cols, config):
    """Inverse of :func:`pack_rows` for float32: ``(..., blocks, stride)`` uint8 to samples."""
    n = config.n
    data = np.ascontiguousarray(raw[..., :rows * 4 * n]).view("<f4")
    data = data.reshape(*raw.shape[:-1], rows, n)
    data = np.moveaxis(data, -3, -2)
    return data.reshape(*raw.shape[:-2], rows, raw.shape[-2] * n)[..., :cols].astype(np.float32)


def unpack_batches(raw, rows, cols, config):
    """``(samples, cols)`` from the bytes of sub-minibatches of ``rows`` samples each."""
    parts, start = [], 0
    for m in rows:
        size = blocks(cols, config.n) * config.run_bytes("fp32", m)
        parts.append(unpack_rows(raw[start:start + size].reshape(blocks(cols, config.n), -1), m,
                                 cols, config))
        start += size
    return np.concatenate(parts)
