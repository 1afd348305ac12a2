"""Programs of all tiles of a network: each sub-minibatch forward, backward and into the update.

A schedule is an order of operations over all tiles. Every tile's program follows it; where an
operation ends whose result a neighbour needs, the tile sends it and the neighbour receives it *at
that point of its own program*, before whatever it does later in the order. So there is one order of
all instructions that agrees with every program and in which each receive directly follows its send.
The first instruction of that order which has not completed finds all before it completed: its
semaphores are there, it is at the head of its queue, and if it sends, its partner is at the head of
the neighbour's queue too. No program made here can deadlock, however short queues and links are.
"""

from dataclasses import dataclass

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Class, Kind, Opcode

from ..nn import MSE
from . import loss as losses
from .buffers import Part, TileBuffers
from .emitter import Emitter
from .interleave import Step, interleave, interleave_one
from .layout import blocks
from .optimizer import WeightUpdate, load_parameters, update_bias
from .programs import assemble, iterations
from .sets import held, paced, received


__all__ = ["RANDOM_STEP", "Batch", "Lowering", "TrainTile"]

#: Random numbers of a virtual minibatch, in rows.
RANDOM_STEP = 1 << 24


@dataclass(frozen=True)
class Batch:
    """A virtual minibatch in memory: whole sub-minibatches, then a short one.

    Parameters
    ----------
    size : int
        Samples, B.
    sub : int
        Samples of a sub-minibatch, M.
    data_bytes, label_bytes : int
        Bytes of one whole sub-minibatch of inputs, and of labels or results.
    """

    size:        int
    sub:         int
    data_bytes:  int
    label_bytes: int

    @property
    def rows(self):
        """Samples of each sub-minibatch."""
        whole, rest = divmod(self.size, self.sub)
        return [self.sub] * whole + [rest] * bool(rest)


