"""Predicts the cycles of tile programs without simulating circuits.

Every instruction is followed from fetch to completion, all tiles event by event: the sequencer
hands it to its queue when there is a place, the queue starts it when its semaphores are there, the
unit takes as long as its documentation says (:mod:`.unit_times`), transfers share the bus, units
wait for banks that others take (:mod:`.banks`). Cost: linear in instructions.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from heapq import heappop, heappush
from itertools import count

from gradmill_hw.isa import CHANNELS, INSTRUCTION_BYTES, Opcode, Peer, Queue
from gradmill_hw.regs import ARGUMENTS
from gradmill_hw.sequencer_model import commands

from .banks import Passage
from .errors import ProgramError
from .shared_bus import Mover, Served, SharedBus
from .unit_times import UNITS, Memory, Units


__all__ = ["Prediction", "predict"]

#: Who takes every beat at once.
_TAKEN = Passage(None, 0, 0, {})


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


@cache
def _semaphores(mask, queue):
    """``(other queue, queue, channel)`` of the bits of ``wait`` or ``post``."""
    return [(bit // CHANNELS, queue, bit % CHANNELS) for bit in range(mask.bit_length())
            if mask >> bit & 1]


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
        self._commands = program if isinstance(program, Iterator) else commands(
            bytes(program), (0,) * ARGUMENTS, 0, config.queues)
        self._next, self._last_pc = None, -1
        self._bus = buses[0]
        self._beats = max(1, UNITS.fetch_group * INSTRUCTION_BYTES // config.beat_bytes)
        self._arrivals = deque()      # of instructions that were asked for
        self._reserved = 0            # instructions asked for and not taken
        self._starved, self._jumps = False, 0
        self._fetched = self._dispatched = 0
        self._movers = {queue: Mover(clock, self.units) for queue in (Queue.LOAD, Queue.STORE)}
        self._tokens = defaultdict(int)
        self._waiting = {q: deque() for q in Queue}  # dispatched, not started: (cycle, command)
        self._held = dict.fromkeys(Queue, 0)         # places taken
        self._started = dict.fromkeys(Queue, 0)      # when the last command was taken
        self._alarms = dict.fromkeys(Queue, 0)       # when the queue will look at its head again
        self._ended = dict.fromkeys(Queue, 0)
        self._ask(0)
        self._fetch(0)

    # sequencer ------------------------------------------------------------------------------

    def _ask(self, now):
        """Ask memory for further groups of instructions, while there is room for them."""
        while self._reserved <= self.config.fetch_ahead - UNITS.fetch_group:
            self._reserved += UNITS.fetch_group
            self._bus.ask(now, self, self._beats, self._arrive_after(self._jumps))

    def _arrive_after(self, jumps):
        def comes(now, run, begin, end):
            if jumps == self._jumps:
                each = (end - begin) / UNITS.fetch_group
                self._arrivals.extend(begin + each * (k + 1) + UNITS.fetch
                                      for k in range(UNITS.fetch_group))
                self._take(now)
            return _TAKEN
        return comes

    def _fetch(self, now):
        """The next instruction, when it can be dispatched."""
        command = self._next = next(self._commands, None)
        if command is None:
            self.end = max(self.end, self._dispatched + 4)
            return
        if command.pc <= self._last_pc:  # a loop: fetched anew
            self._jumps += 1
            self._arrivals.clear()
            self._reserved = 0
            self._ask(now)
        self._last_pc = command.pc
        self._starved = True
        self._take(now)

    def _take(self, now):
        """Take the instruction that the sequencer waits for, if it has arrived."""
        if not self._starved or not self._arrivals:
            return
        self._starved = False
        self._fetched = self._arrivals.popleft()
        self._reserved -= 1
        self._ask(now)
        self.clock.at(max(self._dispatched + 1, self._fetched), self._dispatch)

    def _dispatch(self, now):
        """Hand the instruction to its queue, if that has a place."""
        command = self._next
        queue = command and command.opcode.queue
        if not command or self._starved or now < self._dispatched + 1 or self._held[queue] == (
                self.config.queue_depth) or now < self._fetched:
            return
        self._held[queue] += 1
        self._waiting[queue].append((now, command))
        self._dispatched = now
        self.clock.at(now + UNITS.dispatch, self._start, queue)
        self._fetch(now)

    def check(self, number):
        """Raise :class:`ProgramError` if something is left to do when nothing moves any more;
        ``number`` is that of the tile."""
        left = [waiting[0][1] for waiting in self._waiting.values() if waiting]
        left += [command for pair in self.links.values() for link in pair
                 for halves in (link.sends, link.receives)
                 for tile, command, _ in halves if tile is self]
        if left:
            first = min(left, key=lambda command: command.pc)
            raise ProgramError(f"tile {number} cannot go on: {first.opcode.name} waits for ever",
                               first.pc // INSTRUCTION_BYTES)

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
        keys = _semaphores(command.fields["wait"], queue)
        if not all(self._tokens[key] for key in keys):
            return
        for key in keys:
            self._tokens[key] -= 1
        self._waiting[queue].popleft()
        self._started[queue] = now
        self._execute(now, queue, command)
        if self._waiting[queue]:
            self.clock.at(now + UNITS.between, self._start, queue)

    def _execute(self, now, queue, command):
        opcode, fields = command.opcode, command.fields
        if opcode in (Opcode.SEND, Opcode.RECEIVE):
            self.units.free[queue] = float("inf")
            incoming, outgoing = self.links[Peer(fields["peer"])]
            link = outgoing if opcode is Opcode.SEND else incoming
            (link.sends if opcode is Opcode.SEND else link.receives).append((self, command, now))
            _transfer(link)
            return
        if queue in self._movers:
            transfer = self.units.transfer(opcode, fields, command.op)
            self.units.free[queue] = now + UNITS.check + transfer.runs
            self._movers[queue].start(now, transfer, lambda passage: self.follow(
                passage, queue, command, now))
            return
        if opcode is Opcode.COPY:
            self.units.free[queue] = float("inf")
            self.clock.at(self.units.copy_begins(fields, now), self._copy, command, now)
            return
        passage = self.units.execute(opcode, fields, command.op, now)
        self.follow(passage, queue, command, now)

    def _copy(self, now, command, start):
        """Ask for what ``command`` copies; the next one may be checked."""
        def comes(now, run, begin, end):
            passage = self.units.copy(command.fields, end)
            self.follow(passage, Queue.COPY, command, start)
            return passage

        beats, source = self.units.copy_beats(command.fields)
        source.ask(now, (self, Queue.COPY), beats, comes)
        self.units.free[Queue.COPY] = now
        self._start(now, Queue.COPY)

    def follow(self, passage, queue, command, start, early=0):
        """End ``command``, which has started at ``start``, ``early`` cycles before ``passage``."""
        self.clock.at(passage.end - early, self._end, passage, queue, command, start, early)

    def _end(self, now, passage, queue, command, start, early):
        """End ``command``, unless ``passage`` has been put off meanwhile."""
        if passage.end - early > now:
            self.follow(passage, queue, command, start, early)
            return
        if queue in (Queue.LINK_IN, Queue.LINK_OUT):
            self.units.free[queue] = now
        end = max(now, self._ended[queue])
        self.busy[queue] += end - max(start, self._ended[queue])
        self._ended[queue] = end
        if self.spans is not None:
            self.spans.append((queue, start, end, command.fields["layer"], command.opcode))
        self.clock.at(end, self._complete, queue, command)
        if self._waiting[queue]:
            self.clock.at(max(end, self.units.free[queue]), self._start, queue)

    def _complete(self, now, queue, command):
        """Give back the place, post semaphores."""
        self._held[queue] -= 1
        self.end = max(self.end, now + 4)
        self._dispatch(now)
        for consumer, _, channel in _semaphores(command.fields["post"], queue):
            self.clock.at(now + UNITS.token, self._post, queue, consumer, channel)

    def _post(self, now, producer, consumer, channel):
        self._tokens[producer, consumer, channel] += 1
        self._start(now, Queue(consumer))


def _transfer(link):
    """End the oldest send and receive of ``link``, once both have started."""
    if not link.sends or not link.receives:
        return
    (sender, send, sent), (receiver, receive, started) = (link.sends.popleft(),
                                                          link.receives.popleft())
    late = max(started - UNITS.link - sent, 0)
    sending = sender.units.send(send.fields, send.op, sent + late)
    rows = receiver.units.receive(receive.fields, sending)
    receiver.follow(rows, Queue.LINK_IN, receive, started)
    sender.follow(rows, Queue.LINK_OUT, send, sent, UNITS.link + min(late - 4, UNITS.credits))


def predict(programs, config, *, near=None, far=None, spans=False):
    """A :class:`Prediction` for ``programs``, one for each tile from 0 up: a :class:`Program`, its
    bytes, or an iterator of :class:`Command`. Raises :class:`ProgramError` if they cannot end."""
    near, far = near or Memory(), far or Memory()
    clock = _Clock()
    buses = [SharedBus(clock, memory, listed=listed, burst_beats=config.burst_beats, served=served)
             for memory, served in ((near, Served()), (far, Served()))
             for listed in (config.reads_in_flight, UNITS.listed)]
    right, left = ([_Link() for _ in range(len(programs) + 1)] for _ in range(2))
    tiles = [_Tile(config, program, clock, buses,
                   {Peer.PREVIOUS: (right[s], left[s]), Peer.NEXT: (left[s + 1], right[s + 1])},
                   spans) for s, program in enumerate(programs)]
    clock.run()
    for number, tile in enumerate(tiles):
        tile.check(number)
    ends = [round(tile.end) for tile in tiles]
    busy = [{queue: round(cycles) for queue, cycles in tile.busy.items()} for tile in tiles]
    return Prediction(max(ends), ends, busy, [tile.spans for tile in tiles] if spans else [])
