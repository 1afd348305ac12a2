"""FIFO between two streams: the library's queue behind stream ports."""

from amaranth import *
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out


__all__ = ["StreamFifo"]


class StreamFifo(wiring.Component):
    """First-in first-out queue.

    One word in and one word out per cycle. A word written to an empty queue stands at the output
    one cycle later, or two if ``buffered``. ``i.ready`` depends only on registers, and so does
    ``o.valid``; of a queue that is not ``buffered``, ``o.payload`` is read from distributed
    memory without a register behind it.

    Parameters
    ----------
    shape : ShapeLike
        Word.
    depth : int
        Words that the queue takes while nothing leaves; at least 1, at least 2 if ``buffered``.
    buffered : bool
        Read through the output register of the memory, which can then be a block RAM.

    Members
    -------
    i : In(stream.Signature(shape))
        Words to queue.
    o : Out(stream.Signature(shape))
        The same words in the same order.
    level : Out(range(depth + 1))
        Words in the queue.
    """

    def __init__(self, shape, *, depth, buffered=True):
        least = 2 if buffered else 1
        if not isinstance(depth, int) or depth < least:
            raise ValueError(f"depth={depth!r}: a queue with buffered={buffered} needs an integer "
                             f"of at least {least}")
        self.shape = shape
        self.depth = depth
        self.buffered = buffered
        super().__init__({
            "i": In(stream.Signature(shape)),
            "o": Out(stream.Signature(shape)),
            "level": Out(range(depth + 1)),
        })

    def elaborate(self, platform):
        m = Module()

        kind = fifo.SyncFIFOBuffered if self.buffered else fifo.SyncFIFO
        m.submodules.queue = queue = kind(width=Shape.cast(self.shape).width, depth=self.depth)

        m.d.comb += [
            queue.w_data.eq(self.i.payload),
            queue.w_en.eq(self.i.valid),
            self.i.ready.eq(queue.w_rdy),
            Value.cast(self.o.payload).eq(queue.r_data),
            self.o.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.o.ready),
            self.level.eq(queue.level),
        ]

        return m
