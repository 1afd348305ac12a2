"""What a tile does with a sub-minibatch: instructions of forward, backward, weights and update."""

from dataclasses import dataclass
from functools import partial

from gradmill_hw.isa import Class, Kind, Opcode

from ..nn import MSE
from . import loss as losses
from .layout import blocks
from .optimizer import WeightUpdate, update_bias


__all__ = ["Batch", "PredictTile", "TrainTile", "Variant"]


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

    @classmethod
    def of(cls, kind, size, sub, stages, loss, config):
        """That of ``size`` samples for a ``"train"`` or a ``"predict"`` program."""
        bits = kind == "train" and not isinstance(loss, MSE)
        inputs, outputs = stages[0].linear.inputs, stages[-1].linear.outputs
        data, labels = (blocks(cols, config.n) * config.run_bytes(row, sub)
                        for row, cols in (("fp32", inputs), ("mask" if bits else "fp32", outputs)))
        return cls(size, sub, data, labels)

    @property
    def rows(self):
        """Samples of each sub-minibatch."""
        whole, rest = divmod(self.size, self.sub)
        return [self.sub] * whole + [rest] * bool(rest)


@dataclass(frozen=True)
class Variant:
    """What can be done in more than one way, whichever takes fewer cycles.

    Parameters
    ----------
    hurried : int
        Sub-minibatches whose forward is done some rows at a time.
    late : (float, float)
        Where activations pass: share of the first one, and of each other one, that is stored behind
        the next one. Products that read an activation leave its bank no cycle for stores.
    """

    hurried: int = 1
    late:    tuple = (0.0, 0.0)


#: Operation -> method of a tile.
_METHODS = {"F": "forward", "B": "backward", "W": "weights"}


class _Tile:
    """One tile in the course of a virtual minibatch.

    Members
    -------
    stash : StashPlaces or None
        Where activations are stored.
    variant : Variant
        How it does that.
    """

    def __init__(self, emit, batch, bases):
        self.emit, self.batch, self.bases = emit, batch, bases
        self.part, self.buffers = emit.part, emit.buffers
        self.stash, self.variant = None, Variant()
        self.before = 0  # sub-minibatches of the program before this virtual minibatch
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
        return self._turn(j, len(self.buffers.x)), self._turn(j, len(self.buffers.dy))

    def _turn(self, j, places=2):
        """Which of so many places sub-minibatch ``j`` uses."""
        return (self.before + j) % places

    def _samples(self, j):
        """Where the samples of sub-minibatch ``j`` are."""
        return self.buffers.samples[self._turn(j, len(self.buffers.samples))]

    def _tag(self, j, **fields):
        return {"sub": j % (1 << 16), "last_sub": int(j == len(self.batch.rows) - 1), **fields}

    def _by_rows(self, operation, j):
        """Whether ``operation`` is done some rows at a time: while the pipeline fills, other tiles
        wait for the first forwards, while it drains, for the last data gradient."""
        return self.buffers.by_rows and (
            j < self.variant.hurried if operation == "F" else j == len(self.batch.rows) - 1)

    def _out(self, operation, j):
        """Which place for what is sent ``operation`` uses."""
        places = self.buffers.sent or self.buffers.returned
        return len(places) - 1 if self._by_rows(operation, j) else self._turn(j)

    def outgoing(self, operation, j):
        """The pieces of what ``operation`` sends, product by product."""
        buffers, m = self.buffers, self.batch.rows[j]
        target, source = ((buffers.sent, buffers.weight[self.part.last]) if operation == "F" else
                          (buffers.returned, buffers.dy[0][self.part.first]))
        return buffers.products(target[0].blocks, m, source.blocks,
                                by_rows=self._by_rows(operation, j))

    def receive_input(self, j, piece):
        self.emit.receive_input(self._set(j)[0], self._tag(j), piece)

    def send_output(self, j, piece):
        self.emit.send_output(self._out("F", j), self._tag(j), piece)

    def receive_gradient(self, j, piece):
        self.emit.receive_gradient(self._set(j)[1], self._tag(j, gradient=1), piece)

    def send_gradient(self, j, piece):
        self.emit.send_gradient(self._out("B", j), self._tag(j, gradient=1), piece)

    def _load_ahead(self, j):
        """Load sub-minibatches up to ``j`` from memory, as far as there are any."""
        while self._loaded <= min(j, len(self.batch.rows) - 1):
            self.load(self._loaded, self.batch.rows[self._loaded])
            self._loaded += 1

    def load(self, j, m):
        """What comes from memory."""
        if self.part.begins:
            emit, (offset, base) = self.emit, self.bases.data
            emit.chunk(Kind.FP32, Class.DATA, self._samples(j), m,
                       offset + j * self.batch.data_bytes, base)

    def _stages(self, j, **options):
        """Forward through the stages of this tile."""
        emit, m, (k, _) = self.emit, self.batch.rows[j], self._set(j)
        self._load_ahead(j)
        start = len(emit.code)
        if self.part.begins:
            emit.quantise_samples(self._samples(j), k, m)
        for s in self.part.numbers:
            emit.forward(s, k, self._out("F", j), m, made=partial(self._made, s, m),
                         least=self._pieces(s), by_rows=self._by_rows("F", j), **options)
            if self.stash is not None:
                self.stash.store(emit, s, k, m)
        return start

    def _pieces(self, s):
        """In how many pieces the result of stage ``s`` is computed at least."""
        return 1

    def _made(self, s, m, piece):
        """A piece of the result of stage ``s`` is on chip."""


