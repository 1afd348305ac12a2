"""The harness itself: it must refuse what does not hold, cannot be reached or says nothing."""

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal


class Counter(wiring.Component):
    """Counts to ``top`` and starts again."""

    step: In(1)
    high: Out(1)

    def __init__(self, *, claim=9, goal=9, assume=None):
        self.claim, self.goal, self.assume = claim, goal, assume
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        count = Signal(4)
        with m.If(self.step):
            m.d.sync += count.eq(Mux(count == 9, 0, count + 1))
        m.d.comb += [
            self.high.eq(count > 5),
            Assert(count != 12),
            Assert(count <= self.claim),
            Cover(count == self.goal),
        ]
        if self.assume is not None:
            m.d.comb += Assume(count == self.assume)
        return m


class Mute(wiring.Component):
    """No property at all."""

    i: In(1)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += Signal(name="flop").eq(self.i)
        return m


@pytest.mark.parametrize("engine", ["induction", "pdr"])
def test_true_property(engine):
    proof = prove(Counter, "counter", engine=engine)
    assert (proof.assertions, proof.covers) == (2, 1)


@pytest.mark.parametrize("engine", ["induction", "pdr"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"claim": 8}, r"base case.*\n.*Assert.count"),
        ({"goal": 12}, r"cover.*\n.*Cover.count"),
        ({"assume": 3}, "base case"),
    ],
)
def test_false_property(engine, arguments, reason):
    with pytest.raises(ProofFailed, match=reason):
        prove(lambda: Counter(**arguments), "counter", engine=engine)


def test_beyond_base_case():
    with pytest.raises(ProofFailed, match=r"induction.*\n.*Assert.count"):
        prove(lambda: Counter(claim=8, goal=1), "counter", depth=5)
    with pytest.raises(ProofFailed, match="pdr"):
        prove(lambda: Counter(claim=8, goal=1), "counter", depth=5, engine="pdr")


def test_no_property():
    with pytest.raises(ValueError, match="0 assertions and 0 covers"):
        prove(Mute, "mute")


class Stage(wiring.Component):
    """A stream stage whose output waits for ``ready`` through ``kind``."""

    i: In(stream.Signature(2))
    o: Out(stream.Signature(2))

    def __init__(self, kind):
        self.kind = kind
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=2, depth=4, init=[])
        m.d.comb += self.i.ready.eq(self.o.ready)
        if self.kind == "wire":
            m.d.comb += self.o.valid.eq(self.i.valid & self.o.ready)
        elif self.kind == "flop":
            m.d.sync += self.o.valid.eq(self.i.valid & self.o.ready)
        else:
            port = memory.read_port(domain="sync" if self.kind == "sync" else "comb")
            m.d.comb += [port.addr.eq(self.o.ready), self.o.valid.eq(port.data[0])]
            memory.write_port()
        return m


@pytest.mark.parametrize("kind", ["flop", "sync"])
def test_no_path(kind):
    assert_no_path(Stage(kind), "o__ready", "o__valid")


@pytest.mark.parametrize("kind", ["wire", "comb"])
def test_path(kind):
    with pytest.raises(ProofFailed, match="path from o__ready to o__valid"):
        assert_no_path(Stage(kind), "o__ready", "o__valid")


def test_path_needs_ports():
    with pytest.raises(ProofFailed, match="no such ports"):
        assert_no_path(Stage("flop"), "o__redy", "o__valid")
