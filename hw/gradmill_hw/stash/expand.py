"""Gives each value its code."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .ones import ones
from .parse import ParsedRow
from .quantise import CODE_WIDTH


__all__ = ["Expand", "ExpandedRow"]


class ExpandedRow(data.StructLayout):
    """Codes of a row.

    Members
    -------
    codes : data.ArrayLayout(8, n)
        Sign in the lowest bit if the format has signs; kept outliers with their second mantissa.
    present : n
        Values that have a code; the others have code 0.
    other : n
        Values with the exponent ``second``, and microexponents.
    exponent, second : 8
        As in :class:`parse.ParsedRow`; ``exponent`` also for ``mask``.
    tag : 8
    """

    def __init__(self, n):
        super().__init__({
            "codes": data.ArrayLayout(CODE_WIDTH, n), "present": n, "other": n, "exponent": 8,
            "second": 8, "tag": 8,
        })


class Expand(wiring.Component):
    """Takes codes from groups. One row per cycle, ``latency`` cycles.

    Parameters
    ----------
    n : int
        Values of a row.

    Members
    -------
    i_valid : In(1); i_row : In(ParsedRow(n))
    o_row : Out(ExpandedRow(n))
    """

    latency = 3

    def __init__(self, n):
        self.n = n
        super().__init__({"i_valid": In(1), "i_row": In(ParsedRow(n)),
                          "o_row": Out(ExpandedRow(n))})

    def elaborate(self, platform):
        m = Module()
        n, row = self.n, self.i_row
        lane_bits = n.bit_length() - 1

        # The codes left of the last group stand from `start` on; below are those of this row's.
        held = Signal(row.codes.shape())
        with m.If(self.i_valid & row.begins):
            m.d.sync += held.eq(row.codes)
        joined = Signal(row.codes.shape())
        source = Signal(data.ArrayLayout(lane_bits, n))
        states = [row]
        for stage in range(2):
            later = Signal(row.shape(), name=f"row_{stage}")
            m.d.sync += later.eq(states[-1])
            states.append(later)
        for k in range(n):
            m.d.sync += [
                joined[k].eq(Mux((row.start != 0) & (row.start <= k if k < n - 1 else 1),
                                 held[k], row.codes[k])),
                source[k].eq(row.start + (ones(row.bitmap[:k]) if k else 0)),
            ]

        now = states[1]
        codes = Signal(row.codes.shape())
        for k in range(n):
            with m.If(now.bitmap[k]):
                m.d.sync += codes[k].eq(joined[source[k]])
            with m.Else():
                m.d.sync += codes[k].eq(0)

        # Outliers: their second mantissa stands above the bits of the body.
        now = states[2]
        above = (now.info.bits[:2] - 1)[:2]
        for k in range(n):
            high = Signal(CODE_WIDTH, name=f"high_{k}")
            m.d.comb += high.eq(Cat(C(0, 2), Mux(now.listed[k], now.high[k], 0)) << above)
            m.d.sync += self.o_row.codes[k].eq(codes[k] | high)
            micro = now.info.hierarchical & now.micro[k // 2]
            m.d.sync += self.o_row.other[k].eq(micro | now.listed[k])
        m.d.sync += [
            self.o_row.present.eq(now.bitmap),
            self.o_row.exponent.eq(Mux(now.info.mask, 127, now.exponent)),
            self.o_row.second.eq(now.second),
            self.o_row.tag.eq(now.tag),
        ]
        return m
