"""Rank of exponents: where the body of a block lies, and which outliers are kept."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .measure import MAGNITUDE_BITS
from .ones import ones
from .outlier_model import BODY_ABOVE_MEDIAN, DISTANCE_MAX


__all__ = ["Body", "BodyRank"]

#: Bits that a distance is written in, from what a row's exponent may lie above the largest.
DISTANCE_BITS = 5
ABOVE = MAGNITUDE_BITS - 1


class Body(data.StructLayout):
    """What is known of a unit.

    Members
    -------
    drop : 3
        Exponent of the body below the largest exponent.
    classes, quota : 3
        Outliers less than ``classes`` octaves below the largest exponent are kept, and of those
        just ``classes`` octaves below it the first ``quota``.
    """

    def __init__(self):
        super().__init__({"drop": 3, "classes": 3, "quota": 3})


class BodyRank(wiring.Component):
    """Counts exponents of a unit and finds its :class:`Body`.

    See :mod:`outlier_model`. One row per cycle; the body of a unit comes ``latency`` cycles after
    its last row.

    Parameters
    ----------
    n : int
        Values of a row.

    Members
    -------
    i_valid : In(1)
    mag : In(data.ArrayLayout(8, n))
    distance : In(5)
        7 + the largest exponent of the unit - the exponent of the row; 31 stands for more.
    largest : In(8)
        Largest exponent of the unit.
    four : In(1)
        Keep four outliers, not two.
    last : In(1)
        Last row of its unit.
    body_valid : Out(1); body : Out(Body())
    """

    latency = 6

    def __init__(self, n):
        self.n = n
        super().__init__({
            "i_valid": In(1), "mag": In(data.ArrayLayout(MAGNITUDE_BITS, n)),
            "distance": In(DISTANCE_BITS), "largest": In(8), "four": In(1), "last": In(1),
            "body_valid": Out(1), "body": Out(Body()),
        })

    def elaborate(self, platform):
        m = Module()
        count_bits = self.n.bit_length()
        sums_bits = 8
        classes = DISTANCE_MAX

        # Values of at least each number of bits, in this row.
        record = data.StructLayout({"valid": 1, "last": 1, "distance": DISTANCE_BITS,
                                    "largest": 8, "four": 1})
        counted = Signal(record)
        counts = Signal(data.ArrayLayout(count_bits, MAGNITUDE_BITS))
        reached = Signal(data.ArrayLayout(MAGNITUDE_BITS, self.n))
        arrived = Signal(record)
        m.d.sync += [
            arrived.valid.eq(self.i_valid), arrived.last.eq(self.last),
            arrived.distance.eq(self.distance), arrived.largest.eq(self.largest),
            arrived.four.eq(self.four), counted.eq(arrived),
        ]
        for k, mag in enumerate(self.mag):
            m.d.sync += reached[k].eq(Cat(mag[bit:].any() for bit in range(MAGNITUDE_BITS)))
        for bit in range(MAGNITUDE_BITS):
            m.d.sync += counts[bit].eq(ones(Cat(reached[k][bit] for k in range(self.n))))

        # The same by distance from the largest exponent: at most 0, 1, ... 8 octaves below.
        near = Signal(data.ArrayLayout(count_bits, classes))
        moved = Signal(record)
        m.d.sync += moved.eq(counted)
        some = counts[0]
        for bit in range(count_bits):
            column = Cat(*(counts[k][bit] for k in reversed(range(1, MAGNITUDE_BITS))),
                         *(some[bit] for _ in range(classes)))
            placed = (column << counted.distance)[ABOVE:ABOVE + classes]
            m.d.sync += [near[d][bit].eq(placed[d]) for d in range(classes)]
        everything = Signal(count_bits)
        m.d.sync += everything.eq(some)

        # Sums over the unit.
        fresh = Signal(init=1)
        sums = Signal(data.ArrayLayout(sums_bits, classes))
        total = Signal(sums_bits)
        summed = Signal(record)
        m.d.sync += summed.eq(moved)
        with m.If(moved.valid):
            m.d.sync += [
                fresh.eq(moved.last),
                *(sums[d].eq(Mux(fresh, 0, sums[d]) + near[d]) for d in range(classes)),
                total.eq(Mux(fresh, 0, total) + everything),
            ]

        # At most six octaves below the largest, a value can be above the body.
        half = Signal(sums_bits)
        m.d.comb += half.eq((total + 1) >> 1)
        far = Cat(sums[d] < half for d in range(BODY_ABOVE_MEDIAN, classes))
        most = Cat(0, ~summed.four, summed.four)
        fits = Cat(sums[d] <= most for d in range(len(far)))
        ranked = Signal(record)
        drop = Signal(range(len(far) + 1))
        whole = Signal(range(len(far) + 1))
        room = Signal(3)
        m.d.sync += [
            ranked.eq(summed),
            drop.eq(ones(far)),
            whole.eq(ones(fits)),
            room.eq(most),
        ]
        for d in range(len(far)):
            with m.If(fits[d]):
                m.d.sync += room.eq(most - sums[d][:3])
        limited = Signal.like(drop)
        m.d.comb += limited.eq(Mux((ranked.largest < len(far)) & (ranked.largest[:3] < drop),
                                   ranked.largest[:3], drop))
        m.d.sync += [
            self.body_valid.eq(ranked.valid & ranked.last),
            self.body.drop.eq(limited),
            self.body.classes.eq(whole),
            self.body.quota.eq(room),
        ]
        return m
