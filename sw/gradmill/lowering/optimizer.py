"""Instructions for parameters: from memory, one step of the optimizer, back to memory."""

from gradmill_hw.isa import AddSource, Class, MulSource, Opcode

from ..program import Scalar
from .layout import Matrix


__all__ = ["LEARNING_RATE", "MOMENTUM", "RATES", "WeightUpdate", "load_parameters",
           "load_version", "scalar_values", "update_bias"]

#: Scalar registers that the driver sets before a run.
LEARNING_RATE, MOMENTUM = Scalar(0), Scalar(1)  # minus the learning rate; the momentum
RATES = Scalar(2), Scalar(3)  # minus those of the epochs in which versions 0 and 1 were made


def scalar_values(rate, momentum, rates=()):
    """Values of the scalar registers: for a learning rate, and the ``rates`` of both versions."""
    return [-rate, momentum, *(-other for other in rates)]


def load_parameters(emit, s, regions, *, cls=Class.WEIGHT):
    """Master weights of stage ``s``, counted as ``cls``, into the tensor memory, bias into the
    accumulators."""
    w = emit.weight[s]
    for start, count in emit.buffers.chunks(w.blocks, w.rows):
        part, panel = w.from_block(start, count), emit.panel()
        emit.region(Opcode.LOAD, cls, _dense(part, panel), regions["weight"], start)
        emit.vector(rows=w.rows, count=count, cols=part.cols, op0=panel, a_stride=w.rows,
                    op3=part.base, t_stride=part.stride, write_tensor=1)
    if s in emit.bias:
        emit.region(Opcode.LOAD, Class.WEIGHT, emit.bias[s], regions["bias"])


def load_version(emit, s, regions, rate):
    """The version of the parameters of stage ``s`` that stands in ``regions`` to where products use
    it. With ``rate``, minus a learning rate, it is predicted, see :func:`_use`."""
    buffers = emit.buffers
    places = [("weight", start, emit.weight[s].from_block(start, count))
              for start, count in buffers.chunks(emit.weight[s].blocks, emit.weight[s].rows)]
    if s in emit.bias:
        places.append(("bias", 0, emit.bias[s]))
    for name, start, place in places:
        panel = emit.optimizer_panel()
        w, v = _dense(place, panel["weight"]), _dense(place, panel["momentum"])
        emit.region(Opcode.LOAD, Class.WEIGHT, w, regions[name], start)
        if rate is not None:
            emit.region(Opcode.LOAD, Class.OPTIMIZER, v, regions[f"{name}_momentum"], start)
        _use(emit, place, w, v, rate, tensor=name == "weight")


def _use(emit, place, w, v, rate, *, tensor):
    """Products will use ``w`` from ``place``, in the tensor memory or in the accumulators; with
    ``rate`` what it will be after another step as the last one, ``w + rate*v``."""
    target = ({"op3": place.base, "t_stride": place.stride, "write_tensor": 1} if tensor else
              {"op2": place.base, "d_stride": place.stride, "write_acc": 1})
    fields = {"op0": w.base, "a_stride": w.stride}
    if rate is not None:
        fields = {"op0": v.base, "a_stride": v.stride, "mul": MulSource.SCALAR, "scalar0": rate,
                  "op1": w.base, "b_stride": w.stride, "add_source": AddSource.ROW}
    emit.vector(rows=w.rows, count=w.blocks, cols=w.cols, **fields, **target)


