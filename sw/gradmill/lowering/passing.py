"""Activations that do not stay on chip: through fast memory, and far memory if they must."""

from dataclasses import dataclass, replace
from itertools import pairwise

from gradmill_hw.isa import Class, Kind, Opcode
from gradmill_hw.regs import Tier

from .layout import Matrix, blocks
from .tiles import TrainTile


__all__ = ["ActivationMemory", "PassingTile", "Runs"]

#: BFP rows of these bytes are NaNs.
POISON = 0xff
#: Pieces in which the first activation of a sub-minibatch is made, and the others at most. All but
#: the last are stored before the next product takes that bank.
_PIECES = 4
#: Parts of fast memory that are copied out one after the other: the places of a copy are free only
#: when all of it has been copied.
_PARTS = 3


@dataclass(frozen=True)
class Runs:
    """How an activation lies in memory: ``count`` buffers of ``runs`` runs of ``rows`` rows, which
    are ``stride`` bytes apart, in the format with tag ``codec`` (0: as on chip)."""

    count:  int
    runs:   int
    rows:   int
    stride: int
    codec:  int

    @property
    def nbytes(self):
        """Bytes of a buffer, at most."""
        return self.runs * self.stride

    @property
    def fields(self):
        """Of the instructions that copy them."""
        return {"kind": Kind.BFP, "run": self.rows, "codec": self.codec}


def runs_of(x, m, config, entry=None):
    """:class:`Runs` of ``m`` samples of the activation at ``x``: a buffer for each column block. In
    stash format ``entry`` it is one buffer, of one run where the rows fill their place."""
    padded = blocks(m, x.n) * x.n
    if entry is None:
        return Runs(x.blocks, 1, padded, config.run_bytes("bfp", padded), 0)
    rows, runs = (x.extent, 1) if padded == x.stride else (padded, x.blocks)
    return Runs(1, runs, rows, config.run_bytes("bfp", rows, entry.tag), entry.tag)


