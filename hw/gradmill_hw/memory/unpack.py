"""Beats of a run become rows."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Kind
from .axi_reader import ReadBeat


__all__ = ["WORD_GRANULES", "PackedRow", "RowShape", "Unpack"]

#: Granules of the longest row, binary32; beats are gathered to words of this size.
WORD_GRANULES = 32


class RowShape(data.StructLayout):
    """What is needed to find a row: its ``kind``, and whether it is the ``last`` of its run."""

    def __init__(self):
        super().__init__({"kind": range(len(Kind)), "last": 1})


class PackedRow(data.StructLayout):
    """One row as it lies in memory, in the form of its kind; the other forms are undefined.

    Members
    -------
    fp32 : 32·n
        Row of binary32.
    bfp : bfp_granules·n
        Row of block floating point.
    mask : n
        Row of bits.
    error : 1
        A beat with bits of this row met a bus error.
    """

    def __init__(self, config):
        super().__init__({
            "fp32":  WORD_GRANULES * config.n,
            "bfp":   config.bfp_granules * config.n,
            "mask":  config.n,
            "error": 1,
        })


class Unpack(wiring.Component):
    """Cuts runs into rows.

    Rows lie without gaps from the first bit of a run; what follows the last row up to the end of
    the run is dropped. One row per cycle as long as the beats come; one more cycle where the
    last row of a run straddles two words. A row appears two cycles after its last beat.

    Parameters
    ----------
    config : Config
        Sizes: ``n``, ``bus_bits``, ``bfp_granules``.

    Members
    -------
    i : In(stream.Signature(ReadBeat(config)))
        Beats, ``last`` at the end of each run.
    shape : In(stream.Signature(RowShape()))
        One for each row, in order; taken with the row.
    o : Out(stream.Signature(PackedRow(config)))
        Rows.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i":     In(stream.Signature(ReadBeat(config))),
            "shape": In(stream.Signature(RowShape())),
            "o":     Out(stream.Signature(PackedRow(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        granule = config.n

        # The word that holds the first granule of the row, and the word after it.
        word = Signal(WORD_GRANULES * granule)
        word_valid = Signal()
        word_error = Signal()
        after = Signal.like(word)
        after_valid = Signal()
        after_error = Signal()
        after_taken = Signal()
        self._gather(m, after, after_valid, after_error, after_taken)

        # `place` is the granule of the word where the row begins, `end` where the next one does.
        place = Signal(range(WORD_GRANULES))
        size = Signal(range(WORD_GRANULES + 1))
        end = Signal(range(2 * WORD_GRANULES))
        with m.Switch(self.shape.p.kind):
            for kind in Kind:
                with m.Case(kind):
                    m.d.comb += size.eq(config.row_granules(kind.name.lower()))
        m.d.comb += end.eq(place + size)

        straddles = Signal()
        moved = Signal()
        m.d.comb += [
            straddles.eq(end > WORD_GRANULES),
            self.o.valid.eq(self.shape.valid & word_valid & (~straddles | after_valid)),
            self.o.p.error.eq(word_error | (straddles & after_error)),
            self.shape.ready.eq(moved),
            moved.eq(self.o.valid & self.o.ready),
        ]

        # The next word moves up when this one is used up. After the last row of a run both words
        # are dropped if it had a part of each.
        used_up = Signal()
        m.d.comb += used_up.eq(self.shape.p.last | (end >= WORD_GRANULES))
        m.d.comb += after_taken.eq(~word_valid | (moved & used_up))
        with m.If(moved):
            m.d.sync += place.eq(Mux(self.shape.p.last, 0, end))
        with m.If(after_taken):
            m.d.sync += [
                word.eq(after),
                word_error.eq(after_error),
                word_valid.eq(after_valid & ~(moved & self.shape.p.last & straddles)),
            ]

        self._shift(m, Cat(word, after), place)
        m.d.comb += self.o.p.fp32.eq(word)
        return m

    def _gather(self, m, word, valid, error, taken):
        """Fill ``word`` with beats; it is valid when complete or at the end of a run."""
        config = self.config
        parts = WORD_GRANULES // config.beat_granules
        beat = self.i.p
        if parts == 1:
            m.d.comb += [
                word.eq(beat.data),
                error.eq(beat.error),
                valid.eq(self.i.valid),
                self.i.ready.eq(taken),
            ]
            return

        part = Signal(range(parts))
        m.d.comb += self.i.ready.eq(~valid | taken)
        with m.If(taken):
            m.d.sync += valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            full = beat.last | (part == parts - 1)
            m.d.sync += [
                word.word_select(part, config.bus_bits).eq(beat.data),
                error.eq(beat.error | (error & (part != 0))),
                valid.eq(full),
                part.eq(Mux(full, 0, part + 1)),
            ]

    def _shift(self, m, words, place):
        """Bring the row at granule ``place`` down to bit 0, by steps of 8, 2 and 1 granules."""
        granule, size = self.config.n, self.config.bfp_granules

        # Rows of an even size begin at even granules, so that only masks need the last step.
        even = size % 2 == 0
        far = Signal((size + (6 if even else 7)) * granule)
        near = Signal((size + (0 if even else 1)) * granule)
        with m.Switch(place[3:5]):
            for k in range(4):
                with m.Case(k):
                    m.d.comb += far.eq(words[8 * k * granule:])
        with m.Switch(place[1:3]):
            for k in range(4):
                with m.Case(k):
                    m.d.comb += near.eq(far[2 * k * granule:])
        odd = Mux(place[0], near[granule:], near)
        m.d.comb += [
            self.o.p.mask.eq(odd),
            self.o.p.bfp.eq(near if even else odd),
        ]
