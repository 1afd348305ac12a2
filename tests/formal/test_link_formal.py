"""Links: credits are kept account of exactly, rows arrive once and in order, and they do arrive."""

from types import SimpleNamespace

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In
from gradmill_hw.config import NANO
from gradmill_hw.link.endpoints import ROUND_TRIP, LinkReceiver, LinkSender
from gradmill_hw.link.receive import Receive
from gradmill_hw.link.send import Send
from tests.formal.narrow_bus import mutant
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal

#: Rows as small as they get; all bits but ``WIDTH`` are zero in the proofs.
ROWS = SimpleNamespace(n=1, mantissa_bits=1)
WIDTH = 1
#: Cycles that a fair consumer may refuse a row.
PATIENCE = 2


class LinkProof(wiring.Component):
    """Both ends, ``there`` and ``back`` registers apart; follows one freely chosen row.

    Assumed: the far end is taken from within ``PATIENCE`` cycles; at once if ``eager``, where the
    sender must then never be refused. Nothing is assumed of the near end.

    Members
    -------
    mark : In(1)
        Follow the row that enters in this cycle, unless one is being followed.
    lose : In(1)
        A credit that reaches the near end in this cycle is lost.
    """

    mark: In(1)
    lose: In(1)
    i: In(stream.Signature(WIDTH))
    ready: In(1)

    def __init__(self, credits, there, back, *, eager=False, sender=LinkSender,
                 receiver=LinkReceiver):  # fmt: skip
        self.credits, self.there, self.back, self.eager = credits, there, back, eager
        self.sender, self.receiver = sender, receiver
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        credits = self.credits
        m.submodules.sender = sender = self.sender(ROWS, credits)
        m.submodules.receiver = receiver = self.receiver(ROWS, credits)
        i, o = sender.i, receiver.o
        m.d.comb += [
            i.valid.eq(self.i.valid),
            i.p.row.exponent.eq(self.i.payload),
            o.ready.eq(self.ready),
        ]

        # Wires.
        rows, words, returns = [sender.port.valid], [sender.port.payload], [receiver.port.credit]
        for k in range(self.there):
            rows.append(Signal(name=f"row{k}"))
            words.append(Signal(sender.port.payload.shape(), name=f"word{k}"))
            m.d.sync += [rows[k + 1].eq(rows[k]), words[k + 1].eq(words[k])]
        for k in range(self.back):
            returns.append(Signal(name=f"return{k}"))
            m.d.sync += returns[k + 1].eq(returns[k])
        m.d.comb += [
            receiver.port.valid.eq(rows[-1]),
            receiver.port.payload.eq(words[-1]),
            sender.port.credit.eq(returns[-1] & ~self.lose),
        ]

        # Safety: every credit is somewhere, neither end sees anything wrong.
        push, pop = i.valid & i.ready, o.valid & o.ready
        level = Signal(range(credits + 2))
        kept = Signal(range(credits + 2))
        lost = Signal(range(credits + 1))
        m.d.sync += [
            level.eq(level + push - pop),
            kept.eq(kept + rows[-1] - pop),
            lost.eq(lost + (returns[-1] & self.lose)),
        ]
        m.d.comb += [
            Assert(sender.in_hand <= credits),
            Assert(sender.in_hand + sum(rows) + kept + sum(returns) + lost == credits),
            Assert(sum(rows) + kept == level),
            Assert(kept <= credits),
            Assert(~sender.error),
            Assert(~receiver.error),
            Assert(~i.ready | (level < credits)),
        ]

        # Safety: as many rows leave as enter, and the followed one in its turn, unchanged.
        follow, word, ahead = Signal(), Signal(WIDTH), Signal.like(level)
        with m.If(push & self.mark & ~follow):
            m.d.sync += [follow.eq(1), word.eq(self.i.payload), ahead.eq(level - pop)]
        with m.Elif(pop & follow):
            m.d.sync += [follow.eq(ahead != 0), ahead.eq(ahead - 1)]
        waits, before = Signal(), Signal(WIDTH)
        seen = o.p.row.exponent[:WIDTH]
        m.d.sync += [waits.eq(o.valid & ~o.ready), before.eq(seen)]
        m.d.comb += [
            Assert(~(pop & (level == 0))),
            Assert(~(follow & (ahead >= level))),
            Assert(~(pop & follow & (ahead == 0)) | (seen == word)),
            Assert(~waits | (o.valid & (seen == before))),
        ]

        # Progress: a row arrives, and unless credits were lost the next one is taken.
        patience = 0 if self.eager else PATIENCE
        latency = 2 + self.there
        longest = ROUND_TRIP + self.there + self.back + patience - 1
        late = Signal(range(latency + 2))
        refused = Signal(range(longest + 2))
        slow = Signal(range(patience + 2))
        m.d.sync += [
            late.eq(Mux((level != 0) & ~o.valid, late + 1, 0)),
            refused.eq(Mux(i.ready, 0, Mux(refused <= longest, refused + 1, refused))),
            slow.eq(Mux(o.valid & ~o.ready, slow + 1, 0)),
        ]
        m.d.comb += [
            Assume(~o.valid | o.ready | (slow < patience)),
            Assert(late <= latency),
            Assert((lost != 0) | (refused <= longest)),
        ]
        if self.eager:
            m.d.comb += Assert((lost != 0) | i.ready)

        was_full = Signal()
        m.d.sync += was_full.eq(was_full | (kept == (1 if self.eager else credits)))
        m.d.comb += [
            Cover(follow & (ahead == 1) & pop),
            Cover(lost == 2),
            Cover(level == (latency + 1 if self.eager else credits)),
            Cover((sender.in_hand == credits - 1) & (lost == 1) & was_full),
        ]
        return m


