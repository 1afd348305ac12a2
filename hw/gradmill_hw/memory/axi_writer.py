"""AXI4 write side of one memory tier."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature

from .axi import AxiWrite, drive_sideband
from .bursts import Bursts, Request
from .fifo import StreamFifo


__all__ = ["AxiWriter", "WriteBeat", "WriteClient"]


class WriteBeat(data.StructLayout):
    """Beat to write.

    Members
    -------
    data : bus_bits
        Bytes, the lowest address in the low bits.
    strobe : beat_bytes
        Bytes to write.
    """

    def __init__(self, config):
        super().__init__({"data": config.bus_bits, "strobe": config.beat_bytes})


class WriteClient(Signature):
    """Writes, seen from the client.

    Members
    -------
    request : Out(stream.Signature(Request(config)))
        Where to write.
    data : Out(stream.Signature(WriteBeat(config)))
        Beats of all requests in order; every beat of a request that was taken must come.
    done : In(stream.Signature(1))
        One for each request in order, when all its bursts have been answered: 1 if one of the
        answers was not OKAY.
    """

    def __init__(self, config):
        super().__init__({
            "request": Out(stream.Signature(Request(config))),
            "data":    Out(stream.Signature(WriteBeat(config))),
            "done":    In(stream.Signature(1)),
        })


class AxiWriter(wiring.Component):
    """Turns requests and beats into AXI4 bursts and reports the end of each request.

    Up to ``reads_in_flight`` bursts are unanswered. Beats pass without a register from
    ``client.data`` to the bus, one per cycle, no earlier than the address of their burst stands
    on the bus. ``bready`` waits only where an answer ends a request whose report is not taken.

    Parameters
    ----------
    config : Config
        Sizes: ``address_bits``, ``bus_bits``, ``burst_beats``, ``reads_in_flight``.

    Members
    -------
    client : In(WriteClient(config))
        Requests, beats, completions.
    axi : Out(AxiWrite(address_bits, bus_bits))
        Bus.
    busy : Out(1)
        A request was taken that has not been reported done.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "client": In(WriteClient(config)),
            "axi":    Out(AxiWrite(config.address_bits, config.bus_bits)),
            "busy":   Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        axi, client = self.axi, self.client
        depth = self.config.reads_in_flight
        m.submodules.bursts = bursts = Bursts(self.config)
        # `final` of every unanswered burst, and the lengths of those whose data is due.
        m.submodules.flight = flight = StreamFifo(1, depth=depth, buffered=False)
        m.submodules.lengths = lengths = StreamFifo(8, depth=depth, buffered=False)
        wiring.connect(m, wiring.flipped(client.request), bursts.i)

        # A burst enters the address register and both lists together.
        free = Signal()
        m.d.comb += [
            free.eq(~axi.awvalid | axi.awready),
            bursts.o.ready.eq(free & flight.i.ready & lengths.i.ready),
            flight.i.valid.eq(free & bursts.o.valid & lengths.i.ready),
            flight.i.payload.eq(bursts.o.p.final),
            lengths.i.valid.eq(free & bursts.o.valid & flight.i.ready),
            lengths.i.payload.eq(bursts.o.p.len),
            *drive_sideband(axi, "w"),
        ]
        with m.If(free):
            m.d.sync += axi.awvalid.eq(bursts.o.valid & flight.i.ready & lengths.i.ready)
            m.d.sync += [axi.awaddr.eq(bursts.o.p.addr), axi.awlen.eq(bursts.o.p.len)]

        # The oldest burst whose data is due waits in the list until its last beat has passed.
        beat = Signal(8)
        sent = Signal()
        m.d.comb += [
            axi.wvalid.eq(lengths.o.valid & client.data.valid),
            client.data.ready.eq(lengths.o.valid & axi.wready),
            axi.wdata.eq(client.data.p.data),
            axi.wstrb.eq(client.data.p.strobe),
            axi.wlast.eq(beat == lengths.o.payload),
            sent.eq(axi.wvalid & axi.wready),
            lengths.o.ready.eq(sent & axi.wlast),
        ]
        with m.If(sent):
            m.d.sync += beat.eq(Mux(axi.wlast, 0, beat + 1))

        # One bad answer spoils its request.
        bad = Signal()
        error = Signal()
        m.d.comb += [
            error.eq(bad | (axi.bresp != 0)),
            client.done.valid.eq(axi.bvalid & flight.o.payload),
            client.done.payload.eq(error),
            axi.bready.eq(~flight.o.payload | client.done.ready),
            flight.o.ready.eq(axi.bvalid & axi.bready),
            self.busy.eq(bursts.o.valid | flight.o.valid),
        ]
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += bad.eq(error & ~flight.o.payload)
        return m
