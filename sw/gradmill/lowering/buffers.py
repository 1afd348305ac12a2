"""What one tile keeps on chip for a network, and where."""

from .layout import Arena, Matrix, blocks


__all__ = ["Buffers"]

#: Rows that a product panel should at least have, so that latencies between units are hidden.
_PANEL_ROWS = 128


class Buffers:
    """On-chip placement. Operands of one product lie in different banks of the tensor memory,
    product panels and gradients in different banks of the accumulators.

    Parameters
    ----------
    config : Config
        Sizes of the tile.
    stages : sequence of Stage
        The network.
    rows : int
        Samples of a sub-minibatch.
    training : bool
        Whether gradients, masks and the optimizer need room.

    Members
    -------
    weight, x, dy : dict
        Stage number -> :class:`Matrix` in the tensor memory.
    bias, weight_grad, bias_grad : dict
        Stage number -> :class:`Matrix` in the accumulators.
    relu : dict
        Stage number -> :class:`Matrix` of sign bits in the mask memory.
    panel_rows : int
        Rows of a product panel and of an optimizer panel.
    """

    def __init__(self, config, stages, rows, *, training=True):
        self.config, self.stages, self.rows = config, stages, rows
        self._tensor = Arena("tensor memory", config.tensor_rows, config.banks)
        self._acc = Arena("acc memory", config.acc_rows, config.banks)
        self._mask = Arena("mask memory", config.mask_rows, config.banks)
        last = stages[-1].linear.outputs
        widest = max(stage.linear.outputs for stage in stages)

        half = config.banks // 2
        self.weight = {s: self._tiles(f"weight {s}", stage.linear.outputs, stage.linear.inputs, 0)
                       for s, stage in enumerate(stages)}
        self.x = {s: self._tiles(f"activation {s}", rows, stage.linear.inputs, half)
                  for s, stage in enumerate(stages)}
        self.panel_rows = max(_PANEL_ROWS, rows, widest if training else 0)
        self.panels = [self._rows(f"product panel {i}", self.panel_rows, i) for i in range(2)]
        self.bias = {s: self._fp32(f"bias {s}", 1, stage.linear.outputs)
                     for s, stage in enumerate(stages) if stage.linear.bias}
        self.logits = self._fp32("outputs", rows, last)
        self.samples = self._fp32("input samples", rows, stages[0].linear.inputs)
        if training:
            self._training(widest, last, half)

    def _training(self, widest, last, half):
        stages, rows = self.stages, self.rows
        top = self.config.banks - 1
        self.dy = {s: self._tiles(f"gradient {s}", rows, stage.linear.outputs, top)
                   for s, stage in enumerate(stages)}
        self.relu = {s: Matrix(self._mask.take(blocks(stage.linear.outputs, self.config.n) * rows,
                                               f"ReLU mask {s}"),
                               rows, stage.linear.outputs, rows, self.config.n)
                     for s, stage in enumerate(stages) if stage.relu}
        self.labels = Matrix(self._mask.take(blocks(last, self.config.n) * rows, "labels"),
                             rows, last, rows, self.config.n)
        self.weight_grad = {s: self._fp32(f"weight gradient {s}", stage.linear.outputs,
                                          stage.linear.inputs, half)
                            for s, stage in enumerate(stages)}
        self.bias_grad = {s: self._fp32(f"bias gradient {s}", 1, stage.linear.outputs, half)
                          for s in self.bias for stage in (stages[s],)}
        self.dy_wide = self._fp32("gradient in FP32", rows, widest)
        self.scratch = self._fp32("loss scratch", rows, last)
        self.columns = [self._fp32(f"loss column {i}", rows, self.config.n) for i in range(3)]
        self.loss = self._fp32("loss", 1, self.config.n)
        self.optimizer = [{name: self._rows(f"optimizer {name} {i}", self.panel_rows, top)
                           for name in ("weight", "momentum")} for i in range(2)]

    def _tiles(self, owner, rows, cols, bank):
        n = self.config.n
        stride = blocks(rows, n) * n
        base = self._tensor.take(blocks(cols, n) * stride, owner, bank=bank, align=n)
        return Matrix(base, rows, cols, stride, n)

    def _rows(self, owner, rows, bank):
        return self._acc.take(rows, owner, bank=bank)

    def _fp32(self, owner, rows, cols, bank=0):
        n = self.config.n
        return Matrix(self._rows(owner, blocks(cols, n) * rows, bank), rows, cols, rows, n)
