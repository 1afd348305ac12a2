"""Which instructions of a tile must stay in order: through rows, memory and the panel they use."""

from dataclasses import dataclass, field

from gradmill_hw.isa import Class, Opcode

from .buffers import VIRTUAL_ROWS
from .footprint import Fields, footprint


__all__ = ["Node", "TileDependencies"]


#: Data gradients that a weight gradient may overtake.
_OVERTAKEN = 2


#: Fields that say nothing about rows.
_APART = {"sub", "last_sub", "hold", "release", "layer"}


@dataclass(eq=False)
class Node:
    """One instruction, or a ``SEND`` with its ``RECEIVE``, which stay together.

    Members
    -------
    number : int
        Place in the order that was asked for.
    parts : list of (int, int, Opcode, dict)
        Tile, place in its code, opcode, fields of each instruction.
    after : set of Node
        What must come before in the programs.
    waits : set of Node
        Of them, those that must have ended: they are in another queue and touch the same rows.
    panel, uses : int or None
        Panel that the instruction fills, or empties.
    urgent : bool
        Whether it does not make way for products.
    """

    number: int
    parts:  list
    after:  set = field(default_factory=set)
    waits:  set = field(default_factory=set)
    panel:  object = None
    uses:   object = None
    urgent: bool = False


class TileDependencies:
    """Finds what each instruction of one tile depends on. Rows are told apart by the buffer that
    they belong to: what touches the same buffer stays in order if one of the two writes.

    Parameters
    ----------
    buffers : TileBuffers
        Placement.
    limit : int
        Activation sets that the tile may hold.
    held : int
        Those that it holds before the first instruction.
    """

    def __init__(self, buffers, limit, held=0):
        self._buffers, self._limit = buffers, limit
        self._wrote, self._read = {}, {}   # buffer -> last that wrote, those that read since
        self._known = {}                   # instruction without its panel -> keys, footprint
        self._accesses = []                # of memory: (wrote, tier, start, end, (node, queue))
        self._released, self._holds, self._held = [], held, None
        self._filled = {}                  # panel -> what fills it
        self._piece = None                 # the last product: operation and layer, node
        self._last, self._gradients = None, []  # data gradients: the last one; first products

    def add(self, node, opcode, fields, operation):
        """Account for an instruction of ``node`` in ``operation``, in the order that was asked
        for."""
        queue = opcode.queue
        reads, writes, touched = self._touched(opcode, fields)
        before = self._memory_conflicts(touched, (node, queue))
        for key in reads:
            before.add(self._wrote.get(key))
        for key in writes:
            before |= {self._wrote.get(key), *self._read.get(key, ())}
        before = {pair for pair in before if pair is not None and pair[0] is not node}
        node.after |= {other for other, _ in before}
        node.waits |= {other for other, used in before if used is not queue}
        self._panels(node, reads, writes, before)
        for key in writes:
            self._wrote[key], self._read[key] = (node, queue), []
        for key in reads:
            self._read.setdefault(key, []).append((node, queue))
        if opcode is Opcode.MATMUL:
            self._stash(node, fields)
            self._defer(node, operation)
            if self._buffers.by_rows:
                self._follow(node, operation, fields)
        elif (opcode is Opcode.LOAD and operation and operation[0] == "W"
              and fields["cls"] != Class.STASH and self._held is not None
              and not self._buffers.passing):
            # Parameters are not loaded long before their update. Where activations pass they have
            # few places, and the earlier they come, the less they are in the way later.
            node.after.add(self._held)

    def _touched(self, opcode, fields):
        """Keys of what an instruction reads and writes on chip, and its footprint. Those of one
        panel stand for all."""
        same, panel = [opcode], None
        for name, value in fields.items():
            if name in ("op0", "op1", "op2") and value >= VIRTUAL_ROWS:
                panel = (value - VIRTUAL_ROWS) // self._buffers.panel_rows
                value = VIRTUAL_ROWS
            if name not in _APART:
                same.append((name, value))
        same = tuple(same)
        if same not in self._known:
            touched = footprint(opcode, Fields(same[1:]), self._buffers.config)
            self._known[same] = self._keys(touched.reads), self._keys(touched.writes), touched
        reads, writes, touched = self._known[same]
        return *([(memory, panel if owner == 0 else owner) for memory, owner in keys]
                 for keys in (reads, writes)), touched

    def _keys(self, rows_by_memory):
        return [(memory, owner) for memory, rows in rows_by_memory.items()
                for owner in self._buffers.owners(memory, rows)]

    def _memory_conflicts(self, touched, own):
        """``(node, queue)`` of what touched the same bytes before, one of the two writing; what is
        overwritten as a whole is forgotten."""
        found = set()
        for write, intervals in ((False, touched.memory_reads), (True, touched.memory_writes)):
            for tier, start, end in intervals:
                kept = []
                for access in self._accesses:
                    wrote, t, s, e, other = access
                    if t != tier or e <= start or end <= s:
                        kept.append(access)
                        continue
                    if (write or wrote) and other[0] is not own[0]:
                        found.add(other)
                    if not (write and start <= s and e <= end):
                        kept.append(access)
                self._accesses = [*kept, (write, tier, start, end, own)]
        return found

    def _panels(self, node, reads, writes, before):
        """A panel is filled only when nothing but that keeps the one who empties it, or others who
        empty panels that are filled already: so a filled panel is always emptied, and products
        never wait for each other's panels in a circle."""
        for _, owner in writes:
            if isinstance(owner, int):
                node.panel, self._filled[owner] = owner, node
        for _, owner in reads:
            if isinstance(owner, int):
                node.uses, filler = owner, self._filled[owner]
                filler.after |= {self._filled[other.uses] if other.uses is not None else other
                                 for other, _ in before if other is not filler}

    def _stash(self, node, fields):
        """A set is held only when the one that many sets before has been released."""
        if fields.get("hold"):
            if self._holds >= self._limit:
                node.after.add(self._released[self._holds - self._limit])
            self._holds, self._held = self._holds + 1, node
        if fields.get("release"):
            self._released.append(node)

    def _follow(self, node, operation, fields):
        """Pieces of one output stay in order: with the first one the set is held."""
        key, before = (operation, fields["layer"]), self._piece
        if operation and before and before[0] == key:
            node.after.add(before[1])
        self._piece = key, node

    def _defer(self, node, operation):
        """A weight gradient does not overtake more than a few data gradients that the schedule puts
        first: it is kept for when there would be nothing else to do."""
        if operation and operation[0] == "B" and operation != self._last:
            self._last = operation
            self._gradients.append(node)
        elif operation and operation[0] == "W" and len(self._gradients) > _OVERTAKEN:
            node.after.add(self._gradients[-1 - _OVERTAKEN])