class ActivationMemory:
    """Instructions that the decisions of a manager become.

    Parameters
    ----------
    manager : Manager
        Decides.
    plan : Plan
        What is stored and computed again.
    formats : dict
        Stage number -> stash format of its input; raw rows for others.
    poison : int or None
        Address of NaNs that overwrite what is evicted or freed.
    stochastic, draws : bool
        Whether coded stores round, and loads draw, with random bits.

    Members
    -------
    far : Memory or None
        How fast far memory was, once that is known.
    recorder : Recorder or None
        Who runs instructions piece by piece at present.
    coded : dict
        Stage number -> buffer of its input, in its stash format, at a place of its own.
    clock : callable
        ``clock(cycles)`` gives what a piece of the first virtual minibatch that took ``cycles`` is
        taken to last: that, unless another device's times decide.
    chooser, choice
        Who decides for each activation after the first virtual minibatch, and what; ``None`` if
        nobody does.
    """

    def __init__(self, manager, plan, formats, *, poison=None, stochastic=False, draws=False):
        self.manager, self.plan, self.formats = manager, plan, formats
        self.coded, self.choice, self.chooser = {}, None, None
        self.far = self.recorder = None
        self.clock = lambda cycles: cycles
        self._poison = poison
        self._random = {Opcode.STORE: stochastic, Opcode.LOAD: draws}

    def tile(self, *arguments, recorder=None):
        """A :class:`PassingTile` with this memory; places are as at the beginning."""
        self.manager.begin()
        self.recorder = recorder
        return PassingTile(self, *arguments)

    @property
    def leaving(self):
        """Most buffers of a copy to far memory."""
        return max(1, self.manager.high // _PARTS)

    def runs(self, emit, s, m):
        """:class:`Runs` of ``m`` samples of the input of stage ``s``."""
        return runs_of(emit.buffers.x[0][s], m, emit.config, self.formats.get(s))

    def store(self, emit, s, m, count):
        """The next ``count`` buffers of the input of stage ``s`` to fast memory."""
        if s in self.coded:
            self._transfers(Opcode.STORE, emit, s, self.runs(emit, s, m), [self.coded[s]])
            return
        most = self.manager.high
        for start in range(0, count, most):
            new, moves = self.manager.produce(s, min(most, count - start))
            self._copies(emit, moves, m)
            self._transfers(Opcode.STORE, emit, s, self.runs(emit, s, m), new)

    def write_back(self, emit, m):
        """Copy what will have to leave."""
        self._copies(emit, self.manager.write_back(), m)

    def load(self, emit, s, m):
        """The input of stage ``s`` on chip."""
        if s in self.coded:
            self._transfers(Opcode.LOAD, emit, s, self.runs(emit, s, m), [self.coded[s]])
            return
        for moves, buffers, more in self.manager.fetch(s):
            self._copies(emit, moves, m)
            self._transfers(Opcode.LOAD, emit, s, self.runs(emit, s, m), buffers)
            if more:
                self._spoil_freed(emit, buffers, m)

    def free(self, emit, s, m):
        """The input of stage ``s`` is not loaded again."""
        if s not in self.coded:
            self._spoil_freed(emit, self.manager.release(s), m)

    def _spoil_freed(self, emit, buffers, m):
        for buffer in buffers if self._poison is not None else ():
            self._spoil(emit, Tier.NEAR, buffer.fast, self.runs(emit, buffer.activation, m))

    def prefetch(self, emit, s, m):
        """Copies that it is time for when backward of stage ``s`` begins."""
        self._copies(emit, self.manager.prefetch(s), m)

    def _transfers(self, opcode, emit, s, runs, buffers):
        """Runs between chip and fast memory, those at equal distances in one instruction."""
        x = emit.buffers.x[0][s]
        random = (emit.row_numbers(s) if self._random[opcode] and runs.codec else {"layer": s})
        for group, (stride,) in _even(buffers, lambda buffer: (buffer.fast,), len(buffers)):
            place = Matrix(x.base + group[0].part * x.stride, runs.rows,
                           len(group) * runs.runs * x.n, x.stride, x.n)
            emit.transfer(opcode, Kind.BFP, Class.STASH, place, group[0].fast,
                          stride or runs.stride, codec=runs.codec, **random)

    def _copies(self, emit, moves, m):
        if self.recorder and moves:
            self.recorder.run(emit.code)
        alike = {}
        for move in moves:
            runs = replace(self.runs(emit, move.buffer.activation, m), count=1)
            alike.setdefault((runs, move.out), []).append(move)
        for (runs, out), own in alike.items():
            for group, (near, far) in _even(own, lambda move: (move.near, move.far),
                                            self.leaving if out else len(own)):
                self._copy(emit, runs, group, out, near, far)
        if self.recorder and moves:
            self.recorder.run_copies(emit.code, len(moves))

    def _copy(self, emit, runs, group, out, near, far):
        ends = [(Tier.NEAR, group[0].near, near or runs.stride),
                (Tier.FAR, group[0].far, far or runs.stride)]
        self._emit_copy(emit, runs, len(group) * runs.runs, Class.STASH, *ends[::1 if out else -1])
        for move in group if self._poison is not None else ():
            self._spoil(emit, Tier.NEAR if out else Tier.FAR, move.near if out else move.far, runs)

    def _spoil(self, emit, tier, address, runs):
        self._emit_copy(emit, runs, runs.runs, Class.DATA, (Tier.NEAR, self._poison, runs.stride),
                        (tier, address, runs.stride))

    @staticmethod
    def _emit_copy(emit, runs, count, cls, source, target):
        """Copy ``count`` runs between places ``(tier, address, distance of the runs)``."""
        fields = zip(("tier", "mem", "mem_stride", "target_tier", "target", "target_stride"),
                     (*source, *target), strict=True)
        emit.code.append((Opcode.COPY, {**runs.fields, "cls": cls, "count": count,
                                        **dict(fields)}))


def _even(items, addresses, most):
    """Yield ``(group, strides)``: up to ``most`` consecutive items with addresses at equal positive
    distances."""
    group, strides = [], None
    for before, item in pairwise([None, *items]):
        if group:
            step = tuple(b - a for a, b in zip(addresses(before), addresses(item), strict=True))
            if len(group) < most and min(step) > 0 and strides in (None, step):
                group.append(item)
                strides = step
                continue
            yield group, strides or (0,) * len(step)
        group, strides = [item], None
    if group:
        yield group, strides or (0,) * len(addresses(group[0]))


class PassingTile(TrainTile):
    """A tile that keeps hidden activations in fast memory from forward to backward.

    Parameters
    ----------
    memory : ActivationMemory
        Where they go.
    others
        As of :class:`TrainTile`.
    """

    hastens = False  # its order is that in which activations come back

    def __init__(self, memory, *arguments):
        super().__init__(*arguments)
        self.memory = memory
        self._waiting = []  # arguments of :meth:`_store`, of what is stored late

    def _mark(self, start, field, *, first):
        """Products are marked where they are made: while recording, each piece is gone at once."""

    def _label(self, field):
        """Set ``field`` in the latest product."""
        next(fields for opcode, fields in reversed(self.emit.code)
             if opcode is Opcode.MATMUL)[field] = 1

    def _boundary(self, s, times):
        """What was emitted since the last boundary belongs to stage ``s``."""
        if self.memory.recorder:
            self.memory.recorder.stage(self.emit.code, s, times)

    def forward(self, j):
        super().forward(j)
        self._boundary(self.part.last, "forward")
        if self.memory.recorder:
            self.memory.recorder.learn()

    def _pieces(self, s):
        """As many as copies to far memory, if any have to leave."""
        if s == self.part.first:
            return _PIECES
        if s + 1 not in self.memory.plan.kept or not self.memory.manager.excess:
            return 1
        return min(_PIECES, blocks(self.emit.buffers.x[0][s + 1].blocks, self.memory.leaving))

    def _made(self, s, m, piece):
        if s == self.part.first and not piece.block:
            self._label("hold")
        if s == self.part.last:
            return
        total = self.emit.buffers.x[0][s + 1].blocks
        last = piece.block + piece.blocks == total
        if s + 1 in self.memory.plan.kept:
            own = s + 1, m, piece.blocks, last
            if self._late(s, (piece.block + piece.blocks) / total):
                self._waiting.append(own)
            else:
                self._store(*own)
        if last:
            due = [own for own in self._waiting if own[0] <= s]
            self._waiting = self._waiting[len(due):]
            for own in due:
                self._store(*own)
            self._boundary(s, "forward")

    def _late(self, s, share):
        """Whether a piece of the result of stage ``s`` with which this ``share`` of it is there is
        stored when the next stage has its result."""
        return (share > 1 - self.variant.late[s > self.part.first] and s + 2 <= self.part.last
                and self.memory.recorder is None)

    def _store(self, s, m, count, last):
        """``count`` column blocks of activation ``s``, or with the last one all that are coded
        together; then copies of what will have to leave."""
        runs = self.memory.runs(self.emit, s, m).count
        if runs == self.emit.buffers.x[0][s].blocks:
            self.memory.store(self.emit, s, m, count)
        elif last:
            self.memory.store(self.emit, s, m, runs)
        self.memory.write_back(self.emit, m)

    def weights(self, j):
        emit, memory, m = self.emit, self.memory, self.batch.rows[j]
        for step in memory.plan.backward:
            s = step.stage
            if step.action == "load":
                memory.load(emit, s, m)
            elif step.action == "free":
                memory.free(emit, s, m)
            elif step.action == "store":
                memory.store(emit, s, m, memory.runs(emit, s, m).count)
            elif step.action == "advance":
                emit.forward(s, 0, j % 2, m, training=False)
            else:
                self._backward(s, j, m)
        if memory.recorder:
            memory.recorder.learn()
            memory.recorder = None

    def _backward(self, s, j, m):
        self.memory.prefetch(self.emit, s, m)
        if s:
            self._data_gradients([s], j)
        self._gradients(s, j)
        if s == self.part.first:
            self._label("release")
            self._end(j)
        self._boundary(s, "backward")