class Lowering:
    """Makes the programs of every tile.

    Parameters
    ----------
    config : Config
        Sizes.
    stages : tuple of Stage
        The network.
    spans : sequence of (int, int)
        First and last stage of each tile that takes part.
    order : sequence of (int, str, int)
        ``(tile, operation, sub-minibatch)`` of a virtual minibatch with all its sub-minibatches;
        operations are ``"F"``, ``"B"`` and ``"W"``, in an order in which each comes after what it
        needs.
    sub : int
        M.
    loss, optimizer
        Of the trainer.
    limits : sequence of int
        Activation sets that each tile may hold, if there is room; no more than ``order`` needs, if
        not given.
    narrow, stochastic : bool
        See :class:`Emitter`.

    Members
    -------
    stashes : list of StashPlaces
        What each tile stashes; empty: nothing. Set before the first training program.
    """

    def __init__(self, config, stages, spans, order, sub, loss, optimizer, *, limits=None,
                 narrow=False, stochastic=False):
        self.config, self.stages, self.sub = config, stages, sub
        self.loss, self.optimizer = loss, optimizer
        self._rounding = {"narrow": narrow, "stochastic": stochastic}
        self._interleavings = {}
        self.stashes = []
        parts = [Part(tuple(stages), first, last) for first, last in spans]
        needed = held(order, len(parts))
        self._limits = [max(pair) for pair in zip(needed, limits or needed, strict=True)]
        self._order = paced(tuple(order), self._limits)
        self.buffers = [self._buffers(part, sets, limit) for part, sets, limit in
                        zip(parts, received(self._order, len(parts)), self._limits, strict=True)]

    def _buffers(self, part, sets, limit):
        """Buffers with ``limit`` sets if they fit, at least with ``sets``."""
        targets = isinstance(self.loss, MSE)
        more = tuple(max(count, limit) for count in sets)
        try:
            return TileBuffers(self.config, part, self.sub, sets=more, targets=targets)
        except ConfigError:
            return TileBuffers(self.config, part, self.sub, sets=sets, targets=targets)

    def batch(self, kind, size):
        """The :class:`Batch` of ``size`` samples for ``kind`` of program."""
        bits = kind == "train" and not isinstance(self.loss, MSE)
        inputs, outputs = self.stages[0].linear.inputs, self.stages[-1].linear.outputs
        data, labels = (blocks(cols, self.config.n) * self.config.run_bytes(row, self.sub)
                        for row, cols in (("fp32", inputs), ("mask" if bits else "fp32", outputs)))
        return Batch(size, self.sub, data, labels)

    def startup(self, regions):
        """Master weights and biases from memory to the forms in which they are used."""
        programs = []
        for buffers in self.buffers:
            emit = Emitter(buffers)
            for s in buffers.part.numbers:
                load_parameters(emit, s, regions[s])
            programs.append(assemble(self.config, [interleave_one(buffers, emit.code)]))
        return programs

    def predict(self, size):
        """Outputs of ``size`` samples; results lie where labels would."""
        batch = self.batch("predict", size)
        tiles = range(len(self.buffers))
        order = [(t, "F", j) for j in range(len(batch.rows)) for t in tiles]
        return self._programs(order, batch, 1, (0,) * 5, _Predict)

    def train(self, size, count, strides, regions, result):
        """``count`` virtual minibatches of ``size`` samples, each with its update.

        Parameters
        ----------
        strides : (int, int)
            Bytes from one virtual minibatch to the next, of samples and of labels.
        regions : dict
            Stage -> name -> :class:`Region` of the master parameters.
        result : Region
            Layout of one mean loss; they are stored one behind the other from argument 3.
        """
        batch = self.batch("train", size)
        order = [step for step in self._order if step[2] < len(batch.rows)]
        steps = (*strides, result.stride, RANDOM_STEP, 1)
        return self._programs(order, batch, count, steps, TrainTile, self.loss, self.optimizer,
                              regions, result)

    def _programs(self, order, batch, count, steps, kind, *rest):
        """One program for each tile."""
        made = {}

        def code(tile):
            def of(bases):
                if bases not in made:
                    made[bases] = self._codes(order, batch, kind, bases, *rest)
                return made[bases][tile]
            return of

        return [assemble(self.config, iterations(code(tile), count, steps))
                for tile in range(len(self.buffers))]

    def _codes(self, order, batch, kind, bases, *rest):
        """Instructions of each tile for one virtual minibatch. Those for other bases differ in
        nothing but the bases, so they are interleaved in the same way."""
        tiles = [kind(Emitter(buffers, **self._rounding), batch, bases, *rest)
                 for buffers in self.buffers]
        for tile, stash in zip(tiles, self.stashes if kind is TrainTile else (), strict=False):
            tile.stash = stash
        codes, steps = [tile.emit.code for tile in tiles], []

        def emit(operation, *calls):
            """Instructions of one tile, or a send and its receive, which make one step."""
            marks = [len(code) for code in codes]
            for method, *arguments in calls:
                method(*arguments)
            new = [(t, index) for t, code in enumerate(codes)
                   for index in range(marks[t], len(code))]
            new.sort(key=lambda part: codes[part[0]][part[1]][0] is Opcode.RECEIVE)
            steps.extend(Step(operation, parts) for parts in
                         ([new] if len(calls) > 1 else [[part] for part in new]))

        for t, operation, j in order:
            emit((operation, j), (tiles[t].run, operation, j))
            if operation == "F" and t + 1 < len(tiles):
                for span in tiles[t].outgoing(operation, j):
                    emit(None, (tiles[t].send_output, j, span),
                         (tiles[t + 1].receive_input, j, span))
            elif operation == "B" and t > 0:
                for span in tiles[t].outgoing(operation, j):
                    emit(None, (tiles[t].send_gradient, j, span),
                         (tiles[t - 1].receive_gradient, j, span))
        key = kind, batch.size
        if key not in self._interleavings:
            self._interleavings[key] = interleave(self.config, self.buffers, codes, steps,
                                                  self._limits)
        return self._interleavings[key].apply(codes)


#: Operation -> method of a tile.
_METHODS = {"F": "forward", "B": "backward", "W": "weights"}


class _Tile:
    """One tile in the course of a virtual minibatch."""

    def __init__(self, emit, batch, bases):
        self.emit, self.batch, self.bases = emit, batch, bases
        self.part, self.buffers = emit.part, emit.buffers
        self.stash = None
        self._loaded = 0

    def run(self, operation, j):
        """Append the instructions of one operation, ``"F"``, ``"B"`` or ``"W"``."""
        element, register = self.bases.random
        self.emit.place = element + j * self.buffers.random_rows, register
        batch, register = self.bases.batches
        self.emit.numbers = (batch << 24) + j * self.buffers.random_rows, register
        getattr(self, _METHODS[operation])(j)

    def _set(self, j):
        """Sets that sub-minibatch ``j`` uses."""
        return j % len(self.buffers.x), j % len(self.buffers.dy)

    @staticmethod
    def _in_turn(places, j):
        return places[j % len(places)]

    def _tag(self, j, **fields):
        return {"sub": j % (1 << 16), "last_sub": int(j == len(self.batch.rows) - 1), **fields}

    def outgoing(self, operation, j):
        """Column blocks of what ``operation`` sends, ``(first, count)``, product by product."""
        buffers, m = self.buffers, self.batch.rows[j]
        target, source = ((buffers.sent, buffers.weight[self.part.last]) if operation == "F" else
                          (buffers.returned, buffers.dy[0][self.part.first]))
        return buffers.products(target[0].blocks, m, source.blocks)

    def receive_input(self, j, span):
        self.emit.receive_input(self._set(j)[0], self.batch.rows[j], self._tag(j), span)

    def send_output(self, j, span):
        self.emit.send_output(j % 2, self.batch.rows[j], self._tag(j), span)

    def receive_gradient(self, j, span):
        self.emit.receive_gradient(self._set(j)[1], self.batch.rows[j], self._tag(j, gradient=1),
                                   span)

    def send_gradient(self, j, span):
        self.emit.send_gradient(j % 2, self.batch.rows[j], self._tag(j, gradient=1), span)

    def _load_ahead(self, j):
        """Load sub-minibatches up to ``j`` from memory, as far as there are any."""
        while self._loaded <= min(j, len(self.batch.rows) - 1):
            self.load(self._loaded, self.batch.rows[self._loaded])
            self._loaded += 1

    def load(self, j, m):
        """What comes from memory."""
        if self.part.begins:
            emit, (offset, base) = self.emit, self.bases.data
            emit.chunk(Kind.FP32, Class.DATA, self._in_turn(self.buffers.samples, j), m,
                       offset + j * self.batch.data_bytes, base)

    def _stages(self, j, **options):
        """Forward through the stages of this tile."""
        emit, m, (k, _) = self.emit, self.batch.rows[j], self._set(j)
        self._load_ahead(j)
        start = len(emit.code)
        if self.part.begins:
            emit.quantise_samples(self._in_turn(self.buffers.samples, j), k, m)
        for s in self.part.numbers:
            emit.forward(s, k, j % 2, m, **options)
            if self.stash is not None:
                self.stash.store(emit, s, k, m)
        return start


