"""What one tile keeps on chip for its part of a network, and where."""

from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
from gradmill_hw.config import ConfigError

from .layout import Arena, Matrix, Piece, blocks


__all__ = ["VIRTUAL_ROWS", "Part", "TileBuffers"]

#: Rows from here on stand for panels until :func:`.interleave.interleave` assigns real ones.
VIRTUAL_ROWS = 1 << 20

#: Rows that a product panel should at least have, so that latencies between units are hidden.
_PANEL_ROWS = 128
#: Cycles that a product of forward or of a data gradient keeps the array at most, if it can be
#: split.
_PRODUCT = 512
#: Share of a bank that weight gradients may fill to be kept in one.
_HOME = 5 / 8
#: Places for inputs of stages that do not stay on chip, and for their gradients.
_PASSING, _GRADIENTS = 4, 2
#: Optimizer panels that are loaded ahead where activations pass.
_AHEAD = 3
#: Blocks on their way to a neighbour: one is sent while the next is computed.
_OUTGOING = 2


@dataclass(frozen=True)
class Part:
    """Stages ``first`` to ``last`` of ``stages``, which one tile computes.

    Parameters
    ----------
    stages : tuple of Stage
        The whole network.
    first, last : int
        Stage numbers.
    """

    stages: tuple
    first:  int
    last:   int

    @property
    def numbers(self):
        """Stage numbers, in order."""
        return range(self.first, self.last + 1)

    @property
    def begins(self):
        """Whether the samples come to this tile."""
        return self.first == 0

    @property
    def ends(self):
        """Whether the loss is computed here."""
        return self.last == len(self.stages) - 1

    def masked(self, s):
        """Whether the input of stage ``s`` is the output of a ReLU."""
        return s > 0 and self.stages[s - 1].relu


