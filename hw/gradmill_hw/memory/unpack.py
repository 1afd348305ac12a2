"""Beats of a run become rows."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Kind
from ..stash.formats import READ_BEATS, piece_granules
from ..stash.parse import RowSizes, View
from .axi_reader import ReadBeat
from .bursts import beats_bits
from .ports import ROW_ADDRESS_BITS


__all__ = ["WORD_GRANULES", "PackedRow", "RowShape", "Unpack", "Views", "longest_granules"]

#: Granules of the longest row, binary32; beats are gathered to words of this size.
WORD_GRANULES = 32


def longest_granules(config):
    """Granules of the longest row, but for binary32, for which the shifters are made."""
    return max(config.bfp_granules, piece_granules(config.n) if config.stash else 0)


class RowShape(data.StructLayout):
    """What is needed to find a row.

    Members
    -------
    kind : Kind
    last : 1
        Last row of its run.
    coded, packed : 1
        Its run is in a stash format; one whose length depends on the values.
    left : 16
        Rows of its run from this one on.
    beats : beats_bits(config)
        Beats of its run, if it is not packed.
    """

    def __init__(self, config):
        super().__init__({"kind": range(len(Kind)), "last": 1, "coded": 1, "packed": 1,
                          "left": ROW_ADDRESS_BITS, "beats": beats_bits(config)})


class Views(wiring.Signature):
    """What comes next in a run in a stash format, seen from whom it comes from.

    Members
    -------
    view : Out(stream.Signature(View(n)))
        The next granules.
    sizes, ends : In
        As of :class:`~gradmill_hw.stash.decoder.Decoder`.
    more : Out(1)
        The run is packed, and its rows may or will need granules that have not been asked for.
    granted : In(range(5))
        Beats that are asked for in this cycle.
    exhausted : In(1)
        There are no more of the packed run.
    busy : Out(1)
        Beats behind the end of a run are still to come.
    """

    def __init__(self, config):
        super().__init__({
            "view": Out(stream.Signature(View(config.n))),
            "sizes": In(RowSizes(config.n)), "ends": In(1),
            "more": Out(1), "granted": In(range(READ_BEATS + 1)), "exhausted": In(1),
            "busy": Out(1),
        })


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


class _AboutWord(data.StructLayout):
    """Of a word: a beat of it met an error; its granules."""

    def __init__(self):
        super().__init__({"error": 1, "granules": range(WORD_GRANULES + 1)})


class Unpack(wiring.Component):
    """Cuts runs into rows.

    Rows lie without gaps from the first bit of a run; what follows the last row up to the end of
    the run is dropped. One row per cycle as long as the beats come; one more cycle where the
    last row of a run straddles two words, and perhaps where a run follows one in a stash format.
    A row appears two cycles after its last beat, with the codec three.

    Of a run in a stash format it shows what comes next and is told how much of it was taken, and
    what has been asked for beyond the end is dropped, a word per cycle. Of a packed run more is
    asked for while fewer granules were than the next row may have, or all rows left must have, one
    each. The last row decides: how much is read depends on the run alone, not on time.

    Parameters
    ----------
    config : Config
        Sizes: ``n``, ``bus_bits``, ``bfp_granules``.

    Members
    -------
    i : In(stream.Signature(ReadBeat(config)))
        Beats, ``last`` at the end of each run.
    shape : In(stream.Signature(RowShape(config)))
        One for each row, in order; taken with the row. That of a coded row is not taken: it
        stands until its row is taken elsewhere.
    o : Out(stream.Signature(PackedRow(config)))
        Rows.
    coded : Out(Views(config))
        Runs in a stash format; only with the stash codec.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i":     In(stream.Signature(ReadBeat(config))),
            "shape": In(stream.Signature(RowShape(config))),
            "o":     Out(stream.Signature(PackedRow(config))),
            **({"coded": Out(Views(config))} if config.stash else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        granule = config.n

        # The word that holds the first granule of the row, and the word after it.
        word = Signal(WORD_GRANULES * granule)
        word_valid = Signal()
        word_about = Signal(_AboutWord())
        after = Signal.like(word)
        after_valid = Signal()
        after_about = Signal(_AboutWord())
        after_taken = Signal()
        if config.stash:
            self._gather_ahead(m, after, after_valid, after_about, after_taken)
        else:
            self._gather(m, after, after_valid, after_about, after_taken)

        # `place` is the granule of the word where the row begins, `end` where the next one does.
        # A word that coded rows have used up is `spent` for a cycle: `place` is in the one after.
        place = Signal(range(WORD_GRANULES))
        spent = Signal()
        size = Signal(range(WORD_GRANULES + 1))
        end = Signal(range(2 * WORD_GRANULES))
        with m.Switch(self.shape.p.kind):
            for kind in Kind:
                with m.Case(kind):
                    m.d.comb += size.eq(config.row_granules(kind.name.lower()))
        m.d.comb += end.eq(place + size)

        own = Signal()
        straddles = Signal()
        moved = Signal()
        m.d.comb += own.eq(self.shape.valid & ~self.shape.p.coded)
        if config.stash:
            with m.If(self.coded.busy | spent):
                m.d.comb += own.eq(0)
        m.d.comb += [
            straddles.eq(end > WORD_GRANULES),
            self.o.valid.eq(own & word_valid & (~straddles | after_valid)),
            self.o.p.error.eq(word_about.error | (straddles & after_about.error)),
            self.shape.ready.eq(moved),
            moved.eq(self.o.valid & self.o.ready),
        ]

        # The next word moves up when this one is used up. After the last row of a run both words
        # are dropped if it had a part of each.
        used_up = Signal()
        m.d.comb += used_up.eq(self.shape.p.last | (end >= WORD_GRANULES))
        m.d.comb += after_taken.eq(~word_valid | spent | (moved & used_up))
        with m.If(after_taken):
            m.d.sync += [
                word.eq(after),
                word_about.eq(after_about),
                word_valid.eq(after_valid & ~(moved & self.shape.p.last & straddles)),
            ]

        shown = self._shift(m, Cat(word, after), Cat(place, spent) if config.stash else place)
        m.d.comb += self.o.p.fp32.eq(word)
        if config.stash:
            m.d.comb += self.coded.view.p.bits.eq(shown)
            self._coded(m, place, spent, (end, moved), (word_valid, word_about),
                        (after_valid, after_about))
        else:
            with m.If(moved):
                m.d.sync += place.eq(Mux(self.shape.p.last, 0, end))
        return m

    def _coded(self, m, place, spent, plain, word, after):
        """Show what comes next in a run in a stash format. Go on to the place of the next row, also
        where a row is ``plain``: not in such a format."""
        coded, shape, view = self.coded, self.shape.p, self.coded.view
        word_valid, word_about = word
        after_valid, after_about = after
        plain_end, plain_moved = plain
        most = piece_granules(self.config.n)

        # Words of this run that have been asked for and are not used up.
        parts = WORD_GRANULES // self.config.beat_granules

        def words(beats):
            return (beats + (parts - 1)) >> parts.bit_length() - 1

        def granules(about):
            return about.granules if parts > 1 else Const(WORD_GRANULES, 6)

        # `kept` of them, with one that is spent; that of a run before does not count.
        fresh = Signal(init=1)
        kept = Signal.like(shape.beats)
        ahead = Signal.like(shape.beats)
        none, one, two = Signal(), Signal(), Signal()
        begun = Signal()
        dropping = Signal()
        active = Signal()
        m.d.comb += [
            active.eq(self.shape.valid & shape.coded & ~dropping),
            begun.eq(~fresh | shape.packed | dropping),
            ahead.eq(Mux(begun, kept - spent, words(shape.beats))),
            *(flag.eq(Mux(begun, Mux(spent, kept == number + 1, kept == number),
                          words(shape.beats) == number))
              for number, flag in enumerate((none, one, two))),
        ]

        # Of the words not spent those of this run, and their granules.
        here, there = Signal(), Signal()
        about = Signal(_AboutWord())
        alone = Signal(range(WORD_GRANULES + 1))
        both = Signal(range(2 * WORD_GRANULES + 1))
        enough, all_shown = Signal(), Signal()
        m.d.comb += [
            about.eq(Mux(spent, after_about, word_about)),
            here.eq(Mux(spent, after_valid, word_valid) & ~none),
            there.eq(here & after_valid & ~spent & ~one),
            alone.eq(granules(about) - place),
            both.eq(alone + granules(after_about)),
            enough.eq((here & (alone >= most)) | (there & (both >= most))),
            all_shown.eq(none | (one & here) | (two & there)),
            view.valid.eq(active & (enough | (all_shown & (~shape.packed | coded.exhausted)))),
            view.p.left.eq(Mux(enough, most, Mux(there, both, Mux(here, alone, 0)))),
            view.p.spoiled.eq((here & about.error) | (there & after_about.error)),
        ]

        # The next row may need `most` granules, and all rows that are left one each. What is wanted
        # stays so until it is granted, or the run has ended.
        wants = Signal()
        m.d.sync += wants.eq(
            active & shape.packed & ~coded.ends & (coded.granted == 0) & ~coded.exhausted
            & (none | (one & (place > WORD_GRANULES - most))
               | (ahead * WORD_GRANULES < shape.left + place)))
        m.d.comb += [coded.more.eq(wants & view.ready), coded.busy.eq(dropping)]

        # Whether a group begins with the row is the last to be known, so what follows is found for
        # both its sizes. Of a multiplexer of sums synthesis would make one sum, behind the choice.
        sizes, row_moved = coded.sizes, Signal()
        m.d.comb += row_moved.eq(view.valid & view.ready)
        ends = [Signal(range(2 * WORD_GRANULES), name=f"end_{name}") for name in ("long", "short")]
        m.d.comb += [end.eq(place + size)
                     for end, size in zip(ends, (sizes.long, sizes.short), strict=True)]

        def chosen(long, short):
            begins = sizes.begins.replicate(len(long))
            return (begins & long) | (~begins & short)

        next_place = chosen(*(Mux(shape.last, 0, Mux(shape.coded, end, plain_end)[:len(place)])
                              for end in ends))
        with m.If(plain_moved | row_moved | coded.ends):
            m.d.sync += place.eq(next_place)

        # A word is used up by its last row, or when the run has ended.
        used_up = [here & (dropping | (row_moved & end[-1])) for end in ends]
        gone = [(coded.granted == 0) & Mux(used, one, none) for used in used_up]
        m.d.sync += spent.eq(chosen(*used_up))
        m.d.sync += kept.eq(Mux(active | dropping, ahead + words(coded.granted), 0))
        with m.If(row_moved):
            m.d.sync += fresh.eq(0)
        with m.If(dropping | coded.ends):
            m.d.sync += dropping.eq(~chosen(*gone))
        with m.If(~dropping & coded.ends):
            m.d.sync += fresh.eq(1)

    def _gather_ahead(self, m, word, valid, about, taken):
        """Fill the register ``word`` with words that are gathered before it is taken."""
        gathered, gathered_valid = Signal.like(word), Signal()
        gathered_about, moves = Signal.like(about), Signal()
        self._gather(m, gathered, gathered_valid, gathered_about, moves)
        m.d.comb += moves.eq(~valid | taken)
        with m.If(moves):
            m.d.sync += [word.eq(gathered), about.eq(gathered_about), valid.eq(gathered_valid)]

    def _gather(self, m, word, valid, about, taken):
        """Fill ``word`` with beats; it is valid when complete or at the end of a run."""
        config = self.config
        parts = WORD_GRANULES // config.beat_granules
        beat = self.i.p
        if parts == 1:
            m.d.comb += [
                word.eq(beat.data),
                about.error.eq(beat.error),
                about.granules.eq(WORD_GRANULES),
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
                about.error.eq(beat.error | (about.error & (part != 0))),
                about.granules.eq((part + 1) * config.beat_granules),
                valid.eq(full),
                part.eq(Mux(full, 0, part + 1)),
            ]

    def _shift(self, m, words, place):
        """Bring the row at granule ``place`` down to bit 0, by steps of 8, 2 and 1 granules."""
        granule, size = self.config.n, longest_granules(self.config)

        # Rows of an even size begin at even granules, so that only masks need the last step.
        even = size % 2 == 0 and not self.config.stash
        far = Signal((size + (6 if even else 7)) * granule)
        near = Signal((size + (0 if even else 1)) * granule)
        # In the word after a spent one a row begins where the longest one may have ended.
        blocks = 4 + (size + 7) // 8 if self.config.stash else 4
        with m.Switch(place[3:]):
            for k in range(blocks):
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
        return odd
