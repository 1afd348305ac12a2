"""Programs of all tiles of a network: each sub-minibatch forward, backward and into the update.

A schedule is an order of operations over all tiles. Every tile's program follows it; where an
operation ends whose result a neighbour needs, the tile sends it and the neighbour receives it *at
that point of its own program*, before whatever it does later in the order. So there is one order of
all instructions that agrees with every program and in which each receive directly follows its send.
The first instruction of that order which has not completed finds all before it completed: its
semaphores are there, it is at the head of its queue, and if it sends, its partner is at the head of
the neighbour's queue too. No program made here can deadlock, however short queues and links are.
"""


from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Opcode

from ..nn import MSE
from .buffers import Part, TileBuffers
from .emitter import Emitter
from .interleave import Step, interleave, interleave_one
from .layout import blocks, somewhere
from .optimizer import load_parameters
from .programs import assemble, iterations
from .sets import early, held, paced, received
from .tiles import Batch, PredictTile, TrainTile, Variant


__all__ = ["RANDOM_STEP", "Lowering", "TileFull", "write"]

#: Random numbers of a virtual minibatch, in rows.
RANDOM_STEP = 1 << 24

#: Share of the products of the busiest tile from which on the last tile cannot wait for its loss.
_FULL = 3 / 4

#: Shares of activations that are stored behind the next ones, beside none.
_LATE_STORES = (1 / 2, 1 / 4), (1 / 2, 1 / 2)

#: Sub-minibatches at the end of a virtual minibatch for whose sums of gradients its products wait
#: on the first tile, so that its update is not late.
_LATE = 2


