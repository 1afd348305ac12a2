"""Puts prefix, bitmap and planes of a row together."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .formats import GROUP, HIGH_BITS, INDEX_BITS, piece_granules
from .quantise import CODE_WIDTH
from .tag import decode_tag


__all__ = ["OUTLIERS", "Assemble", "CodedUnit", "Piece", "WaitingRow"]

#: Outliers of a block, at most.
OUTLIERS = 4


class Piece(data.StructLayout):
    """What a row becomes in memory.

    Members
    -------
    bits : W·n
        Granules from the lowest up, W = ``piece_granules(n)``; undefined behind the last.
    size : range(W + 1)
        Granules.
    last : 1
        End of the run.
    """

    def __init__(self, n):
        most = piece_granules(n)
        super().__init__({"bits": most * n, "size": range(most + 1), "last": 1})


class WaitingRow(data.StructLayout):
    """A row whose codes wait elsewhere.

    Members
    -------
    tag : 8
    bitmap : n
    group : 1
        A group of codes belongs to it.
    head, first, last, end : 1
        First row of its block, first and last of its unit, last of the run.
    """

    def __init__(self, n):
        super().__init__({"tag": 8, "bitmap": n, "group": 1, "head": 1, "first": 1, "last": 1,
                          "end": 1})


class CodedUnit(data.StructLayout):
    """What a prefix holds.

    Members
    -------
    exponent : 8
    second : 8
        Exponent of the outliers, or microexponents.
    entries : data.ArrayLayout(10, 4)
        List of outliers.
    stored : 8
        Codes that are stored.
    """

    def __init__(self):
        super().__init__({
            "exponent": 8, "second": GROUP // 2,
            "entries": data.ArrayLayout(INDEX_BITS + HIGH_BITS, OUTLIERS), "stored": 8,
        })


class Assemble(wiring.Component):
    """The piece of a row, without a register.

    Parameters
    ----------
    n : int
        Values of a row.

    Members
    -------
    advance : In(1)
        The row on ``row`` is taken.
    valid : In(1); row : In(WaitingRow(n)); unit : In(CodedUnit())
    codes : In(data.ArrayLayout(8, n))
        Codes of the group, if it has one.
    piece : Out(Piece(n))
    """

    def __init__(self, n):
        self.n = n
        super().__init__({
            "advance": In(1), "valid": In(1), "row": In(WaitingRow(n)), "unit": In(CodedUnit()),
            "codes": In(data.ArrayLayout(CODE_WIDTH, n)),
            "piece": Out(Piece(n)),
        })

    def elaborate(self, platform):
        m = Module()
        n, row, unit = self.n, self.row, self.unit
        most = piece_granules(n)
        info = decode_tag(m, row.tag, "info")

        # Prefix: its bits, and where the planes begin.
        prefix = Signal(most * n)
        offset = Signal(range(most + 1))

        def begin(*fields):
            bits = Cat(*fields)
            size = -(-len(bits) // n)
            m.d.comb += prefix.eq(bits)
            m.d.comb += offset.eq(size)
            if len(bits) % n == 0:
                with m.If(info.packed):
                    m.d.comb += prefix.eq(Cat(bits, row.bitmap))
            else:
                with m.If(info.packed):
                    m.d.comb += prefix.eq(Cat(bits, C(0, -len(bits) % n), row.bitmap))
            with m.If(info.packed):
                m.d.comb += offset.eq(size + 1)

        with m.If(row.first & info.hierarchical):
            with m.If(row.head):
                begin(row.tag, unit.exponent, unit.second)
            with m.Else():
                begin(unit.exponent, unit.second)
        with m.Elif(row.head & info.outlier):
            with m.If(info.four):
                begin(row.tag, unit.exponent, unit.second, *unit.entries)
            with m.Else():
                begin(row.tag, unit.exponent, unit.second, *(unit.entries[k] for k in range(2)))
        with m.Elif(row.head & info.exponent):
            begin(row.tag, unit.exponent)
        with m.Elif(row.head):
            begin(row.tag)
        with m.Else():
            begin()

        # Planes; behind the last code of a unit a group is filled with zeros.
        left = Signal(8)
        waiting = Signal(8)
        m.d.comb += waiting.eq(Mux(row.first, unit.stored, left))
        with m.If(self.advance & self.valid):
            m.d.sync += left.eq(Mux(row.group, waiting - n, waiting))
        used = Cat(~info.packed | (waiting > lane) for lane in range(n))
        planes = Signal(CODE_WIDTH * n)
        for plane in range(CODE_WIDTH):
            m.d.comb += planes[plane * n:(plane + 1) * n].eq(
                Cat(self.codes[lane][plane] for lane in range(n)) & used)

        # By up to three granules, then by fours.
        near = Signal((CODE_WIDTH + 3) * n)
        with m.Switch(offset[:2]):
            for k in range(4):
                with m.Case(k):
                    m.d.comb += near.eq(planes << k * n)
        placed = Signal(most * n)
        with m.Switch(offset[2:]):
            for k in range(0, most, 4):
                with m.Case(k // 4):
                    m.d.comb += placed.eq(near << k * n)
        m.d.comb += [
            self.piece.bits.eq(prefix | placed),
            self.piece.size.eq(offset + Mux(row.group, info.planes, 0)),
            self.piece.last.eq(row.end),
        ]
        return m
