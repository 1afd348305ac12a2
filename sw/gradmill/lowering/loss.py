"""Instructions for the losses, on the tile with the last stage."""

import numpy as np

from gradmill_hw.isa import AddOp, AddSource, Class, FunctionOp, Kind, MaskKind, MulSource, Opcode

from ..nn import MSE
from .layout import Matrix


__all__ = ["add_loss", "gradient", "load_labels", "store_loss", "store_outputs"]

#: The smallest finite number.
_LOWEST = float(np.finfo(np.float32).min)


def load_labels(emit, slot, m, mem, base, loss):
    """One-hot bits, or float targets for :class:`MSE`, into ``labels[slot]``."""
    matrix = emit.buffers.labels[slot]
    if isinstance(loss, MSE):
        emit.chunk(Kind.FP32, Class.DATA, matrix, m, mem, base)
    else:
        emit.chunk(Kind.MASK, Class.MASK, matrix, m, mem, base)


def gradient(emit, loss, slot, kd, m, batch):
    """``dy`` of the last stage in set ``kd``, for a virtual minibatch of ``batch`` samples, from
    ``logits`` and ``labels[slot]``; :func:`add_loss` must follow."""
    (_mse if isinstance(loss, MSE) else _cross_entropy)(emit, slot, kd, m, batch)


def add_loss(emit, loss, slot, m, *, first):
    """Loss of the ``m`` samples, summed, into the sum of the virtual minibatch."""
    (_mse_loss if isinstance(loss, MSE) else _cross_entropy_loss)(emit, slot, m, first)


def _across(emit, source, target, m, op):
    """``op`` over all columns of ``source``, in every lane of the rows at ``target``."""
    rest = {"rows": m, "cols": emit.config.n, "op2": target, "write_acc": 1}
    if source.blocks == 1:
        # A maximum starts from finite padding: infinities are reported.
        floor = {"add_source": AddSource.SCALAR, "add_op": op, "scalar1": _LOWEST}
        emit.vector(op0=source.base, **rest, **(floor if op is AddOp.MAX else {}))
    for b in range(1, source.blocks):
        emit.vector(op0=source.base if b == 1 else target, op1=source.base + b * source.stride,
                    add_source=AddSource.ROW, add_op=op, **rest)
    for distance in range(emit.config.lane_bits):
        emit.vector(op0=target, add_source=AddSource.BUTTERFLY, butterfly=distance, add_op=op,
                    **rest)


def _cross_entropy(emit, slot, kd, m, batch):
    buffers, n = emit.buffers, emit.config.n
    z, e, labels = buffers.logits, buffers.scratch, buffers.labels[slot]
    maximum, total, inverse = (column.base for column in buffers.columns)
    block = {"rows": m, "count": z.blocks, "cols": z.cols}
    _across(emit, z, maximum, m, AddOp.MAX)
    emit.vector(**block, op0=z.base, a_stride=z.stride, op1=maximum,
                add_source=AddSource.ROW, add_op=AddOp.SUB, function=FunctionOp.EXP,
                op2=e.base, d_stride=e.stride, write_acc=1)
    _across(emit, e, total, m, AddOp.ADD)
    emit.vector(rows=m, cols=n, op0=total, function=FunctionOp.RECIP, op2=inverse, write_acc=1)
    emit.vector(rows=m, cols=n, op0=inverse, mul=MulSource.SCALAR, scalar0=1 / batch,
                op2=inverse, write_acc=1)
    dy = buffers.dy[kd][emit.part.last]
    emit.vector(**block, op0=e.base, a_stride=e.stride, op1=inverse,
                mul=MulSource.ROW, add_source=AddSource.MASKED, scalar1=-1 / batch,
                op4=labels.base, k_stride=labels.stride, op3=dy.base, t_stride=dy.stride,
                write_tensor=1, **emit.rounding(emit.part.last))


def _cross_entropy_loss(emit, slot, m, first):
    """``log(sum exp(z - max)) + max - z[label]``."""
    buffers, n = emit.buffers, emit.config.n
    z, e, labels = buffers.logits, buffers.scratch, buffers.labels[slot]
    maximum, total, chosen = (column.base for column in buffers.columns)
    emit.vector(rows=m, count=z.blocks, cols=z.cols, op0=z.base, a_stride=z.stride,
                mask=MaskKind.MEMORY, op4=labels.base, k_stride=labels.stride, op2=e.base,
                d_stride=e.stride, write_acc=1)
    _across(emit, e, chosen, m, AddOp.ADD)
    emit.vector(rows=m, cols=n, op0=total, function=FunctionOp.LOG, op2=total, write_acc=1)
    for op1, op in ((maximum, AddOp.ADD), (chosen, AddOp.SUB)):
        emit.vector(rows=m, cols=n, op0=total, op1=op1, add_source=AddSource.ROW,
                    add_op=op, op2=total, write_acc=1)
    _sum_loss(emit, Matrix(total, m, n, m, n), first)


def _mse(emit, slot, kd, m, batch):
    buffers = emit.buffers
    z, t, dy = buffers.logits, buffers.labels[slot], buffers.dy[kd][emit.part.last]
    block = {"rows": m, "count": z.blocks, "cols": z.cols}
    emit.vector(**block, op0=z.base, a_stride=z.stride, op1=t.base, b_stride=t.stride,
                add_source=AddSource.ROW, add_op=AddOp.SUB, op2=z.base,
                d_stride=z.stride, write_acc=1)
    emit.vector(**block, op0=z.base, a_stride=z.stride, mul=MulSource.SCALAR,
                scalar0=2 / (batch * z.cols), op3=dy.base, t_stride=dy.stride, write_tensor=1,
                **emit.rounding(emit.part.last))


def _mse_loss(emit, slot, m, first):
    """Squares of the differences that :func:`_mse` left in ``logits``."""
    n = emit.config.n
    z, total = emit.buffers.logits, emit.buffers.columns[0].base
    emit.vector(rows=m, count=z.blocks, cols=z.cols, op0=z.base, a_stride=z.stride,
                mul=MulSource.SELF, op2=z.base, d_stride=z.stride, write_acc=1)
    _across(emit, z, total, m, AddOp.ADD)
    _sum_loss(emit, Matrix(total, m, n, m, n), first)


def _sum_loss(emit, column, first):
    emit.sum_rows(column)
    (emit.copy if first else emit.accumulate)(emit.buffers.loss, column.base, column.stride)


def store_loss(emit, region, mem, base, scale):
    """The mean loss, in every lane of one row, as ``region`` lays it out."""
    loss = emit.buffers.loss
    emit.vector(rows=1, cols=loss.cols, op0=loss.base, mul=MulSource.SCALAR,
                scalar0=scale, op2=loss.base, write_acc=1)
    emit.transfer(Opcode.STORE, Kind.FP32, Class.RESULT, loss, mem, region.stride,
                  mem_base=base)


def store_outputs(emit, m, mem, base):
    """``logits`` to memory, one chunk of ``m`` rows in column blocks."""
    z = emit.buffers.logits
    emit.transfer(Opcode.STORE, Kind.FP32, Class.RESULT,
                  Matrix(z.base, m, z.cols, z.stride, z.n), mem,
                  emit.config.run_bytes("fp32", m), mem_base=base)
