"""Products of matrices of any size: blocks that fit on chip, kept there while they are needed.

Loads, products and stores of different blocks overlap. The first load and the last store have
nothing to overlap with, so the first block is taken in pieces along the contraction that grow from
the smallest, and the last block of the result in columns that shrink to the smallest.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Class, Kind, Opcode

from .layout import blocks
from .programs import assemble


__all__ = ["Blocking", "Stored", "product_program", "quantise_program"]

#: Rows that a piece of the first load or of the last store has at least: moving fewer takes less
#: time than the array needs to drain before it adds to the same accumulators again.
_PIECE = 128


@dataclass(frozen=True)
class Blocking:
    """Sizes of the blocks of ``C = A · B``, in elements; multiples of ``grain``.

    The tensor memory is split in halves for blocks of A and of B, the accumulators in two blocks of
    C, so that the next block moves while the current one is used.
    """

    config: object

    def __post_init__(self):
        if min(self.k, self.c) < self.grain:
            c = self.config
            raise ConfigError(
                f"tensor_rows={c.tensor_rows} and acc_rows={c.acc_rows} are too few for blocks of "
                f"{self.grain} x {self.grain} elements, the smallest with n={c.n} and a bus of "
                f"{c.bus_bits} bits: choose at least "
                f"tensor_rows={max(c.tensor_rows, 4 * self.grain**2 // c.n)} and "
                f"acc_rows={2 * self.m * self.grain // c.n}")

    @cached_property
    def grain(self):
        """Elements by which a stored BFP matrix is cut: tiles that end with a beat."""
        tile, beat = self.config.n * self.config.bfp_granules, self.config.beat_granules
        return self.config.n * (beat // gcd(tile, beat))

    @cached_property
    def m(self):
        """Rows of A and C."""
        return max(self.grain, min(128, self.config.tensor_rows // 32))

    @cached_property
    def k(self):
        """Columns of A, rows of B."""
        return self.config.n * min(8, self.config.tensor_rows // 4 // self.m)

    @cached_property
    def c(self):
        """Columns of B and C."""
        return self.config.n * min(8, self.config.acc_rows // 2 // self.m,
                                   self.config.tensor_rows // 4 // max(self.k, 1))

    def first_steps(self, rows, k):
        """Ranges of the contraction of ``k`` for the first block of C, of ``rows`` rows."""
        pieces = blocks(blocks(_PIECE, blocks(rows, self.config.n)), self.grain)
        return _growing(k, self.grain * pieces)

    def last_pieces(self, rows, cols):
        """Ranges of the columns ``cols`` for the last block of C, at most as many as banks."""
        n, width = self.config.n, blocks(len(cols), self.config.n)
        least = max(blocks(_PIECE, rows), blocks(width, 1 << self.config.banks - 1))
        ends = [cols.start + n * (width - piece.start) for piece in _growing(width, least)]
        starts = [*ends[1:], cols.start]
        return [range(start, min(end, cols.stop))
                for start, end in zip(reversed(starts), reversed(ends), strict=True)]

    def targets(self, turn, rows, pieces):
        """Rows of the accumulators for ``pieces`` of a block of C: in banks of their own, so that
        one is stored while the products of the next are added up."""
        bank = self.config.acc_rows // self.config.banks
        row, found = turn % 2 * (self.config.acc_rows // 2), []
        for piece in pieces:
            found.append(row)
            row += blocks(rows * blocks(len(piece), self.config.n), bank) * bank
        return [row % self.config.acc_rows for row in found]


@dataclass(frozen=True)
class Stored:
    """A matrix in near memory, in column blocks: as float32 and as BFP.

    Parameters
    ----------
    rows, cols : int
        Of the matrix.
    wide, narrow : int
        Addresses of the float32 and of the BFP copy.
    """

    rows:   int
    cols:   int
    wide:   int
    narrow: int
    config: object

    @property
    def padded(self):
        """Rows of the BFP copy."""
        return blocks(self.rows, self.config.n) * self.config.n

    @property
    def narrow_bytes(self):
        """Bytes of the BFP copy."""
        return blocks(self.cols, self.config.n) * self.config.run_bytes("bfp", self.padded)

    def wide_columns(self, row, col):
        """Address of element ``(row, col)`` of the float32 copy, the first of its row in a column
        block, and the stride of column blocks."""
        return self._columns("fp32", self.wide, self.rows, row, col)

    def narrow_columns(self, row, col):
        """The same of the BFP copy; ``row`` is a multiple of :attr:`Blocking.grain`."""
        return self._columns("bfp", self.narrow, self.padded, row, col)

    def _columns(self, kind, address, rows, row, col):
        stride = self.config.run_bytes(kind, rows)
        return (address + col // self.config.n * stride + self.config.run_bytes(kind, row), stride)


def _transfer(opcode, kind, cls, run, count, row, row_stride, place):
    mem, mem_stride = place
    return opcode, {"kind": kind, "cls": cls, "run": run, "count0": count, "count1": 1,
                    "count2": 1, "op0": row, "row_stride0": row_stride, "mem": mem,
                    "mem_stride0": mem_stride}


def quantise_program(config, matrices):
    """Every :class:`Stored` of ``matrices`` from its float32 to its BFP copy."""
    n, code, turn = config.n, [], 0
    panel = max(Blocking(config).grain, min(config.acc_rows, config.tensor_rows) // 4)
    for matrix in matrices:
        for rows in _cut(matrix.rows, panel):
            padded = blocks(len(rows), n) * n
            for cols in _cut(matrix.cols, panel // padded * n):
                at, count = turn % 2 * panel, blocks(len(cols), n)
                turn += 1
                code += [
                    _transfer(Opcode.LOAD, Kind.FP32, Class.DATA, len(rows), count, at, len(rows),
                              matrix.wide_columns(rows.start, cols.start)),
                    (Opcode.VECTOR, {"rows": len(rows), "blocks": count, "cols": len(cols),
                                     "a_step": 1, "b_step": 1, "op0": at, "a_stride": len(rows),
                                     "op3": at, "t_stride": padded, "write_tensor": 1}),
                    _transfer(Opcode.STORE, Kind.BFP, Class.DATA, padded, count, at, padded,
                              matrix.narrow_columns(rows.start, cols.start)),
                ]
    return assemble(config, [code])


def _cut(size, step):
    """``size`` as ranges of ``step``, the last maybe shorter."""
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def _growing(size, least):
    """``size`` as ranges, each about as long as all before it together, that begin at multiples of
    ``least``."""
    bounds = [size]
    while bounds[0] > least:
        bounds.insert(0, bounds[0] // 2 // least * least)
    return [range(start, stop) for start, stop in pairwise(sorted({0, *bounds}))]


class _Operand:
    """Blocks of A or B in their half of the tensor memory.

    *Outer* elements are rows of A or columns of B, *inner* ones those of the contraction.

    Parameters
    ----------
    stored : Stored
        The matrix.
    base : int
        First row of its half.
    outer, inner : int
        Elements of a block.
    inner_rows : bool
        Whether inner elements are rows of ``stored``.
    """

    def __init__(self, stored, base, outer, inner, *, inner_rows):
        self._stored, self._inner, self._inner_rows = stored, inner, inner_rows
        size = outer * inner // stored.config.n
        self._free = list(range(base, base + stored.config.tensor_rows // 2, size))
        self._held = {}  # (first outer, first inner) -> [base, inner elements there], oldest first

    def fetch(self, code, outer, inner):
        """Row of elements ``outer`` x ``inner`` of a block, which are loaded unless they are there,
        and the strides to the next outer and to the next inner tile. The first pieces of a block
        come in order."""
        n, stored = self._stored.config.n, self._stored
        first = inner.start // self._inner * self._inner
        held = self._held.setdefault((outer.start, first), [None, 0])
        if held[0] is None:
            held[0] = self._free.pop(0) if self._free else self._evict()
        rows, cols = (inner, outer) if self._inner_rows else (outer, inner)
        height = min(self._inner, stored.rows - first) if self._inner_rows else len(outer)
        stride = blocks(height, n) * n
        strides = (stride, n) if self._inner_rows else (n, stride)
        row = held[0] + (inner.start - first) // n * strides[1]
        if inner.stop > held[1]:
            held[1] = inner.stop
            code.append(_transfer(Opcode.LOAD, Kind.BFP, Class.DATA, blocks(len(rows), n) * n,
                                  blocks(len(cols), n), row, stride,
                                  stored.narrow_columns(rows.start, cols.start)))
        return row, *strides

    def _evict(self):
        """Base of the block that has been held for longest."""
        return self._held.pop(next(iter(self._held)))[0]


def product_program(config, a, b, out, shape, *, transpose_a, transpose_b):
    """``C = op(A) · op(B)`` from the BFP copies of ``a`` and ``b`` to float32 blocks at ``out``.

    Returns the program and the list of ``(i, j, rows, cols, address)`` of the blocks of C, each in
    column blocks as :func:`~gradmill.lowering.layout.unpack_rows` takes them.
    """
    n, size, code, placed = config.n, Blocking(config), [], []
    m, k, c = shape
    left = _Operand(a, 0, size.m, size.k, inner_rows=transpose_a)
    right = _Operand(b, config.tensor_rows // 2, size.c, size.k, inner_rows=not transpose_b)
    turns = [(i, j) for j in _cut(c, size.c) for i in _cut(m, size.m)]
    for turn, (i, j) in enumerate(turns):
        steps, pieces = _cut(k, size.k), [j]
        if turn == 0:
            steps[:1] = size.first_steps(len(i), len(steps[0]))
        if turn == len(turns) - 1:
            pieces = size.last_pieces(len(i), j)
        targets = size.targets(turn, len(i), pieces)
        for inner in steps:
            row_a, a_stride_m, a_stride_k = left.fetch(code, i, inner)
            row_b, w_stride_c, w_stride_k = right.fetch(code, j, inner)
            for piece, target in zip(pieces, targets, strict=True):
                code.append((Opcode.MATMUL, {
                    "m": len(i), "k": len(inner), "c": len(piece), "op0": row_a,
                    "a_stride_m": a_stride_m, "a_stride_k": a_stride_k,
                    "a_transpose": int(transpose_a),
                    "op1": row_b + (piece.start - j.start) // n * w_stride_c,
                    "w_stride_k": w_stride_k, "w_stride_c": w_stride_c,
                    "w_transpose": int(transpose_b), "op2": target, "d_stride_c": len(i),
                    "accumulate": int(inner.start > 0)}))
                if inner.stop < k:
                    continue
                run, count = config.run_bytes("fp32", len(i)), blocks(len(piece), n)
                code.append(_transfer(Opcode.STORE, Kind.FP32, Class.RESULT, len(i), count, target,
                                      len(i), (out, run)))
                placed.append((i.start, piece.start, len(i), len(piece), out))
                out += count * run
    return assemble(config, [code]), placed
