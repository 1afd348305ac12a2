"""Which buffer is where, who has to leave, and who has to come back when."""

from collections import deque
from dataclasses import dataclass
from itertools import accumulate


__all__ = ["Buffer", "Manager", "Move"]


@dataclass(eq=False)
class Buffer:
    """A run of rows of an activation, from its store to its last load.

    Members
    -------
    activation, part : int
        Stage whose input it is, and which of its runs.
    number : int
        Buffers that were produced before.
    fast, far : int or None
        Address of its place in each tier.
    copied : bool
        The copy in far memory is complete: it needs not be written again.
    """

    activation: int
    part:       int
    number:     int
    fast:       int | None
    far:        int | None = None
    copied:     bool = False


@dataclass(frozen=True)
class Move:
    """A buffer crosses from one tier to the other.

    Parameters
    ----------
    buffer : Buffer
        Which.
    out : bool
        To far memory, otherwise from there.
    near, far : int
        Addresses.
    """

    buffer: Buffer
    out:    bool
    near:   int
    far:    int


class _Places:
    """Places of one size, handed out in the order in which they became free."""

    def __init__(self, addresses=()):
        self._free = deque(addresses)

    def __len__(self):
        return len(self._free)

    def take(self, count):
        """The ``count`` that are free for longest."""
        return [self._free.popleft() for _ in range(count)]

    def give(self, address):
        self._free.append(address)


