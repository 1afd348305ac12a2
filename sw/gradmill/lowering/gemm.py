"""Products of matrices of any size: blocks that fit on chip, kept there while they are needed."""

from dataclasses import dataclass
from functools import cached_property

from gradmill_hw.isa import Class, Kind, Opcode

from .layout import blocks
from .programs import assemble


__all__ = ["Blocking", "Stored", "product_program", "quantise_program"]


@dataclass(frozen=True)
class Blocking:
    """Sizes of the blocks of ``C = A · B``, in elements; multiples of n.

    The tensor memory is split in halves for blocks of A and of B, the accumulators in two blocks of
    C, so that the next block moves while the current one is used.
    """

    config: object

    @cached_property
    def m(self):
        """Rows of A and C."""
        return min(128, self.config.tensor_rows // 32)

    @cached_property
    def k(self):
        """Columns of A, rows of B."""
        return self.config.n * min(8, self.config.tensor_rows // 4 // self.m)

    @cached_property
    def c(self):
        """Columns of B and C."""
        n = self.config.n
        return n * min(8, self.config.acc_rows // 2 // self.m,
                       self.config.tensor_rows // 4 // self.k)


@dataclass(frozen=True)
class Stored:
    """A matrix in near memory: float32 in column blocks, and as BFP in blocks of its own.

    Parameters
    ----------
    rows, cols : int
        As stored.
    block_rows, block_cols : int
        Size of a BFP block, in elements.
    wide : int
        Address of the float32 column blocks.
    narrow : int
        Address of the first BFP block.
    """

    rows:       int
    cols:       int
    block_rows: int
    block_cols: int
    wide:       int
    narrow:     int
    config:     object

    @property
    def wide_bytes(self):
        """Bytes of the float32 copy."""
        return blocks(self.cols, self.config.n) * self.config.run_bytes("fp32", self.rows)

    @property
    def slot_bytes(self):
        """Bytes between BFP blocks."""
        return self.block_cols // self.config.n * self.config.run_bytes("bfp", self.block_rows)

    @property
    def narrow_bytes(self):
        """Bytes of all BFP blocks."""
        return blocks(self.rows, self.block_rows) * blocks(self.cols, self.block_cols) \
            * self.slot_bytes

    def block(self, i, j):
        """``(rows, cols, address)`` of BFP block ``(i, j)``; at the edges it is smaller."""
        across = blocks(self.cols, self.block_cols)
        return (min(self.block_rows, self.rows - i * self.block_rows),
                min(self.block_cols, self.cols - j * self.block_cols),
                self.narrow + (i * across + j) * self.slot_bytes)


def _transfer(opcode, kind, cls, run, count, row, row_stride, mem, mem_stride):
    return opcode, {"kind": kind, "cls": cls, "run": run, "count0": count, "count1": 1,
                    "count2": 1, "op0": row, "row_stride0": row_stride, "mem": mem,
                    "mem_stride0": mem_stride}


def quantise_program(config, matrices):
    """Every :class:`Stored` of ``matrices`` from its float32 to its BFP copy."""
    n, code = config.n, []
    panel, turn = config.acc_rows // 4, 0
    for matrix in matrices:
        row_bytes, column = config.run_bytes("fp32", 1), config.run_bytes("fp32", matrix.rows)
        for i in range(blocks(matrix.rows, matrix.block_rows)):
            for j in range(blocks(matrix.cols, matrix.block_cols)):
                rows, cols, address = matrix.block(i, j)
                padded = blocks(rows, n) * n
                step = max(1, panel // padded)
                for first in range(0, blocks(cols, n), step):
                    count = min(step, blocks(cols, n) - first)
                    acc, tensor = turn % 2 * panel, turn % 2 * panel
                    turn += 1
                    source = (matrix.wide + (j * matrix.block_cols // n + first) * column
                              + i * matrix.block_rows * row_bytes)
                    run = config.run_bytes("bfp", padded)
                    code += [
                        _transfer(Opcode.LOAD, Kind.FP32, Class.DATA, rows, count, acc, rows,
                                  source, column),
                        (Opcode.VECTOR, {"rows": rows, "blocks": count, "cols": cols - first * n,
                                         "a_step": 1, "b_step": 1, "op0": acc, "a_stride": rows,
                                         "op3": tensor, "t_stride": padded, "write_tensor": 1}),
                        _transfer(Opcode.STORE, Kind.BFP, Class.DATA, padded, count, tensor,
                                  padded, address + first * run, run),
                    ]
    return assemble(config, [code])


class _Slots:
    """Blocks of one operand in its half of the tensor memory."""

    def __init__(self, config, stored, base, rows):
        self._config, self._stored = config, stored
        self._size = stored.block_rows * stored.block_cols // config.n
        self._bases = [base + k * self._size for k in range(rows // self._size)]
        self._held = {}  # (i, j) -> base, oldest first

    def fetch(self, code, i, j):
        """Row of block ``(i, j)``, loaded unless it is there; and its column block stride."""
        rows, cols, address = self._stored.block(i, j)
        n = self._config.n
        padded = blocks(rows, n) * n
        if (i, j) not in self._held:
            base = (self._bases[len(self._held)] if len(self._held) < len(self._bases)
                    else self._held.pop(next(iter(self._held))))
            self._held[i, j] = base
            code.append(_transfer(Opcode.LOAD, Kind.BFP, Class.DATA, padded, blocks(cols, n), base,
                                  padded, address, self._config.run_bytes("bfp", padded)))
        return self._held[i, j], padded


def product_program(config, a, b, out, shape, *, transpose_a, transpose_b):
    """``C = op(A) · op(B)`` from the BFP copies of ``a`` and ``b`` to float32 blocks at ``out``.

    Returns the program and the list of ``(i, j, rows, cols, address)`` of the blocks of C, each in
    column blocks as :func:`~gradmill.lowering.layout.unpack_rows` takes them.
    """
    n, size, code, placed = config.n, Blocking(config), [], []
    m, k, c = shape
    half = config.tensor_rows // 2
    slots_a, slots_b = _Slots(config, a, 0, half), _Slots(config, b, half, half)
    for turn, (i, j) in enumerate((i, j) for j in range(blocks(c, size.c))
                                  for i in range(blocks(m, size.m))):
        rows, cols = min(size.m, m - i * size.m), min(size.c, c - j * size.c)
        target = turn % 2 * (config.acc_rows // 2)
        for step in range(blocks(k, size.k)):
            row_a, stride_a = slots_a.fetch(code, *((step, i) if transpose_a else (i, step)))
            row_b, stride_b = slots_b.fetch(code, *((j, step) if transpose_b else (step, j)))
            code.append((Opcode.MATMUL, {
                "m": rows, "k": min(size.k, k - step * size.k), "c": cols, "op0": row_a,
                "a_stride_m": stride_a if transpose_a else n,
                "a_stride_k": n if transpose_a else stride_a, "a_transpose": int(transpose_a),
                "op1": row_b, "w_stride_k": stride_b if transpose_b else n,
                "w_stride_c": n if transpose_b else stride_b, "w_transpose": int(transpose_b),
                "op2": target, "d_stride_c": rows, "accumulate": int(step > 0)}))
        run = config.run_bytes("fp32", rows)
        code.append(_transfer(Opcode.STORE, Kind.FP32, Class.RESULT, rows, blocks(cols, n), target,
                              rows, out, run))
        placed.append((i * size.m, j * size.c, rows, cols, out))
        out += blocks(cols, n) * run
    return assemble(config, [code]), placed
