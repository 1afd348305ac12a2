"""Programs that compute gradients and store them instead of updating parameters."""

from gradmill_hw.isa import Class, Opcode

from .layout import parameter_regions
from .tiles import TrainTile


__all__ = ["gradient_programs", "gradient_regions"]


def gradient_regions(stages, config, allocate):
    """Stage -> name -> :class:`Region` for the gradients; ``allocate(nbytes, owner)`` gives an
    address."""
    return {s: parameter_regions(stage, config, 0, lambda name, nbytes, s=s: allocate(
        nbytes, f"gradient of {name} {s}")) for s, stage in enumerate(stages)}


def gradient_programs(lowering, size, regions, result):
    """One virtual minibatch of ``size`` samples whose gradients go to ``regions``; its loss lies as
    after training."""
    return lowering.train(size, 1, (0, 0), regions, result, kind=_GradientTile)


class _Stored:
    """A gradient that goes to ``region``."""

    def __init__(self, emit, region):
        self._emit, self._region = emit, region

    def chunk(self, start, grad):
        self._emit.region(Opcode.STORE, Class.GRADIENT, grad, self._region, start)

    def store(self):
        """All has been stored."""


class _GradientTile(TrainTile):
    """Forward, backward and two-level reduction."""

    def update(self, s):
        return _Stored(self.emit, self.regions[s]["weight"])

    def update_bias(self, s):
        if s in self.buffers.bias_grad:
            self.emit.region(Opcode.STORE, Class.GRADIENT, self.buffers.bias_grad[s],
                             self.regions[s]["bias"])
