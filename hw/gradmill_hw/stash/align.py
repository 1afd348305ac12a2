"""Aligns magnitudes to the exponents that they are coded with."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .body_rank import ABOVE, DISTANCE_BITS, Body
from .elements_model import RANDOM_BITS
from .formats import HIGH_BITS
from .measure import MAGNITUDE_BITS
from .ones import ones
from .tag import TagInfo


__all__ = ["Align", "AlignedRow"]

FIXED_BITS = MAGNITUDE_BITS + RANDOM_BITS


class AlignedRow(data.StructLayout):
    """Magnitudes as fixed-point numbers of 8 integer and 8 fraction bits.

    Members
    -------
    fixed : data.ArrayLayout(16, n)
        The integer part is what is coded. Undefined where ``beyond``.
    sticky : n
        There was something below the fraction.
    neg, some : n
        Negative values; values that are not zero.
    beyond : n
        Values that saturate: outliers that are not kept.
    other : n
        Values with the second exponent of their unit: kept outliers, or microexponent 1.
    """

    def __init__(self, n):
        super().__init__({"fixed": data.ArrayLayout(FIXED_BITS, n), "sticky": n, "neg": n,
                          "some": n, "beyond": n, "other": n})


class Align(wiring.Component):
    """Chooses the exponent of each value and shifts it there.

    One row per cycle, ``latency`` cycles, except for ``other_early`` and ``dropped``.

    Parameters
    ----------
    n : int
        Values of a row.

    Members
    -------
    i_valid, last : In(1)
        A row; the last one of its unit.
    mag : In(data.ArrayLayout(8, n)); neg : In(n)
    distance : In(5)
        See :class:`body_rank.BodyRank`.
    bad : In(1)
        The unit is not finite: nothing in it is an outlier.
    info : In(TagInfo())
    body : In(Body())
    o_row : Out(AlignedRow(n))
    dropped : Out(range(n + 1))
        Outliers of this row that are not kept; 2 cycles after the row.
    """

    latency = 4

    def __init__(self, n):
        self.n = n
        super().__init__({
            "i_valid": In(1), "last": In(1),
            "mag": In(data.ArrayLayout(MAGNITUDE_BITS, n)), "neg": In(n),
            "distance": In(DISTANCE_BITS), "bad": In(1),
            "info": In(TagInfo()), "body": In(Body()),
            "o_row": Out(AlignedRow(n)),
            "dropped": Out(range(n + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        n, info = self.n, self.info

        # A value that reaches bit `limit - 1` has a larger exponent than the body, or, for
        # microexponents, the largest one. Outliers below `limit - 1` are kept only by quota.
        drop = Signal(3)
        m.d.comb += drop.eq(Mux(info.outlier, self.body.drop, 0))
        limit = self.distance + 1 - Mux(info.hierarchical, 1, drop)
        kept = self.distance + 1 - self.body.classes
        upper = Signal(n)
        certain = Signal(n)
        candidate = Signal(n)
        for k, mag in enumerate(self.mag):
            def reaches(position, mag=mag):
                return Cat(mag[bit] & (position <= bit) for bit in range(MAGNITUDE_BITS)).any()
            m.d.sync += [
                upper[k].eq(reaches(limit)),
                certain[k].eq(reaches(kept)),
                candidate[k].eq(reaches(kept - 1)),
            ]

        # Shifts: to the exponent of the body with `bits`, or to the other one.
        def clipped(value):
            return Mux(value < 0, 0, Mux(value > 31, 31, value))

        straight = self.distance + 1 + ABOVE - info.bits
        main = Signal(5)
        other = Signal(5)
        first = Signal(data.StructLayout({"valid": 1, "last": 1, "outlier": 1, "hier": 1}))
        quota_fresh = Signal(3)
        m.d.sync += [
            main.eq(clipped(straight - drop)),
            other.eq(clipped(straight - Mux(info.outlier, HIGH_BITS, 1))),
            first.valid.eq(self.i_valid),
            first.last.eq(self.last),
            first.outlier.eq(info.outlier & ~self.bad),
            first.hier.eq(info.hierarchical),
            quota_fresh.eq(self.body.quota),
        ]
        mags = [self.mag]
        for stage in range(2):
            held = Signal(data.ArrayLayout(MAGNITUDE_BITS, n), name=f"mag_{stage}")
            m.d.sync += held.eq(mags[-1])
            mags.append(held)

        # The quota goes to the first candidates of the unit.
        fresh = Signal(init=1)
        left = Signal(3)
        quota = Signal(3)
        tied = Signal(n)
        granted = Signal(n)
        m.d.comb += [
            quota.eq(Mux(fresh, quota_fresh, left)),
            tied.eq(candidate & ~certain & upper),
        ]
        for k in range(n):
            m.d.comb += granted[k].eq(tied[k] & ((ones(tied[:k]) if k else 0) < quota))
        used = ones(tied)
        with m.If(first.valid):
            m.d.sync += [
                fresh.eq(first.last),
                left.eq(Mux(used < quota, quota - used, 0)),
            ]

        keep = Signal(n)
        beyond = Signal(n)
        use_other = Signal(n)
        m.d.comb += [
            keep.eq((certain & upper | granted) & first.outlier.replicate(n)),
            beyond.eq(upper & ~keep & first.outlier.replicate(n)),
        ]
        for k in range(n):
            pair = upper[k & ~1] | upper[k | 1]
            m.d.comb += use_other[k].eq(Mux(first.hier, ~pair, keep[k]))
        m.d.sync += self.dropped.eq(Mux(first.valid, ones(beyond), 0))

        shifts = Signal(data.ArrayLayout(5, n))
        for k in range(n):
            m.d.sync += shifts[k].eq(Mux(use_other[k], other, main))
        beyond_2 = Signal(n)
        other_2 = Signal(n)
        m.d.sync += [beyond_2.eq(beyond), other_2.eq(use_other)]

        # Fixed point: magnitude * 2**15, shifted right. By up to three, then by fours.
        fine = Signal(data.ArrayLayout(MAGNITUDE_BITS + 3, n))
        coarse = Signal(data.ArrayLayout(3, n))
        neg = [self.neg]
        some = [Cat(mag.any() for mag in self.mag)]
        for stage in range(4):
            for name, values in (("neg", neg), ("some", some)):
                later = Signal(n, name=f"{name}_{stage}")
                m.d.sync += later.eq(values[-1])
                values.append(later)
        beyond_3 = Signal(n)
        other_3 = Signal(n)
        m.d.sync += [
            beyond_3.eq(beyond_2), other_3.eq(other_2),
            self.o_row.beyond.eq(beyond_3), self.o_row.other.eq(other_3),
        ]
        m.d.comb += [self.o_row.neg.eq(neg[-1]), self.o_row.some.eq(some[-1])]
        for k in range(n):
            m.d.sync += [
                fine[k].eq((mags[-1][k] << 3) >> shifts[k][:2]),
                coarse[k].eq(shifts[k][2:]),
            ]
            bits, below = _place(fine[k], coarse[k])
            m.d.sync += [self.o_row.fixed[k].eq(bits), self.o_row.sticky[k].eq(below)]
        return m


def _place(fine, coarse):
    """``fine << 12 >> 4 * coarse``: 16 bits, and whether a one was lost below."""
    bits = []
    for bit in range(FIXED_BITS):
        at = Const(0)
        for step in range(8):
            source = bit + 4 * step - 12
            if 0 <= source < len(fine):
                at = at | (fine[source] & (coarse == step))
        bits.append(at)
    below = Const(0)
    for step in range(4, 8):
        below = below | (fine[:4 * step - 12].any() & (coarse == step))
    return Cat(*(bit[:1] for bit in bits)), below
