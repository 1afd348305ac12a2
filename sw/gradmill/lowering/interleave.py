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
from dataclasses import dataclass, replace

from gradmill_hw.isa import Class, Opcode, Queue, Space

from ..cycle_model import predict
from ..unit_times import UNITS, Bus, Memory, Units
from ..banks import Passage
from .buffers import VIRTUAL_ROWS
from .dependencies import Node, TileDependencies
from .footprint import Fields
from .programs import repeated


__all__ = ["Interleaving", "Rules", "Step", "interleave", "interleave_one"]


#: Long ended.
_DONE = Passage(None, -UNITS.token, 0, {})

#: Executions of which :func:`_period` takes the two in the middle.
_RUNS = 4


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
class Rules:
    """By which instructions are put in order: some are better for one program, some for another.

    Parameters
    ----------
    loads : int
        Loads that a queue holds at a time: they are often late, and a full queue stops the
        sequencer.
    others_wait : bool
        Whether it is known that links and transfers wait for banks.
    yields : bool
        Whether a load of anything but activations waits until the bus is free, so that activations
        which come back in the meantime pass first.
    make_way : tuple of bool
        Orders that are found one behind the other: whether a ``VECTOR`` makes way for who needs not
        wait for banks.
    """

    loads:       int = 2
    others_wait: bool = True
    yields:      bool = False
    make_way:    tuple = (True,)


#: Tried for several tiles, each of which finds its neighbours busy with a virtual minibatch before.
_CHAIN = Rules(make_way=(True, True, False)), Rules(others_wait=False)
#: Tried for a tile whose activations pass: which transfers are first decides.
_PASSING = tuple(Rules(loads, yields=yields, make_way=(True, True))
                 for loads, yields in ((2, False), (1, False), (3, False), (2, True)))


@dataclass(frozen=True)
class Interleaving:
    """Where each instruction goes.

    Parameters
    ----------
    orders : list of list
        By tile: ``(place in its code, {virtual panel row: real row})``.
    cycles : float
        Of one that follows others like it. From the first instruction to the last, if only one
        order was found.
    rules : Rules
        By which it was found.
    """

    orders: list
    cycles: float
    rules:  Rules

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


def interleave(config, buffers, codes, steps, limits, far=None, held=None, rules=None):
    """The :class:`Interleaving` of ``codes``.

    A virtual minibatch finds the tiles busy with the one before, the later ones for longer. So
    several orders are found where that matters: for idle tiles, behind another one, and by other
    rules. The one counts that follows itself in the fewest cycles.

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
        Activation sets that each tile holds before; none if not given.
    rules : sequence of Rules
        Which are tried; by default those that suit the tiles. With one order only nothing is
        compared.
    """
    nodes = _nodes(buffers, codes, steps, limits, held or [0] * len(limits))
    if rules is None:
        rules = (_CHAIN if len(buffers) > 1 else _PASSING if buffers[0].passing else (Rules(),))
    found = []
    for own in rules:
        placing = _Placing(config, buffers, far or Memory(), own)
        for banks in own.make_way:
            placing.begin(banks)
            _order(nodes, placing)
            found.append(Interleaving(placing.orders, max(placing.ends()), own))
    if len(found) > 1:
        found = [replace(one, cycles=_period(config, one.apply(codes), far)) for one in found]
    return min(found, key=lambda one: one.cycles)


