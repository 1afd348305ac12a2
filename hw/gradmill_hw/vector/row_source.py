"""Rows of an operand, read ahead."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..memory.ports import READ_LATENCY, ROW_ADDRESS_BITS
from .credit_fifo import CreditFifo
from .row_walk import RowWalk


__all__ = ["RowSource"]


class RowSource(wiring.Component):
    """Reads the rows of an operand as far ahead as its FIFO has room.

    One row per cycle. The first row stands at ``o`` ``READ_LATENCY + 2`` cycles after ``start``,
    or ``extra_latency`` more, if no read is refused.

    Parameters
    ----------
    shape : ShapeLike
        Row.
    extra_latency : int
        Cycles that a row which is ``late`` takes on its way from the memory.

    Members
    -------
    start, base, stride, step, rows, blocks : In
        Addresses, see :class:`RowWalk`.
    valid, addr, ready : Out(1), Out(16), In(1)
        Request to a :class:`ReadPort`.
    late : In(1)
        Rows come ``extra_latency`` cycles later; constant while rows are on their way.
    data : In(shape)
        Row granted ``READ_LATENCY`` cycles ago, or ``extra_latency`` more.
    o : Out(stream.Signature(shape))
        Rows in order.
    """

    #: Rows read ahead; more than are on their way at one a cycle.
    DEPTH = 16

    def __init__(self, shape, *, extra_latency=0):
        self.shape = shape
        self.extra_latency = extra_latency
        super().__init__({
            "start":  In(1),
            "base":   In(ROW_ADDRESS_BITS),
            "stride": In(ROW_ADDRESS_BITS),
            "step":   In(1),
            "rows":   In(17),
            "blocks": In(12),
            "valid":  Out(1),
            "addr":   Out(ROW_ADDRESS_BITS),
            "ready":  In(1),
            "late":   In(1),
            "data":   In(shape),
            "o":      Out(stream.Signature(shape)),
        })

    def elaborate(self, platform):
        m = Module()

        m.submodules.walk = walk = RowWalk()
        m.submodules.fifo = fifo = CreditFifo(self.shape, depth=self.DEPTH)
        granted = self.valid & self.ready
        m.d.comb += [
            *(getattr(walk, name).eq(getattr(self, name))
              for name in ("start", "base", "stride", "step", "rows", "blocks")),
            self.valid.eq(walk.active & fifo.room),
            self.addr.eq(walk.addr),
            walk.next.eq(granted),
            fifo.reserve.eq(granted),
        ]

        on_the_way = Signal(READ_LATENCY + self.extra_latency)
        m.d.sync += on_the_way.eq(Cat(granted, on_the_way))
        m.d.comb += [
            fifo.valid.eq(Mux(self.late, on_the_way[-1], on_the_way[READ_LATENCY - 1])),
            fifo.entry.eq(self.data),
        ]
        wiring.connect(m, fifo.o, wiring.flipped(self.o))
        return m
