"""Rows that wait until something is known of all of them."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


__all__ = ["BlockRing"]


class BlockRing(wiring.Component):
    """Queue of rows that lets a unit of rows out when its summary has come.

    Rows of a unit leave in consecutive cycles as long as ``go`` is high, each with the summary of
    its unit. A row that is granted in cycle t is on ``o_*`` in cycle t + 1. Whoever sends a row
    has claimed its place before, when there was ``room``.

    Parameters
    ----------
    row : data.StructLayout
        With a member ``last``: last row of its unit.
    summary : ShapeLike
    depth : int
        Rows; twice the longest unit does not stall.
    holds : bool
        ``o_*`` keep what they have while ``go`` is low; otherwise it is gone after one cycle.

    Members
    -------
    claim : In(1)
        A place is taken for a row that will come.
    room : Out(1)
        There is a place.
    i_valid, i_row : In
        A row that has a place.
    summary_valid, summary : In
        Summary of the oldest unit without one; not before its last row.
    go : In(1)
        A row may leave.
    read : Out(1)
        A row leaves: it is on ``next_row`` now and on ``o_*`` in the next cycle.
    next_row, next_summary : Out
        The row at the exit, whether it may leave or not; undefined without one.
    o_valid, o_row, o_summary : Out
        A row and what is known of its unit.
    """

    def __init__(self, row, summary, *, depth, holds=False):
        self.depth = depth
        self.holds = holds
        super().__init__({
            "claim": In(1), "room": Out(1, init=1),
            "i_valid": In(1), "i_row": In(row),
            "summary_valid": In(1), "summary": In(summary),
            "go": In(1), "read": Out(1),
            "next_row": Out(row), "next_summary": Out(summary),
            "o_valid": Out(1), "o_row": Out(row), "o_summary": Out(summary),
        })

    def elaborate(self, platform):
        m = Module()

        def memory(name, write, value):
            pointer = Signal(range(self.depth), name=f"{name}_written")
            m.submodules[name] = rows = Memory(
                shape=len(value), depth=self.depth, init=[], attrs={"ram_style": "distributed"})
            port = rows.write_port()
            m.d.comb += [port.en.eq(write), port.addr.eq(pointer), port.data.eq(value)]
            with m.If(write):
                m.d.sync += pointer.eq(pointer + 1)
            out = rows.read_port(domain="comb")
            read = Signal(range(self.depth), name=f"{name}_read")
            m.d.comb += out.addr.eq(read)
            return read, out.data

        row_read, row = memory("rows", self.i_valid, Value.cast(self.i_row))
        unit_read, summary = memory("summaries", self.summary_valid, Value.cast(self.summary))
        units = Signal(range(self.depth + 1))
        ended = Signal()
        m.d.comb += [
            Value.cast(self.next_row).eq(row),
            Value.cast(self.next_summary).eq(summary),
            self.read.eq((units != 0) & self.go),
            ended.eq(self.read & self.next_row.last),
        ]
        with m.If(self.go if self.holds else 1):
            m.d.sync += [
                self.o_valid.eq(self.read),
                self.o_row.eq(self.next_row),
                self.o_summary.eq(self.next_summary),
            ]
        m.d.sync += [
            units.eq(units + self.summary_valid - ended),
            row_read.eq(row_read + self.read),
            unit_read.eq(unit_read + ended),
        ]

        taken = Signal(range(self.depth + 1))
        m.d.sync += taken.eq(taken + self.claim - self.read)
        m.d.comb += self.room.eq(~taken[-1])
        return m
