"""Finds the parts of a row in a view of a stash block."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .assemble import OUTLIERS
from .formats import GROUP, HIGH_BITS, INDEX_BITS, piece_granules
from .ones import ones
from .quantise import CODE_WIDTH
from .tag import TagInfo, decode_tag, last_place


__all__ = ["Parse", "ParsedRow", "View"]


class View(data.StructLayout):
    """What lies in memory from the first bit of a row on.

    Members
    -------
    bits : W·n
        Granules, W = ``piece_granules(n)``; undefined behind the end of the run.
    left : range(W + 1)
        Granules up to the end of the run, or W.
    spoiled : 1
        Some of the bits are not those of the run.
    """

    def __init__(self, n):
        most = piece_granules(n)
        super().__init__({"bits": most * n, "left": range(most + 1), "spoiled": 1})


class ParsedRow(data.StructLayout):
    """Parts of a row.

    Members
    -------
    codes : data.ArrayLayout(8, n)
        The group that begins with this row; upper bits that the format does not have are zero.
    begins : 1
        There is one.
    bitmap : n
        Values with a code.
    start : log2(n)
        Lane of the first of these codes in its group.
    exponent : 8
        Shared exponent; undefined for ``mask``.
    second : 8
        Exponent of the outliers.
    micro : n / 2
        Microexponents of this row.
    listed : n; high : data.ArrayLayout(3, n)
        Outliers of this row and their second mantissas.
    info : TagInfo()
    tag : 8
    """

    def __init__(self, n):
        super().__init__({
            "codes": data.ArrayLayout(CODE_WIDTH, n), "begins": 1, "bitmap": n,
            "start": range(n), "exponent": 8, "second": 8, "micro": n // 2, "listed": n,
            "high": data.ArrayLayout(HIGH_BITS, n), "info": TagInfo(), "tag": 8,
        })


class Parse(wiring.Component):
    """Follows the blocks of a run, row by row.

    Parameters
    ----------
    n : int
        Values of a row.

    Members
    -------
    step : In(1)
        A row is taken from ``view``.
    last : In(1)
        It is the last one of its run.
    view : In(View(n))
    size : Out(range(W + 1))
        Granules of the row in ``view``.
    broken : Out(1)
        There was no such row in the last cycle: the tag is no format, or the run ends before.
    o_row : Out(ParsedRow(n))
        The row that was taken 2 cycles ago.
    """

    latency = 2

    def __init__(self, n):
        self.n = n
        most = piece_granules(n)
        super().__init__({
            "step": In(1), "last": In(1), "view": In(View(n)),
            "size": Out(range(most + 1)), "broken": Out(1), "o_row": Out(ParsedRow(n)),
        })

    def elaborate(self, platform):
        m = Module()
        n, bits = self.n, self.view.bits
        most = piece_granules(n)
        lane_bits = n.bit_length() - 1

        def granules(size):
            return -(-size // n)

        # The tag stands in the first row; place of the row in its block, and in its group.
        place = Signal(range(128 // n))
        head = Signal(init=1)
        first = Signal()
        kept_tag = Signal(8)
        tag = Signal(8)
        info = decode_tag(m, tag, "info")
        group = GROUP // n - 1
        m.d.comb += [
            tag.eq(Mux(head, bits[:8], kept_tag)),
            first.eq(head | (info.hierarchical & ((place & group) == 0))),
        ]

        # Prefix, bitmap, planes: where they are and how long.
        list_bits = INDEX_BITS + HIGH_BITS
        prefix = Signal(range(most + 1))
        with m.If(first & info.hierarchical):
            m.d.comb += prefix.eq(Mux(head, granules(8 + 8 + GROUP // 2),
                                      granules(8 + GROUP // 2)))
        with m.Elif(head & info.outlier):
            m.d.comb += prefix.eq(Mux(info.four, granules(24 + 4 * list_bits),
                                      granules(24 + 2 * list_bits)))
        with m.Elif(head):
            m.d.comb += prefix.eq(Mux(info.exponent, granules(16), granules(8)))
        bitmap = Signal(n)
        m.d.comb += bitmap.eq(Mux(head, bits[granules(16) * n:][:n], bits[:n])
                              | (~info.packed).replicate(n))
        offset = Signal(range(most + 1))
        m.d.comb += offset.eq(prefix + info.packed)

        # A group begins when the codes of the last one do not suffice.
        start = Signal(lane_bits)
        from_lane = Signal(lane_bits)
        end = Signal(lane_bits + 1)
        begins = Signal()
        m.d.comb += [
            from_lane.eq(Mux(head, 0, start)),
            end.eq(from_lane + ones(bitmap)),
            begins.eq(Mux(from_lane == 0, bitmap.any(), end > n)),
            self.size.eq(offset + Mux(begins, info.planes, 0)),
        ]
        size = Signal.like(self.size)
        left = Signal.like(self.view.left)
        legal = Signal()
        m.d.sync += [size.eq(self.size), left.eq(self.view.left), legal.eq(info.legal)]
        m.d.comb += self.broken.eq(~legal | (size > left))
        ends = self.last | (place == last_place(tag, n))
        with m.If(self.step):
            m.d.sync += [
                head.eq(ends),
                place.eq(Mux(ends, 0, place + 1)),
                kept_tag.eq(tag),
                start.eq(end),
            ]

        # First cycle: fields and planes.
        got = Signal(ParsedRow(n))
        m.d.sync += [
            got.begins.eq(begins), got.bitmap.eq(bitmap), got.start.eq(from_lane),
            got.info.eq(info), got.tag.eq(tag),
        ]
        entries = Signal(data.ArrayLayout(
            data.StructLayout({"index": INDEX_BITS, "high": HIGH_BITS}), OUTLIERS))
        here = Signal.like(place)
        m.d.sync += here.eq(place)
        with m.If(self.step & first):
            m.d.sync += [
                got.exponent.eq(Mux(head, bits[8:16], bits[:8])),
                got.second.eq(Mux(head, bits[16:24], bits[8:16])),
                entries.eq(bits[24:24 + 4 * list_bits]),
            ]
        four = Signal()
        m.d.sync += four.eq(info.four)
        far = Signal((CODE_WIDTH + 3) * n)
        with m.Switch(offset[2:]):
            for k in range(0, most, 4):
                with m.Case(k // 4):
                    m.d.comb += far.eq(bits[k * n:])
        planes = Signal(CODE_WIDTH * n)
        with m.Switch(offset[:2]):
            for k in range(4):
                with m.Case(k):
                    m.d.comb += planes.eq(far[k * n:])
        for plane in range(CODE_WIDTH):
            for lane in range(n):
                with m.If(info.planes <= plane):
                    m.d.sync += got.codes[lane][plane].eq(0)
                with m.Else():
                    m.d.sync += got.codes[lane][plane].eq(planes[plane * n + lane])

        # Second cycle: what the prefix says of this row.
        m.d.sync += self.o_row.eq(got)
        part = here[:max(1, group.bit_length())] if group else Const(0, 1)
        m.d.sync += self.o_row.micro.eq(got.second.word_select(part, n // 2))
        for lane in range(n):
            listed, high = Const(0, 1), Const(0, HIGH_BITS)
            for k, entry in enumerate(entries):
                found = (entry.index == Cat(Const(lane, lane_bits), here)[:INDEX_BITS])
                if k >= 2:
                    found = found & four
                listed = listed | found
                high = high | (entry.high & found.replicate(HIGH_BITS))
            active = got.info.outlier & (got.second != 0)
            m.d.sync += [
                self.o_row.listed[lane].eq(listed & active),
                self.o_row.high[lane].eq(high & active.replicate(HIGH_BITS)),
            ]
        return m
