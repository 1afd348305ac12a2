"""Two pools of one fast memory: activations as they are, and coded ones, whose places are of
another size."""

from .manager import Manager


__all__ = ["Pools"]


class Pools:
    """A :class:`Manager` for each of two kinds of activations, behind the methods of one.

    The oldest of each pool leave. All copies share one unit, so fetches are timed together.

    Parameters
    ----------
    raw : Manager
        Of activations as they are; it has learned and adopted its buffers.
    coded : sequence of int
        Activations that are stored in a stash format, a buffer each.
    base, place, count : int
        Places for those: address, bytes of one, places.
    more_far : callable
        As of :class:`Manager`.
    """

    def __init__(self, raw, coded, *, base, place, count, more_far):
        pool = Manager(base=base, place=place, count=count, more_far=more_far, low=1.0)
        pool.forward, pool.backward = raw.forward, raw.backward
        pool.timed_copy(1, raw.copy_cycles * place / raw.place)
        pool.adopt(dict.fromkeys(coded, 1), 0)
        self.raw, self.coded = raw, pool
        for each in self._pools:
            each.time_fetches({**raw.copies, **pool.copies})

    @property
    def _pools(self):
        return self.raw, self.coded

    def _of(self, activation):
        return self.coded if activation in self.coded.sizes else self.raw

    @property
    def high(self):
        """Buffers that may be in fast memory together, and are stored at a time."""
        return self.raw.high + self.coded.high

    @property
    def learned(self):
        """The first pass has been recorded."""
        return True

    @property
    def excess(self):
        """Buffers that leave the fast memory in each sub-minibatch."""
        return self.raw.excess + self.coded.excess

    def begin(self):
        """A virtual minibatch begins: nothing is alive, and places are as at first."""
        for pool in self._pools:
            pool.begin()

    def room(self, count):
        """Whether ``count`` more buffers as they are fit; coded ones are not stored in parts."""
        return self.raw.room(count)

    def produce(self, activation, count):
        """``(new buffers, moves that make room for them)``."""
        return self._of(activation).produce(activation, count)

    def write_back(self):
        """Moves of the oldest that will have to leave, and need not wait until there is no room."""
        return [move for pool in self._pools for move in pool.write_back()]

    def fetch(self, activation):
        """As of :class:`Manager`."""
        return self._of(activation).fetch(activation)

    def prefetch(self, stage):
        """Moves that it is time for when the backward of ``stage`` begins, those first that are
        needed first."""
        moves = [move for pool in self._pools for move in pool.prefetch(stage)]
        return sorted(moves, key=lambda move: -move.buffer.activation)

    def release(self, activation):
        """The buffers of ``activation`` are dead; they are returned."""
        return self._of(activation).release(activation)

    def describe(self):
        """What was learned and decided, as plain data: of activations as they are, bytes of both
        together."""
        raw, coded = (pool.describe() for pool in self._pools)
        return {**raw, **{name: raw[name] + coded[name] for name in raw
                          if name.endswith("_bytes")},
                "far_bytes_each_way": raw["far_bytes_each_way"] + coded["far_bytes_each_way"]}