#: Credits, registers there, registers back.
LINKS = [(3, 0, 0), (4, 0, 0), (3, 1, 0), (3, 0, 1), (3, 2, 1), (3, 1, 2), (3, 2, 2)]


@pytest.mark.parametrize(("credits", "there", "back"), LINKS)
def test_link(credits, there, back):
    print(prove(lambda: LinkProof(credits, there, back), "link", engine="pdr", depth=20))


@pytest.mark.parametrize(("there", "back"), [(0, 0), (1, 0), (0, 2), (1, 1)])
def test_round_trip(there, back):
    """With as many credits as the round trip takes, the sender is never refused."""
    credits = ROUND_TRIP + there + back
    print(
        prove(lambda: LinkProof(credits, there, back, eager=True), "eager", engine="pdr", depth=24)
    )


def test_round_trip_is_not_shorter():
    with pytest.raises(ProofFailed, match=r"i\.ready"):
        prove(lambda: LinkProof(ROUND_TRIP - 1, 0, 0, eager=True), "eager", engine="pdr", depth=14)


class SenderProof(wiring.Component):
    """A sender with credits that come at any time: it counts what it may and reports the rest."""

    credit: In(1)
    valid: In(1)

    def __init__(self, sender=LinkSender):
        self.sender = sender
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        credits = 3
        m.submodules.dut = dut = self.sender(ROWS, credits)
        m.d.comb += [dut.i.valid.eq(self.valid), dut.port.credit.eq(self.credit)]
        sent = dut.i.valid & dut.i.ready
        count = Signal(range(2 * credits), init=credits)
        excess = self.credit & (count == credits)
        reported = Signal()
        row = Signal()
        m.d.sync += [
            count.eq(count + (self.credit & ~excess) - sent),
            reported.eq(reported | excess),
            row.eq(sent),
        ]
        m.d.comb += [
            Assert(count <= credits),
            Assert(dut.in_hand == count),
            Assert(dut.i.ready == (count != 0)),
            Assert(dut.error == reported),
            Assert(dut.port.valid == row),
            Cover(dut.error & (count == 0)),
            Cover(excess & sent),
        ]
        return m


class ReceiverProof(wiring.Component):
    """A receiver with rows that come at any time: it takes those it has room for, reports others,
    and returns a credit for each one that leaves."""

    valid: In(1)
    ready: In(1)

    def __init__(self, credits, receiver=LinkReceiver):
        self.credits, self.receiver = credits, receiver
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.receiver(ROWS, self.credits)
        m.d.comb += [dut.port.valid.eq(self.valid), dut.o.ready.eq(self.ready)]
        left = dut.o.valid & dut.o.ready
        level = Signal(range(self.credits + 2))
        full = level == self.credits
        reported = Signal()
        credit = Signal()
        m.d.sync += [
            level.eq(level + (self.valid & ~full) - left),
            reported.eq(reported | (self.valid & full)),
            credit.eq(left),
        ]
        m.d.comb += [
            Assert(level <= self.credits),
            Assert(~(left & (level == 0))),
            Assert(dut.error == reported),
            Assert(dut.port.credit == credit),
            Cover(dut.error & (level == 0)),
            Cover(full & left & self.valid),
        ]
        return m


