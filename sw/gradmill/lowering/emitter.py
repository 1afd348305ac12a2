"""Instructions for forward and backward of the stages of one tile, in program order."""

from gradmill_hw.isa import AddSource, MaskKind, Opcode, Peer, Space
from gradmill_hw.regs import Tier

from .buffers import VIRTUAL_ROWS
from .layout import Matrix


__all__ = ["Emitter"]


class Emitter:
    """Appends instructions to ``code``, a list of ``(opcode, fields)``.

    Parameters
    ----------
    buffers : TileBuffers
        Placement on chip.
    narrow : bool
        Whether level 1 of the weight gradient is rounded to bfloat16.
    stochastic : bool
        Whether gradients are rounded stochastically into the tensor memory.

    Members
    -------
    place : (int, int)
        Element number and base register of the random numbers of the sub-minibatch at hand.
    numbers : (int, int)
        The same for the stash, whose base register counts virtual minibatches.
    weight, bias : dict
        Stage number -> :class:`Matrix`: of the version in use.
    """

    def __init__(self, buffers, *, narrow=False, stochastic=False):
        self.buffers, self.narrow, self.stochastic = buffers, narrow, stochastic
        self.config, self.part = buffers.config, buffers.part
        self.code = []
        self.place = self.numbers = 0, 0
        self._products = self._updates = 0
        self.use(0)

    def use(self, version):
        """Products use this version of the weights from here on."""
        self.weight, self.bias = self.buffers.weights[version], self.buffers.biases[version]

    def take(self):
        """The instructions so far, which are forgotten; panels are numbered from the first again.
        """
        code, self.code[:] = self.code[:], []
        self._products = self._updates = 0
        return code

    # one instruction each -------------------------------------------------------------------

    def vector(self, *, rows, count=1, cols, **fields):
        """A VECTOR over ``count`` column blocks; sources advance with the rows."""
        self.code.append((Opcode.VECTOR, {"rows": rows, "blocks": count, "cols": cols, "a_step": 1,
                                          "b_step": 1, **fields}))

    def transfer(self, opcode, kind, cls, matrix, mem, mem_stride, *, mem_base=0, tier=Tier.NEAR,
                 **coding):
        """Column blocks of ``matrix`` to or from memory."""
        self.code.append((opcode, {
            "tier": tier, "kind": kind, "cls": cls, "run": matrix.rows, "count0": matrix.blocks,
            "count1": 1, "count2": 1, "mem": mem, "mem_base": mem_base, "mem_stride0": mem_stride,
            "row_stride0": matrix.stride, "op0": matrix.base, **coding}))

    def region(self, opcode, cls, matrix, region, first_block=0):
        """``matrix`` to or from column blocks of ``region``."""
        self.transfer(opcode, region.kind, cls, matrix, region.address + first_block
                      * region.stride, region.stride, tier=region.tier)

    def link(self, opcode, peer, tensor, signs, tag, piece):
        """A ``piece`` of ``tensor``, and of ``signs`` if there are any, to or from a neighbour."""
        tensor, signs = tensor.part(piece), signs and signs.part(piece)
        fields = {"peer": peer, "rows": tensor.rows, "blocks": tensor.blocks, "op0": tensor.base,
                  "t_stride": tensor.stride, **tag}
        if signs is not None:
            fields |= {"masked": 1, "op4": signs.base, "k_stride": signs.stride}
        self.code.append((opcode, fields))

    def rounding(self, s):
        """Fields that say how the gradient of stage ``s`` is rounded into the tensor memory."""
        if not self.stochastic:
            return {"layer": s}
        return {"layer": s, "stochastic": 1, "mem": self.place[0], "mem_base": self.place[1]}

    def row_numbers(self, s):
        """Fields for random bits of the stash of the input of stage ``s``."""
        number, register = self.numbers
        return {"layer": s, "stochastic": 1, "op1": number & 0xffff, "op3": number >> 16 & 0xff,
                "op2": number >> 24 & 0xffff, "op2_base": register}

    def panel(self):
        """A product panel of its own: :func:`.interleave.interleave` assigns a real one."""
        self._products += 1
        return VIRTUAL_ROWS + (self._products - 1) * self.buffers.panel_rows

    def optimizer_panel(self):
        """The next of the pairs of optimizer panels."""
        self._updates += 1
        return self.buffers.optimizer[self._updates % len(self.buffers.optimizer)]

    def chunk(self, kind, cls, matrix, m, mem, base):
        """One sub-minibatch of ``m`` rows in column blocks from memory."""
        part = Matrix(matrix.base, m, matrix.cols, matrix.stride, matrix.n)
        self.transfer(Opcode.LOAD, kind, cls, part, mem,
                      self.config.run_bytes(kind.name.lower(), m), mem_base=base)

    # neighbours -----------------------------------------------------------------------------

    def receive_input(self, k, tag, piece):
        """A ``piece`` of the activations of the previous tile into set ``k``."""
        s = self.part.first
        self.link(Opcode.RECEIVE, Peer.PREVIOUS, self.buffers.x[k][s],
                  self.buffers.signs[k].get(s), tag, piece)

    def send_output(self, k, tag, piece):
        """A ``piece`` of output ``k`` to the next tile."""
        signs = self.buffers.sent_signs
        self.link(Opcode.SEND, Peer.NEXT, self.buffers.sent[k], signs[k] if signs else None, tag,
                  piece)

    def receive_gradient(self, k, tag, piece):
        """A ``piece`` of the gradient of this tile's output into set ``k``."""
        self.link(Opcode.RECEIVE, Peer.NEXT, self.buffers.dy[k][self.part.last], None, tag,
                  piece)

    def send_gradient(self, k, tag, piece):
        """A ``piece`` of returned gradient ``k`` to the previous tile."""
        self.link(Opcode.SEND, Peer.PREVIOUS, self.buffers.returned[k], None, tag, piece)

    # forward --------------------------------------------------------------------------------

    def quantise_samples(self, source, k, m):
        """Input samples into the tensor memory, set ``k``."""
        x = self.buffers.x[k][0]
        self.vector(rows=m, count=x.blocks, cols=x.cols, op0=source.base, a_stride=source.stride,
                    op3=x.base, t_stride=x.stride, write_tensor=1)

    def forward(self, s, k, out, m, *, pad=0, training=True, made=None, least=1,
                by_rows=False):
        """Stage ``s``: product, bias and activation, from set ``k`` into the same set, into
        output ``out`` for the next tile, or into ``logits``, in at least so many pieces. Where a
        piece of the result is complete, ``made(piece)`` may add instructions."""
        buffers = self.buffers
        stage, w, x = self.part.stages[s], self.weight[s], buffers.x[k][s]
        signs = None
        if s < self.part.last:
            target, signs = buffers.x[k][s + 1], buffers.signs[k].get(s + 1)
        elif self.part.ends:
            target = buffers.logits
        else:
            target = buffers.sent[out]
            signs = buffers.sent_signs[out] if stage.relu else None
        final = self.part.ends and s == self.part.last
        for piece in buffers.products(target.blocks, m, w.blocks, least=least, by_rows=by_rows):
            part = target.part(piece)
            panel = self.panel()
            self.code.append((Opcode.MATMUL, {
                "m": part.rows, "k": w.cols, "c": part.cols, "op0": x.base + piece.row,
                "a_stride_m": self.config.n, "a_stride_k": x.stride,
                "op1": w.base + piece.block * self.config.n, "w_stride_k": w.stride,
                "w_stride_c": self.config.n, "w_transpose": 1, "op2": panel,
                "d_stride_c": part.rows, "layer": s}))
            fields = {"op0": panel, "a_stride": part.rows}
            if stage.linear.bias:
                fields |= {"op1": self.bias[s].base + piece.block, "b_stride": 1, "b_step": 0,
                           "add_source": AddSource.ROW}
            if stage.relu:
                fields |= {"mask": MaskKind.POSITIVE}
                if training:
                    mask = signs.part(piece)
                    fields |= {"op4": mask.base, "k_stride": mask.stride, "write_mask": 1}
            if final:
                fields |= {"op2": part.base, "d_stride": part.stride, "write_acc": 1, "pad": pad}
            else:
                fields |= {"op3": part.base, "t_stride": part.stride, "write_tensor": 1}
            self.vector(rows=part.rows, count=piece.blocks, cols=part.cols, **fields)
            if made is not None:
                made(piece)

    # backward -------------------------------------------------------------------------------

    def data_gradient(self, s, k, kd, out, m, *, by_rows=False):
        """Gradient of the input of stage ``s``, masked by its signs in set ``k``: from gradient
        set ``kd`` into the same set, or into ``returned[out]``."""
        buffers = self.buffers
        dy, w = buffers.dy[kd][s], self.weight[s]
        target = buffers.dy[kd][s - 1] if s > self.part.first else buffers.returned[out]
        for piece in buffers.products(target.blocks, m, dy.blocks, by_rows=by_rows):
            part = target.part(piece)
            panel = self.panel()
            self.code.append((Opcode.MATMUL, {
                "m": part.rows, "k": dy.cols, "c": part.cols, "op0": dy.base + piece.row,
                "a_stride_m": self.config.n, "a_stride_k": dy.stride,
                "op1": w.base + piece.block * w.stride, "w_stride_k": self.config.n,
                "w_stride_c": w.stride, "op2": panel, "d_stride_c": part.rows, "layer": s}))
            fields = {"op0": panel, "a_stride": part.rows, "op3": part.base,
                      "t_stride": part.stride, "write_tensor": 1, **self.rounding(s - 1)}
            if s in buffers.signs[k]:
                mask = buffers.signs[k][s].part(piece)
                fields |= {"op4": mask.base, "k_stride": mask.stride, "mask": MaskKind.MEMORY}
            self.vector(rows=part.rows, count=piece.blocks, cols=part.cols, **fields)

    def weight_gradient(self, s, k, kd, m, *, first):
        """Level 1 over ``m`` samples, and level 2: set when ``first``, else added. Yields each
        chunk ``(first block, Matrix)`` when it is complete, so that the caller may use it."""
        buffers = self.buffers
        dy, x = buffers.dy[kd][s], buffers.x[k][s]
        for start, grad in buffers.weight_grad[s]:
            target = grad.base if first else self.panel()
            self.code.append((Opcode.MATMUL, {
                "m": grad.rows, "k": m, "c": grad.cols, "op0": dy.base, "a_stride_m": dy.stride,
                "a_stride_k": self.config.n, "a_transpose": 1, "op1": x.base + start * x.stride,
                "w_stride_k": self.config.n, "w_stride_c": x.stride, "op2": target,
                "d_stride_c": grad.rows, "narrow": int(self.narrow), "layer": s}))
            if not first:
                self.accumulate(grad, target, grad.rows)
            yield start, grad

    def bias_gradient(self, s, kd, m, *, first):
        """Column sums of the gradient over ``m`` samples, added into level 2."""
        if s not in self.buffers.bias:
            return
        grad, wide, dy = self.buffers.bias_grad[s], self.buffers.wide, self.buffers.dy[kd][s]
        part = Matrix(wide.base, m, grad.cols, wide.stride, wide.n)
        rows = {"count": grad.blocks, "cols": grad.cols, "a_space": Space.TENSOR,
                "a_stride": dy.stride, "d_stride": part.stride, "write_acc": 1}
        # The upper half moves to the accumulators, the lower half is added to it.
        half = -(-m // 2)
        if m > 1:
            self.vector(rows=m - half, op0=dy.base + half, op2=part.base, **rows)
            self.vector(rows=m - half, op0=dy.base, op1=part.base, b_stride=part.stride,
                        add_source=AddSource.ROW, op2=part.base, **rows)
        if m % 2:
            self.vector(rows=1, op0=dy.base + half - 1, op2=part.base + half - 1, **rows)
        self.sum_rows(Matrix(part.base, half, part.cols, part.stride, part.n))
        if first:
            self.copy(grad, part.base, part.stride)
        else:
            self.accumulate(grad, part.base, part.stride)

    def copy(self, target, source, source_stride):
        """``target = source``."""
        self.vector(rows=target.rows, count=target.blocks, cols=target.cols, op0=source,
                    a_stride=source_stride, op2=target.base, d_stride=target.stride, write_acc=1)

    def accumulate(self, target, source, source_stride):
        """``target += source``."""
        self.vector(rows=target.rows, count=target.blocks, cols=target.cols, op0=target.base,
                    a_stride=target.stride, op1=source, b_stride=source_stride,
                    add_source=AddSource.ROW, op2=target.base, d_stride=target.stride,
                    write_acc=1)

    def sum_rows(self, part):
        """Sum of the rows into row 0 of each block: halves are added until one row is left."""
        rows = part.rows
        while rows > 1:
            half = -(-rows // 2)
            self.vector(rows=rows - half, count=part.blocks, cols=part.cols, op0=part.base,
                        a_stride=part.stride, op1=part.base + half, b_stride=part.stride,
                        add_source=AddSource.ROW, op2=part.base, d_stride=part.stride, write_acc=1)
            rows = half