class TileBuffers:
    """On-chip placement: what runs at the same time lies in different banks.

    In the tensor memory weights, inputs, and gradients of one and the next stage or set lie in
    different banks, so that the two operands of a product do, and one gradient can be summed up
    while another is an operand. Inputs that are stored while products run lie in two banks in turn,
    because a product takes rows of its input in every cycle. Rows on their way to a neighbour lie
    beside the weights if a product leaves that bank free between two rows of weights; if it has but
    n samples, it does not, and they lie beside the gradients. In the accumulators the matrix unit
    goes round panels in different banks, while the vector unit works on the ones before; gradients
    and everything else are in a bank of their own, if they fit, otherwise in the inner two; the
    optimizer's panels are in the outer banks; if they are used again, in turn, so that one is
    stored while the next one is read.

    A *set* is what a sub-minibatch leaves for its backward pass: the input and the gradient of
    every stage, and the signs of the inputs. Sets are used in turn.

    Parameters
    ----------
    config : Config
        Sizes of the tile.
    part : Part
        Stages.
    rows : int
        Samples of a sub-minibatch.
    sets : (int, int)
        Sets of inputs, sets of gradients.
    targets : bool
        Whether labels are float32 targets; otherwise one bit for each output.
    passing : bool
        Whether inputs of stages do not stay on chip: all but the first, and the gradients, take
        turns in a few places.
    stashed : bool
        Whether inputs of stages are stored, and loaded again to the same places.
    versions : int
        Versions of the weights that products use, 1 or 2.
    by_rows : bool
        Whether outputs and returned gradients may be computed some rows at a time, where there are
        enough rows and a place for them: who waits goes on with the first ones.

    Members
    -------
    x, dy : list of dict
        Set -> stage number -> :class:`Matrix` in the tensor memory: input, gradient of the output.
    signs : list of dict
        Set -> stage number -> :class:`Matrix` in the mask memory: where the input is positive.
    sent, sent_signs, returned : list
        Outputs for the next tile and gradients for the previous one, on their way.
    weights, biases : list of dict
        Version -> stage number -> :class:`Matrix` in the tensor memory, in the accumulators: what
        products use.
    weight : dict
        The first of ``weights``.
    bias, bias_grad : dict
        Stage number -> :class:`Matrix` in the accumulators: the newest bias, of one version that
        which is used.
    weight_grad : dict
        Stage number -> list of ``(first block, Matrix)``, chunks of column blocks.
    samples, labels : list
        Inputs and labels as they come from memory, on the tiles that need them; one or two, which
        are used in turn.
    panel_rows : int
        Rows of a product panel and of an optimizer panel.
    prefetched : bool
        Whether there is an optimizer panel for each chunk.
    """

    def __init__(self, config, part, rows, *, sets=(1, 1), targets=False, passing=False,
                 stashed=False, versions=1, by_rows=False):
        self._begin(config, part, rows, by_rows=by_rows and rows >= 2 * config.n)
        self.passing, stages = passing, part.stages
        linear = {s: stages[s].linear for s in part.numbers}
        widest = max(layer.outputs for layer in linear.values())
        half, top = config.banks // 2, config.banks - 1
        inner = (half - 1, half) if config.banks > 2 else (0, 1)
        grads = sum(layer.outputs * blocks(layer.inputs, config.n) for layer in linear.values())
        apart = config.banks > 2 and grads <= _HOME * config.acc_rows // config.banks
        home = inner[:1] if apart else inner

        self.weights = [{s: self._tiles(f"weight {s}" + f", version {k}" * (versions > 1),
                                        layer.outputs, layer.inputs, 0)
                         for s, layer in linear.items()} for k in range(versions)]
        self.weight = self.weights[0]
        if passing:
            self._pass(linear, rows, half, *self._beside_weights(inner[0], top))
        else:
            x, dy = self._banks(half, inner[0], top, stashed=stashed)
            self.x = [{s: self._tiles(f"activation {s}, set {k}", rows, layer.inputs, x[s])
                       for s, layer in linear.items()} for k in range(sets[0])]
            self.dy = [{s: self._tiles(f"gradient {s}, set {k}", rows, layer.outputs,
                                       dy[s][k % 2])
                        for s, layer in linear.items()} for k in range(sets[1])]
        self.signs = [{s: self._bits(f"signs of activation {s}, set {k}", rows, layer.inputs)
                       for s, layer in linear.items() if part.masked(s)} for k in range(sets[0])]
        self.sent, self.sent_signs, self.returned = [], [], []
        outgoing = (top, inner[0]) if rows < 2 * config.n else (0, 0)
        for k in range(_OUTGOING):
            self._outgoing(k, linear, outgoing[k % 2], outgoing[k % 2])
        if self.by_rows:
            self._by_rows_too(linear, inner[0], half)

        self.panel_rows = max(min(_PANEL_ROWS, config.acc_rows // 8), rows,
                              *(layer.outputs for layer in linear.values()))
        self.panels = [self._acc.take(self.panel_rows, f"product panel {i}", bank=i * top)
                       for i in range(2)]
        self.optimizer = [self._optimizer_panel(i, top) for i in range(2)]
        self.wide = self._fp32("gradient in FP32", -(-rows // 2), widest, home[-1])
        self.weight_grad = {s: self._chunks(f"weight gradient {s}", layer, home)
                            for s, layer in linear.items()}
        self.bias, self.bias_grad = (
            {s: self._fp32(f"{name} {s}", 1, layer.outputs, home[0])
             for s, layer in linear.items() if layer.bias} for name in ("bias", "bias gradient"))
        self.biases = [self.bias] if versions == 1 else [
            {s: self._fp32(f"bias {s}, version {k}", 1, bias.cols, home[0])
             for s, bias in self.bias.items()} for k in range(versions)]
        self.samples, self.labels = [], []
        if part.begins:
            self.samples = [self._fp32("input samples", rows, stages[0].linear.inputs, home[0])]
        if part.ends:
            self._loss_buffers(stages[-1].linear.outputs, (home[0], home[-1]), targets)
        if part.begins:
            self._load_ahead(stages[0].linear.inputs, home[-1])
        # Where activations pass, stores keep pace with the products, and more panels cost cycles.
        more = 1 if passing else 3
        self._more_panels((inner[1],) * more if apart else (0, top, 0), top, passing)

    def _outgoing(self, k, linear, sent, returned):
        """Another place for outputs for the next tile and gradients for the previous one, in these
        banks."""
        part, rows = self.part, self.rows
        if not part.ends:
            outputs = linear[part.last].outputs
            self.sent.append(self._tiles(f"output {k}", rows, outputs, sent))
            if part.stages[part.last].relu:
                self.sent_signs.append(self._bits(f"signs of output {k}", rows, outputs))
        if not part.begins:
            self.returned.append(self._tiles(f"returned gradient {k}", rows,
                                             linear[part.first].inputs, returned))

    def _by_rows_too(self, linear, sent, returned):
        """If there is room, a place for what is computed by rows. Products of n rows leave no cycle
        in the bank of the weights."""
        try:
            self._outgoing(_OUTGOING, linear, sent, returned)
        except ConfigError:
            self.by_rows = False
            for places in (self.sent, self.sent_signs, self.returned):
                del places[_OUTGOING:]

    def _banks(self, half, inner, top, *, stashed):
        """Stage number -> bank of its input; -> banks of its gradient in even and odd sets. The
        last inputs are stored while the first input of another set is an operand, those before
        while one of the next two stages' is; a gradient is in another bank than both of its stage's
        input and of the next gradient."""
        numbers, last = self.part.numbers, self.part.last
        if not stashed or len(numbers) == 1 or self.rows < 2 * self.config.n:
            return dict.fromkeys(numbers, half), {
                s: (top, inner) if s % 2 == 0 else (inner, top) for s in numbers}
        x = {s: half if s == self.part.first or (last - s) % 2 else inner for s in numbers}
        dy = {}
        for s in reversed(numbers):
            dy[s] = next(bank for bank in (half, top, inner)
                         if bank not in (x[s], dy.get(s + 1)))
        return x, {s: (bank, bank) for s, bank in dy.items()}

    def _beside_weights(self, inner, top):
        """Banks that inputs of odd stages share with gradients of even ones, and that of the other
        gradients: the outer one and the input's if weights fill more than a bank."""
        if self._tensor.used > self.config.tensor_rows // self.config.banks:
            return top, self.config.banks // 2
        return inner, top

    def _pass(self, linear, rows, half, inner, top):
        """One set of inputs and gradients, which take turns. The input of a stage can be stored
        while that of the next is an operand, and is in another bank than the stage's gradient."""
        inputs = {s: layer.inputs for s, layer in linear.items() if s}
        outputs = {s: layer.outputs for s, layer in linear.items()}
        x = self._turns("activation", rows, inputs, _PASSING, (half, inner))
        if 0 in linear:
            x[0] = self._tiles("activation 0", rows, linear[0].inputs, half)
        self.x = [x]
        self.dy = [self._turns("gradient", rows, outputs, _GRADIENTS, (inner, top))]

    def _turns(self, name, rows, widths, count, banks):
        """Stage number -> :class:`Matrix` of its width, in one of ``count`` places."""
        places = {}
        for k in sorted({s % count for s in widths}):
            widest = max(cols for s, cols in widths.items() if s % count == k)
            places[k] = self._tiles(f"{name} place {k}", rows, widest, banks[k % 2], apart=True)
        return {s: Matrix(places[s % count].base, rows, cols, places[s % count].stride,
                          self.config.n) for s, cols in widths.items()}

    def _begin(self, config, part, rows, *, by_rows=False):
        """Empty memories."""
        self.config, self.part, self.rows, self.by_rows = config, part, rows, by_rows
        self.passing = False
        self._tensor = Arena("tensor memory", config.tensor_rows, config.banks)
        self._acc = Arena("acc memory", config.acc_rows, config.banks)
        self._mask = Arena("mask memory", config.mask_rows, config.banks)
        self._arenas = {"tensor": self._tensor, "acc": self._acc, "mask": self._mask}
        self._grains = {"tensor": config.n if by_rows else blocks(rows, config.n) * config.n,
                        "acc": config.acc_rows, "mask": config.n if by_rows else rows}
        #: rows of random numbers that a sub-minibatch may use, whatever the part
        self.random_rows = blocks(rows, config.n) * config.n * blocks(
            max(stage.linear.outputs for stage in part.stages), config.n)

    def _loss_buffers(self, outputs, inner, targets):
        rows, n = self.rows, self.config.n
        self.logits = self._fp32("outputs", rows, outputs, inner[0])
        self.scratch = self._fp32("loss scratch", rows, outputs, inner[1])
        self.columns = [self._fp32(f"loss column {i}", rows, n, bank)
                        for i, bank in enumerate((inner[1], inner[0], inner[0]))]
        self.loss = self._fp32("loss", 1, n, inner[0])
        self.labels = [self._fp32(f"targets {k}", rows, outputs, inner[k]) if targets else
                       self._bits(f"labels {k}", rows, outputs) for k in range(2)]

    def _load_ahead(self, inputs, bank):
        """A second place for samples, if there is room."""
        try:
            self.samples.append(self._fp32("more input samples", self.rows, inputs, bank))
        except ConfigError:
            return

    def usage(self):
        """Name of each on-chip memory -> ``(rows used, rows)``."""
        return {arena.name.split()[0]: (arena.used, arena.rows)
                for arena in self._arenas.values()}

    def _optimizer_panel(self, i, top):
        return {name: self._acc.take(self.panel_rows, f"optimizer {name} {i}", bank=bank)
                for name, bank in (("weight", 0), ("momentum", top))}

    def _more_panels(self, banks, top, passing):
        """If there is room, more than two product panels, and an optimizer panel for each chunk,
        so that all of them can be loaded before the last gradient is there; a few where activations
        pass, whose loads would wait behind those."""
        chunks = sum(map(len, self.weight_grad.values())) + len(self.bias)
        try:
            for bank in banks:
                self.panels.append(self._acc.take(
                    self.panel_rows, f"product panel {len(self.panels)}", bank=bank))
            while len(self.optimizer) < (min(chunks, _AHEAD) if passing else chunks):
                self.optimizer.append(self._optimizer_panel(len(self.optimizer), top))
        except ConfigError:
            pass
        self.prefetched = len(self.optimizer) >= chunks
        if not self.prefetched:
            for panel in self.optimizer[1::2]:
                panel["weight"], panel["momentum"] = panel["momentum"], panel["weight"]

    def owners(self, memory, rows):
        """What the rows with these numbers of ``"tensor"``, ``"acc"`` or ``"mask"`` belong to:
        column blocks of buffers (whole buffers of the accumulators), or the number of a virtual
        panel."""
        virtual = rows >= VIRTUAL_ROWS
        panels = np.unique((rows[virtual] - VIRTUAL_ROWS) // self.panel_rows).tolist()
        return panels + self._arenas[memory].owners(rows[~virtual], self._grains[memory])

    def chunks(self, count, rows):
        """``(first, count)`` of the column blocks of ``rows`` rows that fill one panel."""
        size = max(1, self.panel_rows // rows)
        return [(first, min(size, count - first)) for first in range(0, count, size)]

    def products(self, count, rows, inner, *, least=1, by_rows=False):
        """The :class:`Piece` of each product that computes ``rows`` rows of ``count`` column
        blocks: as large as a panel, but none that keeps the array for more than _PRODUCT cycles
        with ``inner`` blocks to sum over, so that what is urgent seldom waits long; ``least``
        pieces if there are so many blocks."""
        step, n = rows, self.config.n
        if by_rows:
            step = n * max(1, min(_PRODUCT // (n * inner * count), blocks(rows, 2 * n)))
        pieces = []
        for row in range(0, rows, step):
            own = min(step, rows - row)
            size = min(self.panel_rows // own, _PRODUCT // (inner * max(own, n)))
            parts = max(-(-count // max(1, size)), min(least, count))
            edges = [k * count // parts for k in range(parts + 1)]
            pieces += [Piece(row, own, first, last - first) for first, last in pairwise(edges)]
        return pieces

    def _tiles(self, owner, rows, cols, bank, *, apart=False):
        n = self.config.n
        stride = blocks(rows, n) * n
        base = self._tensor.take(blocks(cols, n) * stride, owner, bank=bank, align=n,
                                 parts=blocks(cols, n) if apart else 1)
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
                                   min(count * n, linear.inputs - first * n), bank))
                for (first, count), bank in
                zip(self.chunks(blocks(linear.inputs, n), linear.outputs), cycle(banks),
                    strict=False)]
