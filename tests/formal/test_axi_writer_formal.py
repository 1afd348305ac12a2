"""Proof of the writer: bus rules, every beat once with an exact WLAST, answers exact, progress.

Queues and the burst cutter are proved by themselves; here models of theirs with visible state take
their place, except where bus rules are proved.
"""

from itertools import pairwise

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.memory import axi_writer
from gradmill_hw.memory.axi import AxiWrite
from gradmill_hw.memory.axi_writer import AxiWriter, WriteClient
from tests.formal.narrow_bus import FreeBursts, NarrowBus, ShiftQueue, burst_rules, held, mutant
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal

CONFIG = NarrowBus()


class Environment(wiring.Component):
    """A writer with a free client and a free subordinate that keep to their side of the rules."""

    client: In(WriteClient(CONFIG))
    axi: Out(AxiWrite(CONFIG.address_bits, CONFIG.bus_bits))
    watch: In(1)

    def __init__(self, writer=AxiWriter):
        self.writer = writer
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        proof = self

        class Open(self.writer):
            def elaborate(self, platform):
                inside = super().elaborate(platform)
                proof.invariants(inside, inside.submodules)
                return inside

        m.submodules.dut = self.dut = Open(CONFIG)
        axi, client = self.dut.axi, self.client
        wiring.connect(m, axi, wiring.flipped(self.axi))
        wiring.connect(m, wiring.flipped(client), self.dut.client)
        # A burst begins its way to the bus; its length, and whether it is the last of its request.
        self.cut = Signal()
        self.length = Signal(8)
        self.final = Signal()

        # The client offers aligned requests of at least one beat until taken, and its beats.
        request = client.request
        m.d.comb += [
            Assume(held(m, request.valid, request.ready, request.payload)),
            Assume(held(m, client.data.valid, client.data.ready, client.data.payload)),
            Assume(request.p.beats != 0),
            Assume(~request.p.addr[0]),
        ]

        # The subordinate answers a burst when it has its address and all its beats.
        self.addressed = Signal(range(CONFIG.reads_in_flight + 2))
        self.filled = Signal(range(CONFIG.reads_in_flight + 2))
        self.answered = Signal()
        m.d.comb += [
            self.answered.eq(axi.bvalid & axi.bready),
            Assume(~axi.bvalid | ((self.addressed != 0) & (self.filled != 0))),
            Assume(held(m, axi.bvalid, axi.bready, axi.bresp)),
        ]
        m.d.sync += [
            self.addressed.eq(self.addressed + (axi.awvalid & axi.awready) - self.answered),
            self.filled.eq(self.filled + (axi.wvalid & axi.wready & axi.wlast) - self.answered),
        ]
        self.properties(m)
        return m

    def properties(self, m):
        raise NotImplementedError

    def invariants(self, m, inside):
        """What needs a look inside the writer."""
        burst = inside.bursts.o
        m.d.comb += [
            self.cut.eq(burst.valid & burst.ready),
            self.length.eq(burst.p.len),
            self.final.eq(burst.p.final),
        ]


class Rules(Environment):
    """What the AW and W channels must keep to, with the real burst cutter."""

    def properties(self, m):
        axi = self.dut.axi
        m.d.comb += [
            Assert(held(m, axi.awvalid, axi.awready, Cat(axi.awaddr, axi.awlen))),
            Assert(held(m, axi.wvalid, axi.wready, Cat(axi.wdata, axi.wstrb))),
            Assert(
                ~axi.awvalid | burst_rules(CONFIG, axi.awaddr, axi.awlen, axi.awsize, axi.awburst)
            ),
            Cover(axi.awvalid & (axi.awlen == 3) & (axi.awaddr[3:12] == 0x1FF)),
        ]

    def invariants(self, m, inside):
        super().invariants(m, inside)
        burst = inside.bursts.o
        m.d.comb += Assert(
            ~burst.valid
            | burst_rules(
                CONFIG, burst.p.addr, burst.p.len, self.dut.axi.awsize, self.dut.axi.awburst
            )
        )


