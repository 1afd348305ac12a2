"""Proof of the burst cutter: every beat of a request once, in order, in legal bursts."""

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In
from gradmill_hw.memory.bursts import Bursts, Request, beats_bits
from tests.formal.narrow_bus import NarrowBus, burst_rules, held
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal

CONFIG = NarrowBus()


class BurstsProof(wiring.Component):
    """Requests and readiness are free."""

    i: In(stream.Signature(Request(CONFIG)))
    ready: In(1)

    def __init__(self, cutter=Bursts):
        self.cutter = cutter
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.cutter(CONFIG)
        wiring.connect(m, wiring.flipped(self.i), dut.i)
        m.d.comb += dut.o.ready.eq(self.ready)
        out = dut.o.p

        # Requests are offered until taken, aligned, and not empty.
        m.d.comb += [
            Assume(held(m, self.i.valid, self.i.ready, self.i.payload)),
            Assume(self.i.p.beats != 0),
            Assume(~self.i.p.addr[0]),
        ]

        # What is left of the request that was taken.
        left = Signal(beats_bits(CONFIG))
        addr = Signal(CONFIG.address_bits)
        beats = Signal(9)
        m.d.comb += beats.eq(out.len + 1)
        with m.If(dut.o.valid & dut.o.ready):
            m.d.sync += [left.eq(left - beats), addr.eq(addr + beats * CONFIG.beat_bytes)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [left.eq(self.i.p.beats), addr.eq(self.i.p.addr)]

        size = CONFIG.beat_bytes.bit_length() - 1
        m.d.comb += [
            Assert(held(m, dut.o.valid, dut.o.ready, dut.o.payload)),
            Assert(dut.o.valid == (left != 0)),
            # Taken exactly when nothing of the request before remains.
            Assert(dut.i.ready == ((left == 0) | (dut.o.ready & (left == beats)))),
        ]
        with m.If(dut.o.valid):
            m.d.comb += [
                Assert(out.addr == addr),
                Assert(beats <= left),
                Assert(out.final == (beats == left)),
                Assert(burst_rules(CONFIG, out.addr, out.len, C(size, 3), C(1, 2))),
                # As long as the rules allow.
                Assert(
                    out.final
                    | (
                        (out.addr + beats * CONFIG.beat_bytes)
                        % (CONFIG.burst_beats * CONFIG.beat_bytes)
                        == 0
                    )
                ),
            ]
        m.d.comb += [
            Cover(dut.o.valid & out.final & (out.len == 0)),
            Cover(dut.o.valid & ~out.final & (out.len == CONFIG.burst_beats - 1)),
            Cover(self.i.valid & self.i.ready & dut.o.valid),
        ]
        return m


def test_bursts():
    prove(BurstsProof, "bursts", engine="pdr", depth=10)


def test_valid_does_not_wait():
    assert_no_path(Bursts(CONFIG), "o__ready", "o__valid")
    assert_no_path(Bursts(CONFIG), "i__valid", "i__ready")


class LongBursts(Bursts):
    """Some bursts are a beat longer than they may be."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Bursts(self.config)
        wiring.connect(m, wiring.flipped(self.i), inner.i)
        m.d.comb += [
            self.o.valid.eq(inner.o.valid),
            inner.o.ready.eq(self.o.ready),
            self.o.p.eq(inner.o.p),
            self.o.p.len.eq(inner.o.p.len | inner.o.p.addr[1]),
        ]
        return m


def test_proof_sees_a_long_burst():
    with pytest.raises(ProofFailed):
        prove(lambda: BurstsProof(LongBursts), "long bursts", engine="pdr", depth=10)
