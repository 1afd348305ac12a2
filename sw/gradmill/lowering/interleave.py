"""Puts instructions of all tiles in the order in which they can start.

The emitter writes one operation after the other. Done in that order, the matrix unit would wait for
the vector unit within an operation, and the other way round. Here instructions of different
operations are interleaved: at each step, of all instructions whose predecessors have been placed,
the one comes next that can start first, by the same formulas as the cycle model's; of several, the
first in the order of the schedule. So a unit that would wait works ahead.

Instructions that depend on each other stay in order, so every result keeps its bits. Products go
to whichever panel of the accumulators is free. A ``SEND`` and its ``RECEIVE`` are placed in one
step, so there is one order of all instructions that agrees with every program and in which they are
neighbours: programs cannot deadlock (see :mod:`.pipeline`).
"""

from collections import deque
from dataclasses import dataclass

from gradmill_hw.isa import Opcode, Queue, Space

from ..unit_times import UNITS, Bus, Memory, Units
from .buffers import VIRTUAL_ROWS
from .dependencies import Node, TileDependencies
from .footprint import Fields


__all__ = ["Interleaving", "Step", "interleave", "interleave_one"]


#: Loads that a queue holds at a time, by default: they are often late, and a full queue stops the
#: sequencer.
_LOADS = 2


#: Queue of an opcode; matrix and vector unit keep each other waiting, so they count as one.
_STATE = {opcode: Queue.VECTOR if opcode is Opcode.MATMUL else opcode.queue
          for opcode in Opcode if opcode.queue is not None}


@dataclass(frozen=True)
class Step:
    """What is placed at once.

    Parameters
    ----------
    operation : (str, int) or None
        Operation that it is part of, ``"F"``, ``"B"`` or ``"W"``, and sub-minibatch.
    parts : list of (int, int)
        ``(tile, place in its code)``: one instruction, or a ``SEND`` and its ``RECEIVE``.
    urgent : bool
        Whether the next virtual minibatch waits for it.
    """

    operation: tuple | None
    parts:     list
    urgent:    bool = False


@dataclass(frozen=True)
class Interleaving:
    """Where each instruction goes.

    Parameters
    ----------
    orders : list of list
        By tile: ``(place in its code, {virtual panel row: real row})``.
    cycles : int
        Of the tile that takes longest.
    """

    orders: list
    cycles: int

    def apply(self, codes):
        """Code of each tile in the new order, with real panels."""
        return [[_rename(code[index], panels) for index, panels in order]
                for code, order in zip(codes, self.orders, strict=True)]


def _rename(instruction, panels):
    if not panels:
        return instruction
    opcode, fields = instruction
    return opcode, {name: panels.get(value, value) if name in ("op0", "op1", "op2") else value
                    for name, value in fields.items()}


def interleave(config, buffers, codes, steps, limits, far=None, held=None, loads=_LOADS,
               stores_wait=True):
    """The :class:`Interleaving` of ``codes``.

    A virtual minibatch finds the tiles busy with the one before, the later ones for longer. So for
    several tiles two orders are found, one for idle tiles and one behind it, and the one counts
    that follows itself in fewer cycles.

    Parameters
    ----------
    config : Config
        Sizes.
    buffers : list of TileBuffers
        Of each tile.
    codes : list of list of (opcode, fields)
        Of each tile.
    steps : list of Step
        All instructions, in an order in which they may be executed.
    limits : sequence of int
        Activation sets that each tile may hold.
    far : Memory
        How fast far memory is, if that is known.
    held : sequence of int
        Activation sets that each tile holds before; if not given none, and what comes before is a
        virtual minibatch like this one.
    loads : int
        Loads that a queue holds at a time.
    stores_wait : bool
        Whether it is known that a ``STORE`` waits for the product that is placed after it.
    """
    placing = _Placing(config, buffers, far or Memory(), loads, stores_wait)
    nodes = _nodes(buffers, codes, steps, limits, held or [0] * len(limits))
    idle = _ordered(nodes, placing), placing.orders
    if held is not None or len(buffers) == 1:
        return Interleaving(placing.orders, max(placing.ends()))
    placing.begin()
    behind = _ordered(nodes, placing), placing.orders
    return min((Interleaving(orders, _repeated(order, placing))
                for order, orders in (idle, behind)), key=lambda found: found.cycles)


def _ordered(nodes, placing):
    """``nodes`` in the order in which they are placed: at each step, of those that are ready, the
    one with the lowest key."""
    blocked = {node: len(node.after) for node in nodes}
    then = {}
    for node in nodes:
        for other in node.after:
            then.setdefault(other, []).append(node)
    ready = _Ready(placing.key)
    for node in nodes:
        if not blocked[node]:
            ready.add(node)
    order = []
    for _ in nodes:
        node = ready.take()
        placing.place(node)
        order.append(node)
        for other in then.get(node, ()):
            blocked[other] -= 1
            if not blocked[other]:
                ready.add(other)
    return order


