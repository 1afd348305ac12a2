"""Rounds aligned magnitudes to codes."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .align import AlignedRow
from .elements_model import RANDOM_BITS
from .formats import HIGH_BITS, SLOTS
from .measure import MAGNITUDE_BITS
from .tables import PRESETS, STEPS
from .tag import TagInfo


__all__ = ["CODE_WIDTH", "CodedRow", "EncodeEntry", "Quantise"]

#: Bits of the widest code.
CODE_WIDTH = 8
#: Bits of a code of the non-uniform format.
BIN_BITS = max(SLOTS.values())


class CodedRow(data.StructLayout):
    """Codes of a row.

    Members
    -------
    codes : data.ArrayLayout(8, n)
        Upper bits that the format does not have are undefined.
    keep : n
        Values whose code is stored if the format packs, all if it does not.
    listed : n
        Kept outliers.
    high : data.ArrayLayout(3, n)
        Their second mantissas.
    other : n
        As in :class:`align.AlignedRow`.
    """

    def __init__(self, n):
        super().__init__({"codes": data.ArrayLayout(CODE_WIDTH, n), "keep": n, "listed": n,
                          "high": data.ArrayLayout(HIGH_BITS, n), "other": n})


class EncodeEntry(data.StructLayout):
    """One entry of all encoding tables: ``codes`` of magnitudes 4 ``step`` to 4 ``step`` + 3."""

    def __init__(self):
        super().__init__({"step": range(STEPS), "codes": data.StructLayout(SLOTS)})


class Quantise(wiring.Component):
    """Rounds, saturates and looks up: the code of each value.

    See :func:`elements_model.quantise` for the rounding. One row per cycle, ``latency`` cycles.

    Parameters
    ----------
    n : int
        Values of a row.

    Members
    -------
    i_row : In(AlignedRow(n))
    random : In(data.ArrayLayout(8, n))
    stochastic : In(1)
    bad : In(1)
        The unit is not finite: all codes are zero.
    info : In(TagInfo())
    entry_valid, entry : In(EncodeEntry())
        Write one entry of a table.
    o_row : Out(CodedRow(n))
    """

    latency = 4

    def __init__(self, n):
        self.n = n
        super().__init__({
            "i_row": In(AlignedRow(n)), "random": In(data.ArrayLayout(RANDOM_BITS, n)),
            "stochastic": In(1), "bad": In(1), "info": In(TagInfo()),
            "entry_valid": In(1), "entry": In(EncodeEntry()),
            "o_row": Out(CodedRow(n)),
        })

    def elaborate(self, platform):
        m = Module()
        n, row = self.n, self.i_row
        wide = MAGNITUDE_BITS + 1

        infos = [self.info]
        for stage in range(self.latency - 1):
            later = Signal(TagInfo(), name=f"info_{stage}")
            m.d.sync += later.eq(infos[-1])
            infos.append(later)
        flags = data.StructLayout({"neg": n, "some": n, "beyond": n, "other": n, "bad": 1})
        states = []
        for stage in range(3):
            states.append(Signal(flags, name=f"flags_{stage}"))
        m.d.sync += [
            *(states[0][name].eq(row[name]) for name in ("neg", "some", "beyond", "other")),
            states[0].bad.eq(self.bad),
            states[1].eq(states[0]), states[2].eq(states[1]),
        ]

        # Round: integer part of the fixed-point number plus an addend below one.
        half = 1 << RANDOM_BITS - 1
        sums = Signal(data.ArrayLayout(wide, n))
        below_zero = Signal(n)
        for k in range(n):
            middle = self.info.between & self.stochastic
            random = Mux(self.stochastic, self.random[k],
                         Mux(self.info.between, 0, half - 1))
            top = random[-1] ^ middle
            sign = middle & ~random[-1]
            addend = Cat(random[:-1], top, sign.replicate(wide + 1))
            carry = ~self.stochastic & ~self.info.between & (
                row.fixed[k][RANDOM_BITS] | row.sticky[k])
            total = Signal(RANDOM_BITS + wide + 2, name=f"total_{k}")
            m.d.comb += total.eq(Cat(1, row.fixed[k], C(0, 2)) + Cat(carry, addend))
            m.d.sync += [
                sums[k].eq(total[1 + RANDOM_BITS:]),
                below_zero[k].eq(total[-1]),
            ]

        # Saturate; a kept outlier has more bits than the body.
        over = Cat(infos[1].bits <= bit for bit in range(wide))
        far_over = Cat(infos[1].bits + HIGH_BITS <= bit for bit in range(wide))
        magnitude = Signal(data.ArrayLayout(MAGNITUDE_BITS, n))
        for k in range(n):
            listed = infos[1].outlier & states[0].other[k]
            limit = far_over | (over & ~listed.replicate(wide))
            with m.If(below_zero[k] | states[0].bad):
                m.d.sync += magnitude[k].eq(0)
            with m.Elif((sums[k] & limit).any() | states[0].beyond[k]):
                m.d.sync += magnitude[k].eq(~0)
            with m.Else():
                m.d.sync += magnitude[k].eq(sums[k])

        # Bins of the non-uniform format, read by every lane.
        m.submodules.table = table = Memory(
            shape=data.StructLayout(SLOTS), depth=STEPS,
            init=[{slot: int(PRESETS[slot].codes[step]) for slot in SLOTS}
                  for step in range(STEPS)])
        port = table.write_port()
        m.d.comb += [
            port.en.eq(self.entry_valid),
            port.addr.eq(self.entry.step),
            port.data.eq(self.entry.codes),
        ]
        bins = Signal(data.ArrayLayout(BIN_BITS, n))
        number = Signal(data.ArrayLayout(MAGNITUDE_BITS, n))
        sign = Signal(n)
        listed = Signal(n)
        high = Signal(data.ArrayLayout(HIGH_BITS, n))
        info = infos[2]
        m.d.sync += listed.eq(states[1].other & info.outlier.replicate(n))
        for k in range(n):
            read = table.read_port(domain="comb")
            m.d.comb += read.addr.eq(magnitude[k][2:])
            m.d.sync += [
                bins[k].eq(Array(read.data[slot] for slot in SLOTS)[info.slot]),
                number[k].eq(magnitude[k]),
                sign[k].eq(states[1].neg[k] & magnitude[k].any()),
                high[k].eq(magnitude[k][1:] >> (info.bits[:2] - 1)[:2]),
            ]

        # Codes.
        info = infos[3]
        for k in range(n):
            code = Signal(CODE_WIDTH, name=f"code_{k}")
            with m.If(info.nonuniform):
                m.d.comb += code.eq(Cat(sign[k], bins[k]))
            with m.Elif(info.signed):
                m.d.comb += code.eq(Cat(sign[k], number[k]))
            with m.Else():
                m.d.comb += code.eq(number[k])
            with m.If(info.mask):
                m.d.comb += code[0].eq(states[2].some[k])
            stored = Mux(info.between, states[2].some[k] & ~states[2].bad,
                         Mux(info.nonuniform, sign[k] | bins[k].any(), number[k].any()))
            m.d.sync += [
                self.o_row.codes[k].eq(code),
                self.o_row.keep[k].eq(~info.packed | stored),
            ]
        m.d.sync += [
            self.o_row.listed.eq(listed),
            self.o_row.high.eq(high),
            self.o_row.other.eq(states[2].other),
        ]
        return m
