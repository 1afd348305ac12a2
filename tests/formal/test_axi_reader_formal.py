"""Proof of the reader: bus rules, every beat to its client, errors exact, progress, fairness.

Queues and the burst cutter are proved by themselves; here models of theirs with visible state take
their place, except where bus rules are proved.
"""

from itertools import pairwise

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.memory import axi_reader
from gradmill_hw.memory.axi import AxiRead
from gradmill_hw.memory.axi_reader import AxiReader, ReadClient
from gradmill_hw.memory.bursts import beats_bits
from tests.formal.narrow_bus import FreeBursts, NarrowBus, ShiftQueue, burst_rules, held, mutant
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal

CONFIG = NarrowBus()
CLIENTS = 2
#: Where a burst stands relative to the watched request.
BEFORE, OWN, AFTER = range(3)


class Environment(wiring.Component):
    """A reader with free clients and a free subordinate that keep to their side of the rules."""

    clients: In(ReadClient(CONFIG)).array(CLIENTS)
    axi: Out(AxiRead(CONFIG.address_bits, CONFIG.bus_bits))
    watch: In(1)

    def __init__(self, reader=AxiReader):
        self.reader = reader
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        proof = self

        class Open(self.reader):
            def elaborate(self, platform):
                inside = super().elaborate(platform)
                proof.invariants(inside, inside.submodules)
                return inside

        m.submodules.dut = self.dut = Open(CONFIG, clients=CLIENTS)
        axi = self.dut.axi
        wiring.connect(m, axi, wiring.flipped(self.axi))
        for outer, inner in zip(self.clients, self.dut.clients, strict=True):
            wiring.connect(m, wiring.flipped(outer), inner)

        # Clients offer aligned requests of at least one beat until taken.
        self.taken = Signal()
        self.who = Signal(range(CLIENTS))
        self.beats = Signal(beats_bits(CONFIG))
        for k, client in enumerate(self.clients):
            request = client.request
            m.d.comb += [
                Assume(held(m, request.valid, request.ready, request.payload)),
                Assume(request.p.beats != 0),
                Assume(~request.p.addr[0]),
            ]
            with m.If(request.valid & request.ready):
                m.d.comb += [self.taken.eq(1), self.who.eq(k), self.beats.eq(request.p.beats)]

        # The subordinate answers accepted bursts in order, beat by beat, and marks the last one.
        depth = CONFIG.reads_in_flight
        self.sent = Signal()
        self.came = Signal()
        self.ends = Signal()
        self.lengths = [Signal(8, name=f"length{k}") for k in range(depth)]
        self.waiting = Signal(range(depth + 2))
        self.beat = Signal(8)
        m.d.comb += [
            self.sent.eq(axi.arvalid & axi.arready),
            self.came.eq(axi.rvalid & axi.rready),
            self.ends.eq(self.came & axi.rlast),
            Assume(~axi.rvalid | (self.waiting != 0)),
            Assume(axi.rlast == (self.beat == self.lengths[0])),
            Assume(held(m, axi.rvalid, axi.rready, Cat(axi.rdata, axi.rresp, axi.rlast))),
        ]
        m.d.sync += self.waiting.eq(self.waiting + self.sent - self.ends)
        with m.If(self.came):
            m.d.sync += self.beat.eq(Mux(axi.rlast, 0, self.beat + 1))
        self.shift(m, self.lengths, axi.arlen)
        self.properties(m)
        return m

    def shift(self, m, entries, value):
        """Keep ``entries`` in step with the accepted bursts."""
        with m.If(self.ends):
            m.d.sync += [old.eq(new) for old, new in pairwise(entries)]
        with m.If(self.sent):
            for k, entry in enumerate(entries):
                with m.If(self.waiting - self.ends == k):
                    m.d.sync += entry.eq(value)

    def properties(self, m):
        raise NotImplementedError

    def invariants(self, m, inside):
        """Assertions that may look inside the reader."""


class Rules(Environment):
    """Everything that the address channel must keep to, with the real burst cutter."""

    def properties(self, m):
        axi = self.dut.axi
        m.d.comb += [
            Assert(held(m, axi.arvalid, axi.arready, Cat(axi.araddr, axi.arlen))),
            Assert(
                ~axi.arvalid | burst_rules(CONFIG, axi.araddr, axi.arlen, axi.arsize, axi.arburst)
            ),
            Cover(axi.arvalid & (axi.arlen == 3) & (axi.araddr[3:12] == 0x1FF)),
        ]

    def invariants(self, m, inside):
        burst = inside.bursts.o
        m.d.comb += Assert(
            ~burst.valid
            | burst_rules(
                CONFIG, burst.p.addr, burst.p.len, self.dut.axi.arsize, self.dut.axi.arburst
            )
        )


