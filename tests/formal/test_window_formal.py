"""Proof of the window check at narrow widths: it permits if and only if the transfer is legal."""

from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import SimpleNamespace

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In
from gradmill_hw.isa import Kind
from gradmill_hw.memory.window import DIMENSIONS, Extent, WindowCheck, windows_layout
from gradmill_hw.regs import WINDOWS, Error, Tier
from tests.formal.narrow_bus import held, mutant
from tests.formal.prove import ProofFailed, prove


pytestmark = pytest.mark.formal

#: Addresses may exceed the bus, ends may exceed the addresses.
WIDTHS = SimpleNamespace(mem=6, stride=4, count=2)


@dataclass(frozen=True)
class NarrowRows:
    """Stands in for a ``Config``: 2-byte beats of 4 granules, 32 bytes of memory."""

    address_bits: int = 5
    beat_bytes: int = 2
    beat_granules: int = 4
    stash: bool = False

    def row_granules(self, kind):
        return {"mask": 1, "bfp": 3, "fp32": 6}[kind]

    def run_bytes(self, kind, rows):
        """Bytes of the longest run."""
        return 5 * self.beat_bytes


CONFIG = NarrowRows()


class WindowProof(wiring.Component):
    """Questions and windows are free, but stand until answered."""

    i: In(stream.Signature(Extent(WIDTHS)))
    windows: In(windows_layout(CONFIG))

    def __init__(self, write=False, check=WindowCheck):
        self.write, self.check = write, check
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.check(CONFIG, write=self.write, widths=WIDTHS)
        wiring.connect(m, wiring.flipped(self.i), dut.i)
        ask = self.i.p
        m.d.comb += [
            dut.windows.eq(self.windows),
            Assume(held(m, self.i.valid, self.i.ready, Cat(ask, self.windows))),
        ]

        # The rule, written down without regard to how long it takes.
        granules = Signal(3)
        with m.Switch(ask.kind):
            for kind in Kind:
                with m.Case(kind):
                    m.d.comb += granules.eq(CONFIG.row_granules(kind.name.lower()))
        beats = (ask.run * granules + CONFIG.beat_granules - 1) // CONFIG.beat_granules
        end = (
            ask.mem
            + beats * CONFIG.beat_bytes
            + sum(
                ((ask.count[d] - 1)[: WIDTHS.count] * ask.stride[d] for d in range(DIMENSIONS)),
                C(0),
            )
        )
        zero = reduce(or_, (ask.count[d] == 0 for d in range(DIMENSIONS)), ask.run == 0)
        odd = reduce(
            or_,
            (ask.stride[d] % CONFIG.beat_bytes != 0 for d in range(DIMENSIONS)),
            ask.mem % CONFIG.beat_bytes != 0,
        )
        inside = C(0)
        for tier in Tier:
            for k in range(WINDOWS):
                window = data.View(self.windows[tier][k].shape(), self.windows[tier][k].as_value())
                inside |= (
                    (ask.tier == tier)
                    & (window.write if self.write else window.read)
                    & (window.base <= ask.mem)
                    & (end <= window.limit)
                    & (window.limit <= 1 << CONFIG.address_bits)
                )
        expected = Signal(Error)
        m.d.comb += expected.eq(
            Mux(
                ask.kind > max(Kind),
                Error.KIND,
                Mux(
                    ask.codec != 0,
                    Error.CODEC,
                    Mux(
                        zero,
                        Error.COUNT,
                        Mux(odd, Error.ALIGNMENT, Mux(~inside, Error.WINDOW, Error.NONE)),
                    ),
                ),
            )
        )

        answered = self.i.valid & self.i.ready
        with m.If(answered):
            m.d.comb += Assert(dut.error == expected)
            with m.If(expected == Error.NONE):
                m.d.comb += Assert(dut.beats == beats)

        # Progress: 12 cycles, no more.
        age = Signal(4)
        m.d.sync += age.eq(Mux(self.i.valid & ~self.i.ready, age + 1, 0))
        m.d.comb += [Assert(answered == (self.i.valid & (age == 11))), Assert(age < 12)]

        for error in (
            Error.NONE,
            Error.KIND,
            Error.CODEC,
            Error.COUNT,
            Error.ALIGNMENT,
            Error.WINDOW,
        ):
            m.d.comb += Cover(answered & (dut.error == error))
        m.d.comb += [
            # Every dimension counts, and the last window, up to its last byte.
            Cover(
                answered
                & (dut.error == Error.NONE)
                & (end == self.windows[1][3].limit)
                & Cat(ask.count[d] == 2 for d in range(DIMENSIONS)).all()
                & Cat(ask.stride[d] == 4 for d in range(DIMENSIONS)).all()
            ),
        ]
        return m


@pytest.mark.parametrize("write", [False, True])
def test_permits_exactly_the_legal(write):
    prove(lambda: WindowProof(write), "window", k=13, depth=14)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ask.mem >= window.base", "ask.mem > window.base"),
        ("end) <= window.limit)", "end) < window.limit)"),
        ("len(product) + 2) + 1", "len(product))"),
        ("& (window.limit <= 1 << config.address_bits)", ""),
        ("times.eq(ask.count[d] - 1)", "times.eq(ask.count[d])"),
        ("config.beat_granules - 1)", "0)"),
        ("self.i.ready.eq(step == 11 + late)", "self.i.ready.eq(step == 10)"),
    ],
)
def test_proof_sees(old, new):
    with pytest.raises(ProofFailed):
        prove(lambda: WindowProof(check=mutant(WindowCheck, old, new)), "window", k=13, depth=14)
