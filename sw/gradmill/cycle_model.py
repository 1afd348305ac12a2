"""Predicts the cycles of tile programs without simulating circuits.

Every instruction is followed from fetch to completion: the sequencer hands it to its queue when
there is a place, the queue starts it when its semaphores are there, the unit takes as long as
its documentation says, transfers share the bus. What is left out: banks that two clients want in
the same cycle, except the two operands of a vector instruction. Cost: linear in instructions.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from gradmill_hw.isa import (CHANNELS, INSTRUCTION_BYTES, AddOp, AddSource, FunctionOp, Kind,
                             MulSource, Opcode, Peer, Queue, Space)
from gradmill_hw.regs import ARGUMENTS
from gradmill_hw.sequencer_model import commands


__all__ = ["UNITS", "Memory", "Prediction", "predict", "vector_cycles"]


@dataclass(frozen=True)
class _Units:
    """Latencies of the circuits, in cycles."""
    vector_fill:   int = 4   # command to first row in the pipeline
    dequantise:    int = 2   # more for rows of the tensor memory
    vector:        int = 3   # pipeline without stages
    multiply:      int = 3
    add:           int = 4
    function:      int = 9   # beyond one for each lane of a unit
    product:       int = 11  # beyond m + 2n of the last weight tile
    turnaround:    int = 8   # between rows added to the same accumulator
    dispatch:      int = 3   # from the queue to the unit
    between:       int = 2   # starts of a queue
    fetch:         int = 12  # from the answer of the memory to the sequencer
    load:          int = 14  # command to request, and last beat to the on-chip memory
    store:         int = 18  # command to the first beat on the bus, and response to the end
    link:          int = 9   # from the sender's memory to the receiver's
    credits:       int = 16  # rows that a sender is ahead of the receiver


UNITS = _Units()


@dataclass(frozen=True)
class Memory:
    """A memory tier: cycles to the first beat, beats per cycle in each direction."""
    latency: int = 16
    beats:   float = 1.0


@dataclass
class Prediction:
    """What a run is expected to take.

    Members
    -------
    cycles : int
        Until the last tile has ended.
    tile_cycles : list of int
        Until each has.
    busy : list of dict
        Of each tile: :class:`Queue` -> cycles with an instruction in execution.
    spans : list of list
        Of each tile: ``(queue, start, end, layer, opcode)`` of every instruction, if asked for.
    """

    cycles:      int
    tile_cycles: list
    busy:        list
    spans:       list = field(default_factory=list)


def quantiser_cycles(n):
    """Cycles from a result row to the tensor memory: a tile of ``n`` rows must be complete."""
    return {4: 13, 8: 18, 16: 27, 32: 44}[n]


def vector_cycles(fields, config):
    """Cycles of a ``VECTOR``: ``(from its first row to its last, before and after)``."""
    n, rows = config.n, fields["rows"] * fields["blocks"]
    latency = UNITS.vector_fill + (fields["a_space"] == Space.TENSOR) * UNITS.dequantise
    if fields["write_tensor"]:
        rows = -(-fields["rows"] // n) * n * fields["blocks"]
        leave = quantiser_cycles(n)
    elif fields["write_acc"]:
        leave = 1
    else:
        leave = 0
    function = fields["function"] != FunctionOp.NONE
    if function:
        rows = (rows - 1) * config.lanes_per_function + 1
    if not (fields["write_tensor"] or fields["write_acc"] or fields["write_mask"]):
        return rows, latency
    sums = (fields["add_source"] != AddSource.NONE
            and fields["add_op"] not in (AddOp.MAX, AddOp.MIN))
    latency += (UNITS.vector + (fields["mul"] != MulSource.NONE) * UNITS.multiply
                + sums * UNITS.add + function * (UNITS.function + config.lanes_per_function))
    return rows, latency + leave


class _Bus:
    """One direction of a memory tier: transfers follow each other."""

    def __init__(self, memory):
        self.memory, self.free = memory, 0

    def transfer(self, start, beats):
        """Cycle in which the last beat of a transfer asked for at ``start`` has passed."""
        begin = max(start + self.memory.latency, self.free)
        self.free = begin + beats / self.memory.beats
        return self.free


class _Link:
    """Transfers of one direction between two tiles, in order."""

    def __init__(self):
        self.sent, self.ends = deque(), deque()


class _Tile:
    """Follows the program of one tile; :meth:`run` yields while it waits for a neighbour."""

    def __init__(self, config, program, buses, links, keep):
        self.config, self.program, self.buses, self.links = config, program, buses, links
        self.end = 0
        self.busy = dict.fromkeys(Queue, 0)
        self.spans = [] if keep else None
        self._tokens = defaultdict(deque)
        self._places = {q: deque() for q in Queue}  # completions of the last commands of a queue
        self._started = dict.fromkeys(Queue, 0)     # when the last command was taken
        self._free = dict.fromkeys(Queue, 0)        # when the unit takes the next one
        self._ended = dict.fromkeys(Queue, 0)
        self._streamed = 0                          # when the array has had its last row
        self._unknown = deque()                     # sends whose end the receiver decides

    def run(self):
        """Generator; afterwards ``end`` is the cycle of the halt."""
        n, depth = self.config.n, self.config.queue_depth
        fetched, beats = 0.0, max(1, INSTRUCTION_BYTES // self.config.beat_bytes)
        dispatched = self.buses[0].memory.latency + UNITS.fetch
        last_pc = None
        program = commands(bytes(self.program), (0,) * ARGUMENTS, 0, self.config.queues)
        for command in program:
            if last_pc is not None and command.pc <= last_pc:  # a loop: fetched anew
                fetched = dispatched + self.buses[0].memory.latency + UNITS.fetch
            last_pc = command.pc
            queue, fields = command.opcode.queue, command.fields
            fetched = max(fetched + beats, dispatched - 8 * beats)
            yield from self._place(queue, depth)
            places = self._places[queue]
            room = places.popleft() if len(places) == depth else 0
            dispatched = max(dispatched + 1, fetched, room)
            ready = max(dispatched + UNITS.dispatch, self._started[queue] + UNITS.between)
            for bit in range(fields["wait"].bit_length()):
                if fields["wait"] >> bit & 1:
                    key = bit // CHANNELS, queue, bit % CHANNELS
                    while self._unknown and not self._tokens[key]:
                        yield from self._settle()
                    ready = max(ready, self._tokens[key].popleft() + 2)
            start = max(ready, self._free[queue])
            self._started[queue] = start
            if command.opcode is Opcode.SEND:
                rows = -(-fields["rows"] // n) * n * fields["blocks"]
                link = self.links[Peer(fields["peer"])][1]
                link.sent.append((start, rows))
                self._unknown.append((queue, start, rows, fields, link, command))
                places.append(None)
                continue
            if command.opcode is Opcode.RECEIVE:
                link = self.links[Peer(fields["peer"])][0]
                while not link.sent:
                    yield
                sent, rows = link.sent.popleft()
                end = max(start, sent + UNITS.link) + rows
                link.ends.append(end)
                self._free[queue] = end
            else:
                end = self._execute(command, fields, start)
            self._complete(queue, start, end, fields, command)
        while self._unknown:
            yield from self._settle()
        self.end = max([dispatched, *self._ended.values()]) + 4

    def _place(self, queue, depth):
        """Wait until it is known when the queue has a place."""
        while len(self._places[queue]) == depth and self._places[queue][0] is None:
            yield from self._settle()

    def _settle(self):
        """Find out when the oldest send has ended."""
        queue, start, rows, fields, link, command = self._unknown[0]
        while not link.ends:
            yield
        self._unknown.popleft()
        end = max(start + rows + 4, link.ends.popleft() - UNITS.credits - UNITS.link)
        self._free[queue] = max(self._free[queue], end)
        places = self._places[queue]
        places[places.index(None)] = end
        self._complete(queue, start, end, fields, command, place=False)

    def _execute(self, command, fields, start):
        n, queue = self.config.n, command.opcode.queue
        if command.opcode is Opcode.MATMUL:
            tiles = -(-fields["k"] // n) * -(-fields["c"] // n)
            step = max(fields["m"], n, UNITS.turnaround)
            # Weights are fetched while the rows of the product before still stream.
            begin = max(start + 2 * n, self._streamed)
            self._streamed = begin + tiles * step + fields["accumulate"] * UNITS.turnaround
            self._free[queue] = self._streamed - 2 * n
            return begin + (tiles - 1) * step + fields["m"] + UNITS.product
        if command.opcode is Opcode.VECTOR:
            rows, latency = vector_cycles(fields, self.config)
            if self._same_bank(command, fields):
                rows *= 2
            self._free[queue] = start + rows + latency
            return start + rows + latency
        runs = fields["count0"] * fields["count1"] * fields["count2"]
        kind = Kind(fields["kind"]).name.lower()
        size = self.config.run_bytes(kind, fields["run"], fields["codec"])
        beats = runs * (size // self.config.beat_bytes)
        rows = runs * fields["run"]
        write = command.opcode is Opcode.STORE
        bus = self.buses[2 * fields["tier"] + write]
        self._free[queue] = start + max(runs, rows if write else 0)
        if write:
            return max(bus.transfer(start + 4, beats), start + rows) \
                + bus.memory.latency + UNITS.store - 4
        return max(bus.transfer(start + 4, beats), start + rows) + UNITS.load

    def _same_bank(self, command, fields):
        """Whether a ``VECTOR`` reads two rows of one bank of the accumulators in each cycle."""
        if fields["a_space"] == Space.TENSOR or not (
                fields["mul"] == MulSource.ROW or fields["add_source"] == AddSource.ROW):
            return False
        bank = self.config.acc_rows // self.config.banks
        return command.op[0] // bank == command.op[1] // bank

    def _complete(self, queue, start, end, fields, command, *, place=True):
        end = max(end, self._ended[queue])
        self.busy[queue] += end - max(start, self._ended[queue])
        self._ended[queue] = end
        if place:
            self._places[queue].append(end)
        for bit in range(fields["post"].bit_length()):
            if fields["post"] >> bit & 1:
                self._tokens[queue, bit // CHANNELS, bit % CHANNELS].append(end)
        if self.spans is not None:
            self.spans.append((queue, start, end, fields["layer"], command.opcode))


def predict(programs, config, *, near=None, far=None, spans=False):
    """A :class:`Prediction` for ``programs``, one for each tile from 0 up."""
    near, far = near or Memory(), far or Memory()
    buses = [_Bus(near), _Bus(near), _Bus(far), _Bus(far)]
    right, left = ([_Link() for _ in range(len(programs) + 1)] for _ in range(2))
    tiles = [_Tile(config, program, buses,
                   {Peer.PREVIOUS: (right[s], left[s]), Peer.NEXT: (left[s + 1], right[s + 1])},
                   spans) for s, program in enumerate(programs)]
    running = [tile.run() for tile in tiles]
    while running:
        running = [run for run in running if next(run, "ended") != "ended"]
    ends = [round(tile.end) for tile in tiles]
    busy = [{queue: round(cycles) for queue, cycles in tile.busy.items()} for tile in tiles]
    return Prediction(max(ends), ends, busy, [tile.spans for tile in tiles] if spans else [])
