"""Where layer-to-layer execution keeps weights in far memory, and what passes between layers."""

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Class, Kind, Opcode
from gradmill_hw.regs import Tier

from ..layout import Matrix, blocks, place_region


__all__ = ["LayerMemory"]


class LayerMemory:
    """Block floating point weights in far memory, and the *boundaries*: inputs of layers with their
    signs, and, when these have been used for the last time, gradients in their places.

    Parameters
    ----------
    buffers : LayerBuffers
        Placement on chip.
    count : int
        Sub-minibatches that a layer is loaded for.
    heaps : dict
        :class:`Tier` -> :class:`Heap`.
    tier : Tier
        Memory of the boundaries.
    """

    def __init__(self, buffers, count, heaps, tier):
        self._buffers, self._tier, self._count = buffers, tier, count
        config = buffers.config
        self.weights = {s: place_region(
            w.stride, w.cols, config, kind=Kind.BFP, tier=Tier.FAR,
            place=lambda nbytes, s=s: heaps[Tier.FAR].allocate(nbytes, f"weights of layer {s}"))
            for s, w in buffers.weight.items()}
        self._signs = {s: self._bytes(Kind.MASK, signs, buffers.rows)
                       for s, signs in buffers.signs[0].items()}
        #: bytes of one sub-minibatch of inputs, the longest that any number of samples takes
        self._rows = {s: max(self._bytes(Kind.BFP, x, m) for m in range(1, buffers.rows + 1))
                      for s, x in buffers.x[0].items()}
        self._places = {}
        try:
            for s in buffers.x[0]:
                each = self._rows[s] + self._signs.get(s, 0)
                self._places[s] = heaps[tier].allocate(count * each, f"inputs of layer {s}")
        except ConfigError as error:
            total = count * (sum(self._rows.values()) + sum(self._signs.values()))
            other = "" if tier is Tier.FAR else ", or boundaries=\"far\""
            raise ConfigError(f"{error}. Inputs of all layers for {count} sub-minibatches take "
                              f"{total} bytes: use a smaller virtual_minibatch{other}") from None

    def _bytes(self, kind, matrix, m):
        run, count = self._runs(kind, matrix, m)
        return count * self._buffers.config.run_bytes(kind.name.lower(), run)

    @staticmethod
    def _runs(kind, matrix, m):
        """Rows of a run, and runs, of ``m`` samples: one if there are no gaps on chip."""
        rows = blocks(m, matrix.n) * matrix.n if kind is Kind.BFP else m
        return (matrix.extent, 1) if rows == matrix.stride else (rows, matrix.blocks)

    def weight(self, emit, opcode, s, first, count):
        """Column blocks of the weights of stage ``s`` between tile and far memory."""
        w = self._buffers.weight[s]
        part = Matrix(w.base + first * w.stride, w.stride, count * w.n, w.stride, w.n)
        emit.region(opcode, Class.WEIGHT, part, self.weights[s], first)

    def inputs(self, emit, opcode, s, j, k, m):
        """Inputs of stage ``s``, sub-minibatch ``j``, of or to set ``k``."""
        self._move(emit, opcode, Kind.BFP, Class.STASH, self._buffers.x[k][s], m,
                   self._place(s, j))

    def signs(self, emit, opcode, s, j, k, m):
        """Their signs, if there are any."""
        if s in self._signs:
            self._move(emit, opcode, Kind.MASK, Class.MASK, self._buffers.signs[k][s], m,
                       self._place(s, j) + self._rows[s])

    def gradient(self, emit, opcode, s, j, k, m):
        """Gradients of outputs of stage ``s``, in the place of the inputs that these became."""
        self._move(emit, opcode, Kind.BFP, Class.GRADIENT, self._buffers.dy[k][s], m,
                   self._place(s + 1, j))

    def _place(self, s, j):
        return self._places[s] + j % self._count * (self._rows[s] + self._signs.get(s, 0))

    def _move(self, emit, opcode, kind, cls, matrix, m, address):
        run, count = self._runs(kind, matrix, m)
        part = Matrix(matrix.base, run, count * matrix.n, matrix.stride, matrix.n)
        emit.transfer(Opcode(opcode), kind, cls, part, address,
                      emit.config.run_bytes(kind.name.lower(), run), tier=self._tier)
