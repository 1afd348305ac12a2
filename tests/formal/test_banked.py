"""The banked memory grants exactly what it should and returns what was written."""

import pytest
from amaranth import *
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.memory.banked import BankedMemory
from gradmill_hw.memory.ports import READ_LATENCY, ReadPort, WritePort
from tests.formal.prove import ProofFailed, assert_no_path, prove


pytestmark = pytest.mark.formal

DEPTH, BANKS = 4, 2
READERS, WRITERS = 3, 2
PORTS = {
    "read": In(ReadPort(1)).array(READERS),
    "write": In(WritePort(1)).array(WRITERS),
}


def memory():
    return BankedMemory(1, depth=DEPTH, banks=BANKS, readers=READERS, writers=WRITERS)


class BankedProof(wiring.Component):
    """Checks every grant, and follows one row of free address. No assumptions, any reset."""

    def __init__(self, dut):
        self.dut = dut
        super().__init__(PORTS)

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        for outer, inner in zip((*self.read, *self.write), (*dut.read, *dut.write), strict=True):
            wiring.connect(m, wiring.flipped(outer), inner)

        # A request is granted if and only if no earlier port asks for its bank.
        bank_of = {id(port): port.addr[1] for port in (*dut.read, *dut.write)}
        for ports in (list(dut.read), list(dut.write)):
            for number, port in enumerate(ports):
                rivals = Cat(
                    earlier.valid & (bank_of[id(earlier)] == bank_of[id(port)])
                    for earlier in ports[:number]
                )
                m.d.comb += Assert(~port.valid | (port.ready == ~rivals.any()))
            for bank in range(BANKS):
                granted = [port.valid & port.ready & (bank_of[id(port)] == bank) for port in ports]
                asked = Cat(port.valid & (bank_of[id(port)] == bank) for port in ports).any()
                m.d.comb += Assert(sum(granted) == asked)

        fault = Signal()
        beyond = [port.valid & port.ready & port.addr[2:].any() for port in (*dut.read, *dut.write)]
        m.d.sync += fault.eq(Cat(beyond).any())
        m.d.comb += Assert(dut.fault == fault)

        # A read returns the row as it was before the writes of its cycle.
        addr = AnyConst(range(DEPTH))
        row = Signal(reset_less=True)
        written = [port.valid & port.ready & (port.addr == addr) for port in dut.write]
        for port, hit in zip(dut.write, written, strict=True):
            with m.If(hit):
                m.d.sync += row.eq(port.data)
        for port in dut.read:
            hit = port.valid & port.ready & (port.addr == addr)
            expected = row
            for _ in range(READ_LATENCY):
                hit_next, expected_next = Signal(reset_less=True), Signal(reset_less=True)
                m.d.sync += [hit_next.eq(hit), expected_next.eq(expected)]
                hit, expected = hit_next, expected_next
            m.d.comb += [
                Assert(~hit | (port.data == expected)),
                Cover(hit & expected & ~row),
            ]

        m.d.comb += [
            Cover(Cat(port.valid & ~port.ready for port in dut.read[1:]).all()),
            Cover(Cat(port.valid & port.ready for port in dut.write).all()),
            Cover(fault),
        ]

        return m


class Broken(wiring.Component):
    """The memory with one ``fault``, for proofs that must fail."""

    def __init__(self, fault):
        self.broken = fault
        super().__init__({**PORTS, "fault": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = inner = memory()
        reads, writes = list(inner.read), list(inner.write)
        if self.broken == "priority":
            reads.reverse()
        for outer, port in zip((*self.read, *self.write), (*reads, *writes), strict=True):
            wiring.connect(m, wiring.flipped(outer), port)
        m.d.comb += self.fault.eq(inner.fault)

        match self.broken:
            case "two grants":
                m.d.comb += self.read[2].ready.eq(1)
            case "no grant":
                m.d.comb += [self.write[1].ready.eq(0), inner.write[1].valid.eq(0)]
            case "silent":
                m.d.comb += self.fault.eq(0)
            case "alias":
                m.d.comb += inner.write[0].addr.eq(self.write[0].addr[:2])
            case "stuck row":
                with m.If(self.write[1].addr == 3):
                    m.d.comb += inner.write[1].data.eq(0)
            case "late":
                late = Signal()
                m.d.sync += late.eq(inner.read[1].data)
                m.d.comb += self.read[1].data.eq(late)
            case "new row":
                bypass = [Signal(2), Signal(2)]
                same = self.write[0].valid & (self.write[0].addr == self.read[0].addr)
                m.d.sync += [
                    bypass[0].eq(Cat(self.write[0].data, same)),
                    bypass[1].eq(bypass[0]),
                ]
                with m.If(bypass[1][1]):
                    m.d.comb += self.read[0].data.eq(bypass[1][0])

        return m


def test_banked():
    print(prove(lambda: BankedProof(memory()), "banked memory", engine="pdr", depth=8))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("priority", "rivals|asked"),
        ("two grants", "rivals|asked"),
        ("no grant", "rivals|asked"),
        ("silent", "fault"),
        ("alias", "expected|fault"),
        ("stuck row", "expected"),
        ("late", "expected"),
        ("new row", "expected"),
    ],
)
def test_broken_memory(fault, words):
    with pytest.raises(ProofFailed, match=rf"base case failed\n.*({words})"):
        prove(lambda: BankedProof(Broken(fault)), fault, engine="pdr", depth=8)


def test_directions_are_independent():
    assert_no_path(memory(), "write__*", "read__*__ready")
    assert_no_path(memory(), "read__*", "write__*__ready")
    assert_no_path(memory(), "*", "*__data")
