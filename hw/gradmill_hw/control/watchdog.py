"""Detects a program that makes no progress."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


__all__ = ["Watchdog"]


class Watchdog(wiring.Component):
    """Counts cycles without progress, never wall time.

    ``expired`` rises ``limit`` cycles after the last cycle with progress or without ``active``,
    and falls with the next such cycle. A limit of 0 switches it off.

    Parameters
    ----------
    width : int
        Bits of the limit.

    Members
    -------
    limit : In(width)
        Cycles; constant while active.
    active : In(1)
        Something should be happening.
    progress : In(1)
        Something has.
    expired : Out(1)
        Nothing happened for too long.
    """

    def __init__(self, *, width=32):
        super().__init__({
            "limit":    In(width),
            "active":   In(1),
            "progress": In(1),
            "expired":  Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        left = Signal.like(self.limit)
        enabled = Signal()
        m.d.sync += enabled.eq(self.limit != 0)
        with m.If(~self.active | self.progress):
            m.d.sync += [left.eq(self.limit), self.expired.eq(0)]
        with m.Elif(left == 1):
            m.d.sync += self.expired.eq(enabled)
        with m.Else():
            m.d.sync += left.eq(left - 1)
        return m
