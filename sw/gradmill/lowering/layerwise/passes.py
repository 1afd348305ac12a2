"""The order of layer-to-layer execution: passes of layers over the sub-minibatches of a group.

A virtual minibatch is a sequence of *passes*: forward through each layer but the last, the *turn*
(the last layer forward and backward, loss between), backward through each layer from the last but
one down. A pass is a sequence of *slots*, one for each sub-minibatch. What a slot needs is loaded
during the slot before, into the other set. Beside the slots of a pass, in portions, the layer of
the next pass comes into the buffer of the layer of the pass before; in backward that layer is
updated first, and its new weights are stored.

At both ends of the order the two layers in the buffers stay: the last two from forward to backward,
the first two, updated in place, to the next virtual minibatch.
"""

from dataclasses import dataclass, field

from gradmill_hw.isa import Class, Kind, Opcode

from ...nn import MSE
from .. import loss as losses
from ..emitter import Emitter
from ..optimizer import update_bias, update_weight


__all__ = ["LayerEmitter", "Predict", "Train"]


class LayerEmitter(Emitter):
    """Takes product panels in turn, and tags transfers and updates with the layer that is set."""

    layer = 0

    def panel(self):
        self._products += 1
        panels = self.buffers.panels
        return panels[self._products % len(panels)]

    def vector(self, **fields):
        super().vector(**{"layer": self.layer, **fields})

    def transfer(self, opcode, *rest, **fields):
        super().transfer(opcode, *rest, layer=self.layer, **fields)


