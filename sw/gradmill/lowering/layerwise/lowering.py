"""Programs of layer-to-layer execution.

Far memory holds the master copy; :mod:`.passes` writes the order in which layers come, compute and
go. Between programs the first two layers are in the weight buffers.
"""

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Class, Opcode
from gradmill_hw.regs import Tier

from ...nn import MSE
from ...unit_times import Memory
from ..interleave import Rules, interleave_one
from ..layout import parameter_regions
from ..optimizer import load_parameters
from ..programs import assemble, iterations
from ..tiles import Batch
from .buffers import LayerBuffers
from .memory import LayerMemory
from .passes import LayerEmitter, Predict, Train


__all__ = ["LayerLowering"]

#: Beats per cycle of the far memory that instructions are put in order for, unless it is slower:
#: with a faster one that order is nearly as good, while that for a fast one is not with a slower
#: one.
_FAR_BEATS = 0.25
#: Of the order then.
_RULES = Rules(loads=3, others_wait=False)
#: Numbers of layers are a byte of an instruction.
_MOST = 256


class LayerLowering:
    """Makes the programs; see :class:`..pipeline.Lowering`, whose methods these are.

    Parameters
    ----------
    device : Device
        What runs them; its heaps give the places in memory.
    stages : tuple of Stage
        The network.
    size, sub : int
        B and M.
    loss, optimizer
        Of the trainer.
    boundaries : str
        Memory for what passes between layers, ``"near"`` or ``"far"``.
    narrow, stochastic : bool
        See :class:`..emitter.Emitter`.

    Members
    -------
    regions : dict
        Stage -> name -> :class:`Region` of master parameters and momentum, in far memory.
    """

    at_once, versions, activations = 1, 1, None

    def __init__(self, device, stages, size, sub, loss, optimizer, *, boundaries="near",
                 narrow=False, stochastic=False):
        if len(stages) > _MOST:
            raise ConfigError(f"the network has {len(stages)} Linear layers; instructions can "
                              f"name {_MOST}")
        config = self.config = device.config
        self.stages, self.sub = stages, sub
        self.loss, self.optimizer = loss, optimizer
        self._rounding = {"narrow": narrow, "stochastic": stochastic}
        self._group = -(-size // sub)
        self._far = Memory(beats=min(_FAR_BEATS, (device.far_beats or 2) / 2))
        own = LayerBuffers(config, stages, sub, targets=isinstance(loss, MSE))
        self.buffers = [own]
        heaps = {Tier.NEAR: device.heap, Tier.FAR: device.far_heap}
        self.memory = LayerMemory(own, self._group, heaps, Tier[boundaries.upper()])
        self.regions = {s: parameter_regions(
            stage, config, optimizer.momentum, lambda name, nbytes, s=s: device.far_heap.allocate(
                nbytes, f"{name} {s}"), Tier.FAR) for s, stage in enumerate(stages)}

    def weight_bytes(self, layers):
        """Bytes of what products use of ``layers``: weights in block floating point, biases."""
        return sum(self.memory.weights[s].nbytes
                   + (self.regions[s]["bias"].nbytes if "bias" in self.regions[s] else 0)
                   for s in layers)

    def batch(self, kind, size):
        """The :class:`Batch` of ``size`` samples for ``kind`` of program."""
        return Batch.of(kind, size, self.sub, self.stages, self.loss, self.config)

    def startup(self, regions):
        """Weights of all layers in block floating point; the first two stay in the buffers."""
        emit = LayerEmitter(self.buffers[0])
        for s in reversed(range(len(self.stages))):
            load_parameters(emit, s, regions[s], cls=Class.OPTIMIZER)
            for first, count in self.buffers[0].portions(s):
                self.memory.weight(emit, Opcode.STORE, s, first, count)
        return [assemble(self.config, [self._in_order(emit.code)])]

    def predict(self, size):
        """Outputs of ``size`` samples; results lie where labels would."""
        return self._program(Predict, self.batch("predict", size), self.regions, self._group)

    def train(self, size, count, strides, regions, result):
        """One virtual minibatch of ``size`` samples with its update; see
        :meth:`..pipeline.Lowering.train`."""
        if count != self.at_once:
            raise ValueError(f"count={count}: a program trains {self.at_once} virtual minibatch")
        return self._program(Train, self.batch("train", size), regions, self.loss,
                             self.optimizer, result)

    def _program(self, kind, batch, regions, *rest):
        def code(bases):
            emit = LayerEmitter(self.buffers[0], **self._rounding)
            return self._in_order(kind(emit, self.memory, batch, bases, regions, *rest).code())

        return [assemble(self.config, iterations(code, 1, (0,) * 5))]

    def _in_order(self, code):
        """``code`` in the order in which instructions can start. Orders that know when transfers
        wait stall more beside a slow far memory."""
        return interleave_one(self.buffers[0], code, self._far, _RULES)