def test_sender_is_exact():
    print(prove(SenderProof, "sender", engine="pdr", depth=12))


@pytest.mark.parametrize("credits", [3, 4, 5])
def test_receiver_is_exact(credits):
    print(prove(lambda: ReceiverProof(credits), "receiver", engine="pdr", depth=16))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(port.credit & ~excess) - sent", "(port.credit & ~excess & ~sent) - sent"),
        ("(port.credit & ~excess) - sent", "port.credit - sent"),
        ("port.valid.eq(sent)", "port.valid.eq(self.i.valid)"),
        ("self.i.ready.eq(self.in_hand != 0)", "self.i.ready.eq(self.in_hand > 1)"),
        ("self.i.ready.eq(self.in_hand != 0)", "self.i.ready.eq(self.in_hand[0])"),
        ("port.credit & (self.in_hand == self.credits)", "port.credit & (self.in_hand == 0)"),
        ("self.error | excess", "excess"),
    ],
)
def test_sender_proof_sees(old, new):
    with pytest.raises(ProofFailed):
        prove(lambda: SenderProof(mutant(LinkSender, old, new)), "sender", engine="pdr", depth=12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("port.credit.eq(self.o.valid & self.o.ready)", "port.credit.eq(self.o.valid)"),
        ("port.credit.eq(self.o.valid & self.o.ready)", "port.credit.eq(port.valid)"),
        ("(port.valid & ~queue.i.ready)", "(port.valid & queue.i.ready)"),
        ("self.error | (port.valid", "(port.valid"),
        ("depth=self.credits)", "depth=self.credits - 1)"),
    ],
)
def test_receiver_proof_sees(old, new):
    with pytest.raises(ProofFailed):
        prove(
            lambda: ReceiverProof(4, mutant(LinkReceiver, old, new)),
            "receiver",
            engine="pdr",
            depth=16,
        )


@pytest.mark.parametrize(
    ("end", "old", "new"),
    [
        ("sender", "init=credits", "init=credits - 1"),
        ("sender", "port.payload.eq(self.i.payload)", "port.payload.eq(port.payload)"),
        ("receiver", "port.credit.eq(self.o.valid & self.o.ready)", "port.credit.eq(0)"),
        ("receiver", "depth=self.credits)", "depth=self.credits - 1)"),
    ],
)
def test_link_proof_sees(end, old, new):
    broken = mutant(LinkSender if end == "sender" else LinkReceiver, old, new)
    with pytest.raises(ProofFailed):
        prove(lambda: LinkProof(4, 1, 1, **{end: broken}), "link", engine="pdr", depth=20)


@pytest.mark.parametrize(
    ("component", "sources", "sinks"),
    [
        (LinkSender, ["port__credit", "i__valid", "i__payload"], ["port__valid", "port__payload"]),
        (LinkSender, ["port__credit", "i__valid"], ["i__ready"]),
        (LinkReceiver, ["o__ready", "port__valid"], ["o__valid", "port__credit"]),
        (LinkReceiver, ["port__payload"], ["o__payload"]),
        (Send, ["*_read__ready", "previous__ready", "next__ready"], ["*_read__valid"]),
        (Send, ["*_read__ready", "previous__ready", "next__ready"], ["*__payload", "cmd__ready"]),
        (Send, ["previous__ready", "next__ready"], ["previous__valid", "next__valid"]),
        (Receive, ["*_write__ready"], ["*_write__valid", "*_write__addr", "cmd__ready"]),
        (Receive, ["previous__valid", "next__valid"], ["previous__ready", "next__ready"]),
        (Receive, ["previous__payload", "next__payload"], ["*_write__*"]),
    ],
)
def test_no_path_through(component, sources, sinks):
    for source in sources:
        for sink in sinks:
            assert_no_path(component(NANO), source, sink)
