"""What one tile keeps on chip for a network, and where."""

from .layout import Arena, Matrix, blocks


__all__ = ["Buffers"]

#: Rows that a product panel should at least have, so that latencies between units are hidden.
_PANEL_ROWS = 128


class Buffers:
    """On-chip placement: what runs at the same time lies in different banks.

    In the tensor memory the two operands of every product lie in different banks. In the
    accumulators the matrix unit alternates between two panels in the outer banks, or between
    chunks of the weight gradient in the inner banks, while the vector unit works on the one before
    it; the optimizer's panels are in the outer banks, everything else in the inner ones.

    Parameters
    ----------
    config : Config
        Sizes of the tile.
    stages : sequence of Stage
        The network.
    rows : int
        Samples of a sub-minibatch.

    Members
    -------
    weight, x, dy : dict
        Stage number -> :class:`Matrix` in the tensor memory.
    bias, bias_grad : dict
        Stage number -> :class:`Matrix` in the accumulators.
    weight_grad : dict
        Stage number -> list of ``(first block, Matrix)``, chunks of column blocks.
    relu : dict
        Stage number -> :class:`Matrix` of sign bits in the mask memory.
    panel_rows : int
        Rows of a product panel and of an optimizer panel.
    """

    def __init__(self, config, stages, rows):
        self.config, self.stages, self.rows = config, stages, rows
        self._tensor = Arena("tensor memory", config.tensor_rows, config.banks)
        self._acc = Arena("acc memory", config.acc_rows, config.banks)
        self._mask = Arena("mask memory", config.mask_rows, config.banks)
        last, widest = stages[-1].linear.outputs, max(s.linear.outputs for s in stages)
        half, top = config.banks // 2, config.banks - 1
        inner = (half - 1, half) if config.banks > 2 else (0, 1)

        self.weight = {s: self._tiles(f"weight {s}", stage.linear.outputs, stage.linear.inputs, 0)
                       for s, stage in enumerate(stages)}
        self.x = {s: self._tiles(f"activation {s}", rows, stage.linear.inputs, half)
                  for s, stage in enumerate(stages)}
        self.dy = {s: self._tiles(f"gradient {s}", rows, stage.linear.outputs, top)
                   for s, stage in enumerate(stages)}

        self.panel_rows = max(min(_PANEL_ROWS, config.acc_rows // 8), rows, widest)
        self.panels = [self._acc.take(self.panel_rows, f"product panel {i}", bank=i * top)
                       for i in range(2)]
        self.optimizer = [{name: self._acc.take(self.panel_rows, f"optimizer {name} {i}", bank=bank)
                           for name, bank in (("weight", 0), ("momentum", top))} for i in range(2)]
        self.dy_wide = self._fp32("gradient in FP32", rows, widest, inner[1])
        self.weight_grad = {s: self._chunks(f"weight gradient {s}", stage.linear, inner)
                            for s, stage in enumerate(stages)}
        self.samples = self._fp32("input samples", rows, stages[0].linear.inputs, inner[0])
        self.logits = self._fp32("outputs", rows, last, inner[0])
        self.bias, self.bias_grad = (
            {s: self._fp32(f"{name} {s}", 1, stage.linear.outputs, inner[0])
             for s, stage in enumerate(stages) if stage.linear.bias}
            for name in ("bias", "bias gradient"))
        self.scratch = self._fp32("loss scratch", rows, last, inner[1])
        self.columns = [self._fp32(f"loss column {i}", rows, config.n, bank)
                        for i, bank in enumerate((0, top, inner[0]))]
        self.loss = self._fp32("loss", 1, config.n, inner[0])

        self.relu = {s: self._bits(f"ReLU mask {s}", rows, stage.linear.outputs)
                     for s, stage in enumerate(stages) if stage.relu}
        self.labels = self._bits("labels", rows, last)

    def chunks(self, count, rows):
        """``(first, count)`` of the column blocks of ``rows`` rows that fill one panel."""
        size = max(1, self.panel_rows // rows)
        return [(first, min(size, count - first)) for first in range(0, count, size)]

    def _tiles(self, owner, rows, cols, bank):
        n = self.config.n
        stride = blocks(rows, n) * n
        base = self._tensor.take(blocks(cols, n) * stride, owner, bank=bank, align=n)
        return Matrix(base, rows, cols, stride, n)

    def _fp32(self, owner, rows, cols, bank):
        n = self.config.n
        base = self._acc.take(blocks(cols, n) * rows, owner, bank=bank)
        return Matrix(base, rows, cols, rows, n)

    def _bits(self, owner, rows, cols):
        n = self.config.n
        return Matrix(self._mask.take(blocks(cols, n) * rows, owner), rows, cols, rows, n)

    def _chunks(self, owner, linear, banks):
        n = self.config.n
        return [(first, self._fp32(f"{owner}, blocks from {first}", linear.outputs,
                                   min(count * n, linear.inputs - first * n), banks[k % 2]))
                for k, (first, count) in
                enumerate(self.chunks(blocks(linear.inputs, n), linear.outputs))]
