"""The two ends of a link: rows travel one way, credits the other."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..memory.fifo import StreamFifo
from .row import LinkPort, LinkRow


__all__ = ["LINK_CREDITS", "ROUND_TRIP", "LinkReceiver", "LinkSender"]

#: Cycles from the departure of a row to the next one that its credit allows, if the row is taken
#: at once and no register lies between the tiles.
ROUND_TRIP = 5

#: Rows on their way or waiting at the far end. A link runs at one row per cycle as long as the
#: round trip takes no more cycles than this: 5, and one more for each register stage on the wires,
#: there or back, so that 11 of them cost nothing. Distributed memory is no smaller for fewer rows.
LINK_CREDITS = 16


class LinkSender(wiring.Component):
    """Puts rows on the wires, each for one credit.

    One row per cycle while there are credits; a row stands on ``port`` one cycle after it was
    taken from ``i``. A credit that gets lost lowers the throughput; without any credit the sender
    waits. It begins with all ``credits``, so both ends and all registers between them must be
    reset together.

    Parameters
    ----------
    config : Config
        Sizes.
    credits : int
        Places at the receiver.

    Members
    -------
    i : In(stream.Signature(LinkRow(config)))
        Rows to send. ``ready`` comes from registers alone.
    port : Out(LinkPort(config))
        Wires to the neighbour.
    in_hand : Out(range(credits + 1))
        Credits in hand; all of them when the link is empty.
    error : Out(1)
        A credit came although all were in hand; stays until reset. The credit is ignored.
    """

    def __init__(self, config, credits=LINK_CREDITS):
        if credits < 1:
            raise ValueError(f"credits must be positive, not {credits}")
        self.credits = credits
        super().__init__({
            "i":       In(stream.Signature(LinkRow(config))),
            "port":    Out(LinkPort(config)),
            "in_hand": Out(range(credits + 1), init=credits),
            "error":   Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        port = self.port

        sent   = self.i.valid & self.i.ready
        excess = port.credit & (self.in_hand == self.credits)
        m.d.comb += self.i.ready.eq(self.in_hand != 0)
        m.d.sync += [
            port.valid.eq(sent),
            port.payload.eq(self.i.payload),
            self.in_hand.eq(self.in_hand + (port.credit & ~excess) - sent),
            self.error.eq(self.error | excess),
        ]
        return m


class LinkReceiver(wiring.Component):
    """Keeps rows until they are taken, and returns a credit for each one that leaves.

    One row per cycle; a row stands at ``o`` two cycles after it was on ``port``.

    Parameters
    ----------
    config : Config
        Sizes.
    credits : int
        Places; at least 3.

    Members
    -------
    port : In(LinkPort(config))
        Wires from the neighbour.
    o : Out(stream.Signature(LinkRow(config)))
        Rows in order. ``valid`` and ``payload`` come from registers.
    error : Out(1)
        A row came although every place was taken; stays until reset. The row is lost.
    """

    def __init__(self, config, credits=LINK_CREDITS):
        if credits < 3:
            raise ValueError(f"credits must be at least 3, not {credits}")
        self.credits = credits
        super().__init__({
            "port":  In(LinkPort(config)),
            "o":     Out(stream.Signature(LinkRow(config))),
            "error": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        port = self.port

        # From depth 3 on, the queue takes rows until it holds as many as its depth: a row has left
        # its memory for the output register before the memory can be full.
        m.submodules.queue = queue = StreamFifo(port.payload.shape(), depth=self.credits)
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        m.d.comb += [
            queue.i.valid.eq(port.valid),
            queue.i.payload.eq(port.payload),
        ]
        m.d.sync += [
            port.credit.eq(self.o.valid & self.o.ready),
            self.error.eq(self.error | (port.valid & ~queue.i.ready)),
        ]
        return m