class Beats(Environment):
    """Each beat passes once, WLAST where AWLEN says, no later than the circuit must."""

    def properties(self, m):
        axi, client = self.dut.axi, self.client
        depth = CONFIG.reads_in_flight
        sent = axi.wvalid & axi.wready

        # Lengths of the bursts whose beats have not all passed, in the order of their addresses.
        due = [Signal(8, name=f"due{k}") for k in range(depth)]
        level = Signal(range(depth + 1))
        beat = Signal(8)
        ends = Signal()
        m.d.comb += ends.eq(sent & axi.wlast)
        m.d.sync += level.eq(level + self.cut - ends)
        with m.If(ends):
            m.d.sync += [old.eq(new) for old, new in pairwise(due)]
        with m.If(self.cut):
            for k, length in enumerate(due):
                with m.If(level - ends == k):
                    m.d.sync += length.eq(self.length)
        with m.If(sent):
            m.d.sync += beat.eq(Mux(axi.wlast, 0, beat + 1))

        announced = Signal(8)
        fresh = Signal()
        m.d.sync += fresh.eq(self.cut)
        with m.If(self.cut):
            m.d.sync += announced.eq(self.length)
        m.d.comb += [
            # Nothing is lost, doubled or held back.
            Assert(sent == (client.data.valid & client.data.ready)),
            Assert(axi.wvalid == (client.data.valid & (level != 0))),
            Assert(client.data.ready == (axi.wready & (level != 0))),
            Assert(
                ~axi.wvalid
                | ((axi.wdata == client.data.p.data) & (axi.wstrb == client.data.p.strobe))
            ),
            Assert(~axi.wvalid | (axi.wlast == (beat == due[0]))),
            # The address of the burst stands on the bus the cycle after it was cut.
            Assert(~fresh | (axi.awvalid & (axi.awlen == announced))),
            Cover(level == depth),
            Cover(ends & (beat == 3)),
            Cover(ends & (beat == 0) & (due[0] == 0) & (level == depth)),
        ]


class Answers(Environment):
    """Follows one arbitrary request from its acceptance to its report."""

    def properties(self, m):
        axi, client, dut = self.dut.axi, self.client, self.dut
        taken = client.request.valid & client.request.ready
        reported = client.done.valid & client.done.ready

        # Requests not yet reported, those before the watched one, and what befell the latter.
        open_requests = Signal(3)
        before = Signal(3)
        watching = Signal()
        wrong = Signal()
        mine = watching & (before == 0)
        m.d.sync += open_requests.eq(open_requests + taken - reported)
        with m.If(taken & self.watch & ~watching):
            m.d.sync += [watching.eq(1), before.eq(open_requests - reported), wrong.eq(0)]
        with m.Elif(self.answered):
            with m.If(mine):
                m.d.sync += [wrong.eq(wrong | (axi.bresp != 0)), watching.eq(~reported)]
            with m.Elif(reported):
                m.d.sync += before.eq(before - 1)

        m.d.comb += [
            Assert(dut.busy == (open_requests != 0)),
            Assert(~reported | self.answered),
            Assert(~self.answered | ~client.done.valid | client.done.ready),
            Assert(~(mine & reported) | (client.done.payload == (wrong | (axi.bresp != 0)))),
            # An answer that ends nothing is taken at once.
            Assert(~axi.bvalid | client.done.valid | axi.bready),
            Cover(mine & reported & ~client.done.payload),
            Cover(mine & reported & client.done.payload & (axi.bresp == 0)),
            Cover(watching & (before == 2)),
        ]

        # Its last burst is answered with its report, and not before.
        unanswered = Signal(3)  # bursts of the watched request on their way
        uncut = Signal()  # it has bursts that are not yet cut
        with m.If(taken & self.watch & ~watching):
            m.d.sync += [uncut.eq(1), unanswered.eq(0)]
        with m.Elif(watching):
            own_cut = self.cut & uncut
            m.d.sync += uncut.eq(uncut & ~(self.cut & self.final))
            m.d.sync += unanswered.eq(unanswered + own_cut - (self.answered & mine))
        m.d.comb += Assert(~(mine & self.answered) | (reported == (~uncut & (unanswered == 1))))

        # Progress: something moves within two cycles unless the environment holds it up.
        held_up = (
            (axi.awvalid & ~axi.awready)
            | ~axi.wready
            | ~client.data.valid
            | (client.done.valid & ~client.done.ready)
            | ((self.addressed != 0) & (self.filled != 0) & ~axi.bvalid)
        )
        patience = Signal(2)
        moved = (axi.awvalid & axi.awready) | (axi.wvalid & axi.wready) | self.answered
        with m.If((open_requests == 0) | moved | held_up):
            m.d.sync += patience.eq(0)
        with m.Else():
            m.d.sync += patience.eq(patience + 1)
        m.d.comb += Assert(patience < 2)


