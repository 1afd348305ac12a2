"""Largest size of a run, in the terms that a multiplier needs."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .formats import BLOCKS, GROUP, from_tag


__all__ = ["RunSize"]

#: Bits of a number of granules that a row, a block or a group has.
_FACTOR_BITS = 5


class RunSize(wiring.Component):
    """What :meth:`Format.granules <.formats.Format.granules>` gives as the largest size is the sum
    of three products, for rows, blocks and groups. Without a register.

    Parameters
    ----------
    n : int
        Values of a row.
    count_bits : int
        Width of a number of rows.

    Members
    -------
    tag : In(8)
        Format.
    rows : In(count_bits)
        Rows of the run.
    legal, packed : Out(1)
        There is such a format; the size depends on the values. A tag that is not legal gives zero.
    factors : Out(data.ArrayLayout(5, 3)); times : Out(data.ArrayLayout(count_bits, 3))
        The products.
    """

    def __init__(self, n, *, count_bits):
        self.n = n
        super().__init__({
            "tag": In(8), "rows": In(count_bits), "legal": Out(1), "packed": Out(1),
            "factors": Out(data.ArrayLayout(_FACTOR_BITS, 3)),
            "times": Out(data.ArrayLayout(count_bits, 3)),
        })

    def elaborate(self, platform):
        m = Module()
        n = self.n
        with m.Switch(self.tag[:6]):
            for code in range(64):
                entry = from_tag(code)
                if entry is not None:
                    group = entry.prefix_granules(False, n) if entry.hierarchical else 0
                    factors = (entry.packed + entry.planes,
                               entry.prefix_granules(True, n) - group, group)
                    with m.Case(code):
                        m.d.comb += [
                            self.legal.eq(1),
                            self.packed.eq(entry.packed),
                            *(self.factors[k].eq(value) for k, value in enumerate(factors)),
                        ]

        def units(rows):
            return (self.rows + (rows - 1)) >> rows.bit_length() - 1

        m.d.comb += [self.times[0].eq(self.rows), self.times[2].eq(units(GROUP // n))]
        with m.Switch(self.tag[6:]):
            for k, block in enumerate(BLOCKS):
                with m.Case(k):
                    m.d.comb += self.times[1].eq(units(block // n))
        return m
