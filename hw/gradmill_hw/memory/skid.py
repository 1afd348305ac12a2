"""Register slice for a stream."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


__all__ = ["SkidBuffer"]


class SkidBuffer(wiring.Component):
    """Cuts every path of a stream, forwards and backwards, with two words of storage.

    One word per cycle, one cycle of latency. All outputs are registers.

    Parameters
    ----------
    shape : ShapeLike
        Word.

    Members
    -------
    i : In(stream.Signature(shape))
        Words.
    o : Out(stream.Signature(shape))
        The same words in the same order.
    """

    def __init__(self, shape):
        self.shape = shape
        super().__init__({
            "i": In(stream.Signature(shape)),
            "o": Out(stream.Signature(shape)),
        })

    def elaborate(self, platform):
        m = Module()

        width   = Shape.cast(self.shape).width
        ready   = Signal(init=1)
        valid   = Signal()
        payload = Signal(width, reset_less=True)
        spare   = Signal(width, reset_less=True)  # holds the oldest word while not ready

        with m.If(ready):
            m.d.sync += spare.eq(self.i.payload)
        with m.If(self.o.ready | ~valid):
            m.d.sync += [
                valid.eq(self.i.valid | ~ready),
                payload.eq(Mux(ready, self.i.payload, spare)),
                ready.eq(1),
            ]
        with m.Elif(self.i.valid):
            m.d.sync += ready.eq(0)

        m.d.comb += [
            self.i.ready.eq(ready),
            self.o.valid.eq(valid),
            Value.cast(self.o.payload).eq(payload),
        ]

        return m
