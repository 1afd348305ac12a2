"""The memory bus that tiles share, event by event: run after run, in turns.

Whoever asks for a run gets its beats when those before it in the bus have been taken. Who cannot
take them, because the banks of its memory are busy, holds up all others.
"""

from collections import deque
from dataclasses import dataclass

from .banks import Passage
from .unit_times import UNITS, Bus


__all__ = ["Mover", "Served", "SharedBus"]


@dataclass(eq=False)
class _Run:
    """Beats that a client has asked for.

    Parameters
    ----------
    beats, bursts : int
        How many, and in how many bursts.
    comes : callable
        ``comes(now, run, begin, end)``, called when it is known that the bus has them from
        ``begin`` to ``end``, gives the passage that takes them; None if it is not its turn, and
        then calls :meth:`SharedBus.comes` again.
    granted : callable
        ``granted(now)`` is called when the client may ask for its next run.
    buffered : float
        Cycles that the bus is free before the end of the passage.
    freed : int
        Bursts that have made room for others.
    """
    beats:    int
    bursts:   int
    comes:    object
    granted:  object
    buffered: float
    freed:    int = 0


@dataclass
class Served:
    """Cycle in which a memory has served all beats that it was asked for."""
    until: float = 0


class SharedBus(Bus):
    """One direction of a memory tier.

    Parameters
    ----------
    clock : object
        ``at(cycle, function, *arguments)`` calls a function.
    memory : Memory
        How fast it is.
    listed : int
        Bursts that may be on their way.
    burst_beats : int
        Longest burst.
    served : Served
        What the memory is asked for in both directions.
    """

    def __init__(self, clock, memory, *, listed, burst_beats, served=None):
        super().__init__(memory)
        self._clock, self._listed, self._burst = clock, listed, burst_beats
        self._served = served or Served()
        self._waiting = {}       # client -> its runs, in order
        self._last = None        # client that had the last turn
        self._granted = deque()  # when, run
        self._bursts = 0         # of runs that were granted and have not been taken
        self._moving = False

    def ask(self, now, client, beats, comes, granted=lambda now: None, buffered=0):
        """Ask for a run for ``client``; see :class:`_Run`."""
        run = _Run(beats, -(-beats // self._burst), comes, granted, buffered)
        self._waiting.setdefault(client, deque()).append(run)
        self._grant(now)

    def transfer(self, start, beats, after=0):
        """As of :class:`.unit_times.Bus`."""
        begin = max(start + self.memory.latency, self.free, after)
        self._served.until = max(self._served.until, begin) + beats / self.memory.beats
        self.free = max(begin + beats / self.rate,
                        min(self._served.until, begin + 2 * beats / self.memory.beats))
        return self.free

    def _grant(self, now):
        while self._bursts < self._listed and any(self._waiting.values()):
            run = self._waiting[self._turn()].popleft()
            self._bursts += run.bursts
            self._granted.append((now, run))
            run.granted(now)
        if self._granted and not self._moving:
            self._moving = True
            granted, run = self._granted.popleft()
            begin = max(granted + self.memory.latency, self.free)
            self.transfer(granted, run.beats)
            # The first burst that is not needed to fill the list makes room for another run.
            run.freed = max(1, run.bursts - self._listed + 1)
            share = min(1, run.freed * self._burst / run.beats)
            self._clock.at(begin + share * (self.free - begin), self._free, run.freed)
            self.comes(now, run, begin, self.free)

    def _turn(self):
        """The client whose turn it is: the one that was served last comes last."""
        clients = list(self._waiting)
        after = clients.index(self._last) + 1 if self._last in self._waiting else 0
        self._last = next(client for client in clients[after:] + clients[:after]
                          if self._waiting[client])
        return self._last

    def _free(self, now, bursts):
        self._bursts -= bursts
        self._grant(now)

    def comes(self, now, run, begin, end):
        """The bus has the beats of ``run``; let them be taken."""
        passage = run.comes(now, run, begin, end)
        if passage is not None:
            self._clock.at(end, self._take, run, passage)

    def _take(self, now, run, passage):
        """Free the bus when all but the last beats have been taken."""
        left = passage.passed - run.buffered
        if left > now:
            self._clock.at(left, self._take, run, passage)
            return
        self.free = max(self.free, now)
        self._moving = False
        self._free(now, run.bursts - run.freed)


class Mover:
    """Load or store unit of a tile: moves the runs of its instructions in order, whichever memory
    they come from or go to. It asks for one at a time: were a later one granted first, two tiles
    could wait for each other at two memories.

    Parameters
    ----------
    clock : object
        See :class:`SharedBus`.
    units : Units
        Of the tile.
    """

    def __init__(self, clock, units):
        self._clock, self._units = clock, units
        self._runs = deque()    # not asked for: earliest cycle, transfer, number
        self._asked = deque()   # (transfer, number) of runs whose beats do not come yet
        self._early = None      # bus and run whose turn has not come
        self._asking = False    # for a run that has not been granted

    def start(self, now, transfer, done):
        """Move ``transfer`` (:class:`.unit_times.TransferTimes`); ``done(passage)`` is told the
        passage of its last row."""
        for number in range(transfer.runs):
            self._runs.append((now + 4 + number, transfer, number, done))
        self._ask(now)

    def _ask(self, now):
        if self._asking or not self._runs or len(self._asked) == UNITS.asked:
            return
        earliest, transfer, number, done = self._runs[0]
        if earliest > now:
            self._clock.at(earliest, self._ask)
            return
        self._runs.popleft()
        self._asked.append((transfer, number))
        self._asking = True

        def comes(*when):
            return self._comes(*when, transfer, number, done)

        transfer.bus.ask(now, self, transfer.beats, comes, self._granted, transfer.buffered)

    def _granted(self, now):
        self._asking = False
        self._ask(now)

    def _comes(self, now, run, begin, end, transfer, number, done):
        if self._asked[0] != (transfer, number):
            self._early = transfer.bus, run, begin, end
            return None
        self._asked.popleft()
        final = number == transfer.runs - 1
        pace = min(1, transfer.rows / (end - begin))
        passage = self._units.banks.add(Passage(
            transfer.queue, begin - transfer.ahead / pace, transfer.rows + final * transfer.more,
            transfer.needs, pace=pace, at_least=end, after=transfer.after))
        if final:
            done(passage)
        if self._early:
            (bus, *early), self._early = self._early, None
            self._clock.at(now, bus.comes, *early)
        self._ask(now)
        return passage
