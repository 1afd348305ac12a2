"""What each layer of a network costs on one tile, by the formulas of the units."""

from gradmill_hw.isa import Opcode

from .lowering.buffers import VIRTUAL_ROWS, Part, TileBuffers
from .lowering.emitter import Emitter
from .lowering.footprint import Fields
from .lowering.layout import blocks, somewhere
from .lowering.tiles import Batch, TrainTile
from .lowering.programs import Bases
from .nn import MSE
from .planner.profile import LayerProfile, Profile
from .unit_times import UNITS, product_cycles, vector_cycles


__all__ = ["profile"]


def profile(model, config, sub_minibatch, loss, optimizer):
    """A :class:`Profile` of ``model`` at sub-minibatches of ``sub_minibatch`` samples.

    Parameters
    ----------
    model : Sequential
        Network.
    config : Config
        Sizes of a tile.
    loss, optimizer
        As of the trainer: they cost too.
    """
    alone = [_Alone(model, config, s, sub_minibatch, loss, optimizer)
             for s in range(len(model.stages))]
    # A result is sent when the vector unit is through with its last panel.
    latency = UNITS.link + UNITS.product + max(layer.last_panel() for layer in alone)
    return Profile(tuple(map(_layer, alone)), sub_minibatch, link_latency=latency,
                   link_bytes_per_cycle=float(config.run_bytes("bfp", 1)))


def _layer(alone):
    config, linear = alone.buffers.config, alone.linear
    forward, weight, update = (alone.cycles(step) for step in (("F", 0), ("W", 1), ("W", 2)))
    backward = alone.cycles(("B", 0)) if alone.number else (0, 0)
    rows = (blocks(alone.batch.sub, config.n) * config.n * blocks(linear.outputs, config.n))
    return LayerProfile(
        forward=forward[0], backward=backward[0], weight=weight[0],
        vector=forward[1] + backward[1] + weight[1], update=update[1] - weight[1],
        output_bytes=rows * config.run_bytes("bfp", 1),
        weight_bytes=4 * linear.outputs * (linear.inputs + linear.bias))


class _Alone:
    """Instructions of one layer alone on a tile."""

    def __init__(self, model, config, s, sub, loss, optimizer):
        self.batch = Batch(3 * sub, sub, 0, 0)
        part = Part(tuple(model.stages), s, s)
        self.buffers = TileBuffers(config, part, sub, targets=isinstance(loss, MSE))
        self.loss, self.optimizer = loss, optimizer
        self.number, self.linear = s, model.stages[s].linear
        self.regions, self.result = somewhere([model.stages[s]], config, optimizer, first=s)

    def _code(self, operation, j):
        """Instructions of an operation; of sub-minibatches 0 to 2 the first sets, the last
        updates."""
        tile = TrainTile(Emitter(self.buffers), self.batch, Bases(*[(0, 0)] * 5), self.loss,
                         self.optimizer, self.regions, self.result)
        tile.run(operation, j)
        return [(opcode, Fields(fields)) for opcode, fields in tile.emit.code]

    def cycles(self, step):
        """Cycles of matrix and vector unit in an operation."""
        config, code = self.buffers.config, self._code(*step)
        return (sum(product_cycles(f, config.n) for opcode, f in code if opcode is Opcode.MATMUL),
                sum(sum(vector_cycles(f, config)) for opcode, f in code if opcode is Opcode.VECTOR))

    def last_panel(self):
        """Cycles from the last row of the forward product to the last row of the result."""
        return next(sum(vector_cycles(fields, self.buffers.config))
                    for opcode, fields in self._code("F", 0) if opcode is Opcode.VECTOR
                    and fields["op0"] >= VIRTUAL_ROWS)
