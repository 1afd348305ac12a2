"""Proof of the reader: bus rules, every beat to its client, errors exact, progress.

Addresses are proved with the burst cutter, which the reader only registers; here one arbitrary
request is followed from its acceptance to its last beat.
"""

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.memory.axi import AxiRead
from gradmill_hw.memory.axi_reader import AxiReader, ReadClient
from gradmill_hw.memory.bursts import beats_bits
from tests.formal.narrow_bus import NarrowBus, burst_rules, held
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal

CONFIG = NarrowBus()
CLIENTS = 2


class ReaderProof(wiring.Component):
    """Requests, readiness and the subordinate are free."""

    clients: In(ReadClient(CONFIG)).array(CLIENTS)
    axi: Out(AxiRead(CONFIG.address_bits, CONFIG.bus_bits))
    watch: In(1)

    def __init__(self, reader=AxiReader):
        self.reader = reader
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.reader(CONFIG, clients=CLIENTS)
        axi = dut.axi
        wiring.connect(m, axi, wiring.flipped(self.axi))
        for outer, inner in zip(self.clients, dut.clients, strict=True):
            wiring.connect(m, wiring.flipped(outer), inner)

        # Clients offer aligned requests of at least one beat until taken.
        taken = Signal()
        who = Signal(range(CLIENTS))
        beats = Signal(beats_bits(CONFIG))
        for k, client in enumerate(self.clients):
            request = client.request
            m.d.comb += [
                Assume(held(m, request.valid, request.ready, request.payload)),
                Assume(request.p.beats != 0),
                Assume(~request.p.addr[0]),
            ]
            with m.If(request.valid & request.ready):
                m.d.comb += [taken.eq(1), who.eq(k), beats.eq(request.p.beats)]
        m.d.comb += Assert(~(self.clients[0].request.valid & self.clients[0].request.ready
                             & self.clients[1].request.valid & self.clients[1].request.ready))

        # The subordinate answers accepted bursts in order, beat by beat, and marks the last one.
        sent = Signal()  # address
        came = Signal()  # beat
        lengths = [Signal(8, name=f"length{k}") for k in range(CONFIG.reads_in_flight)]
        waiting = Signal(range(CONFIG.reads_in_flight + 2))
        beat = Signal(8)
        ends = Signal()
        m.d.comb += [
            sent.eq(axi.arvalid & axi.arready),
            came.eq(axi.rvalid & axi.rready),
            ends.eq(came & axi.rlast),
            Assume(~axi.rvalid | (waiting != 0)),
            Assume(axi.rlast == (beat == lengths[0])),
            Assume(held(m, axi.rvalid, axi.rready, Cat(axi.rdata, axi.rresp, axi.rlast))),
        ]
        m.d.sync += waiting.eq(waiting + sent - ends)
        with m.If(came):
            m.d.sync += beat.eq(Mux(axi.rlast, 0, beat + 1))
        with m.If(ends):
            m.d.sync += [lengths[k].eq(lengths[k + 1]) for k in range(len(lengths) - 1)]
        with m.If(sent):
            with m.Switch(waiting - ends):
                for k, length in enumerate(lengths):
                    with m.Case(k):
                        m.d.sync += length.eq(axi.arlen)
        m.d.comb += Assert(waiting + axi.arvalid <= CONFIG.reads_in_flight)

        # Bus rules.
        m.d.comb += Assert(held(m, axi.arvalid, axi.arready, Cat(axi.araddr, axi.arlen)))
        with m.If(axi.arvalid):
            m.d.comb += Assert(burst_rules(CONFIG, axi.araddr, axi.arlen, axi.arsize, axi.arburst))

        # Beats asked for and not yet delivered; all of them, and those before the watched request.
        owed = Signal(6)
        before = Signal(6)
        left = Signal(beats_bits(CONFIG))
        mine = Signal(range(CLIENTS))
        watching = Signal()
        m.d.sync += owed.eq(owed + Mux(taken, beats, 0) - came)
        with m.If(taken & self.watch & ~watching):
            m.d.sync += [watching.eq(1), mine.eq(who), before.eq(owed - came), left.eq(beats)]
        with m.Elif(came & watching):
            with m.If(before != 0):
                m.d.sync += before.eq(before - 1)
            with m.Else():
                m.d.sync += [left.eq(left - 1), watching.eq(left != 1)]

        m.d.comb += [
            Assert(dut.busy == (owed != 0)),
            Assert(~came | (owed != 0)),
        ]
        for k, client in enumerate(self.clients):
            other = self.clients[1 - k]
            # A beat is taken from the bus exactly when one client takes it.
            m.d.comb += [
                Assert(~(client.data.valid & other.data.valid)),
                Assert(~(client.data.valid & ~axi.rvalid)),
                Assert(~(client.data.valid & client.data.ready) | came),
            ]
            with m.If(watching & came & (before == 0) & (mine == k)):
                m.d.comb += [
                    Assert(client.data.valid & client.data.ready),
                    Assert(client.data.p.data == axi.rdata),
                    Assert(client.data.p.last == (left == 1)),
                    Assert(client.data.p.error == (axi.rresp != 0)),
                ]
        delivered = Cat(client.data.valid & client.data.ready for client in self.clients)
        m.d.comb += Assert(came == delivered.any())

        # Progress: while something is owed and nothing waits on the environment, something moves
        # within three cycles.
        offered = Cat(client.data.valid & ~client.data.ready for client in self.clients).any()
        patience = Signal(3)
        blocked = offered | (axi.arvalid & ~axi.arready) | ((waiting != 0) & ~axi.rvalid)
        with m.If((owed == 0) | sent | came | blocked):
            m.d.sync += patience.eq(0)
        with m.Else():
            m.d.sync += patience.eq(patience + 1)
        m.d.comb += Assert(patience < 3)

        # Fairness: a client waits for at most one request of another.
        for k, client in enumerate(self.clients):
            overtaken = Signal(2, name=f"overtaken{k}")
            with m.If(~client.request.valid | client.request.ready):
                m.d.sync += overtaken.eq(0)
            with m.Elif(taken):
                m.d.sync += overtaken.eq(overtaken + 1)
            m.d.comb += Assert(overtaken < 2)

        m.d.comb += [
            Cover(waiting == CONFIG.reads_in_flight),
            Cover(watching & came & (before == 0) & (left == 1) & (axi.rresp != 0) & mine),
            Cover(watching & (before != 0) & (left == 7)),
        ]
        return m


def test_reader():
    prove(ReaderProof, "reader", engine="pdr", depth=8, cover_depth=20)


def test_valid_does_not_wait():
    assert_no_path(AxiReader(CONFIG, clients=CLIENTS), "axi__arready", "axi__arvalid")


class DeafReader(AxiReader):
    """Looks only at half of the response."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = AxiReader(self.config, clients=CLIENTS)
        for outer, client in zip(self.clients, inner.clients, strict=True):
            wiring.connect(m, wiring.flipped(outer), client)
        wiring.connect(m, inner.axi, wiring.flipped(self.axi))
        m.d.comb += [inner.axi.rresp.eq(self.axi.rresp[1]), self.busy.eq(inner.busy)]
        return m


def test_proof_sees_a_lost_error():
    with pytest.raises(ProofFailed):
        prove(lambda: ReaderProof(DeafReader), "deaf reader", engine="pdr", depth=12)