@dataclass(eq=False)
class _Slot:
    """A sub-minibatch in a layer.

    Members
    -------
    loads, work : list
        Instructions that bring what it needs, and those that compute.
    alone : bool
        Whether it is the only one of its pass: the slot before stores what it loads.
    before, after : list
        Instructions for other layers, before and after its work.
    """

    loads:  list
    work:   list
    alone:  bool
    before: list = field(default_factory=list)
    after:  list = field(default_factory=list)


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

    def piece(self, layer, function, *arguments, **options):
        """Instructions that a call appends, as a list of their own."""
        start, self.emit.layer = len(self.emit.code), layer
        function(*arguments, **options)
        code = self.emit.code[start:]
        del self.emit.code[start:]
        return code

    def run_pass(self, layer, subs, load, work):
        """Append a pass over sub-minibatches ``subs`` and return its slots; ``load`` and ``work``
        are called with layer, sub-minibatch, set and samples."""
        slots = []
        for j in subs:
            element, register = self.bases.random
            self.emit.place = element + j * self.buffers.random_rows, register
            rest = layer, j, (len(self._slots) + len(slots)) % 2, self.batch.rows[j]
            slots.append(_Slot(self.piece(layer, load, *rest), self.piece(layer, work, *rest),
                               len(subs) == 1))
        self._slots += slots
        return slots

    def fetch(self, layer, slots):
        """Load ``layer`` into its buffer, before the work of ``slots``."""
        pieces = [code for _, code in self.arriving(layer)]
        for i, code in enumerate(pieces):
            slots[i * len(slots) // len(pieces)].before += code

    def arriving(self, layer):
        """Loads of a layer: ``(rows of the weight buffer, instructions)``, last ``(None,
        instructions)`` for the bias, if there is one."""
        w, pieces = self.buffers.weight[layer], []
        for first, count in self.buffers.portions(layer):
            code = self.piece(layer, self.memory.weight, self.emit, Opcode.LOAD, layer, first,
                              count)
            pieces.append((range(first * w.stride, (first + count) * w.stride), code))
        if layer in self.buffers.bias:
            pieces.append((None, self.piece(
                layer, self.emit.region, Opcode.LOAD, Class.WEIGHT, self.buffers.bias[layer],
                self.regions[layer]["bias"])))
        return pieces

    def woven(self):
        """All instructions: what a slot needs is loaded before the work of the slot before, unless
        that is what produces it."""
        slots, code = self._slots, []
        for slot, following in zip([None, *slots], [*slots, None], strict=True):
            if slot is not None and slot.alone:
                code += slot.loads
            if following is not None and not following.alone:
                code += following.loads
            if slot is not None:
                code += slot.before + slot.work + slot.after
        return code

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
            slots = self.run_pass(s, subs, self.load_inputs, self._compute)
            if 1 <= s < last:
                self.fetch(s + 1, slots)
        # The first two layers for the next group or program.
        if last >= 3:
            self.fetch((last - 1) % 2, slots)
        if last >= 2:
            loads = [instruction for _, code in self.arriving(last % 2) for instruction in code]
            self._slots.append(_Slot(loads, [], alone=True))

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
        self._steps = []  # slots of the pieces of updates so far

    def code(self):
        """The instructions."""
        subs = range(len(self.batch.rows))
        for s in range(self.last):
            slots = self.run_pass(s, subs, self.load_inputs, self._forward)
            if s >= 1:
                self.fetch(s + 1, slots)
        slots = self.run_pass(self.last, subs, self._load_turn, self._turn)
        for s in reversed(range(self.last)):
            slots = self.run_pass(s, subs, self._load_backward, self._gradients)
            updated = self._update(s + 1, slots)
            if s >= 1:
                self._fetch_updated(s - 1, s + 1, updated, slots)
        if len(slots) == 1:  # layer 1 is updated beside it
            slots = [_Slot([], [], alone=True)]
            self._slots += slots
        self._update(0, slots[-1:])
        slots[-1].after += self.piece(0, self._store_loss)
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
        self._gradients(s, j, k, m)
        losses.add_loss(emit, self._loss, k, m, first=j == 0)

    def _load_backward(self, s, j, k, m):
        for load in (self.memory.gradient, self.memory.inputs, self.memory.signs):
            load(self.emit, Opcode.LOAD, s, j, k, m)

    def _gradients(self, s, j, k, m):
        """Of the layer's input, which goes to memory, and of its parameters, into their sums."""
        emit = self.emit
        if s:
            emit.data_gradient(s, k, k, 0, m)
            self.memory.gradient(emit, Opcode.STORE, s - 1, j, k, m)
        for _ in emit.weight_gradient(s, k, k, m, first=j == 0):
            pass
        emit.bias_gradient(s, k, m, first=j == 0)

    # update -----------------------------------------------------------------------------------

    def _update(self, layer, slots):
        """Update ``layer`` beside ``slots``; returns the number of the slot behind which each of
        the pieces of :meth:`arriving` is free."""
        regions, pieces = self.regions[layer], []
        for first, count in self.buffers.portions(layer):
            grad = self.buffers.grad[layer].from_block(first, count)
            code = self.piece(layer, update_weight, self.emit, layer, first, grad, regions,
                              self._momentum, cls=Class.OPTIMIZER)
            *code, master = code
            # The form that products use goes first: the next layer waits for its place.
            pieces.append([*code, *self.piece(layer, self.memory.weight, self.emit, Opcode.STORE,
                                              layer, first, count), master])
        if layer in self.buffers.bias:
            pieces.append(self.piece(layer, update_bias, self.emit, layer, regions,
                                     self._momentum))
        # The last slot is left for the layer that comes into the buffer.
        span = max(1, len(slots) - 1)
        count = len(self.buffers.portions(layer))
        places = [min(i, count - 1) * span // count for i in range(len(pieces))]
        for code, place in zip(pieces, places, strict=True):
            self._place_step(code, self._slots.index(slots[place]))
        return places

    def _place_step(self, code, t):
        """Put a piece of an update behind slot ``t``, its loads a slot earlier if there is an
        optimizer panel by then."""
        loads = [one for one in code if one[0] is Opcode.LOAD]
        panels = len(self.buffers.optimizer)
        taken = self._steps[-panels] if len(self._steps) >= panels else -1
        if max(t - 1, 0) > taken:
            self._slots[max(t - 1, 0)].before += loads
        else:
            self._slots[taken].after += loads
        self._slots[t].after += [one for one in code if one[0] is not Opcode.LOAD]
        self._steps.append(t)

    def _fetch_updated(self, layer, updated, places, slots):
        """Load ``layer`` into the buffer of the layer ``updated``, as soon as its new weights,
        stored behind slots with numbers ``places``, leave it."""
        leaving = [rows for rows, _ in self.arriving(updated)]
        for rows, code in self.arriving(layer):
            place = max((place for place, others in zip(places, leaving, strict=True)
                         if _overlap(rows, others)), default=-1)
            if place + 1 < len(slots):
                slots[place + 1].before += code
            else:
                slots[place].after += code

    def _store_loss(self):
        outputs = self.buffers.logits.cols if isinstance(self._loss, MSE) else 1
        offset, base = self.bases.losses
        losses.store_loss(self.emit, self._result, offset, base, 1 / (self.batch.size * outputs))


def _overlap(rows, others):
    """Whether two portions of a weight buffer, or two biases (``None``), share rows."""
    if rows is None or others is None:
        return rows is others
    return rows.start < others.stop and others.start < rows.stop