def _repeated(order, placing):
    """Cycles of nodes placed in ``order``, behind themselves: the mean of two that follow two."""
    starts = []
    for _ in range(4):
        starts.append(placing.begin())
        for node in order:
            placing.place(node)
    return max(end - start for start, end in zip(starts[2], placing.ends(), strict=True)) // 2


def interleave_one(buffers, code, **options):
    """``code`` of a tile on its own, interleaved; ``options`` are those of :func:`interleave`."""
    steps = [Step(None, [(0, index)]) for index in range(len(code))]
    return interleave(buffers.config, [buffers], [code], steps, [1], **options).apply([code])[0]


def _nodes(buffers, codes, steps, limits, held):
    tiles = [TileDependencies(*own) for own in zip(buffers, limits, held, strict=True)]
    nodes = []
    for number, step in enumerate(steps):
        parts = [(t, index, opcode, Fields(fields)) for t, index in step.parts
                 for opcode, fields in [codes[t][index]]]
        node = Node(number, parts, urgent=step.urgent)
        for t, _, opcode, fields in parts:
            tiles[t].add(node, opcode, fields, step.operation)
        nodes.append(node)
    return nodes


class _Ready:
    """Nodes that may be placed next. The first of each group, those of the same tiles, is known
    until something else is placed there."""

    def __init__(self, key):
        self._key = key
        self._groups = {}  # tiles -> nodes
        self._first = {}   # tiles -> the first one and its key; absent if unknown

    def add(self, node):
        tiles = frozenset(t for t, *_ in node.parts)
        self._groups.setdefault(tiles, []).append(node)
        self._first.pop(tiles, None)

    def take(self):
        """Remove the node with the lowest key."""
        for tiles, nodes in self._groups.items():
            if tiles not in self._first and nodes:
                node = min(nodes, key=self._key)
                self._first[tiles] = self._key(node), node
        taken = min(self._first, key=lambda tiles: self._first[tiles][0])
        _, node = self._first[taken]
        self._groups[taken].remove(node)
        self._first = {tiles: first for tiles, first in self._first.items() if not tiles & taken}
        return node


