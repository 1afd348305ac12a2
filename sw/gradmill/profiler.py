"""What each layer of a network costs on one tile: by the cycle model, or measured."""

from gradmill_hw.isa import Kind

from .cycle_model import predict
from .lowering.buffers import Part, TileBuffers
from .lowering.emitter import Emitter
from .lowering.interleave import interleave_one
from .lowering.layout import Region, blocks
from .lowering.pipeline import Batch, TrainTile
from .lowering.programs import assemble, iterations
from .nn import MSE
from .planner.profile import LayerProfile, Profile
from .unit_times import UNITS


__all__ = ["profile"]

#: Repetitions whose difference is the cost of one.
_FEW, _MANY = 2, 6


def profile(model, config, sub_minibatch, loss, optimizer, *, cycles=None):
    """A :class:`Profile` of ``model`` at sub-minibatches of ``sub_minibatch`` samples.

    Parameters
    ----------
    model : Sequential
        Network.
    config : Config
        Sizes of a tile.
    loss, optimizer
        As of the trainer: they cost too.
    cycles : callable
        ``cycles(program)`` of a program for one tile; by default the cycle model.
    """
    cycles = cycles or (lambda program: predict([program], config).cycles)
    layers = [_layer(model, config, s, sub_minibatch, loss, optimizer, cycles)
              for s in range(len(model.stages))]
    return Profile(tuple(layers), sub_minibatch, link_latency=UNITS.link,
                   link_bytes_per_cycle=float(config.run_bytes("bfp", 1)))


def _layer(model, config, s, sub, loss, optimizer, cycles):
    alone = _Alone(model, config, s, sub, loss, optimizer)
    linear = model.stages[s].linear

    def cost(operations):
        few, many = (cycles(assemble(config, iterations(alone.code(operations), count,
                                                        (0, 0, 0, 0)))) for count in (_FEW, _MANY))
        return max(0, (many - few) // (_MANY - _FEW))

    forward, weight = cost([("F", 0)]), cost([("W", 1)])
    rows = blocks(sub, config.n) * config.n * blocks(linear.outputs, config.n)
    return LayerProfile(
        forward=forward, backward=cost([("B", 0)]) if s else 0, weight=weight,
        update=max(0, cost([("W", 2)]) - weight),
        output_bytes=rows * config.run_bytes("bfp", 1),
        weight_bytes=4 * linear.outputs * (linear.inputs + linear.bias))


class _Alone:
    """Instructions of one layer alone on a tile."""

    def __init__(self, model, config, s, sub, loss, optimizer):
        self.batch = Batch(3 * sub, sub, 0, 0)
        part = Part(tuple(model.stages), s, s)
        self.buffers = TileBuffers(config, part, sub, targets=isinstance(loss, MSE))
        self.loss, self.optimizer = loss, optimizer
        linear, address = model.stages[s].linear, 0
        shapes = {"weight": (linear.outputs, linear.inputs)}
        if linear.bias:
            shapes["bias"] = (1, linear.outputs)
        self.regions = {s: {}}
        for name, (rows, cols) in shapes.items():
            for kind in ("", "_momentum") if optimizer.momentum else ("",):
                region = Region(address, Kind.FP32, rows, cols, config)
                self.regions[s][name + kind] = region
                address += region.nbytes
        self.result = Region(address, Kind.FP32, 1, config.n, config)

    def code(self, operations):
        """What :func:`iterations` repeats: ``(operation, sub-minibatch)`` one after the other; of
        sub-minibatches 0 to 2 the first sets, the last updates."""
        def of(bases):
            tile = TrainTile(Emitter(self.buffers), self.batch, bases, self.loss, self.optimizer,
                             self.regions, self.result)
            for operation, j in operations:
                tile.run(operation, j)
            return interleave_one(self.buffers, tile.emit.code)
        return of
