"""Predicts the cycles of tile programs without simulating circuits.

Every instruction is followed from fetch to completion, all tiles event by event: the sequencer
hands it to its queue when there is a place, the queue starts it when its semaphores are there, the
unit takes as long as its documentation says (:mod:`.unit_times`), transfers share the bus, the
vector unit and stores wait for banks that the matrix unit takes. Cost: linear in instructions.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from gradmill_hw.isa import CHANNELS, INSTRUCTION_BYTES, Opcode, Peer, Queue
from gradmill_hw.regs import ARGUMENTS
from gradmill_hw.sequencer_model import commands

from .unit_times import UNITS, Bus, Memory, Units


__all__ = ["Prediction", "predict"]

#: Instructions that the sequencer has asked for before it needs them.
_AHEAD = 8


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
    """Transfers of one direction between two tiles, in order: ``(tile, command, start)`` of those
    that wait for their other half."""

    def __init__(self):
        self.sends, self.receives = deque(), deque()


class _Clock:
    """Calls functions at their cycles, in order."""

    def __init__(self):
        self._events, self._number = [], count()

    def at(self, cycle, function, *arguments):
        heappush(self._events, (cycle, next(self._number), function, arguments))

    def run(self):
        while self._events:
            cycle, _, function, arguments = heappop(self._events)
            function(cycle, *arguments)


class _Tile:
    """Follows the program of one tile."""

    def __init__(self, config, program, clock, buses, links, keep):
        self.config, self.clock, self.links = config, clock, links
        self.end, self.busy = 0, dict.fromkeys(Queue, 0)
        self.spans = [] if keep else None
        self.units = Units(config, buses)
        self._commands = commands(bytes(program), (0,) * ARGUMENTS, 0, config.queues)
        self._next, self._last_pc = None, -1
        self._bus, self._beats = buses[0], max(1, INSTRUCTION_BYTES // config.beat_bytes)
        self._arrivals = deque()                     # of instructions that were asked for
        self._fetched = self._dispatched = 0
        self._ask(0, _AHEAD)
        self._tokens = defaultdict(int)
        self._waiting = {q: deque() for q in Queue}  # dispatched, not started: (cycle, command)
        self._held = dict.fromkeys(Queue, 0)         # places taken
        self._started = dict.fromkeys(Queue, 0)      # when the last command was taken
        self._alarms = dict.fromkeys(Queue, 0)       # when the queue will look at its head again
        self._ended = dict.fromkeys(Queue, 0)
        self._running = {q: deque() for q in Queue}  # commands in execution, ends in order
        #: vector unit, store -> the command that products may still keep waiting: start, command
        self._open = dict.fromkeys((Queue.VECTOR, Queue.STORE))
        self._fetch(0)

    # sequencer ------------------------------------------------------------------------------

    def _ask(self, now, count=1):
        """Ask memory for further instructions."""
        for _ in range(count):
            self._arrivals.append(self._bus.transfer(now, self._beats) + UNITS.fetch)

    def _fetch(self, now):
        """The next instruction, when it can be dispatched."""
        command = self._next = next(self._commands, None)
        if command is None:
            self.end = max(self.end, self._dispatched + 4)
            return
        if command.pc <= self._last_pc:  # a loop: fetched anew
            self._arrivals.clear()
            self._ask(now, _AHEAD)
        self._last_pc = command.pc
        self._fetched = self._arrivals.popleft()
        self._ask(now)
        self.clock.at(max(self._dispatched + 1, self._fetched), self._dispatch)

    def _dispatch(self, now):
        """Hand the instruction to its queue, if that has a place."""
        command = self._next
        queue = command and command.opcode.queue
        if not command or now < self._dispatched + 1 or self._held[queue] == (
                self.config.queue_depth) or now < self._fetched:
            return
        self._held[queue] += 1
        self._waiting[queue].append((now, command))
        self._dispatched = now
        self.clock.at(now + UNITS.dispatch, self._start, queue)
        self._fetch(now)

    # queues ---------------------------------------------------------------------------------

    def _start(self, now, queue):
        """Start the head of ``queue``, if it has all that it needs; whatever it lacks calls this
        again when it comes."""
        if not self._waiting[queue]:
            return
        dispatched, command = self._waiting[queue][0]
        earliest = max(dispatched + UNITS.dispatch, self._started[queue] + UNITS.between,
                       self.units.free[queue])
        if now < earliest:
            if earliest < float("inf") and earliest != self._alarms[queue]:
                self._alarms[queue] = earliest
                self.clock.at(earliest, self._start, queue)
            return
        keys = [(bit // CHANNELS, queue, bit % CHANNELS)
                for bit in range(command.fields["wait"].bit_length())
                if command.fields["wait"] >> bit & 1]
        if not all(self._tokens[key] for key in keys):
            return
        for key in keys:
            self._tokens[key] -= 1
        self._waiting[queue].popleft()
        self._started[queue] = now
        self._execute(now, queue, command)
        self.clock.at(max(now + UNITS.between, now), self._start, queue)

    def _execute(self, now, queue, command):
        opcode, fields = command.opcode, command.fields
        if opcode in (Opcode.SEND, Opcode.RECEIVE):
            self.units.free[queue] = float("inf")
            incoming, outgoing = self.links[Peer(fields["peer"])]
            link = outgoing if opcode is Opcode.SEND else incoming
            (link.sends if opcode is Opcode.SEND else link.receives).append((self, command, now))
            _transfer(link)
            return
        if self._open.get(queue):  # its last rows may be on their way
            self._settle(now, queue)
        end = self.units.execute(opcode, fields, command.op, now)
        if queue in self._open:
            self._open[queue] = now, command
        else:
            self.finish(queue, command, now, end)
        if queue is Queue.MATRIX:
            self._hinder()
        for other in self._open if queue is Queue.MATRIX else {queue} & set(self._open):
            if self._open[other]:
                self.clock.at(self.units.passed[other], self._leave, other, self._open[other])

    def _hinder(self):
        """A product that has just started may take banks from what runs."""
        if self._open[Queue.VECTOR]:
            start, other = self._open[Queue.VECTOR]
            self.units.execute(Opcode.VECTOR, other.fields, other.op, start)
        if self._open[Queue.STORE]:
            self.units.stored()

    def _leave(self, now, queue, own):
        """All rows of a command have passed, if no product has come between meanwhile."""
        if own is self._open[queue] and now >= self.units.passed[queue]:
            self._settle(now, queue)

    def _settle(self, now, queue):
        """Products that are still to begin do not concern the open command of ``queue``."""
        (start, command), self._open[queue] = self._open[queue], None
        end = now if queue is Queue.VECTOR else self.units.stored()
        self.finish(queue, command, start, end)

    def finish(self, queue, command, start, end):
        """``command`` ends at ``end``, and not before its predecessors."""
        end = max(end, self._ended[queue])
        self.busy[queue] += end - max(start, self._ended[queue])
        self._ended[queue] = end
        self.clock.at(end, self._complete, queue, command)
        self.clock.at(max(end, self.units.free[queue]), self._start, queue)
        if self.spans is not None:
            self.spans.append((queue, start, end, command.fields["layer"], command.opcode))

    def _complete(self, now, queue, command):
        """Give back the place, post semaphores."""
        self._held[queue] -= 1
        self.end = max(self.end, now + 4)
        self._dispatch(now)
        for bit in range(command.fields["post"].bit_length()):
            if command.fields["post"] >> bit & 1:
                self.clock.at(now + UNITS.token, self._post, queue, bit // CHANNELS,
                              bit % CHANNELS)

    def _post(self, now, producer, consumer, channel):
        self._tokens[producer, consumer, channel] += 1
        self._start(now, Queue(consumer))


def _transfer(link):
    """End the oldest send and receive of ``link``, once both have started."""
    if not link.sends or not link.receives:
        return
    (sender, send, sent), (receiver, receive, started) = (link.sends.popleft(),
                                                          link.receives.popleft())
    begin = max(started, sent + UNITS.link)
    cycles = sender.units.send(send.fields, send.op, begin - UNITS.link)
    end = begin + cycles
    left = max(sent + cycles + 4, end - UNITS.credits - UNITS.link)
    receiver.units.free[Queue.LINK_IN] = end
    receiver.finish(Queue.LINK_IN, receive, started, end)
    sender.units.free[Queue.LINK_OUT] = left
    sender.finish(Queue.LINK_OUT, send, sent, left)


def predict(programs, config, *, near=None, far=None, spans=False):
    """A :class:`Prediction` for ``programs``, one for each tile from 0 up."""
    near, far = near or Memory(), far or Memory()
    clock, buses = _Clock(), [Bus(near), Bus(near), Bus(far), Bus(far)]
    right, left = ([_Link() for _ in range(len(programs) + 1)] for _ in range(2))
    tiles = [_Tile(config, program, clock, buses,
                   {Peer.PREVIOUS: (right[s], left[s]), Peer.NEXT: (left[s + 1], right[s + 1])},
                   spans) for s, program in enumerate(programs)]
    clock.run()
    ends = [round(tile.end) for tile in tiles]
    busy = [{queue: round(cycles) for queue, cycles in tile.busy.items()} for tile in tiles]
    return Prediction(max(ends), ends, busy, [tile.spans for tile in tiles] if spans else [])
