"""Instructions for the parts of a training step, in program order."""

import numpy as np

from gradmill_hw.isa import (AddOp, AddSource, Class, FunctionOp, Kind, MaskKind, MulSource,
                             Opcode)

from ..nn import MSE
from ..program import Scalar
from .layout import Matrix


__all__ = ["LEARNING_RATE", "MOMENTUM", "Emitter"]

#: Scalar registers that the driver sets before a run.
LEARNING_RATE, MOMENTUM = Scalar(0), Scalar(1)  # minus the learning rate; the momentum
#: The smallest finite number.
_LOWEST = float(np.finfo(np.float32).min)


class Emitter:
    """Appends instructions to ``code``, a list of ``(opcode, fields)``.

    Parameters
    ----------
    buffers : Buffers
        Placement on chip.
    narrow : bool
        Whether level 1 of the weight gradient is rounded to bfloat16.
    """

    def __init__(self, buffers, *, narrow=False):
        self.buffers, self.narrow = buffers, narrow
        self.config = buffers.config
        self.code = []
        self._products = self._panels = 0

    # one instruction each -------------------------------------------------------------------

    def vector(self, *, rows, count=1, cols, **fields):
        """A VECTOR over ``count`` column blocks; sources advance with the rows."""
        self.code.append((Opcode.VECTOR, {"rows": rows, "blocks": count, "cols": cols, "a_step": 1,
                                          "b_step": 1, **fields}))

    def transfer(self, opcode, kind, cls, matrix, mem, mem_stride, *, mem_base=0):
        """Column blocks of ``matrix`` to or from memory."""
        self.code.append((opcode, {
            "tier": 0, "kind": kind, "cls": cls, "run": matrix.rows, "count0": matrix.blocks,
            "count1": 1, "count2": 1, "mem": mem, "mem_base": mem_base, "mem_stride0": mem_stride,
            "row_stride0": matrix.stride, "op0": matrix.base}))

    def _region(self, opcode, cls, matrix, region, first_block=0):
        self.transfer(opcode, region.kind, cls, matrix, region.address + first_block
                      * region.stride, region.stride)

    def _panel(self):
        """The next of the two product panels."""
        self._products += 1
        return self.buffers.panels[self._products % 2]

    # forward --------------------------------------------------------------------------------

    def load_samples(self, m, mem, base):
        """Samples from memory, one chunk of ``m`` rows in column blocks."""
        self._chunk(Kind.FP32, Class.DATA, self.buffers.samples, m, mem, base)

    def load_labels(self, m, mem, base, loss):
        """One-hot bits, or float targets for :class:`MSE`."""
        if isinstance(loss, MSE):
            self._chunk(Kind.FP32, Class.DATA, self.buffers.scratch, m, mem, base)
        else:
            self._chunk(Kind.MASK, Class.MASK, self.buffers.labels, m, mem, base)

    def _chunk(self, kind, cls, matrix, m, mem, base):
        part = Matrix(matrix.base, m, matrix.cols, matrix.stride, matrix.n)
        stride = self.config.run_bytes(kind.name.lower(), m)
        self.transfer(Opcode.LOAD, kind, cls, part, mem, stride, mem_base=base)

    def quantise_samples(self, m):
        """Input samples into the tensor memory."""
        source, x = self.buffers.samples, self.buffers.x[0]
        self.vector(rows=m, count=x.blocks, cols=x.cols, op0=source.base, a_stride=source.stride,
                    op3=x.base, t_stride=x.stride, write_tensor=1)

    def forward(self, s, m, *, pad=0, training=True):
        """Stage ``s``: product, bias and activation, into ``x[s+1]`` or ``logits``."""
        buffers = self.buffers
        stage, w, x = buffers.stages[s], buffers.weight[s], buffers.x[s]
        final = s == len(buffers.stages) - 1
        out = buffers.logits if final else buffers.x[s + 1]
        for first, count in buffers.chunks(out.blocks, m):
            part = out.from_block(first, count)
            panel = self._panel()
            self.code.append((Opcode.MATMUL, {
                "m": m, "k": w.cols, "c": part.cols, "op0": x.base, "a_stride_m": self.config.n,
                "a_stride_k": x.stride, "op1": w.base + first * self.config.n,
                "w_stride_k": w.stride, "w_stride_c": self.config.n, "w_transpose": 1,
                "op2": panel, "d_stride_c": m}))
            fields = {"op0": panel, "a_stride": m}
            if stage.linear.bias:
                fields |= {"op1": buffers.bias[s].base + first, "b_stride": 1, "b_step": 0,
                           "add_source": AddSource.ROW}
            if stage.relu:
                fields |= {"mask": MaskKind.POSITIVE}
                if training:
                    mask = buffers.relu[s].from_block(first, count)
                    fields |= {"op4": mask.base, "k_stride": mask.stride, "write_mask": 1}
            if final:
                fields |= {"op2": part.base, "d_stride": part.stride, "write_acc": 1, "pad": pad}
            else:
                fields |= {"op3": part.base, "t_stride": part.stride, "write_tensor": 1}
            self.vector(rows=m, count=count, cols=part.cols, **fields)

    # backward -------------------------------------------------------------------------------

    def data_gradient(self, s, m):
        """Gradient of the input of stage ``s``, masked by the ReLU before it: ``dy[s-1]``."""
        buffers = self.buffers
        dy, w, out = buffers.dy[s], buffers.weight[s], buffers.dy[s - 1]
        for first, count in buffers.chunks(out.blocks, m):
            part = out.from_block(first, count)
            panel = self._panel()
            self.code.append((Opcode.MATMUL, {
                "m": m, "k": dy.cols, "c": part.cols, "op0": dy.base, "a_stride_m": self.config.n,
                "a_stride_k": dy.stride, "op1": w.base + first * w.stride,
                "w_stride_k": self.config.n, "w_stride_c": w.stride,
                "op2": panel, "d_stride_c": m}))
            fields = {"op0": panel, "a_stride": m, "op3": part.base, "t_stride": part.stride,
                      "write_tensor": 1}
            if s - 1 in buffers.bias:
                wide = buffers.dy_wide
                fields |= {"op2": wide.base + first * wide.stride, "d_stride": wide.stride,
                           "write_acc": 1}
            if buffers.stages[s - 1].relu:
                mask = buffers.relu[s - 1].from_block(first, count)
                fields |= {"op4": mask.base, "k_stride": mask.stride, "mask": MaskKind.MEMORY}
            self.vector(rows=m, count=count, cols=part.cols, **fields)

    def weight_gradient(self, s, m, *, first):
        """Level 1 over ``m`` samples, and level 2: set when ``first``, else added. Yields each
        chunk ``(first block, Matrix)`` when it is complete, so that the caller may use it."""
        buffers = self.buffers
        dy, x = buffers.dy[s], buffers.x[s]
        for start, grad in buffers.weight_grad[s]:
            target = grad.base if first else self._panel()
            self.code.append((Opcode.MATMUL, {
                "m": grad.rows, "k": m, "c": grad.cols, "op0": dy.base, "a_stride_m": dy.stride,
                "a_stride_k": self.config.n, "a_transpose": 1, "op1": x.base + start * x.stride,
                "w_stride_k": self.config.n, "w_stride_c": x.stride, "op2": target,
                "d_stride_c": grad.rows, "narrow": int(self.narrow)}))
            if not first:
                self._accumulate(grad, target, grad.rows)
            yield start, grad

    def bias_gradient(self, s, m, *, first):
        """Column sums of ``dy_wide`` over ``m`` samples, added into level 2."""
        if s not in self.buffers.bias:
            return
        grad, wide = self.buffers.bias_grad[s], self.buffers.dy_wide
        part = Matrix(wide.base, m, grad.cols, wide.stride, wide.n)
        self._sum_rows(part)
        if first:
            self._copy(grad, part.base, part.stride)
        else:
            self._accumulate(grad, part.base, part.stride)

    def _copy(self, target, source, source_stride):
        self.vector(rows=target.rows, count=target.blocks, cols=target.cols, op0=source,
                    a_stride=source_stride, op2=target.base, d_stride=target.stride, write_acc=1)

    def _accumulate(self, target, source, source_stride):
        self.vector(rows=target.rows, count=target.blocks, cols=target.cols, op0=target.base,
                    a_stride=target.stride, op1=source, b_stride=source_stride,
                    add_source=AddSource.ROW, op2=target.base, d_stride=target.stride,
                    write_acc=1)

    def _sum_rows(self, part):
        """Sum of the rows into row 0 of each block: halves are added until one row is left."""
        rows = part.rows
        while rows > 1:
            half = -(-rows // 2)
            self.vector(rows=rows - half, count=part.blocks, cols=part.cols, op0=part.base,
                        a_stride=part.stride, op1=part.base + half, b_stride=part.stride,
                        add_source=AddSource.ROW, op2=part.base, d_stride=part.stride, write_acc=1)
            rows = half

    # loss -----------------------------------------------------------------------------------

    def _across(self, source, target, m, op):
        """``op`` over all columns of ``source``, in every lane of the rows at ``target``."""
        n = self.config.n
        rest = {"rows": m, "cols": n, "op2": target, "write_acc": 1}
        if source.blocks == 1:
            # A maximum starts from finite padding: infinities are reported.
            floor = {"add_source": AddSource.SCALAR, "add_op": op, "scalar1": _LOWEST}
            self.vector(op0=source.base, **rest, **(floor if op is AddOp.MAX else {}))
        for b in range(1, source.blocks):
            self.vector(op0=source.base if b == 1 else target, op1=source.base + b * source.stride,
                        add_source=AddSource.ROW, add_op=op, **rest)
        for distance in range(self.config.lane_bits):
            self.vector(op0=target, add_source=AddSource.BUTTERFLY, butterfly=distance, add_op=op,
                        **rest)

    def cross_entropy(self, m, batch):
        """``dy`` of the last stage from ``logits`` and labels; the loss is summed afterwards."""
        buffers, n = self.buffers, self.config.n
        z, e, last = buffers.logits, buffers.scratch, len(buffers.stages) - 1
        maximum, total, inverse = (column.base for column in buffers.columns)
        block = {"rows": m, "count": z.blocks, "cols": z.cols}
        self._across(z, maximum, m, AddOp.MAX)
        self.vector(**block, op0=z.base, a_stride=z.stride, op1=maximum,
                    add_source=AddSource.ROW, add_op=AddOp.SUB, function=FunctionOp.EXP,
                    op2=e.base, d_stride=e.stride, write_acc=1)
        self._across(e, total, m, AddOp.ADD)
        self.vector(rows=m, cols=n, op0=total, function=FunctionOp.RECIP, op2=inverse, write_acc=1)
        self.vector(rows=m, cols=n, op0=inverse, mul=MulSource.SCALAR, scalar0=1 / batch,
                    op2=inverse, write_acc=1)
        dy, wide = buffers.dy[last], buffers.dy_wide
        self.vector(**block, op0=e.base, a_stride=e.stride, op1=inverse,
                    mul=MulSource.ROW, add_source=AddSource.MASKED, scalar1=-1 / batch,
                    op4=buffers.labels.base, k_stride=buffers.labels.stride, op2=wide.base,
                    d_stride=wide.stride, write_acc=1, op3=dy.base, t_stride=dy.stride,
                    write_tensor=1)

    def cross_entropy_loss(self, m, *, first):
        """``log(sum exp(z - max)) + max - z[label]``, summed over samples into ``loss``."""
        buffers, n = self.buffers, self.config.n
        z, e, labels = buffers.logits, buffers.scratch, buffers.labels
        maximum, total, chosen = (column.base for column in buffers.columns)
        self.vector(rows=m, count=z.blocks, cols=z.cols, op0=z.base, a_stride=z.stride,
                    mask=MaskKind.MEMORY, op4=labels.base, k_stride=labels.stride, op2=e.base,
                    d_stride=e.stride, write_acc=1)
        self._across(e, chosen, m, AddOp.ADD)
        self.vector(rows=m, cols=n, op0=total, function=FunctionOp.LOG, op2=total, write_acc=1)
        for op1, op in ((maximum, AddOp.ADD), (chosen, AddOp.SUB)):
            self.vector(rows=m, cols=n, op0=total, op1=op1, add_source=AddSource.ROW,
                        add_op=op, op2=total, write_acc=1)
        self._sum_loss(Matrix(total, m, n, m, n), first)

    def mse(self, m, batch):
        """``dy`` of the last stage from ``logits`` and float targets in ``scratch``."""
        buffers = self.buffers
        z, t, last = buffers.logits, buffers.scratch, len(buffers.stages) - 1
        dy, wide = buffers.dy[last], buffers.dy_wide
        block = {"rows": m, "count": z.blocks, "cols": z.cols}
        self.vector(**block, op0=z.base, a_stride=z.stride, op1=t.base, b_stride=t.stride,
                    add_source=AddSource.ROW, add_op=AddOp.SUB, op2=z.base,
                    d_stride=z.stride, write_acc=1)
        self.vector(**block, op0=z.base, a_stride=z.stride, mul=MulSource.SCALAR,
                    scalar0=2 / (batch * z.cols), op2=wide.base, d_stride=wide.stride,
                    write_acc=1, op3=dy.base, t_stride=dy.stride, write_tensor=1)

    def mse_loss(self, m, *, first):
        """Squared differences, summed over samples and outputs into ``loss``."""
        buffers = self.buffers
        z, total = buffers.logits, buffers.columns[0].base
        self.vector(rows=m, count=z.blocks, cols=z.cols, op0=z.base, a_stride=z.stride,
                    mul=MulSource.SELF, op2=z.base, d_stride=z.stride, write_acc=1)
        self._across(z, total, m, AddOp.ADD)
        self._sum_loss(Matrix(total, m, self.config.n, m, self.config.n), first)

    def _sum_loss(self, column, first):
        self._sum_rows(column)
        if first:
            self._copy(self.buffers.loss, column.base, column.stride)
        else:
            self._accumulate(self.buffers.loss, column.base, column.stride)

    def store_loss(self, region, scale):
        """The mean loss, in every lane of one row."""
        loss = self.buffers.loss
        self.vector(rows=1, cols=loss.cols, op0=loss.base, mul=MulSource.SCALAR,
                    scalar0=scale, op2=loss.base, write_acc=1)
        self._region(Opcode.STORE, Class.RESULT, loss, region)

    def store_outputs(self, m, mem, base):
        """``logits`` to memory, one chunk of ``m`` rows in column blocks."""
        z = self.buffers.logits
        self.transfer(Opcode.STORE, Kind.FP32, Class.RESULT,
                      Matrix(z.base, m, z.cols, z.stride, z.n), mem,
                      self.config.run_bytes("fp32", m), mem_base=base)

    # optimizer ------------------------------------------------------------------------------

    def load_parameters(self, s, regions):
        """Master weights of stage ``s`` into the tensor memory, bias into the accumulators."""
        w = self.buffers.weight[s]
        for start, count in self.buffers.chunks(w.blocks, w.rows):
            part, panel = w.from_block(start, count), self._panel()
            self._region(Opcode.LOAD, Class.WEIGHT, _dense(part, panel), regions["weight"], start)
            self.vector(rows=w.rows, count=count, cols=part.cols, op0=panel, a_stride=w.rows,
                        op3=part.base, t_stride=part.stride, write_tensor=1)
        if s in self.buffers.bias:
            self._region(Opcode.LOAD, Class.WEIGHT, self.buffers.bias[s], regions["bias"])

    def update_weight(self, s, start, grad, regions, momentum):
        """One optimizer step on a chunk of the weight of stage ``s``, by its gradient."""
        buffers = self.buffers
        tensor = buffers.weight[s].from_block(start, grad.blocks)
        panel = buffers.optimizer[self._panels % 2]
        self._panels += 1
        w = _dense(grad, panel["weight"])
        self._region(Opcode.LOAD, Class.WEIGHT, w, regions["weight"], start)
        step = self._velocity(grad, panel["momentum"], regions.get("weight_momentum"), start,
                              momentum)
        self.vector(rows=w.rows, count=w.blocks, cols=w.cols, op0=step.base, a_stride=step.stride,
                    mul=MulSource.SCALAR, scalar0=LEARNING_RATE, op1=w.base,
                    b_stride=w.stride, add_source=AddSource.ROW, op2=w.base,
                    d_stride=w.stride, write_acc=1, op3=tensor.base, t_stride=tensor.stride,
                    write_tensor=1)
        self._region(Opcode.STORE, Class.WEIGHT, w, regions["weight"], start)

    def update_bias(self, s, regions, momentum):
        """One optimizer step on the bias of stage ``s``, which stays in the accumulators."""
        if s not in self.buffers.bias:
            return
        b, grad = self.buffers.bias[s], self.buffers.bias_grad[s]
        panel = self.buffers.optimizer[self._panels % 2]
        self._panels += 1
        step = self._velocity(grad, panel["momentum"], regions.get("bias_momentum"), 0, momentum)
        self.vector(rows=1, count=b.blocks, cols=b.cols, op0=step.base, a_stride=step.stride,
                    mul=MulSource.SCALAR, scalar0=LEARNING_RATE, op1=b.base,
                    b_stride=b.stride, add_source=AddSource.ROW, op2=b.base,
                    d_stride=b.stride, write_acc=1)
        self._region(Opcode.STORE, Class.WEIGHT, b, regions["bias"])

    def _velocity(self, grad, panel, region, start, momentum):
        """``v = momentum·v + g``; the gradient itself without momentum."""
        if not momentum:
            return grad
        v = _dense(grad, panel)
        self._region(Opcode.LOAD, Class.OPTIMIZER, v, region, start)
        self.vector(rows=v.rows, count=v.blocks, cols=v.cols, op0=v.base, a_stride=v.stride,
                    mul=MulSource.SCALAR, scalar0=MOMENTUM, op1=grad.base,
                    b_stride=grad.stride, add_source=AddSource.ROW, op2=v.base,
                    d_stride=v.stride, write_acc=1)
        self._region(Opcode.STORE, Class.OPTIMIZER, v, region, start)
        return v


def _dense(matrix, base):
    """Column blocks of ``matrix`` one behind the other from ``base``."""
    return Matrix(base, matrix.rows, matrix.cols, matrix.rows, matrix.n)
