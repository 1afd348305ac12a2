"""A command queue starts every command once, in order, with its semaphores, and posts it once."""

import pytest
from amaranth import *
from amaranth.hdl import Assert, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from gradmill_hw.control.queue import CommandQueue
from gradmill_hw.isa import Queue
from tests.formal.prove import ProofFailed, prove


pytestmark = pytest.mark.formal

DEPTH = 2
#: One semaphore of each mask is free, the others are the same in every command.
WAIT_BIT, POST_BIT = 4, 6


class QueueProof(wiring.Component):
    """Follows one freely chosen command from its push to its post.

    Nothing is assumed: whatever the environment does, a push happens only while there is room and
    the unit ends only what it has taken.

    Members
    -------
    mark : In(1)
        Follow the command pushed in this cycle, unless one is being followed.
    push, fetch, grant, accept, done, failed, stop, wait, post : In(1)
        The environment.
    """

    mark: In(1)
    push: In(1)
    fetch: In(1)
    grant: In(1)
    accept: In(1)
    done: In(1)
    failed: In(1)
    stop: In(1)
    wait: In(1)
    post: In(1)

    def __init__(self, dut=None):
        self.dut = dut or CommandQueue(Queue.MATRIX, depth=DEPTH)
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        waiting = Signal(range(DEPTH + 1))  # pushed, not in the head register
        held = Signal()  # in the head register
        running = Signal(range(DEPTH + 1))  # taken by the unit
        broken = Signal()
        push = self.push & dut.ready
        load = dut.fetch & self.fetch
        take = dut.start & self.accept
        done = self.done & (running != 0)
        ended = done & ~self.failed & ~broken
        m.d.comb += [
            dut.push.eq(push),
            dut.push_wait[WAIT_BIT].eq(self.wait),
            dut.push_post[POST_BIT].eq(self.post),
            dut.fetched.eq(load),
            dut.granted.eq(self.grant),
            dut.accept.eq(self.accept),
            dut.done.eq(done),
            dut.failed.eq(self.failed),
            dut.stop.eq(self.stop),
        ]
        m.d.sync += [
            waiting.eq(waiting + push - load),
            held.eq(held & ~take | load),
            running.eq(running + take - ended),
            broken.eq(broken | self.failed),
        ]
        total = Signal(range(DEPTH + 2))
        m.d.comb += total.eq(waiting + held + running)

        # Safety: as many as were pushed, one in the head register, nothing lost or invented.
        m.d.comb += [
            Assert(total <= DEPTH),
            Assert(dut.ready == (total < DEPTH)),
            Assert(dut.empty == (total == 0)),
            Assert(dut.executing == (running != 0)),
            Assert(~load | (waiting != 0) & (~held | take)),
            Assert(~(dut.request | dut.start) | held),
            Assert(~(dut.request & dut.start)),
            Assert(~dut.request | ~(self.stop | broken)),
            Assert(dut.settled == (broken | ~dut.start & (running == 0))),
        ]

        # Safety: an offer follows a grant, and stands until it is taken.
        offered = Signal()
        m.d.sync += offered.eq(dut.request & self.grant | offered & ~take)
        m.d.comb += Assert(dut.start == offered)

        # Safety: places are used in turn, and the masks of the command followed are its own.
        place, mine, wait, post, ahead = (
            Signal(),
            Signal(),
            Signal(),
            Signal(),
            Signal(range(DEPTH + 1)),
        )
        in_head, in_unit = Signal(), Signal()
        with m.If(push & self.mark & ~mine):
            m.d.sync += [
                mine.eq(1),
                wait.eq(self.wait),
                post.eq(self.post),
                place.eq(dut.push_place),
                ahead.eq(total - ended),
            ]
        with m.Elif(mine & ended):
            m.d.sync += [ahead.eq(ahead - 1), mine.eq(ahead != 0)]
        m.d.comb += [
            in_unit.eq(mine & (ahead < running)),
            in_head.eq(mine & held & (ahead == running)),
            Assert(~mine | (ahead < total)),
            Assert(~in_head | (dut.wait[WAIT_BIT] == wait)),
            Assert(~(mine & load & (ahead == running + held)) | (dut.fetch_place == place)),
            Assert(~(mine & (ahead == 0)) | (dut.oldest == place)),
            Assert(~(mine & (ahead == 0) & done & ~broken) | (dut.post[POST_BIT] == post)),
            Assert((done & ~broken) | (dut.post == 0)),
        ]

        # Progress under a fair partner: whatever is asked for comes within a cycle or two.
        m.d.comb += [
            Assert(~((waiting != 0) & ~held) | dut.fetch),
            Assert(~(held & ~dut.start & ~self.stop & ~broken) | dut.request),
            Assert(~((total == 0) & ~push) | ~dut.start & ~dut.fetch & ~dut.request),
        ]

        was_full = Signal()
        m.d.sync += was_full.eq(was_full | (running == DEPTH))
        m.d.comb += [
            Cover(was_full & (total == 0)),
            Cover(broken & (waiting != 0) & dut.start),
            Cover(in_unit & post & ended & was_full),
            Cover(in_head & wait & take & (running != 0)),
            Cover(self.stop & held & dut.start & take),
        ]
        return m


def test_queue():
    print(prove(QueueProof, "command queue", engine="pdr", depth=14))


#: What goes wrong: a port, and what it carries instead.
FAULTS = {
    "start without semaphores": ("granted", lambda ports, inner, odd: C(1)),
    "ask when stopped": ("stop", lambda ports, inner, odd: C(0)),
    "end twice": ("done", lambda ports, inner, odd: ports.done | odd),
    "lose a completion": ("done", lambda ports, inner, odd: ports.done & ~odd),
    "complete a failure": ("failed", lambda ports, inner, odd: C(0)),
    "forget to post": ("post", lambda ports, inner, odd: Mux(odd, inner.post, 0)),
    "wrong place": ("oldest", lambda ports, inner, odd: inner.push_place),
    "overfill": ("ready", lambda ports, inner, odd: C(1)),
    "never fetch": ("fetch", lambda ports, inner, odd: C(0)),
    "never ask": ("request", lambda ports, inner, odd: C(0)),
    "withdraw an offer": ("start", lambda ports, inner, odd: inner.start & ~ports.stop),
}


class Faulty(wiring.Component):
    """The ports of a :class:`CommandQueue` with one ``fault`` in between."""

    def __init__(self, fault):
        self.fault = fault
        self.inner = CommandQueue(Queue.MATRIX, depth=DEPTH)
        super().__init__(self.inner.signature)

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = self.inner
        ports = {}
        for name, member in inner.signature.members.items():
            ours, theirs = getattr(self, name), getattr(inner, name)
            ports[name] = (ours, theirs) if member.flow is wiring.Out else (theirs, ours)
        odd = Signal()
        m.d.sync += odd.eq(odd ^ (inner.executing & self.done))
        for name, (target, source) in ports.items():
            fault, value = FAULTS[self.fault]
            m.d.comb += target.eq(value(self, inner, odd) if name == fault else source)
        return m


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_queue(fault):
    with pytest.raises(ProofFailed, match="base case failed"):
        prove(lambda: QueueProof(Faulty(fault)), fault, engine="pdr", depth=14)