class PredictTile(_Tile):
    """Forward only."""

    def forward(self, j):
        self._stages(j, training=False)
        self._load_ahead(j + 1)
        if self.part.ends:
            offset, base = self.bases.labels
            losses.store_outputs(self.emit, self.batch.rows[j],
                                 offset + j * self.batch.label_bytes, base)


class TrainTile(_Tile):
    """Forward, backward, two-level reduction and update.

    Members
    -------
    hastens : bool
        Whether the update comes as early as it can, because the next forward waits for it.
    """

    hastens = True

    def __init__(self, emit, batch, bases, loss, optimizer, regions, result):
        super().__init__(emit, batch, bases)
        self.loss, self.momentum = loss, optimizer.momentum
        self.regions, self.result = regions, result
        self._owed = None  # sub-minibatch whose loss is still to be added

    def load(self, j, m):
        super().load(j, m)
        if self.part.ends:
            offset, base = self.bases.labels
            losses.load_labels(self.emit, self._turn(j), m, offset + j * self.batch.label_bytes,
                               base, self.loss)

    def forward(self, j):
        self._settle()
        start = self._stages(j, pad=int(not isinstance(self.loss, MSE)))
        self._mark(start, "hold", first=True)
        if self.part.ends:
            losses.gradient(self.emit, self.loss, self._turn(j), self._set(j)[1],
                            self.batch.rows[j], self.batch.size)
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
            self.emit.data_gradient(s, k, kd, self._out("B", j), self.batch.rows[j],
                                    by_rows=self._by_rows("B", j))

    def weights(self, j):
        m, (k, _) = self.batch.rows[j], self._set(j)
        start = len(self.emit.code)
        if self.stash is not None:
            for s in reversed(self.part.numbers):
                self.stash.load(self.emit, s, k, m)
        begins = self.part.begins
        turned = begins and self.hastens and j == len(self.batch.rows) - 1
        if begins and not turned:
            self._data_gradients(self.part.numbers[1:], j)
        # What the next forward needs first is updated first. The next forward waits for the first
        # tile, which updates its later layers while it makes the gradients of the others.
        for s in reversed(self.part.numbers) if turned else self.part.numbers:
            self._gradients(s, j, back=turned and s > 0)
        self._mark(start, "release", first=False)
        self._end(j)

    def _gradients(self, s, j, *, back=False):
        """Sums of the gradients of stage ``s``, and after the last one its update; with ``back``
        the data gradient before that."""
        m, (k, kd) = self.batch.rows[j], self._set(j)
        first, last = j == 0, j == len(self.batch.rows) - 1
        self.emit.bias_gradient(s, kd, m, first=first)
        update = self.update(s)
        chunks = self.emit.weight_gradient(s, k, kd, m, first=first)
        if back:
            chunks = list(chunks)
            self._data_gradients([s], j)
        for column, grad in chunks:
            if last:
                update.chunk(column, grad)
        if last:
            update.store()
            self.update_bias(s)
        self._settle()

    def _end(self, j):
        """The loss leaves after the last sub-minibatch."""
        if j == len(self.batch.rows) - 1 and self.part.ends:
            outputs = self.buffers.logits.cols if isinstance(self.loss, MSE) else 1
            offset, base = self.bases.losses
            losses.store_loss(self.emit, self.result, offset, base,
                              1 / (self.batch.size * outputs))

    def update(self, s):
        """What the gradient of the weight of stage ``s`` is used for, chunk by chunk."""
        return WeightUpdate(self.emit, s, self.regions[s], self.momentum)

    def update_bias(self, s):
        """Use the gradient of the bias of stage ``s``."""
        update_bias(self.emit, s, self.regions[s], self.momentum)

    def _settle(self):
        """Add the loss that is owed, before its operands are overwritten."""
        if self._owed is not None:
            j, self._owed = self._owed, None
            losses.add_loss(self.emit, self.loss, self._turn(j), self.batch.rows[j], first=j == 0)

    def _mark(self, start, field, *, first):
        """Set ``field`` in the first or the last product from ``start`` on."""
        products = [fields for opcode, fields in self.emit.code[start:] if opcode is Opcode.MATMUL]
        products[0 if first else -1][field] = 1
