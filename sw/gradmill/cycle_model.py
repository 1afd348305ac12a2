"""Predicts the cycles of tile programs without simulating circuits.

Every instruction is followed from fetch to completion: the sequencer hands it to its queue when
there is a place, the queue starts it when its semaphores are there, the unit takes as long as
its documentation says (:mod:`.unit_times`), transfers share the bus, the vector unit waits for
banks that the matrix unit takes. Cost: linear in instructions.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from gradmill_hw.isa import CHANNELS, INSTRUCTION_BYTES, Opcode, Peer, Queue
from gradmill_hw.regs import ARGUMENTS
from gradmill_hw.sequencer_model import commands

from .unit_times import UNITS, Bus, Memory, Units, link_rows


__all__ = ["Prediction", "predict"]


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


class _Link:
    """Transfers of one direction between two tiles, in order."""

    def __init__(self):
        self.sent, self.ends = deque(), deque()


class _Tile:
    """Follows the program of one tile; :meth:`run` yields while it waits for a neighbour."""

    def __init__(self, config, program, buses, links, keep):
        self.config, self.program, self.links = config, program, links
        self._units, self._latency = Units(config, buses), buses[0].memory.latency
        self.end = 0
        self.busy = dict.fromkeys(Queue, 0)
        self.spans = [] if keep else None
        self._tokens = defaultdict(deque)
        self._places = {q: deque() for q in Queue}  # completions of the last commands of a queue
        self._started = dict.fromkeys(Queue, 0)     # when the last command was taken
        self._ended = dict.fromkeys(Queue, 0)
        self._unknown = deque()                     # sends whose end the receiver decides

    def run(self):
        """Generator; afterwards ``end`` is the cycle of the halt."""
        n, depth, free = self.config.n, self.config.queue_depth, self._units.free
        fetched, beats = 0.0, max(1, INSTRUCTION_BYTES // self.config.beat_bytes)
        dispatched = self._latency + UNITS.fetch
        last_pc = None
        program = commands(bytes(self.program), (0,) * ARGUMENTS, 0, self.config.queues)
        for command in program:
            if last_pc is not None and command.pc <= last_pc:  # a loop: fetched anew
                fetched = dispatched + self._latency + UNITS.fetch
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
                    ready = max(ready, self._tokens[key].popleft() + UNITS.token)
            start = max(ready, free[queue])
            self._started[queue] = start
            if command.opcode is Opcode.SEND:
                rows = link_rows(fields, n)
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
                free[queue] = end
            else:
                end = self._units.execute(command.opcode, fields, command.op, start)
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
        free = self._units.free
        free[queue] = max(free[queue], end)
        places = self._places[queue]
        places[places.index(None)] = end
        self._complete(queue, start, end, fields, command, place=False)

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
    buses = [Bus(near), Bus(near), Bus(far), Bus(far)]
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
