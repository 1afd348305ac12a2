"""Programs that do not drain between virtual minibatches, with gradients one update late.

Version k of the weights has seen k updates. Virtual minibatch v uses version v - 1 from its first
forward to its last weight gradient, and its update makes version v + 1 of version v (PipeDream-2BW:
Narayanan et al., 2021). So its forwards wait for the update before last only, and a tile that has
no more to do for one virtual minibatch goes on with the next one. Version k lies in place k modulo
2, on chip and in memory: an update reads one place and writes the other, that of the version which
its own virtual minibatch has used to the end.

A program repeats a *window* of the order: operations in which every tile does as much of each kind
as one virtual minibatch has, though not all for the same one. At both ends of the program those
are left out that would belong to virtual minibatches before the first or after the last.
Instructions are interleaved within a window, windows with the same operations in the same way.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from gradmill_hw.isa import Class, Opcode

from .emitter import Emitter
from .interleave import Rules, interleave, interleave_one
from .optimizer import RATES, WeightUpdate, load_parameters, load_version, update_bias
from .pipeline import RANDOM_STEP, Lowering, write
from .programs import assemble, bases_at
from .tiles import TrainTile


__all__ = ["NoDrainLowering", "Versions"]


class Versions(NamedTuple):
    """Where two versions of the master parameters are in memory.

    Members
    -------
    regions : sequence of dict
        Number of a version modulo 2 -> stage -> name -> :class:`Region`.
    newest : int
        Number of the newest version modulo 2.
    """

    regions: tuple
    newest:  int


class NoDrainLowering(Lowering):
    """Makes the programs of every tile for gradients that are one update late.

    ``order`` covers several virtual minibatches, from an empty pipeline to an empty pipeline, with
    sub-minibatches numbered through all of them. ``regions`` of its methods are :class:`Versions`.

    Parameters
    ----------
    subs : int
        Sub-minibatches of a virtual minibatch.
    predict_weights : bool
        Whether products use weights that are predicted: as if the last step were made once more.
    others
        As of :class:`Lowering`.
    """

    versions = 2

    def __init__(self, *arguments, subs, predict_weights=False, **options):
        super().__init__(*arguments, **options)
        self._subs, self._predicts = subs, predict_weights
        self._window = self._repeated()

    def _repeated(self):
        """The window, from the middle of the order; of several that in which the first update comes
        as late as possible, because its loads do not move to the window before. Empty if there is
        none."""
        order = self._orders[-1]
        size, best, found = 3 * len(self.buffers) * self._subs, -1, []
        for start in range(len(order) // 4, 3 * len(order) // 4 - size):
            window = order[start:start + size]
            counts = Counter((t, operation) for t, operation, _ in window)
            if set(counts.values()) != {self._subs}:
                continue
            first = next(k for k, (_, operation, number) in enumerate(window)
                         if operation == "W" and number % self._subs == self._subs - 1)
            if first > best:
                best, found = first, window
        if not found:
            return []
        begin = min(number for *_, number in found) // self._subs * self._subs
        return [(t, operation, number - begin) for t, operation, number in found]

    def somewhere(self):
        regions, result = super().somewhere()
        return Versions((regions, regions), 0), result

    def startup(self, regions):
        """Both versions to where products use them, predicted if they are to be."""
        programs = []
        for buffers in self.buffers:
            emit = Emitter(buffers)
            for s in buffers.part.numbers:
                for k, version in enumerate(regions.regions):
                    emit.use(k)
                    load_version(emit, s, version[s], RATES[k] if self._predicts else None)
                if s in buffers.bias:
                    emit.region(Opcode.LOAD, Class.WEIGHT, buffers.bias[s],
                                regions.regions[regions.newest][s]["bias"])
            programs.append(assemble(self.config, [interleave_one(buffers, emit.code)]))
        return programs

    def startup_newest(self, regions):
        """The newest weights as they are, in the place of version 0: for :meth:`predict`."""
        programs = []
        for buffers in self.buffers:
            emit = Emitter(buffers)
            for s in buffers.part.numbers:
                load_parameters(emit, s, regions.regions[regions.newest][s])
            programs.append(assemble(self.config, [interleave_one(buffers, emit.code)]))
        return programs

    def train(self, size, count, strides, regions, result, kind=None):
        """See :meth:`Lowering.train`; another ``kind`` of tile uses what :meth:`startup_newest`
        has left."""
        if kind is not None:
            return super().train(size, count, strides, regions, result, kind)
        steps = (*strides, result.stride, RANDOM_STEP, 1)
        batch = self.batch("train", size)
        emits = [Emitter(buffers, **self._rounding) for buffers in self.buffers]
        virtual = [[NoDrainTile(emit, batch, bases_at(v, steps), self.loss, self.optimizer,
                                regions, result, number=v, predict=self._predicts)
                    for emit in emits] for v in range(count)]
        for t in range(len(emits)):
            for one, other in pairwise(virtual):
                one[t].following, other[t].previous = other[t], one[t]
            for tiles in virtual if self.stashes else ():
                tiles[t].stash = self.stashes[t]
        return [assemble(self.config, code)
                for code in zip(*self._codes_of(virtual, emits), strict=True)]

    def _codes_of(self, virtual, emits):
        """Yield the instructions of each tile by segment."""
        subs, held = len(virtual[0][0].batch.rows), [0] * len(emits)
        for order in self._segments(len(virtual), subs):
            start = tuple(held)
            for t, operation, _ in order:
                held[t] += (operation == "F") - (operation == "W")
            steps = write(order, lambda number: (virtual[number // subs], number % subs))
            codes = [emit.take() for emit in emits]
            first = min(number for _, _, number in order) // subs * subs
            key = (start, *map(len, codes), *(tuple(stash.formats) for stash in self.stashes),
                   *((t, operation, number - first) for t, operation, number in order))
            if key not in self._interleavings:
                once = len(order) != len(self._window)
                self._interleavings[key] = interleave(self.config, self.buffers, codes, steps,
                                                      self._limits, held=start,
                                                      rules=[Rules()] if once else None)
            yield self._interleavings[key].apply(codes)

    def _segments(self, count, subs):
        """Operations of each segment of ``count`` virtual minibatches of ``subs`` sub-minibatches.
        """
        if subs < self._subs or count == 1 or not self._window:
            for v in range(count):
                yield [(t, operation, number + v * subs)
                       for t, operation, number in self._orders[-1] if number < subs]
            return
        spread = max(number for *_, number in self._window) // subs
        for v in range(-spread, count):
            found = [(t, operation, number + v * subs) for t, operation, number in self._window
                     if 0 <= number + v * subs < count * subs]
            if found:
                yield found


class NoDrainTile(TrainTile):
    """A tile in the course of virtual minibatch ``number`` of a program.

    Members
    -------
    previous, following : NoDrainTile or None
        The same tile in the virtual minibatches before and after it.
    """

    hastens = False

    def __init__(self, emit, batch, bases, loss, optimizer, versions, result, *, number, predict):
        super().__init__(emit, batch, bases, loss, optimizer, None, result)
        newest = (versions.newest + number) % 2
        self._version = 1 - newest
        self._source, self._target = versions.regions[newest], versions.regions[1 - newest]
        self._predict = predict
        self.before = number * len(batch.rows)
        self.previous = self.following = None

    def run(self, operation, j):
        self.emit.use(self._version)
        super().run(operation, j)

    def _tag(self, j, **fields):
        return {**super()._tag(j, **fields), "version": self._version}

    def forward(self, j):
        if self.previous is not None:
            self.previous._settle()
        super().forward(j)
        if self.following is not None and j == len(self.batch.rows) - 1:
            self.following._load_ahead(0)

    def _settle(self):
        """The loss leaves when it is complete: the next virtual minibatch may begin its own."""
        owed = self._owed
        super()._settle()
        if owed == len(self.batch.rows) - 1:
            super()._end(owed)

    def _end(self, j):
        """See :meth:`_settle`."""

    def update(self, s):
        return WeightUpdate(self.emit, s, self._source[s], self.momentum, target=self._target[s],
                            predict=self._predict)

    def update_bias(self, s):
        update_bias(self.emit, s, self._source[s], self.momentum, target=self._target[s],
                    predict=self._predict)
