"""The order of layer-to-layer execution: passes of layers over the sub-minibatches of a group.

A virtual minibatch is a sequence of *passes*: forward through each layer but the last, the *turn*
(the last layer forward and backward, loss between), backward through each layer from the last but
one down. A pass is a sequence of *slots*, one for each sub-minibatch. What a slot needs is loaded
during the slot before, into the other set. Behind each part of a slot is a *place* for portions of
other layers: the layer of the next pass comes into the buffer of the layer of the pass before; in
backward that layer is updated first, and its new weights are stored.

At both ends of the order the two layers in the buffers stay: the last two from forward to backward,
the first two, updated in place, to the next virtual minibatch.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import itemgetter

from gradmill_hw.isa import Class, Kind, Opcode

from ...nn import MSE
from .. import loss as losses
from ..emitter import Emitter
from ..optimizer import update_bias, update_weight


__all__ = ["LayerEmitter", "Predict", "Train"]


class LayerEmitter(Emitter):
    """Tags transfers and updates with the layer that is set."""

    layer = 0

    def vector(self, **fields):
        super().vector(**{"layer": self.layer, **fields})

    def transfer(self, opcode, *rest, **fields):
        super().transfer(opcode, *rest, layer=self.layer, **fields)


@dataclass(eq=False)
class _Slot:
    """A sub-minibatch in a layer.

    Members
    -------
    loads : list
        Instructions that bring what it needs.
    parts : list of list
        Those that compute, in parts.
    alone : bool
        Whether it is the only one of its pass: the slot before stores what it loads.
    places : list of list
        Instructions for other layers, behind each of its parts.
    """

    loads:  list
    parts:  list
    alone:  bool
    places: list = field(init=False)

    def __post_init__(self):
        self.places = [[] for _ in self.parts]


class _Passes:
    """Passes and slots in the course of a program.

    Parameters
    ----------
    emit : LayerEmitter
        Appends instructions.
    memory : LayerMemory
        Weights and boundaries.
    batch : Batch
        Samples.
    bases : Bases
        Where samples and results are.
    regions : dict
        Stage -> name -> :class:`Region` of the master parameters.
    """

    def __init__(self, emit, memory, batch, bases, regions):
        self.emit, self.memory, self.batch, self.bases = emit, memory, batch, bases
        self.buffers, self.regions = emit.buffers, regions
        self.last = len(emit.part.stages) - 1
        self._slots = []
        self._places = [[]]  # before the first slot, and behind each part of each

    def piece(self, layer, function, *arguments, **options):
        """Instructions that a call appends, as a list of their own."""
        start, self.emit.layer = len(self.emit.code), layer
        function(*arguments, **options)
        code = self.emit.code[start:]
        del self.emit.code[start:]
        return code

    def parts(self, layer, work, *arguments):
        """The same of a call that may yield between its parts, as a list of them."""
        found, start, self.emit.layer = [], len(self.emit.code), layer
        for _ in chain(work(*arguments) or (), (None,)):
            found.append(self.emit.code[start:])
            del self.emit.code[start:]
        return found

    def run_pass(self, layer, subs, load, work):
        """Append a pass over sub-minibatches ``subs`` and return the numbers of its places, the
        first of them before it; ``load`` and ``work`` are called with layer, sub-minibatch, set and
        samples."""
        first = len(self._places) - 1
        for j in subs:
            element, register = self.bases.random
            self.emit.place = element + j * self.buffers.random_rows, register
            rest = layer, j, len(self._slots) % 2, self.batch.rows[j]
            self._append(_Slot(self.piece(layer, load, *rest),
                               self.parts(layer, work, *rest), alone=len(subs) == 1))
        return range(first, len(self._places))

    def _append(self, slot):
        self._slots.append(slot)
        self._places += slot.places

    def fetch(self, layer, places):
        """Load ``layer`` into its buffer, in all ``places`` but the last."""
        pieces = [code for _, code in self.arriving(layer)]
        for i, code in enumerate(pieces):
            self._places[places[i * (len(places) - 1) // len(pieces)]] += code

    def arriving(self, layer):
        """Loads of a layer: ``(None, instructions)`` for the bias, if there is one, then ``(rows of
        the weight buffer, instructions)``."""
        w, pieces = self.buffers.weight[layer], []
        if layer in self.buffers.bias:
            pieces.append((None, self.piece(
                layer, self.emit.region, Opcode.LOAD, Class.WEIGHT, self.buffers.bias[layer],
                self.regions[layer]["bias"])))
        for first, count in self.buffers.portions(layer):
            code = self.piece(layer, self.memory.weight, self.emit, Opcode.LOAD, layer, first,
                              count)
            pieces.append((range(first * w.stride, (first + count) * w.stride), code))
        return pieces

    def woven(self):
        """All instructions: what a slot needs is loaded before the work of the slot before, unless
        that is what produces it."""
        code, place = [], self._places[0]
        for slot, before, following in zip(self._slots, [None, *self._slots],
                                           [*self._slots[1:], None], strict=False):
            if slot.alone or before is None:
                code += slot.loads
            if following is not None and not following.alone:
                code += following.loads
            for part, behind in zip(slot.parts, slot.places, strict=True):
                code += place + part
                place = behind
        return code + place

    # forward ----------------------------------------------------------------------------------

    def load_inputs(self, s, j, k, m):
        """Samples, or what the layer before stored."""
        if s:
            self.memory.inputs(self.emit, Opcode.LOAD, s, j, k, m)
            return
        offset, base = self.bases.data
        self.emit.chunk(Kind.FP32, Class.DATA, self.buffers.samples[k], m,
                        offset + j * self.batch.data_bytes, base)

    def begin(self, s, k, m):
        """Quantise the samples, if this is the first layer."""
        if s == 0:
            self.emit.quantise_samples(self.buffers.samples[k], k, m)


class Predict(_Passes):
    """Forward only, ``group`` sub-minibatches at a time."""

    def __init__(self, emit, memory, batch, bases, regions, group):
        super().__init__(emit, memory, batch, bases, regions)
        self._group = group

    def code(self):
        """The instructions."""
        subs = range(len(self.batch.rows))
        for start in subs[::self._group]:
            self._forward(subs[start:start + self._group])
        return self.woven()

    def _forward(self, subs):
        last = self.last
        for s in range(last + 1):
            places = self.run_pass(s, subs, self.load_inputs, self._compute)
            if 1 <= s < last:
                self.fetch(s + 1, places)
        # The first two layers for the next group or program.
        if last >= 3:
            self.fetch((last - 1) % 2, places)
        if last >= 2:
            for _, loads in self.arriving(last % 2):
                self._places[-1] += loads

    def _compute(self, s, j, k, m):
        self.begin(s, k, m)
        self.emit.forward(s, k, 0, m, training=False)
        if s < self.last:
            self.memory.inputs(self.emit, Opcode.STORE, s + 1, j, k, m)
        else:
            offset, base = self.bases.labels
            losses.store_outputs(self.emit, m, offset + j * self.batch.label_bytes, base)


class Train(_Passes):
    """A virtual minibatch with its updates."""

    def __init__(self, emit, memory, batch, bases, regions, loss, optimizer, result):
        super().__init__(emit, memory, batch, bases, regions)
        self._loss, self._momentum, self._result = loss, optimizer.momentum, result
        self._steps = []  # places of the pieces of updates so far

    def code(self):
        """The instructions."""
        subs = range(len(self.batch.rows))
        for s in range(self.last):
            places = self.run_pass(s, subs, self.load_inputs, self._forward)
            if s >= 1:
                self.fetch(s + 1, places)
        places = self.run_pass(self.last, subs, self._load_turn, self._turn)
        for s in reversed(range(self.last)):
            places = self.run_pass(s, subs, self._load_backward, self._backward)[1:]
            taken = self._spread(s + 1, places)
            self._update(s + 1, taken)
            if s >= 1:
                self._fetch_updated(s - 1, s + 1, taken, places)
        self._update(0, self._behind_chunks(places))
        self._places[-1] += self.piece(0, self._store_loss)
        return self.woven()

    def _forward(self, s, j, k, m):
        emit, memory = self.emit, self.memory
        self.begin(s, k, m)
        if s == 0:
            memory.inputs(emit, Opcode.STORE, s, j, k, m)
        emit.forward(s, k, 0, m)
        memory.inputs(emit, Opcode.STORE, s + 1, j, k, m)
        memory.signs(emit, Opcode.STORE, s + 1, j, k, m)

    def _load_turn(self, s, j, k, m):
        self.load_inputs(s, j, k, m)
        self.memory.signs(self.emit, Opcode.LOAD, s, j, k, m)
        offset, base = self.bases.labels
        losses.load_labels(self.emit, k, m, offset + j * self.batch.label_bytes, base, self._loss)

    def _turn(self, s, j, k, m):
        """The last layer forward, the loss, and backward."""
        emit = self.emit
        self.begin(s, k, m)
        emit.forward(s, k, 0, m, pad=int(not isinstance(self._loss, MSE)))
        losses.gradient(emit, self._loss, k, k, m, self.batch.size)
        for _ in self._backward(s, j, k, m):
            pass
        losses.add_loss(emit, self._loss, k, m, first=j == 0)

    def _load_backward(self, s, j, k, m):
        for load in (self.memory.gradient, self.memory.inputs, self.memory.signs):
            load(self.emit, Opcode.LOAD, s, j, k, m)

    def _backward(self, s, j, k, m):
        """Gradients of the layer's input, which goes to memory, and of its parameters, into their
        sums. Parts: the two; of the first layer, each chunk of the weight gradient."""
        emit, first = self.emit, j == 0
        if s:
            emit.data_gradient(s, k, k, 0, m)
            self.memory.gradient(emit, Opcode.STORE, s - 1, j, k, m)
            yield
        last = self.buffers.weight_grad[s][-1][0]
        for column, _ in emit.weight_gradient(s, k, k, m, first=first):
            if s == 0 and column != last:
                yield
        emit.bias_gradient(s, k, m, first=first)

    # update -----------------------------------------------------------------------------------

    def _spread(self, layer, places):
        """Of ``places``, one for each of the pieces of :meth:`arriving`; the last two are left for
        the layer that comes into the buffer."""
        pieces = len(self.buffers.portions(layer)) + (layer in self.buffers.bias)
        span = max(1, len(places) - 2)
        return [places[i * span // pieces] for i in range(pieces)]

    def _behind_chunks(self, places):
        """For each piece of the first layer, whose update no other pass follows, the place behind
        the last chunk of its gradient."""
        chunks = self.buffers.weight_grad[0]
        if not self.last:  # the turn has one part
            chunks = chunks[-1:]
        behind = places[-len(chunks):]
        ends = [first + grad.blocks for first, grad in chunks]
        found = [behind[-1]] if 0 in self.buffers.bias else []
        for first, count in self.buffers.portions(0):
            found.append(next(place for place, end in zip(behind, ends, strict=True)
                              if first + count <= end))
        return found

    def _update(self, layer, places):
        """Update ``layer``, each of the pieces of :meth:`arriving` in its place."""
        steps = [partial(self._weight_step, layer, *span) for span in self.buffers.portions(layer)]
        if layer in self.buffers.bias:
            steps.insert(0, partial(self.piece, layer, update_bias, self.emit, layer,
                                    self.regions[layer], self._momentum))
        for place, step in sorted(zip(places, steps, strict=True), key=itemgetter(0)):
            self._place_step(step(), place)

    def _weight_step(self, layer, first, count):
        """Instructions that update and store a portion of the weights."""
        grad = self.buffers.grad[layer].from_block(first, count)
        *code, master = self.piece(layer, update_weight, self.emit, layer, first, grad,
                                   self.regions[layer], self._momentum, cls=Class.OPTIMIZER)
        # The form that products use goes first: the next layer waits for its place.
        return [*code, *self.piece(layer, self.memory.weight, self.emit, Opcode.STORE, layer,
                                   first, count), master]

    def _place_step(self, code, place):
        """Put a piece of an update in a place, its loads some places earlier, as soon as there is
        an optimizer panel. Steps take the panels in turn: none comes before an earlier one."""
        place = max([place, *self._steps[-1:]])
        panels = len(self.buffers.optimizer)
        free = self._steps[-panels] + 1 if len(self._steps) >= panels else 0
        loads = [one for one in code if one[0] is Opcode.LOAD]
        lead = max(2, panels - 1)
        self._places[min(max(free, place - lead), place)] += loads
        self._places[place] += [one for one in code if one[0] is not Opcode.LOAD]
        self._steps.append(place)

    def _fetch_updated(self, layer, updated, taken, places):
        """Load ``layer`` into the buffer of the layer ``updated``, as soon as its new weights,
        stored in the places ``taken``, leave it."""
        leaving = [rows for rows, _ in self.arriving(updated)]
        for rows, code in self.arriving(layer):
            place = max((place for place, others in zip(taken, leaving, strict=True)
                         if _overlap(rows, others)), default=places[0])
            self._places[min(place + 1, places[-1])] += code

    def _store_loss(self):
        outputs = self.buffers.logits.cols if isinstance(self._loss, MSE) else 1
        offset, base = self.bases.losses
        losses.store_loss(self.emit, self._result, offset, base, 1 / (self.batch.size * outputs))


def _overlap(rows, others):
    """Whether two portions of a weight buffer, or two biases (``None``), share rows."""
    if rows is None or others is None:
        return rows is others
    return rows.start < others.stop and others.start < rows.stop
