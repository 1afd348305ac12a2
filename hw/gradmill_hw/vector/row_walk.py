"""Addresses of the rows of an operand."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..memory.ports import ROW_ADDRESS_BITS


__all__ = ["RowWalk"]


class RowWalk(wiring.Component):
    """Row addresses of an operand, column block by column block.

    ``addr = base + block·stride + row·step`` (modulo 2^16) for ``row`` in ``0..rows-1`` within
    ``block`` in ``0..blocks-1``. The first address stands one cycle after ``start``, each further
    one the cycle after ``next``.

    Members
    -------
    start : In(1)
        Begins a walk of the numbers below, which are looked at in this cycle only.
    base, stride : In(16)
        First row of block 0; rows from block to block.
    step : In(1)
        Rows from row to row.
    rows, blocks : In(17), In(12)
        Extent, at most 2^16 rows; nothing is walked when one of them is zero.
    next : In(1)
        The address has been used.
    active : Out(1)
        ``addr`` is to be used; low when the walk is complete.
    addr : Out(16)
        Row address.
    """

    def __init__(self):
        super().__init__({
            "start":  In(1),
            "base":   In(ROW_ADDRESS_BITS),
            "stride": In(ROW_ADDRESS_BITS),
            "step":   In(1),
            "rows":   In(17),
            "blocks": In(12),
            "next":   In(1),
            "active": Out(1),
            "addr":   Out(ROW_ADDRESS_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        stride = Signal.like(self.stride)
        step = Signal.like(self.step)
        final_row = Signal(16)
        first = Signal.like(self.addr)
        row = Signal(16)
        blocks_left = Signal.like(self.blocks)

        last_row = row == final_row
        following = Signal.like(self.addr)
        m.d.comb += following.eq(first + stride)
        with m.If(self.next):
            m.d.sync += [
                row.eq(row + 1),
                self.addr.eq(self.addr + step),
            ]
            with m.If(last_row):
                m.d.sync += [
                    row.eq(0),
                    first.eq(following),
                    self.addr.eq(following),
                    blocks_left.eq(blocks_left - 1),
                    self.active.eq(blocks_left != 0),
                ]

        with m.If(self.start):
            m.d.sync += [
                stride.eq(self.stride),
                step.eq(self.step),
                final_row.eq(self.rows - 1),
                first.eq(self.base),
                self.addr.eq(self.base),
                row.eq(0),
                blocks_left.eq(self.blocks - 1),
                self.active.eq((self.rows != 0) & (self.blocks != 0)),
            ]
        return m
