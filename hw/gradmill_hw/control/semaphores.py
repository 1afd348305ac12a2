"""Counting semaphores between the queues of a tile."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..isa import CHANNELS, QUEUES, TILE_QUEUES, numbers
from ..regs import SEMAPHORE_MAX


__all__ = ["TOKENS", "Semaphores", "partners"]

#: Bits of a wait or post mask.
TOKENS = QUEUES * CHANNELS


def partners(queue, queues=TILE_QUEUES):
    """``(bit, other, channel)`` of each semaphore that ``queue`` shares with another of
    ``queues``."""
    for other in queues:
        if other != queue:
            for channel in range(CHANNELS):
                yield CHANNELS * other + channel, other, channel


class Semaphores(wiring.Component):
    """One counter for each ordered pair of queues and channel.

    ``available[q]`` says in the same cycle that every semaphore in ``wait[q]`` is non-zero;
    ``take[q]`` then takes one of each, and does nothing otherwise: a counter never falls below
    zero. A post is seen in the next cycle. A post to a full semaphore that is not taken from in
    the same cycle leaves it full and is reported: a counter never wraps.

    Parameters
    ----------
    queues : tuple of Queue
        Queues of the tile; arrays are indexed by their numbers.
    maximum : int
        Most tokens of a semaphore; one less than a power of two.

    Members
    -------
    wait, post : In(16)[queue]
        Masks, one bit per semaphore; bits that cannot be are ignored. ``post`` adds one each.
    take : In(1)[queue]
        The instruction at the head of the queue would start.
    available : Out(1)[queue]
        It may.
    missing : Out(16)[queue]
        Semaphores of ``wait`` that are zero.
    overflow : Out(1)[queue]
        A post of this queue had no room.
    """

    def __init__(self, queues=TILE_QUEUES, *, maximum=SEMAPHORE_MAX):
        if maximum < 1 or maximum & (maximum + 1):
            raise ValueError(f"maximum must be one less than a power of two, not {maximum}")
        self.maximum = maximum
        self.queues = queues
        count = numbers(queues)
        super().__init__({
            "wait":      In(TOKENS).array(count),
            "post":      In(TOKENS).array(count),
            "take":      In(1).array(count),
            "available": Out(1).array(count),
            "missing":   Out(TOKENS).array(count),
            "overflow":  Out(1).array(count),
        })

    def elaborate(self, platform):
        m = Module()
        overflows = {queue: [] for queue in self.queues}

        for consumer in self.queues:
            taken = Signal(name=f"taken_{consumer.name.lower()}")
            m.d.comb += [
                self.available[consumer].eq(self.missing[consumer] == 0),
                taken.eq(self.take[consumer] & self.available[consumer]),
            ]
            for bit, producer, channel in partners(consumer, self.queues):
                name  = f"{producer.name}_{consumer.name}_{channel}".lower()
                count = Signal(range(self.maximum + 1), name=f"count_{name}")
                down  = Signal(name=f"down_{name}")
                up    = Signal(name=f"up_{name}")
                full  = Signal(name=f"full_{name}")
                m.d.comb += [
                    self.missing[consumer][bit].eq(self.wait[consumer][bit] & (count == 0)),
                    down.eq(taken & self.wait[consumer][bit]),
                    up.eq(self.post[producer][CHANNELS * consumer + channel]),
                    full.eq(count == self.maximum),
                ]
                overflows[producer].append(up & ~down & full)
                with m.If((up ^ down) & ~(up & full)):
                    m.d.sync += count.eq(count + Cat(1, down.replicate(len(count) - 1)))

        for producer, reasons in overflows.items():
            m.d.comb += self.overflow[producer].eq(Cat(reasons).any())
        return m