class _Predict(_Tile):
    """Forward only."""

    def forward(self, j):
        self._stages(j, training=False)
        self._load_ahead(j + 1)
        if self.part.ends:
            offset, base = self.bases.labels
            losses.store_outputs(self.emit, self.batch.rows[j],
                                 offset + j * self.batch.label_bytes, base)


class TrainTile(_Tile):
    """Forward, backward, two-level reduction and update."""

    def __init__(self, emit, batch, bases, loss, optimizer, regions, result):
        super().__init__(emit, batch, bases)
        self.loss, self.momentum = loss, optimizer.momentum
        self.regions, self.result = regions, result
        self._owed = None  # sub-minibatch whose loss is still to be added

    def load(self, j, m):
        super().load(j, m)
        if self.part.ends:
            offset, base = self.bases.labels
            losses.load_labels(self.emit, j % 2, m, offset + j * self.batch.label_bytes, base,
                               self.loss)

    def forward(self, j):
        self._settle()
        start = self._stages(j, pad=int(not isinstance(self.loss, MSE)))
        self._mark(start, "hold", first=True)
        if self.part.ends:
            losses.gradient(self.emit, self.loss, j % 2, self._set(j)[1], self.batch.rows[j],
                            self.batch.size)
            self._owed = j
        self._load_ahead(j + 1)

    def backward(self, j):
        """Data gradients. Nobody waits for those of the first tile: they go with the weights."""
        if not self.part.begins:
            self._data_gradients(self.part.numbers, j)
            self._settle()

    def _data_gradients(self, stages, j):
        k, kd = self._set(j)
        for s in reversed(stages):
            self.emit.data_gradient(s, k, kd, j % 2, self.batch.rows[j])

    def weights(self, j):
        m, (k, kd) = self.batch.rows[j], self._set(j)
        first, last = j == 0, j == len(self.batch.rows) - 1
        start = len(self.emit.code)
        if self.stash is not None:
            for s in reversed(self.part.numbers):
                self.stash.load(self.emit, s, k, m)
        if self.part.begins:
            self._data_gradients(self.part.numbers[1:], j)
        for s in self.part.numbers:  # what the next forward needs first is updated first
            self.emit.bias_gradient(s, kd, m, first=first)
            update = WeightUpdate(self.emit, s, self.regions[s], self.momentum)
            for column, grad in self.emit.weight_gradient(s, k, kd, m, first=first):
                if last:
                    update.chunk(column, grad)
            if last:
                update.store()
                update_bias(self.emit, s, self.regions[s], self.momentum)
            self._settle()
        self._mark(start, "release", first=False)
        if last and self.part.ends:
            outputs = self.buffers.logits.cols if isinstance(self.loss, MSE) else 1
            offset, base = self.bases.losses
            losses.store_loss(self.emit, self.result, offset, base,
                              1 / (self.batch.size * outputs))

    def _settle(self):
        """Add the loss that is owed, before its operands are overwritten."""
        if self._owed is not None:
            losses.add_loss(self.emit, self.loss, self._owed % 2, self.batch.rows[self._owed],
                            first=self._owed == 0)
            self._owed = None

    def _mark(self, start, field, *, first):
        """Set ``field`` in the first or the last product from ``start`` on."""
        products = [fields for opcode, fields in self.emit.code[start:] if opcode is Opcode.MATMUL]
        products[0 if first else -1][field] = 1