class Delivery(Environment):
    """Follows one arbitrary request from its acceptance to its last beat."""

    def properties(self, m):
        axi, dut = self.dut.axi, self.dut
        taken, came = self.taken, self.came

        # Beats taken on and not yet delivered: all, those before the watched request, its own.
        self.owed = owed = Signal(6)
        self.before = before = Signal(6)
        self.left = left = Signal(beats_bits(CONFIG))
        self.mine = mine = Signal(range(CLIENTS))
        self.watching = watching = Signal()
        ended = Signal()
        m.d.comb += ended.eq(watching & came & (before == 0) & (left == 1))
        m.d.sync += owed.eq(owed + Mux(taken, self.beats, 0) - came)
        begins = taken & self.watch & ~watching
        with m.If(begins):
            m.d.sync += [
                watching.eq(1),
                mine.eq(self.who),
                before.eq(owed - came),
                left.eq(self.beats),
            ]
        with m.Elif(came & watching):
            m.d.sync += watching.eq(~ended)
            with m.If(before != 0):
                m.d.sync += before.eq(before - 1)
            with m.Else():
                m.d.sync += left.eq(left - 1)

        # The place of each outstanding burst: accepted ones, the offered one, those not yet cut.
        self.place_request = Signal(2)
        self.place_offered = Signal(2)
        self.places = [Signal(2, name=f"place{k}") for k in self.lengths_range()]
        self.cut = Signal()
        with m.If(taken):
            m.d.sync += self.place_request.eq(
                Mux(begins, OWN, Mux(watching & ~ended, AFTER, BEFORE))
            )
        with m.Elif(ended):
            m.d.sync += self.place_request.eq(BEFORE)
        with m.If(self.cut):
            m.d.sync += self.place_offered.eq(Mux(ended, BEFORE, self.place_request))
        with m.Elif(ended):
            m.d.sync += self.place_offered.eq(BEFORE)
        self.shift(m, self.places, self.place_offered)
        with m.If(ended):
            m.d.sync += [place.eq(BEFORE) for place in self.places]

        m.d.comb += [
            Assert(dut.busy == (owed != 0)),
            Assert(self.waiting + axi.arvalid <= CONFIG.reads_in_flight),
            Assert(came == Cat(c.data.valid & c.data.ready for c in self.clients).any()),
        ]
        for k, client in enumerate(self.clients):
            m.d.comb += [
                Assert(~(client.data.valid & self.clients[1 - k].data.valid)),
                Assert(~(client.data.valid & ~axi.rvalid)),
                Assert(~(client.request.valid & client.request.ready) | (taken & (self.who == k))),
            ]
            with m.If(watching & came & (before == 0) & (mine == k)):
                m.d.comb += [
                    Assert(client.data.valid & client.data.ready),
                    Assert(client.data.p.data == axi.rdata),
                    Assert(client.data.p.last == (left == 1)),
                    Assert(client.data.p.error == (axi.rresp != 0)),
                ]

        # Progress: something moves within two cycles unless the environment holds it up.
        held_up = (
            Cat(c.data.valid & ~c.data.ready for c in self.clients).any()
            | (axi.arvalid & ~axi.arready)
            | ((self.waiting != 0) & ~axi.rvalid)
        )
        patience = Signal(2)
        with m.If((owed == 0) | self.sent | came | held_up):
            m.d.sync += patience.eq(0)
        with m.Else():
            m.d.sync += patience.eq(patience + 1)
        m.d.comb += Assert(patience < 2)

        # Fairness: at most one request of the other client overtakes one that waits.
        self.overtaken = [Signal(2, name=f"overtaken{k}") for k in range(CLIENTS)]
        for client, overtaken in zip(self.clients, self.overtaken, strict=True):
            with m.If(~client.request.valid | client.request.ready):
                m.d.sync += overtaken.eq(0)
            with m.Elif(taken):
                m.d.sync += overtaken.eq(overtaken + 1)
            m.d.comb += Assert(overtaken < 2)

        m.d.comb += [
            Cover(self.waiting == CONFIG.reads_in_flight),
            Cover(ended & (axi.rresp != 0) & (mine == 1)),
            Cover(watching & (before != 0) & (left == 7)),
            Cover(self.overtaken[0] == 1),
        ]

    def lengths_range(self):
        return range(len(self.lengths))

    def invariants(self, m, inside):
        axi = self.dut.axi
        flight, bursts = inside.flight, inside.bursts
        m.d.comb += self.cut.eq(bursts.o.valid & bursts.o.ready)

        # Every outstanding burst: whether there is one, its beats, its place, its entry.
        slots = []
        for k, length in enumerate(self.lengths):
            there = Signal(name=f"there{k}")
            beats = Signal(6, name=f"beats{k}")
            m.d.comb += [
                there.eq(self.waiting > k),
                beats.eq(Mux(there, length + 1 - (self.beat if k == 0 else 0), 0)),
                Assert(~there | (length < CONFIG.burst_beats)),
            ]
            slots.append(
                (there, beats, self.places[k], flight.entries[k].client, flight.entries[k].final)
            )
        newest = data.View(flight.entries[0].shape(), Signal(flight.entries[0].shape().size))
        for k, entry in enumerate(flight.entries):
            with m.If(self.waiting == k):
                m.d.comb += Value.cast(newest).eq(Value.cast(entry))
        offered = Signal(6)
        m.d.comb += offered.eq(Mux(axi.arvalid, axi.arlen + 1, 0))
        slots.append((axi.arvalid, offered, self.place_offered, newest.client, newest.final))
        slots.append(
            (bursts.left != 0, bursts.left, self.place_request, flight.i.p.client, C(1, 1))
        )

        def total(place=None):
            return sum(
                (
                    beats if place is None else Mux(at == place, beats, 0)
                    for _, beats, at, _, _ in slots
                ),
                C(0, 6),
            )

        m.d.comb += [
            Assert(flight.level == self.waiting + axi.arvalid),
            Assert(~axi.arvalid | (axi.arlen < CONFIG.burst_beats)),
            Assert((self.beat == 0) | ((self.waiting != 0) & (self.beat <= self.lengths[0]))),
            Assert(self.owed == total()),
        ]
        with m.If(self.watching):
            m.d.comb += [
                Assert(self.before == total(BEFORE)),
                Assert(self.left == total(OWN)),
                Assert(self.left != 0),
            ]
        for index, (there, _, place, client, final) in enumerate(slots):
            m.d.comb += Assert(~there | (place != 3))
            with m.If(there & (place == OWN)):
                m.d.comb += [Assert(self.watching), Assert(client == self.mine)]
                behind = [
                    there2 & (place2 == OWN) for there2, _, place2, _, _ in slots[index + 1 :]
                ]
                if behind:
                    m.d.comb += Assert(final == ~Cat(behind).any())
            with m.If(there & ~self.watching):
                m.d.comb += Assert(place == BEFORE)
            for there2, _, place2, _, _ in slots[index + 1 :]:
                m.d.comb += Assert(~(there & there2) | (place <= place2))
        for k, overtaken in enumerate(self.overtaken):
            m.d.comb += Assert((overtaken == 0) | (flight.i.p.client == 1 - k))


