"""FIFO at the elastic ends of a fixed-latency pipeline."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


__all__ = ["CreditFifo"]


class CreditFifo(wiring.Component):
    """FIFO whose places are taken before the entries arrive.

    A producer that cannot be stopped asks ``room`` when it starts an entry, takes the place with
    ``reserve``, and delivers the entry any number of cycles later. The place is free again when
    the entry has left at ``o``, so every entry that was reserved finds room.

    One entry in and one out per cycle; an entry appears at ``o`` one cycle after it came. The
    storage is read asynchronously (distributed memory).

    Parameters
    ----------
    shape : ShapeLike
        Entry.
    depth : int
        Places, a power of two. A loop from ``reserve`` to the entry leaving ``o`` of that many
        cycles runs without bubbles.

    Members
    -------
    room : Out(1)
        A place may be taken in this cycle; stays until it is.
    reserve : In(1)
        Takes a place.
    valid : In(1)
        ``entry`` comes in; only for a place that was taken.
    entry : In(shape)
        New entry.
    o : Out(stream.Signature(shape))
        Oldest entry.
    """

    def __init__(self, shape, *, depth):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 2, not {depth}")
        self.shape = shape
        self.depth = depth
        super().__init__({
            "room":    Out(1),
            "reserve": In(1),
            "valid":   In(1),
            "entry":   In(shape),
            "o":       Out(stream.Signature(shape)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.storage = storage = Memory(shape=self.shape, depth=self.depth, init=[])
        write = storage.write_port()
        read = storage.read_port(domain="comb")

        # Pointers carry one more bit than the address: equal means empty, not full.
        head = Signal(range(2 * self.depth))
        tail = Signal(range(2 * self.depth))
        leave = self.o.valid & self.o.ready
        m.d.comb += [
            write.addr.eq(tail),
            write.data.eq(self.entry),
            write.en.eq(self.valid),
            read.addr.eq(head),
            self.o.payload.eq(read.data),
            self.o.valid.eq(head != tail),
        ]
        m.d.sync += [
            tail.eq(tail + self.valid),
            head.eq(head + leave),
        ]

        taken = Signal(range(self.depth + 1))
        m.d.comb += self.room.eq(~taken[-1])
        with m.If(self.reserve & ~leave):
            m.d.sync += taken.eq(taken + 1)
        with m.If(leave & ~self.reserve):
            m.d.sync += taken.eq(taken - 1)
        return m
