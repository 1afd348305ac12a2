"""How instructions of a tile keep each other waiting at the banks of its on-chip memories.

A bank serves one read and one write a cycle. Of units that ask for it in the same cycle the one
that comes first in ``hw/gradmill_hw/tile.py`` has it: the matrix unit, then the vector unit, then
the links, then transfers. The matrix unit does not wait; the rows of all others pass in the cycles
that are left.
"""

from collections import deque
from enum import IntEnum

from gradmill_hw.isa import Queue


__all__ = ["Access", "Banks", "Passage", "Transfer"]

#: Passages of a queue that are remembered: more than can lie beside one of another queue.
_REMEMBERED = 64

#: Queues whose rows pass banks, in order of priority: those that come before each.
_BEFORE = {
    Queue.MATRIX:   (),
    Queue.VECTOR:   (Queue.MATRIX,),
    Queue.LINK_OUT: (Queue.MATRIX, Queue.VECTOR),
    Queue.LINK_IN:  (Queue.VECTOR,),
    Queue.STORE:    (Queue.MATRIX, Queue.VECTOR, Queue.LINK_OUT),
    Queue.LOAD:     (Queue.MATRIX, Queue.VECTOR, Queue.LINK_IN),
}


class Access(IntEnum):
    """Ways into the memories that do not disturb each other."""
    TENSOR_READ  = 0  # of a bank
    TENSOR_PATH  = 1  # by which all but the matrix unit read
    TENSOR_WRITE = 2  # the path of all writes
    ACC_READ     = 3  # of a bank
    ACC_WRITE    = 4  # of a bank
    MASK_READ    = 5
    MASK_WRITE   = 6

    def __call__(self, bank=0):
        return self + 8 * bank


class Passage:
    """Rows of one instruction on their way through banks.

    Parameters
    ----------
    queue : Queue
        Whose instruction it is.
    begin : float
        Cycle in which the first row can pass.
    rows : int
        How many there are.
    needs : dict
        Access of a bank -> how often each row asks for it.
    pace : float
        Rows a cycle, if nobody else asks for the banks and each is asked for once.
    at_least : float
        Cycle before which the instruction does not end, ``after`` not counted.
    after : int
        Cycles from the last row to the end of the instruction.

    Members
    -------
    passed : float
        Cycle in which all rows have passed, as far as the others are known: it may grow when
        instructions are added that come before them.
    """

    __slots__ = ("_mask", "_pieces", "after", "at_least", "begin", "needs", "pace", "passed",
                 "queue", "rows")

    def __init__(self, queue, begin, rows, needs, *, pace=1.0, at_least=0, after=0):
        self.queue, self.begin, self.rows = queue, begin, rows
        self.needs = needs
        self.pace = min([pace, *(1 / times for times in needs.values())])
        self.at_least, self.after = at_least, after
        self.passed = begin
        self._pieces = []  # begin, end, rows a cycle
        self._mask = sum(1 << access for access in needs)

    @classmethod
    def of_product(cls, begin, end, shares, after):
        """Rows of a product, which do not wait: from ``begin`` to ``end`` it asks for each bank in
        the share of cycles that ``shares`` say."""
        own = cls(Queue.MATRIX, begin, end - begin, {}, after=after)
        own.needs, own._mask = shares, sum(1 << access for access in shares)
        own.passed, own._pieces = end, [(begin, end, 1.0)]
        return own

    @property
    def end(self):
        """End of the instruction."""
        return round(max(self.passed, self.at_least)) + self.after

    def meets(self, other):
        """Whether both ask for some bank."""
        return self._mask & other._mask

    def pass_by(self, others):
        """Let the rows pass in the cycles that are left by ``others``: passages of each queue that
        comes before, the latest first."""
        now, left, self._pieces = self.begin, self.rows, []
        stacks = [[(begin, end, rate, other.needs) for other in queue
                   for begin, end, rate in reversed(other._pieces)] for queue in others]
        while left > 1e-6:
            until, taken = float("inf"), {}
            for stack in stacks:
                while stack and stack[-1][1] <= now:
                    stack.pop()
                if not stack:
                    continue
                begin, end, rate, needs = stack[-1]
                if begin > now:
                    until = min(until, begin)
                    continue
                until = min(until, end)
                for key, times in needs.items():
                    if key in self.needs:
                        taken[key] = taken.get(key, 0) + rate * times
            rate = min([self.pace, *(max(0, 1 - share) / self.needs[key]
                                     for key, share in taken.items())])
            if rate * (until - now) >= left:
                until = now + left / rate
            if rate:
                self._pieces.append((now, until, rate))
            now, left = until, left - rate * (until - now)
        self.passed = now


class Transfer:
    """Rows on their way from ``sending``, a :class:`Passage` through the banks of a tile, to
    ``receiving``, one through those of its neighbour, ``latency`` cycles later.

    Members
    -------
    end : int
        When the last one is there; it may grow, like :attr:`Passage.passed`.
    """

    def __init__(self, sending, receiving, latency):
        self._sending, self._receiving, self._latency = sending, receiving, latency

    @property
    def end(self):
        return max(self._sending.end + self._latency, self._receiving.end)


class Banks:
    """What is known of the rows that pass the banks of a tile.

    Parameters
    ----------
    others : bool
        Whether it is known that links and transfers wait, too, not the vector unit alone.

    Members
    -------
    delays : int
        How often a passage has got a later end since it was added.
    """

    def __init__(self, others=True):
        self._before = {queue: before if others or queue is Queue.VECTOR else ()
                        for queue, before in _BEFORE.items()}
        self._known = {queue: deque(maxlen=_REMEMBERED) for queue in _BEFORE}
        self.delays = 0

    def add(self, passage):
        """Let ``passage`` pass behind those of its queue; those that come after it may have to
        wait longer. Returns it."""
        own = self._known[passage.queue]
        if own:
            passage.begin = max(passage.begin, own[-1].passed)
        if passage.queue is not Queue.MATRIX:
            self.estimate(passage)
        own.append(passage)
        new = [passage]
        for queue, before in self._before.items():
            mine = [other for other in new if other.queue in before]
            if mine:
                new += self._put_off(queue, mine)
        return passage

    def estimate(self, passage):
        """Cycle in which all rows of ``passage`` would have passed."""
        passage.pass_by([self._beside(passage, queue) for queue in self._before[passage.queue]])
        return passage.passed

    def _beside(self, passage, queue):
        found = []
        for other in reversed(self._known[queue]):
            if other.passed <= passage.begin:
                break
            if other.meets(passage):
                found.append(other)
        return found

    def _put_off(self, queue, new):
        """Those of ``queue`` that pass later because of ``new`` or of one before them."""
        first = min(other.begin for other in new)
        concerned = []
        for passage in reversed(self._known[queue]):
            if passage.passed <= first:
                break
            concerned.append(passage)
        later, previous = [], None
        for passage in reversed(concerned):
            pushed = previous is not None and previous.passed > passage.begin
            if pushed or any(passage.meets(other) for other in new):
                before = passage.passed
                if pushed:
                    passage.begin = previous.passed
                self.estimate(passage)
                if passage.passed != before:
                    later.append(passage)
                    self.delays += 1
            previous = passage
        return later