VISIBLE = {"StreamFifo": ShiftQueue, "Bursts": FreeBursts}


@pytest.fixture
def visible(monkeypatch):
    """Models of the parts that have proofs of their own."""
    for name, part in VISIBLE.items():
        monkeypatch.setattr(axi_reader, name, part)


def test_rules():
    prove(Rules, "rules", k=3, depth=8, cover_depth=8)


def test_delivery(visible):
    prove(Delivery, "delivery", k=2, depth=8, cover_depth=20)


def test_valid_does_not_wait():
    assert_no_path(AxiReader(CONFIG, clients=CLIENTS), "axi__arready", "axi__arvalid")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("free.eq(~axi.arvalid | axi.arready)", "free.eq(1)"),
        ("axi.arlen.eq(bursts.o.p.len)", "axi.arlen.eq(bursts.o.p.len | axi.araddr[1])"),
    ],
)
def test_rules_see(old, new):
    with pytest.raises(ProofFailed):
        prove(lambda: Rules(mutant(AxiReader, old, new)), "rules", k=3, depth=8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("axi.rresp != 0", "axi.rresp == 2"),
        ("axi.rlast & flight.o.p.final", "axi.rlast"),
        ("flight.i.p.client.eq(owner)", "flight.i.p.client.eq(chosen)"),
        ("bursts.o.ready.eq(free & flight.i.ready)", "bursts.o.ready.eq(free)"),
        ("axi.rvalid & axi.rready & axi.rlast", "axi.rvalid & axi.rready"),
        ("range(k - 1, k - count, -1)", "()"),
        (
            "m.d.comb += axi.rready.eq(client.data.ready)",
            "m.d.comb += axi.rready.eq(client.data.ready & ~axi.arvalid)",
        ),
    ],
)
def test_delivery_sees(old, new):
    with pytest.raises(ProofFailed):
        prove(lambda: Delivery(mutant(AxiReader, old, new, **VISIBLE)), "delivery", k=2, depth=10)