VISIBLE = {"StreamFifo": ShiftQueue, "Bursts": FreeBursts}


@pytest.fixture
def visible(monkeypatch):
    """Models of the parts that have proofs of their own."""
    for name, part in VISIBLE.items():
        monkeypatch.setattr(axi_writer, name, part)


def test_rules():
    prove(Rules, "rules", k=3, depth=8)


def test_beats(visible):
    prove(Beats, "beats", engine="pdr", depth=8, cover_depth=16)


def test_answers(visible):
    prove(Answers, "answers", engine="pdr", depth=8, cover_depth=20)


@pytest.mark.parametrize(
    ("ready", "valid"),
    [
        ("axi__awready", "axi__awvalid"),
        ("axi__wready", "axi__awvalid"),
        ("axi__wready", "axi__wvalid"),
        ("axi__awready", "axi__wvalid"),
    ],
)
def test_valid_does_not_wait(ready, valid):
    assert_no_path(AxiWriter(CONFIG), ready, valid)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("free.eq(~axi.awvalid | axi.awready)", "free.eq(1)"),
        ("axi.awlen.eq(bursts.o.p.len)", "axi.awlen.eq(bursts.o.p.len | axi.awaddr[1])"),
    ],
)
def test_rules_see(old, new):
    with pytest.raises(ProofFailed):
        prove(lambda: Rules(mutant(AxiWriter, old, new)), "rules", k=3, depth=8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("axi.wlast.eq(beat == lengths.o.payload)", "axi.wlast.eq(beat >= lengths.o.payload[:1])"),
        ("Mux(axi.wlast, 0, beat + 1)", "beat + 1"),
        ("axi.wvalid.eq(lengths.o.valid & client.data.valid)", "axi.wvalid.eq(client.data.valid)"),
        (
            "bursts.o.ready.eq(free & flight.i.ready & lengths.i.ready)",
            "bursts.o.ready.eq(free & lengths.i.ready)",
        ),
        ("axi.awlen.eq(bursts.o.p.len)", "axi.awlen.eq(bursts.o.p.len | axi.awlen[0])"),
    ],
)
def test_beats_see(old, new):
    with pytest.raises(ProofFailed):
        prove(
            lambda: Beats(mutant(AxiWriter, old, new, **VISIBLE)), "beats", engine="pdr", depth=16
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bad.eq(error & ~flight.o.payload)", "bad.eq(error)"),
        ("error.eq(bad | (axi.bresp != 0))", "error.eq(axi.bresp != 0)"),
        ("axi.bready.eq(~flight.o.payload | client.done.ready)", "axi.bready.eq(1)"),
        ("client.done.valid.eq(axi.bvalid & flight.o.payload)", "client.done.valid.eq(axi.bvalid)"),
        ("self.busy.eq(bursts.o.valid | flight.o.valid)", "self.busy.eq(bursts.o.valid)"),
        (
            "axi.bready.eq(~flight.o.payload | client.done.ready)",
            "axi.bready.eq(client.done.ready)",
        ),
    ],
)
def test_answers_see(old, new):
    with pytest.raises(ProofFailed):
        prove(
            lambda: Answers(mutant(AxiWriter, old, new, **VISIBLE)),
            "answers",
            engine="pdr",
            depth=20,
        )