class WeightUpdate:
    """One step on the weight of stage ``s``, chunk by chunk. New values are stored at the end, in
    few transfers, if there is a panel for every chunk: a full queue would stop the sequencer.
    Master weights are counted as ``cls``.

    They go to ``target``, by default to where they come from. With ``predict`` products use what
    they will be after another step as this one."""

    def __init__(self, emit, s, regions, momentum, *, cls=Class.WEIGHT, target=None,
                 predict=False):
        self._emit, self._s, self._regions, self._momentum = emit, s, regions, momentum
        self._cls, self._target, self._predict = cls, target or regions, predict
        self._panels = {"momentum": [], "weight": []}  # rows of column blocks not stored yet
        self._stored = 0

    def chunk(self, start, grad):
        """Update the chunk from column block ``start`` on by its gradient."""
        panel = _update_chunk(self._emit, self._s, start, grad, self._regions, self._momentum,
                              self._cls, self._predict)
        if not self._panels["weight"]:
            self._stored = start
        for name, rows in self._panels.items():
            rows += [panel[name] + block * grad.rows for block in range(grad.blocks)]
        if not self._emit.buffers.prefetched:
            self.store()

    def store(self):
        """Store what has been updated."""
        weight = self._target["weight"]
        for name, rows in self._panels.items():
            if name == "momentum" and not self._momentum:
                continue
            cls, region = ((self._cls, weight) if name == "weight" else
                           (Class.OPTIMIZER, self._target["weight_momentum"]))
            for first, count, stride in _runs(rows):
                block = self._stored + first
                cols = min(count * self._emit.config.n, weight.cols - block * self._emit.config.n)
                part = Matrix(rows[first], weight.rows, cols, stride, self._emit.config.n)
                self._emit.region(Opcode.STORE, cls, part, region, block)
        for rows in self._panels.values():
            rows.clear()


def _runs(rows):
    """``(first, count, stride)`` of the longest runs of equal distance in a list of rows."""
    first = 0
    while first < len(rows):
        last = min(first + 1, len(rows) - 1)
        stride = rows[last] - rows[first] if last > first else 1
        if stride < 1:
            last, stride = first, 1
        while first < last < len(rows) - 1 and rows[last + 1] - rows[last] == stride:
            last += 1
        yield first, last - first + 1, stride
        first = last + 1


def _update_chunk(emit, s, start, grad, regions, momentum, cls, predict):
    """The optimizer panel with the new values of a chunk of the weight of stage ``s``."""
    tensor = emit.weight[s].from_block(start, grad.blocks)
    panel = emit.optimizer_panel()
    w = _dense(grad, panel["weight"])
    emit.region(Opcode.LOAD, cls, w, regions["weight"], start)
    step = _velocity(emit, grad, panel["momentum"], regions.get("weight_momentum"), start,
                     momentum)
    emit.vector(rows=w.rows, count=w.blocks, cols=w.cols, op0=step.base, a_stride=step.stride,
                mul=MulSource.SCALAR, scalar0=LEARNING_RATE, op1=w.base,
                b_stride=w.stride, add_source=AddSource.ROW, op2=w.base,
                d_stride=w.stride, write_acc=1, **{} if predict else {
                    "op3": tensor.base, "t_stride": tensor.stride, "write_tensor": 1})
    if predict:
        _use(emit, tensor, w, step, LEARNING_RATE, tensor=True)
    return panel


def update_weight(emit, s, start, grad, regions, momentum, *, cls=Class.WEIGHT):
    """One step on a chunk of the weight of stage ``s``, stored at once."""
    update = WeightUpdate(emit, s, regions, momentum, cls=cls)
    update.chunk(start, grad)
    update.store()


def update_bias(emit, s, regions, momentum, *, target=None, predict=False):
    """One step on the bias of stage ``s``, which stays in the accumulators; ``target`` and
    ``predict`` as of :class:`WeightUpdate`."""
    target = target or regions
    if s not in emit.buffers.bias:
        return
    b, grad = emit.buffers.bias[s], emit.buffers.bias_grad[s]
    panel = emit.optimizer_panel()["momentum"]
    step = _velocity(emit, grad, panel, regions.get("bias_momentum"), 0, momentum)
    emit.vector(rows=1, count=b.blocks, cols=b.cols, op0=step.base, a_stride=step.stride,
                mul=MulSource.SCALAR, scalar0=LEARNING_RATE, op1=b.base,
                b_stride=b.stride, add_source=AddSource.ROW, op2=b.base,
                d_stride=b.stride, write_acc=1)
    if emit.bias[s] is not b:
        _use(emit, emit.bias[s], b, step, LEARNING_RATE if predict else None, tensor=False)
    if momentum:
        emit.region(Opcode.STORE, Class.OPTIMIZER, step, target["bias_momentum"])
    emit.region(Opcode.STORE, Class.WEIGHT, b, target["bias"])


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
    return v


def _dense(matrix, base):
    """Column blocks of ``matrix`` one behind the other from ``base``."""
    return Matrix(base, matrix.rows, matrix.cols, matrix.rows, matrix.n)
