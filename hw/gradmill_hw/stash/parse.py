"""Finds the parts of a row in a view of a stash block."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .assemble import OUTLIERS
from .formats import GROUP, HIGH_BITS, INDEX_BITS, from_tag, piece_granules
from .ones import ones
from .quantise import CODE_WIDTH
from .tag import TagInfo, decode_tag, last_place


__all__ = ["Parse", "ParsedRow", "RowSizes", "View"]

#: Bits of an entry in the list of outliers.
_LIST_BITS = INDEX_BITS + HIGH_BITS


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


class RowSizes(data.StructLayout):
    """Granules that a row has: ``long`` if it ``begins`` a group of codes, otherwise ``short``.

    Members
    -------
    short, long : range(W + 1)
        Its size without and with a group of codes.
    begins : 1
        A group begins with it.
    """

    def __init__(self, n):
        most = piece_granules(n)
        super().__init__({"short": range(most + 1), "long": range(most + 1), "begins": 1})


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

    Where the next row begins is known in the cycle of this one: the size of a row that heads a
    block is a table of its tag, that of the others follows from the tag that is kept, and whether
    its bitmap begins a group only chooses between two sizes. Everything else is found afterwards.

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
    sizes : Out(RowSizes(n))
        Granules of the row in ``view``.
    broken : Out(1)
        There was no such row in the last cycle: the tag is no format, or the run ends before.
    o_row : Out(ParsedRow(n))
        The row that was taken 3 cycles ago.
    """

    latency = 3

    def __init__(self, n):
        self.n = n
        super().__init__({
            "step": In(1), "last": In(1), "view": In(View(n)),
            "sizes": Out(RowSizes(n)), "broken": Out(1), "o_row": Out(ParsedRow(n)),
        })

    def elaborate(self, platform):
        m = Module()
        n, bits = self.n, self.view.bits
        most = piece_granules(n)
        lane_bits = n.bit_length() - 1
        group = GROUP // n - 1

        # The tag stands in the first row. Place of the row in its block.
        place = Signal(range(128 // n))
        head = Signal(init=1)
        tag = Signal(8)
        info = decode_tag(m, tag, "info")
        new_tag = bits[:8]
        whole = Mux(head, last_place(new_tag, n) == 0, place == last_place(tag, n))
        ends = self.last | whole

        # A group begins when the codes of the last one do not suffice; with the first code of all.
        marks, marks_of_head = bits[:n], bits[_granules(16, n) * n:][:n]
        start = Signal(lane_bits)
        spare = Signal(lane_bits)
        count = ones(marks)
        begins = Signal()
        m.d.comb += [
            spare.eq(-start),
            begins.eq(Mux(head, marks_of_head.any(),
                          Cat(count > k for k in range(n)).bit_select(spare, 1))),
        ]
        with m.If(self.step):
            m.d.sync += [
                head.eq(ends),
                place.eq(Mux(ends, 0, place + 1)),
                start.eq(Mux(head, ones(marks_of_head), start + count)),
            ]
            with m.If(head):
                m.d.sync += tag.eq(new_tag)

        # Sizes; without a bitmap both are the same.
        again = Signal(range(most + 1))
        short_head, long_head = _sizes_of_head(new_tag, n)
        with m.If(info.hierarchical & ((place & group) == 0)):
            m.d.comb += again.eq(_granules(8 + GROUP // 2, n))
        m.d.comb += [
            self.sizes.short.eq(Mux(head, short_head,
                                    again + Mux(info.packed, 1, info.planes))),
            self.sizes.long.eq(Mux(head, long_head, again + info.packed + info.planes)),
            self.sizes.begins.eq(begins),
        ]

        # From here on the row that was taken in the last cycle; `tag` is now its own.
        taken = Signal(data.StructLayout({
            "step": 1, "head": 1, "place": place.shape(), "bits": most * n, "bitmap": n,
            "start": lane_bits, "begins": 1, "size": range(most + 1), "left": range(most + 1)}))
        m.d.sync += [
            taken.step.eq(self.step), taken.head.eq(head), taken.place.eq(place),
            taken.bits.eq(bits),
            taken.bitmap.eq(Mux(head, marks_of_head, marks)), taken.start.eq(Mux(head, 0, start)),
            taken.begins.eq(begins), taken.left.eq(self.view.left),
            taken.size.eq(Mux(begins, self.sizes.long, self.sizes.short)),
        ]
        m.d.comb += self.broken.eq(~info.legal | (taken.size > taken.left))
        self._fields(m, taken, info, tag)
        return m

    def _fields(self, m, taken, info, tag):
        """Cut the row that was taken into its fields, in two cycles."""
        n, bits, head, place = self.n, taken.bits, taken.head, taken.place
        most = piece_granules(n)
        lane_bits = n.bit_length() - 1
        group = GROUP // n - 1

        # Prefix, bitmap, planes: where they are and how long.
        first = head | (info.hierarchical & ((place & group) == 0))
        prefix = Signal(range(most + 1))
        with m.If(first & info.hierarchical):
            m.d.comb += prefix.eq(Mux(head, _granules(8 + 8 + GROUP // 2, n),
                                      _granules(8 + GROUP // 2, n)))
        with m.Elif(head & info.outlier):
            m.d.comb += prefix.eq(Mux(info.four, _granules(24 + 4 * _LIST_BITS, n),
                                      _granules(24 + 2 * _LIST_BITS, n)))
        with m.Elif(head):
            m.d.comb += prefix.eq(Mux(info.exponent, _granules(16, n), _granules(8, n)))
        offset = Signal(range(most + 1))
        m.d.comb += offset.eq(prefix + info.packed)

        # First cycle: fields and planes.
        got = Signal(ParsedRow(n))
        m.d.sync += [
            got.begins.eq(taken.begins | ~info.packed),
            got.bitmap.eq(taken.bitmap | (~info.packed).replicate(n)),
            got.start.eq(Mux(info.packed, taken.start, 0)),
            got.info.eq(info), got.tag.eq(tag),
        ]
        entries = Signal(data.ArrayLayout(
            data.StructLayout({"index": INDEX_BITS, "high": HIGH_BITS}), OUTLIERS))
        here = Signal.like(place)
        m.d.sync += here.eq(place)
        with m.If(taken.step & first):
            m.d.sync += [
                got.exponent.eq(Mux(head, bits[8:16], bits[:8])),
                got.second.eq(Mux(head, bits[16:24], bits[8:16])),
                entries.eq(bits[24:24 + 4 * _LIST_BITS]),
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


def _granules(size, n):
    """Granules of a field of so many bits."""
    return -(-size // n)


def _sizes_of_head(tag, n):
    """Short and long size of the first row of a block: each of their bits is one LUT6 of the
    tag."""
    def table(size):
        entries = [from_tag(code) for code in range(64)]
        words = [size(entry, entry.prefix_granules(True, n)) if entry else 0 for entry in entries]
        return Cat(Const(sum((word >> bit & 1) << code for code, word in enumerate(words)), 64)
                   .bit_select(tag[:6], 1) for bit in range(piece_granules(n).bit_length()))

    return (table(lambda entry, prefix: prefix + (1 if entry.packed else entry.planes)),
            table(lambda entry, prefix: prefix + entry.packed + entry.planes))
