"""What one tile keeps on chip while it executes one layer after the other, and where."""

from gradmill_hw.config import ConfigError

from ..buffers import Part, TileBuffers
from ..layout import Matrix, blocks


__all__ = ["LayerBuffers"]

#: Product panels, if there is room; two are needed.
_PANELS = 6
#: Pairs of optimizer panels, if there is room; two are needed.
_OPTIMIZER = 4


class LayerBuffers(TileBuffers):
    """On-chip placement for layer-to-layer execution.

    Stages of even and of odd number take turns in two places for weights and biases, for their
    gradients, for inputs and for gradients of outputs: while one stage computes, the next one comes
    into the other place. Inputs and gradients have two sets, which the sub-minibatches use in turn:
    those of a sub-minibatch lie in two banks, and in the same two of the next one, so that a bias
    gradient is summed up from one bank while the next product takes its rows from the other.
    Members are those of :class:`TileBuffers`, with every stage of the network.

    Parameters
    ----------
    config : Config
        Sizes of the tile.
    stages : tuple of Stage
        The network.
    rows : int
        Samples of a sub-minibatch.
    targets : bool
        Whether labels are float32 targets; otherwise one bit for each output.

    Members
    -------
    grad : dict
        Stage number -> :class:`Matrix` in the accumulators: all chunks of ``weight_grad``.
    """

    #: Portions of an update are stored at once.
    prefetched = False

    def __init__(self, config, stages, rows, *, targets=False):
        part = Part(tuple(stages), 0, len(stages) - 1)
        self._begin(config, part, rows)
        linear = {s: stages[s].linear for s in part.numbers}
        half, top = config.banks // 2, config.banks - 1
        inner = (half - 1, half)
        self._check_tensor(linear)

        self.weight = self._in_turn(
            self._tensor, "weights", {s: (layer.outputs, layer.inputs)
                                      for s, layer in linear.items()}, (0, 0), align=config.n)
        self.x = [self._in_turn(
            self._tensor, f"inputs, set {k}", {s: (rows, layer.inputs)
                                               for s, layer in linear.items()},
            ((top, top), (half, half))[k], align=config.n) for k in range(2)]
        self.dy = [self._in_turn(
            self._tensor, f"gradients, set {k}", {s: (rows, layer.outputs)
                                                  for s, layer in linear.items()},
            ((half, half), (top, top))[k], align=config.n) for k in range(2)]
        self.signs = [self._in_turn(
            self._mask, f"signs, set {k}", {s: (rows, layer.inputs) for s, layer in linear.items()
                                            if part.masked(s)}, (0, 0)) for k in range(2)]
        self.sent = self.sent_signs = self.returned = ()

        self.panel_rows = max(min(128, config.acc_rows // 16), rows,
                              *(layer.outputs for layer in linear.values()))
        self.panels = [self._acc.take(self.panel_rows, f"product panel {i}", bank=i * top)
                       for i in range(2)]
        self._sums(linear, inner)
        self.weights, self.biases = [self.weight], [self.bias]
        self.samples = [self._fp32(f"input samples {k}", rows, linear[0].inputs, inner[k])
                        for k in range(2)]
        self._loss_buffers(linear[part.last].outputs, inner, targets)
        self._more_panels((0, top), inner)

    def portions(self, s):
        """``(first, count)`` of the column blocks in which the weights of stage ``s`` move: what
        fills half of a product panel. Smaller ones would take the vector unit longer."""
        return self.chunks(self.weight[s].blocks, 2 * self.weight[s].rows)

    def _sums(self, linear, inner):
        """Gradients of parameters, biases, and the optimizer's panels."""
        widest = max(layer.outputs for layer in linear.values())
        grads = self.grad = self._in_turn(self._acc, "weight gradients", {
            s: (layer.outputs, layer.inputs) for s, layer in linear.items()}, inner)
        self.weight_grad = {s: [(first, grads[s].from_block(first, count)) for first, count in
                                self.chunks(grad.blocks, grad.rows)] for s, grad in grads.items()}
        self.bias, self.bias_grad = (self._in_turn(self._acc, name, {
            s: (1, layer.outputs) for s, layer in linear.items() if layer.bias}, inner)
            for name in ("biases", "bias gradients"))
        self._portion_rows = max(count * grads[s].rows for s in grads
                                 for _, count in self.portions(s))
        self.optimizer = [self._optimizer_pair(i, inner) for i in range(2)]
        self.wide = self._fp32("gradient in FP32", -(-self.rows // 2), widest, inner[1])

    def _optimizer_pair(self, i, banks):
        """Panels for a portion of the weights and for its momentum."""
        return {name: self._acc.take(self._portion_rows, f"optimizer {name} {i}", bank=bank)
                for name, bank in zip(("weight", "momentum"), banks, strict=True)}

    def _in_turn(self, arena, owner, shapes, banks, *, align=1):
        """Stage -> :class:`Matrix`: those of even and of odd number lie in two places."""
        found = {}
        for parity, bank in enumerate(banks):
            stages = {s: shape for s, shape in shapes.items() if s % 2 == parity}
            if not stages:
                continue
            strides = {s: blocks(rows, align) * align for s, (rows, _) in stages.items()}
            extent = max(blocks(cols, self.config.n) * strides[s]
                         for s, (_, cols) in stages.items())
            base = arena.take(extent, f"{owner} of {('even', 'odd')[parity]} layers", bank=bank,
                              align=align)
            found |= {s: Matrix(base, rows, cols, strides[s], self.config.n)
                      for s, (rows, cols) in stages.items()}
        return found

    def _more_panels(self, banks, inner):
        """If there is room, more product panels, then optimizer panels: parameters come while
        those of other portions leave."""
        try:
            while len(self.panels) < _PANELS:
                i = len(self.panels)
                self.panels.append(self._acc.take(self.panel_rows, f"product panel {i}",
                                                  bank=banks[i % 2]))
            while len(self.optimizer) < _OPTIMIZER:
                self.optimizer.append(self._optimizer_pair(len(self.optimizer), inner))
        except ConfigError:
            return

    def _check_tensor(self, linear):
        """Whether the two weight buffers and what is computed from them fit the tensor memory."""
        n, config = self.config.n, self.config

        def rows(height, width):
            return blocks(height, n) * n * blocks(width, n)

        def both(sizes):
            return sum(max((size for s, size in sizes.items() if s % 2 == parity), default=0)
                       for parity in range(2))

        weights = {s: rows(layer.outputs, layer.inputs) for s, layer in linear.items()}
        rest = 2 * sum(both({s: rows(self.rows, getattr(layer, name))
                             for s, layer in linear.items()}) for name in ("inputs", "outputs"))
        need = both(weights) + rest
        if need > config.tensor_rows:
            s = max(weights, key=weights.get)
            layer, most = linear[s], max(0, (config.tensor_rows - rest) // 2)
            raise ConfigError(
                f"tensor memory has {config.tensor_rows} rows, but two weight buffers need "
                f"{both(weights)}, inputs and gradients of two sub-minibatches of {self.rows} "
                f"{rest}. The largest layer, {s} ({layer.inputs} -> {layer.outputs}), takes "
                f"{weights[s]} rows of a buffer, which could have {most}: use narrower layers, a "
                "smaller sub_minibatch, or a Config with tensor_rows="
                f"{1 << (need - 1).bit_length()}")
