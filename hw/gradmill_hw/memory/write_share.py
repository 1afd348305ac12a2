"""Several writers of one memory tier."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .axi_writer import WriteClient
from .fifo import StreamFifo


__all__ = ["REQUESTS_LISTED", "WriteShare"]

#: Requests whose beats or reports are still to come; what a store has unanswered.
REQUESTS_LISTED = 16


class WriteShare(wiring.Component):
    """Makes one :class:`WriteClient` of several, which take turns, a request at a time.

    Beats and reports follow the order of the requests: a client whose request was taken holds up
    the others until its beats have come.

    Parameters
    ----------
    config : Config
        Sizes.
    clients : int
        Clients.

    Members
    -------
    clients : In(WriteClient(config)).array(clients)
        Those who write.
    writer : Out(WriteClient(config))
        The one who does it for them.
    """

    def __init__(self, config, *, clients):
        if clients < 1:
            raise ValueError(f"clients must be positive, not {clients}")
        self.config = config
        super().__init__({
            "clients": In(WriteClient(config)).array(clients),
            "writer":  Out(WriteClient(config)),
        })

    def elaborate(self, platform):
        m = Module()
        writer, count = self.writer, len(self.clients)
        number = range(count)
        owed = data.StructLayout({"client": number, "beats": len(writer.request.p.beats)})
        m.submodules.writing = writing = StreamFifo(owed, depth=REQUESTS_LISTED, buffered=False)
        m.submodules.reporting = reporting = StreamFifo(Shape.cast(number), depth=REQUESTS_LISTED,
                                                        buffered=False)

        # Round robin: the client that was served last comes last. A choice is kept while the
        # request waits.
        last, chosen, held = Signal(number), Signal(number), Signal()
        choice = Signal(number)
        with m.Switch(last):
            for k in number:
                with m.Case(k):
                    m.d.comb += choice.eq(k)
                    for j in range(k - 1, k - count, -1):
                        with m.If(self.clients[j % count].request.valid):
                            m.d.comb += choice.eq(j % count)
        m.d.comb += chosen.eq(Mux(held, last, choice))
        room = Signal()
        m.d.comb += room.eq(writing.i.ready & reporting.i.ready)
        taken = writer.request.valid & writer.request.ready
        for k, client in enumerate(self.clients):
            with m.If(chosen == k):
                m.d.comb += [
                    writer.request.valid.eq(client.request.valid & room),
                    writer.request.payload.eq(client.request.payload),
                    client.request.ready.eq(writer.request.ready & room),
                ]
        m.d.sync += held.eq(writer.request.valid & ~writer.request.ready)
        with m.If(writer.request.valid):
            m.d.sync += last.eq(chosen)
        m.d.comb += [
            writing.i.valid.eq(taken),
            writing.i.p.client.eq(chosen),
            writing.i.p.beats.eq(writer.request.p.beats),
            reporting.i.valid.eq(taken),
            reporting.i.payload.eq(chosen),
        ]

        # Beats of the oldest request that has not had all of them.
        beat = Signal.like(writing.o.p.beats)
        final = Signal()
        sent = writer.data.valid & writer.data.ready
        for k, client in enumerate(self.clients):
            mine = writing.o.valid & (writing.o.p.client == k)
            m.d.comb += client.data.ready.eq(mine & writer.data.ready)
            with m.If(mine):
                m.d.comb += [
                    writer.data.valid.eq(client.data.valid),
                    writer.data.payload.eq(client.data.payload),
                ]
        m.d.comb += [
            final.eq(beat + 1 == writing.o.p.beats),
            writing.o.ready.eq(sent & final),
        ]
        with m.If(sent):
            m.d.sync += beat.eq(Mux(final, 0, beat + 1))

        # Reports.
        for k, client in enumerate(self.clients):
            mine = reporting.o.valid & (reporting.o.payload == k)
            m.d.comb += [
                client.done.valid.eq(mine & writer.done.valid),
                client.done.payload.eq(writer.done.payload),
            ]
            with m.If(mine):
                m.d.comb += writer.done.ready.eq(client.done.ready)
        m.d.comb += reporting.o.ready.eq(writer.done.valid & writer.done.ready)
        return m