def _period(config, codes, far):
    """Cycles of the ``codes`` of all tiles between others like them, as the cycle model expects
    them: the mean of two executions."""
    programs, ends = [repeated(config, code, _RUNS) for code in codes], [0] * _RUNS
    for spans in predict(programs, config, far=far, spans=True).spans:
        for queue in config.queues:
            own = [end for name, _, end, *_ in spans if name is queue]
            for run in range(_RUNS if own else 0):
                ends[run] = max(ends[run], own[len(own) // _RUNS * (run + 1) - 1])
    return (ends[2] - ends[0]) / 2


def _order(nodes, placing):
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
    for _ in nodes:
        node = ready.take()
        placing.place(node)
        for other in then.get(node, ()):
            blocked[other] -= 1
            if not blocked[other]:
                ready.add(other)


def interleave_one(buffers, code, far=None, rules=None):
    """``code`` of a tile on its own, interleaved by one set of :class:`Rules`; ``far`` is that of
    :func:`interleave`."""
    steps = [Step(None, [(0, index)]) for index in range(len(code))]
    return interleave(buffers.config, [buffers], [code], steps, [1], far,
                      rules=[rules or Rules()]).apply([code])[0]


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

    def __init__(self, config, buffers, far, rules):
        self._config, self._yields = config, rules.yields
        buses = [Bus(memory) for memory in (Memory(), Memory(), far, far)]
        self._units = [Units(config, buses, rules.others_wait) for _ in buffers]
        self._rows = [own.panel_rows for own in buffers]
        self.orders, self._banks = None, True  # see :meth:`begin`
        self._handed = [0 for _ in buffers]  # by tile: when the sequencer handed out the latest one
        self._passages = {}  # node -> its passage through banks, which says when it ends
        self._delays = [0 for _ in buffers]
        self._bank = config.tensor_rows // config.banks
        #: by tile: opcode, bank -> the last product, or sum of gradients, in it
        self._turns = [{} for _ in buffers]
        #: by tile: instructions placed in queues that keep each other waiting
        self._placed = [dict.fromkeys(_STATE.values(), 0) for _ in buffers]
        self._keys = {}  # node -> those that its key depends on, its key then
        #: by tile and queue: passages of as many instructions as may be in the queue
        self._places = [{q: deque([_DONE] * depth, depth) for q in Queue
                         for depth in [rules.loads if q is Queue.LOAD else config.queue_depth]}
                        for _ in buffers]
        #: by tile: real panel -> passage that has emptied it; those filled are absent
        self._panels = [dict.fromkeys(own.panels, _DONE) for own in buffers]
        self._held = [{} for _ in buffers]     # virtual panel -> real panel
        self._last = [None for _ in buffers]   # the panel filled last

    def begin(self, banks):
        """Begin new orders, behind what has been placed. ``banks``: whether a ``VECTOR`` makes way
        for who needs not wait for banks."""
        self.orders, self._banks = [[] for _ in self._units], banks
        self._keys.clear()

    def ends(self):
        """By tile: when its matrix and vector unit are free."""
        return [max(units.free[Queue.MATRIX], units.free[Queue.VECTOR]) for units in self._units]

    def key(self, node):
        """When ``node`` can start (a ``VECTOR``: could, had it not to wait for banks later; a
        ``LOAD`` that yields: when the bus is free), its place in the schedule, and when it would
        start."""
        placed = [(self._placed[t][_STATE[opcode]], self._handed[t])
                  for t, _, opcode, _ in node.parts]
        if node.panel is not None:
            placed.append(self._placed[node.parts[0][0]][Queue.VECTOR])
        known = self._keys.get(node)
        if known is None or known[0] != placed:
            known = self._keys[node] = placed, self._key(node)
        return known[1]

    def _key(self, node):
        start = max((self._passages[other].end + UNITS.token for other in node.waits),
                    default=0)
        for t, _, opcode, _ in node.parts:
            # The sequencer stops at a queue that has no place.
            start = max(start, self._units[t].free[opcode.queue], self._handed[t],
                        self._places[t][opcode.queue][0].end)
        t, _, opcode, fields = node.parts[0]
        if node.panel is not None:
            ends = (passage.end for passage in self._panels[t].values())
            start = max(start, min(ends, default=float("inf")) + UNITS.token)
        ready = start
        start = max(start, self._turn(t, opcode, fields))
        if node.urgent and self._sums(opcode, fields):
            return ready, node.number, start
        if opcode is Opcode.VECTOR:
            op = self._operands(node, t, fields)
            cycles = self._units[t].kept_waiting(fields, op, start, self._banks)
            return start + cycles, node.number, start
        if self._yields and opcode is Opcode.LOAD and fields["cls"] != Class.STASH:
            bus = self._units[t].buses[2 * fields["tier"]]
            return max(start, bus.free), node.number, start
        return start, node.number, start

    def place(self, node):
        """Append the instructions of ``node`` to their tiles."""
        *_, start = self.key(node)
        for tile, _, own, _ in node.parts:
            self._handed[tile] = max(self._handed[tile], self._places[tile][own.queue][0].end)
        t, _, opcode, fields = node.parts[0]
        panels = self._choose(node, t, start)
        for tile, index, *_ in node.parts:
            self.orders[tile].append((index, panels))
        if opcode is Opcode.SEND:
            passage = self._transfer(node, start)
        else:
            op = self._operands(node, t, fields)
            passage = self._units[t].execute(opcode, fields, op, start)
        self._passages[node] = passage
        for tile, _, own, _ in node.parts:
            self._places[tile][own.queue].append(passage)
            self._placed[tile][_STATE[own]] += 1
        if node.uses is not None:
            self._panels[t][self._held[t].pop(node.uses)] = passage
        if opcode is Opcode.MATMUL or self._sums(opcode, fields):
            self._turns[t][opcode, fields["op0"] // self._bank] = passage
        if self._units[t].banks.delays != self._delays[t]:
            self._delays[t] = self._units[t].banks.delays
            self._keys.clear()

    def _turn(self, t, opcode, fields):
        """When products and sums of gradients in the same bank let each other begin."""
        bank = fields["op0"] // self._bank
        if opcode is Opcode.MATMUL:
            last = self._turns[t].get((Opcode.VECTOR, bank))
        elif self._sums(opcode, fields):
            last = self._turns[t].get((Opcode.MATMUL, bank))
        else:
            last = None
        return last.end + UNITS.token if last else 0

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
            filled += [row // bank for row, last in free.items() if last.end > start - UNITS.token]
            last = None if self._last[t] is None else self._last[t] // bank
            chosen = min(free, key=lambda row: (
                free[row].end > start - UNITS.token, filled.count(row // bank),
                row // bank == last, free[row].end))
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
        (sender, _, _, fields), (receiver, _, _, other) = node.parts
        sending = self._units[sender].send(fields, self._operands(node, sender, fields), start)
        rows = self._units[receiver].receive(other, sending)
        self._units[sender].free[Queue.LINK_OUT] = rows.end - UNITS.link + 4
        self._units[receiver].free[Queue.LINK_IN] = rows.end
        return rows
