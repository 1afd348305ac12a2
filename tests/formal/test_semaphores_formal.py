"""Semaphores: exact counting, all or nothing, no underflow, no wrap."""

import pytest
from amaranth import *
from amaranth.hdl import Assert, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from gradmill_hw.control.semaphores import TOKENS, Semaphores, partners
from gradmill_hw.isa import CHANNELS, TILE_QUEUES

from tests.formal.prove import ProofFailed, prove


pytestmark = pytest.mark.formal

MAXIMUM = 3


class SemaphoresProof(wiring.Component):
    """Counts every semaphore again, in wider numbers that could go wrong; nothing is assumed."""

    def __init__(self, dut=Semaphores):
        self.dut = dut(maximum=MAXIMUM)
        super().__init__(
            {
                name: In(width).array(len(TILE_QUEUES))
                for name, width in (("wait", TOKENS), ("post", TOKENS), ("take", 1))
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        lost = {queue: [] for queue in TILE_QUEUES}
        empty, full = [], []
        for queue in TILE_QUEUES:
            m.d.comb += [
                dut.wait[queue].eq(self.wait[queue]),
                dut.post[queue].eq(self.post[queue]),
                dut.take[queue].eq(self.take[queue]),
            ]
        for consumer in TILE_QUEUES:
            taken = self.take[consumer] & dut.available[consumer]
            missing = Signal(TOKENS)
            for bit, producer, channel in partners(consumer):
                name = f"{producer.name}_{consumer.name}_{channel}".lower()
                count = Signal(signed(4), name=f"shadow_{name}")
                posted = self.post[producer][CHANNELS * consumer + channel]
                wanted = self.wait[consumer][bit]
                after = Signal(signed(4), name=f"after_{name}")
                m.d.comb += after.eq(count + posted - (taken & wanted))
                # A post that finds no room is lost and reported, and changes nothing else.
                overflow = after > MAXIMUM
                lost[producer].append(overflow)
                m.d.sync += count.eq(Mux(overflow, MAXIMUM, after))
                m.d.comb += [
                    missing[bit].eq(wanted & (count == 0)),
                    Assert(count >= 0),
                    Assert(count <= MAXIMUM),
                ]
                empty.append(count == 0)
                full.append(count == MAXIMUM)
            m.d.comb += [
                Assert(dut.missing[consumer] == missing),
                Assert(dut.available[consumer] == ~missing.any()),
                Cover(taken & (self.wait[consumer] != 0) & ~Cat(empty).all()),
            ]
        for producer in TILE_QUEUES:
            m.d.comb += [
                Assert(dut.overflow[producer] == Cat(lost[producer]).any()),
                Cover(dut.overflow[producer]),
            ]
        m.d.comb += [Cover(Cat(full).all()), Cover(Cat(empty).all())]
        return m


def test_semaphores():
    print(prove(SemaphoresProof, "semaphores", engine="pdr", depth=10))


class Broken(Semaphores):
    """Semaphores with one ``fault``, for proofs that must fail."""

    def __init__(self, fault, **sizes):
        self.fault = fault
        super().__init__(**sizes)

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Semaphores(maximum=self.maximum)
        for name in ("wait", "post", "take"):
            for queue in TILE_QUEUES:
                m.d.comb += getattr(inner, name)[queue].eq(getattr(self, name)[queue])
        for name in ("available", "missing", "overflow"):
            for queue in TILE_QUEUES:
                m.d.comb += getattr(self, name)[queue].eq(getattr(inner, name)[queue])

        several = self.wait[0][2] & self.wait[0][5]
        match self.fault:
            case "blind":
                m.d.comb += inner.wait[0][5].eq(0)
            case "partial":
                m.d.comb += self.available[0].eq(inner.available[0] | several)
            case "forget to take":
                m.d.comb += inner.take[0].eq(self.take[0] & ~several)
            case "lose a post":
                with m.If(self.post[0].any()):
                    m.d.comb += inner.post[1].eq(0)
            case "silent":
                m.d.comb += self.overflow[2].eq(0)
            case "alarm":
                m.d.comb += self.overflow[2].eq(inner.overflow[2] | inner.overflow[1])
        return m


@pytest.mark.parametrize(
    "fault", ["blind", "partial", "forget to take", "lose a post", "silent", "alarm"]
)
def test_broken(fault):
    with pytest.raises(ProofFailed, match="base case failed"):
        prove(
            lambda: SemaphoresProof(lambda **sizes: Broken(fault, **sizes)),
            fault,
            engine="pdr",
            depth=10,
        )