class _Placing:
    """Follows the units of all tiles while instructions are placed."""

    def __init__(self, config, buffers, far, loads, stores_wait):
        self._config, self._stores_wait = config, stores_wait
        buses = [Bus(memory) for memory in (Memory(), Memory(), far, far)]
        self._units = [Units(config, buses) for _ in buffers]
        self._rows = [own.panel_rows for own in buffers]
        self.orders = [[] for _ in buffers]  # see :meth:`begin`
        self._handed = [0 for _ in buffers]  # by tile: when the sequencer handed out the latest one
        self._ends = {}
        self._bank = config.tensor_rows // config.banks
        #: by tile: opcode, bank -> when the last product, or sum of gradients, leaves it
        self._turns = [{} for _ in buffers]
        #: by tile: instructions placed in queues that keep each other waiting
        self._placed = [dict.fromkeys(_STATE.values(), 0) for _ in buffers]
        self._keys = {}  # node -> those that its key depends on, its key then
        #: by tile and queue: ends of as many instructions as may be in the queue
        self._places = [{q: deque([0] * depth, depth) for q in Queue
                         for depth in [loads if q is Queue.LOAD else config.queue_depth]}
                        for _ in buffers]
        #: by tile: real panel -> when it is free; those filled are absent
        self._panels = [dict.fromkeys(own.panels, 0) for own in buffers]
        self._held = [{} for _ in buffers]     # virtual panel -> real panel
        self._last = [None for _ in buffers]   # the panel filled last
        self._vector = [None for _ in buffers]  # the last VECTOR: node, panel, operands, start
        self._store = [None for _ in buffers]   # the last STORE: node, panel

    def begin(self):
        """Begin new orders, behind what has been placed; returns :meth:`ends` of that."""
        self.orders = [[] for _ in self._units]
        return self.ends()

    def ends(self):
        """By tile: when its matrix and vector unit are free."""
        return [max(units.free[Queue.MATRIX], units.free[Queue.VECTOR]) for units in self._units]

    def key(self, node):
        """When ``node`` can start (a ``VECTOR``: could, had it not to wait for banks later), its
        place in the schedule, and when it would start."""
        placed = [(self._placed[t][_STATE[opcode]], self._handed[t])
                  for t, _, opcode, _ in node.parts]
        if node.panel is not None:
            placed.append(self._placed[node.parts[0][0]][Queue.VECTOR])
        known = self._keys.get(node)
        if known is None or known[0] != placed:
            known = self._keys[node] = placed, self._key(node)
        return known[1]

    def _key(self, node):
        start = max((self._ends[other] + UNITS.token for other in node.waits), default=0)
        for t, _, opcode, _ in node.parts:
            # The sequencer stops at a queue that has no place.
            start = max(start, self._units[t].free[opcode.queue], self._places[t][opcode.queue][0],
                        self._handed[t])
        t, _, opcode, fields = node.parts[0]
        if node.panel is not None:
            start = max(start, min(self._panels[t].values(), default=float("inf")))
        ready = start
        start = max(start, self._turn(t, opcode, fields))
        if node.urgent and self._sums(opcode, fields):
            return ready, node.number, start
        if opcode is Opcode.VECTOR:
            op = self._operands(node, t, fields)
            return start + self._units[t].kept_waiting(fields, op, start), node.number, start
        return start, node.number, start

    def place(self, node):
        """Append the instructions of ``node`` to their tiles."""
        *_, start = self.key(node)
        for tile, _, own, _ in node.parts:
            self._handed[tile] = max(self._handed[tile], self._places[tile][own.queue][0])
        t, _, opcode, fields = node.parts[0]
        panels = self._choose(node, t, start)
        for tile, index, *_ in node.parts:
            self.orders[tile].append((index, panels))
        if opcode is Opcode.SEND:
            end = self._transfer(node, start)
        else:
            op = self._operands(node, t, fields)
            end = self._units[t].execute(opcode, fields, op, start)
        for tile, _, own, _ in node.parts:
            self._places[tile][own.queue].append(end)
            self._placed[tile][_STATE[own]] += 1
        panel = None if node.uses is None else self._held[t].pop(node.uses)
        self._end(node, panel, end)
        if opcode is Opcode.VECTOR:
            self._vector[t] = node, panel, op, start
        elif opcode is Opcode.STORE and self._stores_wait:
            self._store[t] = node, panel
        elif opcode is Opcode.MATMUL:
            self._hinder(t)

    def _end(self, node, panel, end):
        """Note when ``node`` ends, which empties the real ``panel``, if it empties any."""
        t, _, opcode, fields = node.parts[0]
        self._ends[node] = end
        if panel is not None:
            self._panels[t][panel] = end + UNITS.token
        if opcode is Opcode.MATMUL or self._sums(opcode, fields):
            self._turns[t][opcode, fields["op0"] // self._bank] = end + UNITS.token

    def _hinder(self, t):
        """The product that has just been placed may take banks from the last ``VECTOR`` and the
        last ``STORE``."""
        if self._vector[t]:
            node, panel, op, start = self._vector[t]
            (_, _, opcode, fields), = node.parts
            self._put_off(t, node, panel, self._units[t].execute(opcode, fields, op, start))
        if self._store[t]:
            self._put_off(t, *self._store[t], self._units[t].stored())

    def _put_off(self, t, node, panel, end):
        """``node``, the last one of its queue, ends at ``end``."""
        if end != self._ends[node]:
            self._places[t][node.parts[0][2].queue][-1] = end
            self._end(node, panel if panel in self._panels[t] else None, end)
            self._keys.clear()

    def _turn(self, t, opcode, fields):
        """When products and sums of gradients in the same bank let each other begin."""
        bank = fields["op0"] // self._bank
        if opcode is Opcode.MATMUL:
            return self._turns[t].get((Opcode.VECTOR, bank), 0)
        if self._sums(opcode, fields):
            return self._turns[t].get((Opcode.MATMUL, bank), 0)
        return 0

    @staticmethod
    def _sums(opcode, fields):
        """Whether it reads gradients to sum them up."""
        return opcode is Opcode.VECTOR and fields["a_space"] == Space.TENSOR

    def _choose(self, node, t, start):
        """:meth:`_panel`, after a product got one that is free, if possible in a bank from which
        nothing is still to be read."""
        if node.panel is not None:
            free, bank = self._panels[t], self._config.acc_rows // self._config.banks
            filled = [row // bank for row in self._held[t].values()]
            filled += [row // bank for row, end in free.items() if end > start]
            last = None if self._last[t] is None else self._last[t] // bank
            chosen = min(free, key=lambda row: (free[row] > start, filled.count(row // bank),
                                                row // bank == last, free[row]))
            del free[chosen]
            self._held[t][node.panel], self._last[t] = chosen, chosen
        return self._panel(node, t)

    def _panel(self, node, t):
        """``{virtual: real}`` row of the panel that ``node`` fills or empties, if it does."""
        virtual = node.panel if node.panel is not None else node.uses
        if virtual is None:
            return {}
        return {VIRTUAL_ROWS + virtual * self._rows[t]: self._held[t][virtual]}

    def _operands(self, node, t, fields):
        panels = self._panel(node, t)
        return [panels.get(fields[f"op{k}"], fields[f"op{k}"]) for k in range(3)]

    def _transfer(self, node, start):
        (sender, _, _, fields), (receiver, *_) = node.parts
        cycles = self._units[sender].send(fields, self._operands(node, sender, fields), start)
        end = start + UNITS.link + cycles
        self._units[sender].free[Queue.LINK_OUT] = start + cycles + 4
        self._units[receiver].free[Queue.LINK_IN] = end
        return end
