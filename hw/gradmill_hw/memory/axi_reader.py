"""AXI4 read side of one memory tier, shared by several clients."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature

from .axi import AxiRead, drive_sideband
from .bursts import Bursts, Request
from .fifo import StreamFifo


__all__ = ["AxiReader", "ReadBeat", "ReadClient"]


class ReadBeat(data.StructLayout):
    """Beat of a client's request.

    Members
    -------
    data : bus_bits
        Bytes, the lowest address in the low bits.
    last : 1
        Last beat of the request.
    error : 1
        The response of this beat was not OKAY; its data is undefined.
    """

    def __init__(self, config):
        super().__init__({"data": config.bus_bits, "last": 1, "error": 1})


class ReadClient(Signature):
    """Reads, seen from the client.

    Members
    -------
    request : Out(stream.Signature(Request(config)))
        What to read.
    data : In(stream.Signature(ReadBeat(config)))
        Beats of all requests in order. A client must sooner or later take every beat that it
        requested, whatever happens to other requests: beats of other clients may wait behind.
    """

    def __init__(self, config):
        super().__init__({
            "request": Out(stream.Signature(Request(config))),
            "data":    In(stream.Signature(ReadBeat(config))),
        })


class AxiReader(wiring.Component):
    """Turns requests of several clients into AXI4 bursts and hands the beats back.

    Clients take turns, a request at a time. Up to ``reads_in_flight`` bursts are outstanding
    under one identifier, so that beats come back in order; ``rready`` is the ready of the client
    whose beat it is. A burst is issued every cycle that the bus takes one, the first one two
    cycles after its request.

    Parameters
    ----------
    config : Config
        Sizes: ``address_bits``, ``bus_bits``, ``burst_beats``, ``reads_in_flight``.
    clients : int
        Clients.

    Members
    -------
    clients : In(ReadClient(config)).array(clients)
        Requests and their beats.
    axi : Out(AxiRead(address_bits, bus_bits))
        Bus.
    busy : Out(1)
        A request was taken of which not every beat has been delivered.
    """

    def __init__(self, config, *, clients):
        if clients < 1:
            raise ValueError(f"clients must be positive, not {clients}")
        self.config = config
        super().__init__({
            "clients": In(ReadClient(config)).array(clients),
            "axi":     Out(AxiRead(config.address_bits, config.bus_bits)),
            "busy":    Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        count = len(self.clients)
        flight_shape = data.StructLayout({"client": range(count), "final": 1})
        m.submodules.bursts = bursts = Bursts(self.config)
        m.submodules.flight = flight = StreamFifo(
            flight_shape, depth=self.config.reads_in_flight, buffered=False)

        # Round robin: the client that was served last comes last.
        owner = Signal(range(count))
        chosen = Signal(range(count))
        with m.Switch(owner):
            for k in range(count):
                with m.Case(k):
                    m.d.comb += chosen.eq(k)
                    for j in range(k - 1, k - count, -1):
                        with m.If(self.clients[j % count].request.valid):
                            m.d.comb += chosen.eq(j % count)
        for k, client in enumerate(self.clients):
            with m.If(chosen == k):
                m.d.comb += [
                    bursts.i.valid.eq(client.request.valid),
                    bursts.i.payload.eq(client.request.payload),
                    client.request.ready.eq(bursts.i.ready),
                ]
        with m.If(bursts.i.valid & bursts.i.ready):
            m.d.sync += owner.eq(chosen)

        # A burst enters the address register and the list of outstanding ones together.
        axi = self.axi
        free = Signal()
        m.d.comb += [
            free.eq(~axi.arvalid | axi.arready),
            bursts.o.ready.eq(free & flight.i.ready),
            flight.i.valid.eq(free & bursts.o.valid),
            flight.i.p.client.eq(owner),
            flight.i.p.final.eq(bursts.o.p.final),
            *drive_sideband(axi, "r"),
        ]
        with m.If(free):
            m.d.sync += axi.arvalid.eq(bursts.o.valid & flight.i.ready)
            m.d.sync += [axi.araddr.eq(bursts.o.p.addr), axi.arlen.eq(bursts.o.p.len)]

        # Beats belong to the oldest outstanding burst.
        for k, client in enumerate(self.clients):
            mine = Signal(name=f"mine{k}")
            m.d.comb += [
                mine.eq(flight.o.valid & (flight.o.p.client == k)),
                client.data.valid.eq(mine & axi.rvalid),
                client.data.p.data.eq(axi.rdata),
                client.data.p.last.eq(axi.rlast & flight.o.p.final),
                client.data.p.error.eq(axi.rresp != 0),
            ]
            with m.If(mine):
                m.d.comb += axi.rready.eq(client.data.ready)
        m.d.comb += [
            flight.o.ready.eq(axi.rvalid & axi.rready & axi.rlast),
            self.busy.eq(bursts.o.valid | flight.o.valid),
        ]
        return m