class TileFull(ConfigError):
    """The part of ``tile`` does not fit its memories."""

    def __init__(self, tile, message):
        super().__init__(message)
        self.tile = tile


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
    passing : bool
        Whether activations do not stay on chip; then one tile works on one sub-minibatch at a
        time.
    stashed : bool
        Whether activations are stored in stash formats and loaded again.

    Members
    -------
    stashes : list of StashPlaces
        What each tile stashes; empty: nothing. Programs are made for what stands here.
    activations : ActivationMemory
        Where activations that do not stay on chip go. Set before the first training program.
    at_once : int
        Most virtual minibatches of a program.
    versions : int
        Versions of the weights that each tile keeps.
    regions : None
        Master parameters may be anywhere.
    """

    at_once, versions, regions = 16, 1, None

    def __init__(self, config, stages, spans, order, sub, loss, optimizer, *, limits=None,
                 narrow=False, stochastic=False, passing=False, stashed=False):
        self.config, self.stages, self.sub = config, stages, sub
        self.loss, self.optimizer = loss, optimizer
        self._rounding = {"narrow": narrow, "stochastic": stochastic}
        self._interleavings = {}
        self.stashes, self.activations = [], None
        self._passing, self._stashed = passing, stashed
        # Tiles wait while a pipeline fills and drains; with two versions of the weights it does
        # neither. Random numbers are counted by the rows of an instruction, so they would be
        # others.
        self._by_rows = len(spans) > 1 and self.versions == 1 and not stochastic
        #: How many forwards at the beginning of a virtual minibatch are done some rows at a time:
        #: candidates beside one. The last tile takes one after each backward, so it waits for
        #: the later ones no more.
        self._hurried = {len(spans) // 2, len(spans) - 1} - {0, 1} if self._by_rows else ()
        parts = [Part(tuple(stages), first, last) for first, last in spans]
        needed = held(order, len(parts))
        if passing:
            limits = [1]
        self._limits = [max(pair) for pair in zip(needed, limits or needed, strict=True)]
        work = [sum(blocks(stage.linear.inputs, config.n) * blocks(stage.linear.outputs, config.n)
                    for stage in stages[first:last + 1]) for first, last in spans]
        orders = [tuple(order)]
        if work[-1] >= _FULL * max(work):
            orders.append(tuple(early(order, self._limits)))
        #: Candidates, of which programs follow the one that takes fewer cycles.
        self._orders = list(dict.fromkeys(paced(order, self._limits) for order in orders))
        self.buffers = []
        for tile, (part, *sets) in enumerate(zip(parts, *(
                received(order, len(parts)) for order in self._orders), strict=True)):
            sets = tuple(map(max, zip(*sets, strict=True)))
            try:
                self.buffers.append(self._buffers(part, sets, self._limits[tile]))
            except ConfigError as error:
                raise TileFull(tile, str(error)) from None

    def _buffers(self, part, sets, limit):
        """Buffers with ``limit`` sets if they fit, at least with ``sets``."""
        kept = {"targets": isinstance(self.loss, MSE), "versions": self.versions,
                "by_rows": self._by_rows}
        if self._passing:
            return TileBuffers(self.config, part, self.sub, passing=True, **kept)
        kept["stashed"] = self._stashed
        more = tuple(max(count, limit) for count in sets)
        try:
            return TileBuffers(self.config, part, self.sub, sets=more, **kept)
        except ConfigError:
            return TileBuffers(self.config, part, self.sub, sets=sets, **kept)

    def batch(self, kind, size):
        """The :class:`Batch` of ``size`` samples for ``kind`` of program."""
        return Batch.of(kind, size, self.sub, self.stages, self.loss, self.config)

    def somewhere(self):
        """Parameters and losses of programs that are counted, not run."""
        return somewhere(self.stages, self.config, self.optimizer)

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
        return self._programs([order], batch, 1, (0,) * 5, PredictTile)

    def train(self, size, count, strides, regions, result, kind=None):
        """``count`` virtual minibatches of ``size`` samples, each with its update.

        Parameters
        ----------
        strides : (int, int)
            Bytes from one virtual minibatch to the next, of samples and of labels.
        regions : dict
            Stage -> name -> :class:`Region` of the master parameters.
        result : Region
            Layout of one mean loss; they are stored one behind the other from argument 3.
        kind : type, optional
            A :class:`TrainTile` that does something else with the gradients.
        """
        batch = self.batch("train", size)
        orders = [[step for step in order if step[2] < len(batch.rows)]
                  for order in self._orders]
        steps = (*strides, result.stride, RANDOM_STEP, 1)
        kind = kind or (self.activations.tile if self._passing else TrainTile)
        return self._programs(orders, batch, count, steps, kind, self.loss, self.optimizer,
                              regions, result)

    def forget(self):
        """The next programs are made anew: what happens to activations has changed."""
        self._interleavings.clear()

    def record(self, size, regions, result, recorder):
        """Train a first virtual minibatch of ``size`` samples, its first sub-minibatch piece by
        piece."""
        batch = self.batch("train", size)
        (bases,) = iterations(lambda bases: bases, 1, (0,) * 5)
        tile = self.activations.tile(Emitter(self.buffers[0], **self._rounding), batch, bases,
                                self.loss, self.optimizer, regions, result, recorder=recorder)
        for _, operation, j in self._orders[-1]:
            if j < len(batch.rows):
                tile.run(operation, j)
        recorder.run(tile.emit.code)

    def _programs(self, orders, batch, count, steps, kind, *rest):
        """One program for each tile, in the best of ``orders``."""
        made = {}

        def code(tile):
            def of(bases):
                if bases not in made:
                    made[bases] = self._codes(orders, batch, kind, bases, *rest)
                return made[bases][tile]
            return of

        return [assemble(self.config, iterations(code(tile), count, steps))
                for tile in range(len(self.buffers))]

    def _codes(self, orders, batch, kind, *rest):
        """Instructions of each tile for one virtual minibatch. Those for other bases differ in
        nothing but the bases, so they are interleaved in the same way."""
        key = kind, batch.size, *(tuple(stash.formats) for stash in self.stashes)
        if key not in self._interleavings:
            self._interleavings[key] = self._best(orders, batch, kind, *rest)
        order, variant, interleaving = self._interleavings[key]
        codes, _ = self._written(order, variant, batch, kind, *rest)
        return interleaving.apply(codes)

    def _best(self, orders, batch, kind, *rest):
        """An order, a :class:`Variant` and the :class:`Interleaving` with the fewest cycles: of the
        orders that which is best as things are usually done, then the best way to do them."""
        far = self.activations and self.activations.far

        def found(order, variant, rules=None):
            codes, steps = self._written(order, variant, batch, kind, *rest)
            return order, variant, interleave(self.config, self.buffers, codes, steps,
                                              self._limits, far, rules=rules)

        def cycles(candidate):
            return candidate[2].cycles

        best = min((found(order, Variant()) for order in orders), key=cycles)
        others = [found(best[0], Variant(hurried)) for hurried in self._hurried
                  if hurried < len(batch.rows) and any(own.by_rows for own in self.buffers)]
        if (self.activations and self.activations.manager.excess
                and kind is not PredictTile):
            others += [found(best[0], Variant(late=late), [best[2].rules])
                       for late in _LATE_STORES]
        return min([best, *others], key=cycles)

    def _written(self, order, variant, batch, kind, *rest):
        """Instructions of each tile as ``order`` has them, and the steps of :func:`write`."""
        tiles = [kind(Emitter(buffers, **self._rounding), batch, *rest)
                 for buffers in self.buffers]
        for tile in tiles:
            tile.variant = variant
        if isinstance(tiles[0], TrainTile):
            for tile, stash in zip(tiles, self.stashes, strict=False):
                tile.stash = stash
        steps = write(order, lambda j: (tiles, j))
        return [tile.emit.code for tile in tiles], steps


def write(order, find):
    """Append the instructions of operations ``(tile, operation, sub-minibatch)`` to the code of
    their tiles, those of transfers behind them; returns them as a list of :class:`Step`.
    ``find(sub-minibatch)`` gives its tiles and its number in its virtual minibatch."""
    steps = []

    def emit(operation, codes, *calls, urgent=False):
        """Instructions of one tile, or a send and its receive, which make one step."""
        marks = [len(code) for code in codes]
        for method, *arguments in calls:
            method(*arguments)
        new = [(t, index) for t, code in enumerate(codes)
               for index in range(marks[t], len(code))]
        new.sort(key=lambda part: codes[part[0]][part[1]][0] is Opcode.RECEIVE)
        steps.extend(Step(operation, parts, urgent) for parts in
                     ([new] if len(calls) > 1 else [[part] for part in new]))

    for t, operation, number in order:
        tiles, j = find(number)
        codes = [tile.emit.code for tile in tiles]
        late = j >= len(tiles[t].batch.rows) - _LATE
        emit((operation, number), codes, (tiles[t].run, operation, j),
             urgent=late and t == 0 and operation == "W" and tiles[t].hastens)
        if operation == "F" and t + 1 < len(tiles):
            for piece in tiles[t].outgoing(operation, j):
                emit(None, codes, (tiles[t].send_output, j, piece),
                     (tiles[t + 1].receive_input, j, piece))
        elif operation == "B" and t > 0:
            for piece in tiles[t].outgoing(operation, j):
                emit(None, codes, (tiles[t].send_gradient, j, piece),
                     (tiles[t - 1].receive_gradient, j, piece))
    return steps