class Manager:
    """The buffer table of a fast memory of ``count`` places, and what was measured.

    Until :meth:`learn` has been called, buffers leave when the fast memory is too full; afterwards
    as soon as they are stored, the oldest first, as many as will not fit. The buffers of an
    activation are asked for in backward, in the reverse order of their production.

    Parameters
    ----------
    base, place, count : int
        Fast memory: address, bytes of a place, places.
    more_far : callable
        ``more_far(count)`` gives addresses of so many more places in far memory.
    high, low : float
        Thresholds, as shares of the places.

    Members
    -------
    made : int
        Most buffers that were alive at a time.
    used, most_used : int
        Places of fast memory that are taken, and were at most.
    sizes : dict
        Activation -> buffers, in the order of production.
    forward, backward : dict
        Stage -> cycles measured.
    """

    def __init__(self, *, base, place, count, more_far, high=1.0, low=0.75):
        self.base, self.place, self.count = base, place, count
        self.high, self.low = int(high * count), int(low * count)
        self._more_far, self._far = more_far, []  # places in far memory, in order of use
        self.forward, self.backward, self.sizes = {}, {}, {}
        self._copied = [0, 0]  # buffers that were copied alone, cycles
        self.made = self.most_used = 0
        self._excess = None    # buffers that leave; unknown before the first time
        self._before = {}      # activation -> buffers of earlier ones
        self._issue = {}       # activation -> stage whose backward fetches it
        self.begin()

    def begin(self):
        """A virtual minibatch begins: nothing is alive, and places are as at first."""
        self._alive = {}  # activation -> buffers
        self._start()

    def _start(self):
        """Nothing is alive: places are handed out by address again, so that what moves together
        lies side by side."""
        self._fast = _Places(self.base + k * self.place for k in range(self.count))
        self._produced = self._evicted = self._sent = 0  # buffers; places in far memory

    @property
    def learned(self):
        """The first pass has been recorded."""
        return self._excess is not None

    @property
    def excess(self):
        """Buffers that leave the fast memory in each sub-minibatch; ``None`` before the first."""
        return self._excess

    @property
    def used(self):
        """Places that are taken."""
        return self.count - len(self._fast)

    def room(self, count):
        """Whether ``count`` more buffers fit below the high threshold."""
        return self.used + count <= self.high

    # forward --------------------------------------------------------------------------------

    def produce(self, activation, count):
        """``(new buffers, moves that make room for them)``."""
        moves = self._make_room(count)
        own = self._alive.setdefault(activation, [])
        new = [Buffer(activation, len(own) + k, self._produced + k, address)
               for k, address in enumerate(self._fast.take(count))]
        own += new
        self._produced += count
        if not self.learned:
            self.sizes[activation] = len(own)
        self.made = max(self.made, sum(map(len, self._alive.values())))
        self.most_used = max(self.most_used, self.used)
        return new, moves

    def _make_room(self, count):
        """Above the high threshold, the oldest leave until the low one is met; later as many as
        come, if so many have to leave."""
        if self.room(count):
            return []
        target, together = (self.high, min(count, self._excess - self._evicted)) \
            if self.learned else (max(self.low, count), 0)
        moves, before = [], self._evicted
        for buffer in self._resident():
            if self.used + count <= target and self._evicted - before >= together:
                break
            moves += self._evict(buffer)
        return moves

    def write_back(self):
        """Moves of the oldest that will have to leave, and need not wait until there is no room."""
        moves = []
        for buffer in self._resident() if self.learned else ():
            if self._evicted >= self._excess:
                break
            if self._before[buffer.activation] + buffer.part < self._excess:
                moves += self._evict(buffer)
        return moves

    def _resident(self):
        """Buffers in fast memory, the oldest first."""
        found = [buffer for own in self._alive.values() for buffer in own
                 if buffer.fast is not None]
        return sorted(found, key=lambda buffer: buffer.number)

    def _evict(self, buffer):
        """Its place is free; the move, unless far memory has the buffer already."""
        near, buffer.fast = buffer.fast, None
        self._fast.give(near)
        self._evicted += 1
        if buffer.copied:
            return []
        if self._sent == len(self._far):
            self._far += self._more_far(len(self._alive[buffer.activation]))
        buffer.far, buffer.copied = self._far[self._sent], True
        self._sent += 1
        return [Move(buffer, True, near, buffer.far)]

    # backward -------------------------------------------------------------------------------

    def fetch(self, activation):
        """Yield ``(moves, buffers, more)`` until all buffers of ``activation`` have been there:
        after the moves these buffers are in fast memory. Where they do not all fit, those that were
        yielded are dead when the next are asked for."""
        rest = list(self._alive[activation])
        while rest:
            moves = self._bring(rest)
            ready = [buffer for buffer in rest if buffer.fast is not None]
            rest = [buffer for buffer in rest if buffer.fast is None]
            yield moves, ready, bool(rest)
            if rest:
                self._alive[activation] = rest
                self._discard(ready)

    def prefetch(self, stage):
        """Moves of earlier activations that it is time for when the backward of ``stage``
        begins, as far as there is room."""
        due = min((a for a, first in self._issue.items() if first >= stage), default=stage)
        return self._bring([buffer for activation in sorted(self._alive, reverse=True)
                            if due <= activation < stage
                            for buffer in reversed(self._alive[activation])])

    def _bring(self, wanted):
        """Moves of those that are in far memory, the first ones if there is not room for all."""
        absent = [buffer for buffer in wanted if buffer.fast is None]
        coming = sorted(absent[:max(0, self.high - self.used)], key=lambda buffer: buffer.number)
        for buffer, address in zip(coming, sorted(self._fast.take(len(coming))), strict=True):
            buffer.fast = address
        self.most_used = max(self.most_used, self.used)
        return [Move(buffer, False, buffer.fast, buffer.far) for buffer in coming]

    def release(self, activation):
        """The buffers of ``activation`` are dead; they are returned."""
        dead = self._alive.pop(activation)
        self._discard(dead)
        if not self._alive:
            self._start()
        return dead

    def _discard(self, dead):
        for buffer in dead:
            self._fast.give(buffer.fast)

    # what was measured ----------------------------------------------------------------------

    def timed_copy(self, count, cycles):
        """Copies of ``count`` buffers took so many cycles."""
        self._copied = [self._copied[0] + count, self._copied[1] + cycles]

    @property
    def copy_cycles(self):
        """Cycles of the copy of a buffer; 0 if none was copied."""
        count, cycles = self._copied
        return cycles / count if count else 0.0

    def learn(self):
        """The first forward pass has been recorded, or the backward pass after it."""
        self._excess = max(0, self.made - self.high)
        self._before = dict(zip(self.sizes, accumulate(self.sizes.values(), initial=0),
                                strict=False))
        self.time_fetches(self.copies)

    @property
    def copies(self):
        """Activation -> cycles of the copies of what leaves of it, each way."""
        found, left = {}, self._excess
        for activation, count in self.sizes.items():
            leaves = min(left, count)
            left -= leaves
            if leaves:
                found[activation] = leaves * self.copy_cycles
        return found

    def adopt(self, sizes, reserved):
        """From now on these buffers are made, and ``reserved`` places are used for something
        else."""
        self.count, self.high = self.count - reserved, self.high - reserved
        self.low = min(self.low, self.high)
        self.sizes, self.made, self.most_used = dict(sizes), sum(sizes.values()), 0
        self.begin()
        self.learn()

    def time_fetches(self, copies):
        """Fix for each activation of ``copies``, which is all that leave, the stage whose backward
        begins its fetch: fetches follow each other, each is complete when it is needed, and begins
        a stage earlier than it must."""
        stages = sorted(self.forward, reverse=True)
        times = {s: self.backward.get(s, 2 * self.forward[s]) for s in stages}
        begins, now = {}, 0
        for s in stages:
            begins[s], now = now, now + times[s]
        self._issue, end = {}, float("inf")
        for activation, cycles in sorted(copies.items()):
            end = min(end, begins[activation]) - cycles
            running = min((s for s in stages if begins[s] <= end), default=stages[0])
            self._issue[activation] = min(running + 1, stages[0])

    def describe(self):
        """What was learned and decided, as plain data; sizes in bytes, times in cycles."""
        return {"fast_bytes": self.count * self.place, "high_bytes": self.high * self.place,
                "low_bytes": self.low * self.place, "footprint_bytes": self.made * self.place,
                "most_used_bytes": self.most_used * self.place,
                "far_bytes_each_way": (self.excess or 0) * self.place,
                "copy_bytes_per_cycle": self.place / self.copy_cycles if self.copy_cycles else None,
                "forward_cycles": self.forward, "backward_cycles": self.backward,
                "fetched_in_backward_of": self._issue}
