"""Instructions for parameters: from memory, one step of the optimizer, back to memory."""

from gradmill_hw.isa import AddSource, Class, MulSource, Opcode

from ..program import Scalar
from .layout import Matrix


__all__ = ["LEARNING_RATE", "MOMENTUM", "load_parameters", "update_bias", "update_weight"]

#: Scalar registers that the driver sets before a run.
LEARNING_RATE, MOMENTUM = Scalar(0), Scalar(1)  # minus the learning rate; the momentum


def load_parameters(emit, s, regions, *, cls=Class.WEIGHT):
    """Master weights of stage ``s``, counted as ``cls``, into the tensor memory, bias into the
    accumulators."""
    w = emit.buffers.weight[s]
    for start, count in emit.buffers.chunks(w.blocks, w.rows):
        part, panel = w.from_block(start, count), emit.panel()
        emit.region(Opcode.LOAD, cls, _dense(part, panel), regions["weight"], start)
        emit.vector(rows=w.rows, count=count, cols=part.cols, op0=panel, a_stride=w.rows,
                    op3=part.base, t_stride=part.stride, write_tensor=1)
    if s in emit.buffers.bias:
        emit.region(Opcode.LOAD, Class.WEIGHT, emit.buffers.bias[s], regions["bias"])


def update_weight(emit, s, start, grad, regions, momentum, *, cls=Class.WEIGHT):
    """One step on a chunk of the weight of stage ``s``, by its gradient; the master weights are
    counted as ``cls``."""
    tensor = emit.buffers.weight[s].from_block(start, grad.blocks)
    panel = emit.optimizer_panel()
    w = _dense(grad, panel["weight"])
    emit.region(Opcode.LOAD, cls, w, regions["weight"], start)
    step = _velocity(emit, grad, panel["momentum"], regions.get("weight_momentum"), start,
                     momentum)
    emit.vector(rows=w.rows, count=w.blocks, cols=w.cols, op0=step.base, a_stride=step.stride,
                mul=MulSource.SCALAR, scalar0=LEARNING_RATE, op1=w.base,
                b_stride=w.stride, add_source=AddSource.ROW, op2=w.base,
                d_stride=w.stride, write_acc=1, op3=tensor.base, t_stride=tensor.stride,
                write_tensor=1)
    emit.region(Opcode.STORE, cls, w, regions["weight"], start)


def update_bias(emit, s, regions, momentum):
    """One step on the bias of stage ``s``, which stays in the accumulators."""
    if s not in emit.buffers.bias:
        return
    b, grad = emit.buffers.bias[s], emit.buffers.bias_grad[s]
    step = _velocity(emit, grad, emit.optimizer_panel()["momentum"], regions.get("bias_momentum"),
                     0, momentum)
    emit.vector(rows=1, count=b.blocks, cols=b.cols, op0=step.base, a_stride=step.stride,
                mul=MulSource.SCALAR, scalar0=LEARNING_RATE, op1=b.base,
                b_stride=b.stride, add_source=AddSource.ROW, op2=b.base,
                d_stride=b.stride, write_acc=1)
    emit.region(Opcode.STORE, Class.WEIGHT, b, regions["bias"])


def _velocity(emit, grad, panel, region, start, momentum):
    """``v = momentum·v + g``; the gradient itself without momentum."""
    if not momentum:
        return grad
    v = _dense(grad, panel)
    emit.region(Opcode.LOAD, Class.OPTIMIZER, v, region, start)
    emit.vector(rows=v.rows, count=v.blocks, cols=v.cols, op0=v.base, a_stride=v.stride,
                mul=MulSource.SCALAR, scalar0=MOMENTUM, op1=grad.base,
                b_stride=grad.stride, add_source=AddSource.ROW, op2=v.base,
                d_stride=v.stride, write_acc=1)
    emit.region(Opcode.STORE, Class.OPTIMIZER, v, region, start)
    return v


def _dense(matrix, base):
    """Column blocks of ``matrix`` one behind the other from ``base``."""
    return Matrix(base, matrix.rows, matrix.cols, matrix.rows, matrix.n)
