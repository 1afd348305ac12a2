"""Queues keep every word in order, and never stop between partners that do not."""

import pytest
from amaranth import *
from amaranth.hdl import Assert, Cover
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.memory.fifo import StreamFifo
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal

WIDTH = 2


class QueueProof(wiring.Component):
    """Follows one freely chosen word through ``dut``, which holds ``capacity`` words.

    No assumptions: the proof holds for a producer that withdraws words, and for any reset.

    Members
    -------
    mark : In(1)
        Follow the word that enters in this cycle, unless one is being followed.
    """

    mark: In(1)
    i: In(stream.Signature(WIDTH))
    o: Out(stream.Signature(WIDTH))

    def __init__(self, dut, capacity, *, slack=0):
        self.dut, self.capacity, self.slack = dut, capacity, slack
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        wiring.connect(m, wiring.flipped(self.i), dut.i)
        wiring.connect(m, dut.o, wiring.flipped(self.o))
        i, o = dut.i, dut.o

        push, pop = i.valid & i.ready, o.valid & o.ready
        level = Signal(range(self.capacity + 2))
        m.d.sync += level.eq(level + push - pop)

        # Safety: as many words leave as enter, and the followed one in its turn, unchanged.
        follow, word, ahead = Signal(), Signal(WIDTH), Signal.like(level)
        with m.If(push & self.mark & ~follow):
            m.d.sync += [follow.eq(1), word.eq(i.payload), ahead.eq(level - pop)]
        with m.Elif(pop & follow):
            m.d.sync += [follow.eq(ahead != 0), ahead.eq(ahead - 1)]
        m.d.comb += [
            Assert(level <= self.capacity),
            Assert(~(pop & (level == 0))),
            Assert(~(follow & (ahead >= level))),
            Assert(~(pop & follow & (ahead == 0)) | (o.payload == word)),
        ]
        if hasattr(dut, "level"):
            m.d.comb += Assert(dut.level == level)

        # Safety: what is offered stays offered.
        kept, payload = Signal(), Signal(WIDTH)
        m.d.sync += [kept.eq(o.valid & ~o.ready), payload.eq(o.payload)]
        m.d.comb += Assert(~kept | (o.valid & (o.payload == payload)))

        # Progress: words are offered and taken, within ``slack`` cycles at the latest.
        hidden, refused = Signal(range(4)), Signal(range(4))
        m.d.sync += [
            hidden.eq(Mux((level != 0) & ~o.valid, hidden + 1, 0)),
            refused.eq(Mux((level < self.capacity) & ~i.ready, refused + 1, 0)),
        ]
        m.d.comb += [
            Assert(hidden <= self.slack),
            Assert(refused <= self.slack),
            Assert((level == 0) | o.valid | (hidden < self.slack)),
            Assert((level == self.capacity) | i.ready | (refused < self.slack)),
        ]

        was_full = Signal()
        m.d.sync += was_full.eq(was_full | (level == self.capacity))
        m.d.comb += [
            Cover(was_full & (level == 0)),
            Cover(push & pop & (level == self.capacity - 1)),
            Cover(follow & (ahead == self.capacity - 1)),
            Cover(follow & (ahead == 0) & pop & was_full),
        ]

        return m


class Broken(wiring.Component):
    """``queue`` with one ``fault``, for proofs that must fail."""

    i: In(stream.Signature(WIDTH))
    o: Out(stream.Signature(WIDTH))

    def __init__(self, queue, capacity, fault):
        self.queue, self.capacity, self.fault = queue, capacity, fault
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = self.queue
        wiring.connect(m, wiring.flipped(self.i), queue.i)
        wiring.connect(m, queue.o, wiring.flipped(self.o))

        level = Signal(4)
        m.d.sync += level.eq(level + (self.i.valid & self.i.ready) - (self.o.valid & self.o.ready))
        with m.If(level == 1):
            match self.fault:
                case "lose":
                    m.d.comb += queue.i.valid.eq(0)
                case "repeat":
                    m.d.comb += queue.o.ready.eq(0)
                case "corrupt":
                    m.d.comb += self.o.payload.eq(~queue.o.payload)
                case "withhold":
                    m.d.comb += [self.o.valid.eq(0), queue.o.ready.eq(0)]
                case "refuse":
                    m.d.comb += [self.i.ready.eq(0), queue.i.valid.eq(0)]
        with m.If(level == 0):
            match self.fault:
                case "invent":
                    m.d.comb += self.o.valid.eq(1)
                case "dead":
                    m.d.comb += [self.i.ready.eq(0), queue.i.valid.eq(0)]
        with m.If(level == self.capacity):
            if self.fault == "overfill":
                m.d.comb += self.i.ready.eq(1)

        return m


# name: (queue, words it holds, cycles within which it must offer or take one)
QUEUES = {
    "fifo of 4": (lambda: StreamFifo(WIDTH, depth=4), 4, 1),
    "fifo of 3": (lambda: StreamFifo(WIDTH, depth=3), 3, 1),
    "fifo of 2": (lambda: StreamFifo(WIDTH, depth=2), 2, 1),
    "unbuffered fifo": (lambda: StreamFifo(WIDTH, depth=3, buffered=False), 3, 0),
}


@pytest.mark.parametrize("name", QUEUES)
def test_queue(name):
    queue, capacity, slack = QUEUES[name]
    print(prove(lambda: QueueProof(queue(), capacity, slack=slack), name, engine="pdr", depth=14))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("lose", "level"),
        ("repeat", "level|payload"),
        ("corrupt", "payload"),
        ("overfill", "level|capacity"),
        ("withhold", "hidden|o.valid"),
        ("refuse", "refused|i.ready"),
        ("invent", "level == 0"),
        ("dead", "refused|i.ready"),
    ],
)
@pytest.mark.parametrize("name", ["fifo of 3", "unbuffered fifo"])
def test_broken_queue(name, fault, words):
    queue, capacity, slack = QUEUES[name]
    with pytest.raises(ProofFailed, match=rf"base case failed\n.*({words})"):
        prove(
            lambda: QueueProof(Broken(queue(), capacity, fault), capacity, slack=slack),
            name,
            engine="pdr",
            depth=14,
        )


@pytest.mark.parametrize("name", QUEUES)
def test_no_path_through(name):
    for source, sink in [
        ("o__ready", "o__valid"),
        ("o__ready", "i__ready"),
        ("i__valid", "o__valid"),
        ("i__valid", "i__ready"),
        ("i__payload", "o__payload"),
    ]:
        assert_no_path(QUEUES[name][0](), source, sink)
