"""Moves the codes that are stored next to each other."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .ones import ones
from .quantise import CODE_WIDTH


__all__ = ["RANK_BITS", "Compact"]

#: Bits of a rank: enough for a lane of 16, and for four outliers.
RANK_BITS = 4


class Compact(wiring.Component):
    """Routes the marked codes of consecutive rows to lanes 0, 1, ... n - 1, 0, ...

    Codes of n marks make a group. Stage k of the routing network moves a code by 0 or 2**k lanes;
    codes in order of their lanes that go to consecutive lanes never meet. Where every lane is
    marked, nothing moves and each row is a group.

    One row per cycle. Ranks come ``rank_latency`` cycles after the row, ``o_*`` come ``latency``
    cycles after it.

    Parameters
    ----------
    n : int
        Values of a row.

    Members
    -------
    i_valid, first, last : In(1)
        A row; the first and the last one of its unit. Counting begins at lane 0.
    codes : In(data.ArrayLayout(8, n)); marks : In(n)
    straight : In(1)
        Marks are only counted; the row is a group as it is.
    rank : Out(data.ArrayLayout(4, n))
        Marks of the unit before each lane, modulo 16.
    count : Out(8)
        With ``rank``: marks of the unit up to this row.
    begins : Out(1)
        With ``rank``: a group begins in this row.
    o_valid : Out(n); o_codes : Out(data.ArrayLayout(8, n))
        Lanes with a code, and the codes.
    o_next : Out(n)
        Lanes whose code is in the group after the current one.
    o_full, o_ended : Out(1)
        The current group is full; the unit ends with a group that is not.
    """

    rank_latency = 2
    latency = 4

    def __init__(self, n):
        self.n = n
        codes = data.ArrayLayout(CODE_WIDTH, n)
        super().__init__({
            "i_valid": In(1), "first": In(1), "last": In(1),
            "codes": In(codes), "marks": In(n), "straight": In(1),
            "rank": Out(data.ArrayLayout(RANK_BITS, n)), "count": Out(8), "begins": Out(1),
            "o_valid": Out(n), "o_codes": Out(codes), "o_next": Out(n),
            "o_full": Out(1), "o_ended": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        n = self.n
        lane_bits = n.bit_length() - 1
        codes = self.codes.shape()

        # Marks before each lane, in this row.
        before = Signal(data.ArrayLayout(lane_bits, n))
        marked = Signal(range(n + 1))
        step = data.StructLayout({"valid": 1, "first": 1, "last": 1, "straight": 1, "marks": n,
                                  "codes": codes})
        counted = Signal(step)
        m.d.sync += [
            *(before[k].eq(ones(self.marks[:k])) for k in range(1, n)),
            marked.eq(ones(self.marks)),
            *(counted[name].eq(value) for name, value in (
                ("valid", self.i_valid), ("first", self.first), ("last", self.last),
                ("straight", self.straight), ("marks", self.marks), ("codes", self.codes))),
        ]

        # And in the unit. `start` is the lane of the row's first mark.
        base = Signal(8)
        upto = Signal(8)
        start = Signal(lane_bits)
        end = Signal(lane_bits + 1)
        m.d.comb += [
            base.eq(Mux(counted.first, 0, self.count)),
            upto.eq(base + marked),
            start.eq(base),
            end.eq(start + marked),
        ]
        ranked = Signal(step)
        full = Signal()
        ended = Signal()
        following = Signal(n)
        m.d.sync += [
            ranked.eq(counted),
            *(self.rank[k].eq(base[:RANK_BITS] + before[k]) for k in range(n)),
            self.begins.eq(counted.straight | Mux(start == 0, marked != 0, end > n)),
            full.eq(counted.valid & (counted.straight | (end >= n))),
            ended.eq(counted.valid & counted.last & ~counted.straight
                     & (end[:lane_bits] != 0)),
            # No mark begins behind the last lane.
            following.eq(Cat((lane < start) & ~counted.straight for lane in range(n - 1))),
        ]
        with m.If(counted.valid):
            m.d.sync += self.count.eq(upto)

        # Routing: stages 0 and 1, then the others.
        lane = data.StructLayout({"valid": 1, "to": lane_bits, "code": CODE_WIDTH})
        entering = Signal(data.ArrayLayout(lane, n))
        for k in range(n):
            m.d.comb += [
                entering[k].valid.eq(ranked.valid & (ranked.marks[k] | ranked.straight)),
                entering[k].to.eq(Mux(ranked.straight, k, self.rank[k])),
                entering[k].code.eq(ranked.codes[k]),
            ]
        middle = Signal(data.ArrayLayout(lane, n))
        leaving = self._route(m, self._route(m, entering, 0), 1)
        m.d.sync += middle.eq(leaving)
        leaving = middle
        for stage in range(2, lane_bits):
            leaving = self._route(m, leaving, stage)
        later = Signal(n + 2)
        m.d.sync += [
            later.eq(Cat(following, full, ended)),
            Cat(self.o_next, self.o_full, self.o_ended).eq(later),
            self.o_valid.eq(Cat(leaving[k].valid for k in range(n))),
            *(self.o_codes[k].eq(leaving[k].code) for k in range(n)),
        ]
        return m

    def _route(self, m, lanes, stage):
        """Each code to the lane of its pair that has bit ``stage`` of where it goes."""
        routed = Signal(lanes.shape(), name=f"routed_{stage}")
        for k in range(self.n):
            own, other = lanes[k], lanes[k ^ 1 << stage]
            bit = k >> stage & 1
            stays = own.valid & (own.to[stage] == bit)
            comes = other.valid & (other.to[stage] == bit)
            m.d.comb += routed[k].eq(Mux(comes, other, own))
            m.d.comb += routed[k].valid.eq(stays | comes)
        return routed
