"""Single operations on a device: float32 in, float32 out, any shape."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from gradmill_hw.isa import Class
from gradmill_hw.regs import Tier

from .lowering.gemm import Stored, product_program, quantise_program
from .lowering.layout import blocks, pack_rows, unpack_rows


__all__ = ["Product", "matmul"]


def matmul(device, a, b, transpose_a=False, transpose_b=False):
    """``op(a) · op(b)`` on ``device``, where op transposes if asked to.

    The device quantises both matrices to block floating point in tiles of n x n elements from their
    first element on, multiplies exactly and adds up in float32, in ascending order of the blocks of
    n along the contraction. Matrices larger than the on-chip memories are multiplied in blocks.

    Parameters
    ----------
    device : Device
        From :func:`gradmill.open`.
    a, b : array, float32, two-dimensional
        Finite values.
    transpose_a, transpose_b : bool
        Use the transpose; nothing is transposed on the host.
    """
    with Product(device, a, b, transpose_a, transpose_b) as product:
        product.quantise()
        product.multiply()
        return product.result()


class Product:
    """The steps of :func:`matmul` one by one, for those who measure them. A context manager."""

    def __init__(self, device, a, b, transpose_a=False, transpose_b=False):
        a, b = _matrix("a", a), _matrix("b", b)
        (m, k), (inner, c) = (x.shape[::-1] if turned else x.shape
                              for x, turned in ((a, transpose_a), (b, transpose_b)))
        if k != inner:
            raise ValueError(f"a is {a.shape}{' transposed' * transpose_a}, b is {b.shape}"
                             f"{' transposed' * transpose_b}: the inner sizes {k} and {inner} "
                             "must be equal")
        self.device, self.shape = device, (m, k, c)
        with ExitStack() as self._stack:
            self._prepare(a, b, transpose_a, transpose_b)
            self._stack = self._stack.pop_all()

    def _prepare(self, a, b, transpose_a, transpose_b):
        """Operands and programs to the memory of the device."""
        m, _, c = self.shape
        config = self.device.config
        matrices = [self._store(x) for x in (a, b)]
        out = self._room(blocks(c, config.n) * config.run_bytes("fp32", m) + config.beat_bytes,
                         "product")
        code = quantise_program(config, matrices)
        product, self._placed = product_program(config, *matrices, out, self.shape,
                                                transpose_a=transpose_a, transpose_b=transpose_b)
        self._programs = [self._upload(program) for program in (code, product)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _room(self, nbytes, owner):
        return self._stack.enter_context(self.device.heap.scratch(nbytes, owner))

    def _store(self, x):
        packed = pack_rows(x, self.device.config)
        wide = self._room(packed.nbytes, "operand")
        self.device.write_memory(Tier.NEAR, wide, packed, cls=Class.DATA)
        stored = Stored(*x.shape, wide, 0, self.device.config)
        narrow = self._room(stored.narrow_bytes, "operand in BFP")
        return replace(stored, narrow=narrow)

    def _upload(self, program):
        code = program.assemble()
        address = self._room(len(code), "program")
        self.device.write_memory(Tier.NEAR, address, code, cls=Class.COMMAND)
        return address

    def quantise(self):
        """Operands to block floating point, in near memory."""
        self._run(0)

    def multiply(self):
        """The product, from near memory to near memory."""
        self._run(1)

    def _run(self, number):
        self.device.claim(None)
        self.device.run(self._programs[number])

    def result(self):
        """The product, float32 ``(m, c)``."""
        m, _, c = self.shape
        config, out = self.device.config, np.empty((m, c), np.float32)
        for i, j, rows, cols, address in self._placed:
            count = blocks(cols, config.n)
            raw = self.device.read_memory(Tier.NEAR, address,
                                          (count, config.run_bytes("fp32", rows)))
            out[i:i + rows, j:j + cols] = unpack_rows(raw, rows, cols, config)
        return out


def _matrix(name, x):
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim != 2 or not x.size:
        raise ValueError(f"{name} is {x.dtype} {x.shape}; matmul takes non-empty two-dimensional "
                         "float32")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has NaN or infinity; remove them (numpy.isfinite)")
    return x
