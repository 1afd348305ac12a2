"""Rows become beats of a run."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .axi_writer import WriteBeat
from .unpack import WORD_GRANULES, longest_granules


__all__ = ["Pack", "StoredRow", "TierBeat"]


def _about(config):
    """What beats know of their run beside its end, named as in :class:`StoredRow`."""
    return {"tier": 1, **({"coded": 1} if config.stash else {})}


class StoredRow(data.StructLayout):
    """One row on its way to memory.

    Members
    -------
    bits : 32·n
        The row as it lies in memory, from bit 0 up; for ``n`` = 4 the granule beyond its size is
        zero if that is odd.
    size : range(33)
        Granules: 32, or at most ``longest_granules(config)``.
    last : 1
        Last row of its run.
    tier : 1
        Memory tier of the run.
    coded : 1
        With the stash codec: whether the run is in a stash format.
    """

    def __init__(self, config):
        super().__init__({
            "bits": WORD_GRANULES * config.n,
            "size": range(WORD_GRANULES + 1),
            "last": 1,
            **_about(config),
        })


class TierBeat(data.StructLayout):
    """A beat, whether it is the ``last`` one of its run, and ``tier`` and ``coded`` of
    :class:`StoredRow`."""

    def __init__(self, config):
        super().__init__({"beat": WriteBeat(config), "last": 1, **_about(config)})


class Pack(wiring.Component):
    """Joins rows without gaps to runs that begin at a beat.

    Bytes behind the last row are not strobed; where a row ends within a byte (``n`` = 4), the
    rest of that byte is zero. One row per cycle as long as the beats go; a run whose last row
    straddles two words takes one cycle more. A beat appears one cycle after the row that
    completes it, two where a beat is shorter than a binary32 row.

    Parameters
    ----------
    config : Config
        Sizes: ``n``, ``bus_bits``, ``bfp_granules``.

    Members
    -------
    i : In(stream.Signature(StoredRow(config)))
        Rows.
    o : Out(stream.Signature(TierBeat(config)))
        Beats.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(StoredRow(config))),
            "o": Out(stream.Signature(TierBeat(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config, row = self.config, self.i.p
        granule = config.n

        # `count` granules stand in the word once it is `full`; `place` is where the next row goes.
        # A row that straddles leaves its end in `rest`, which becomes the start of the next word,
        # and all of it when the row was the `last` one.
        word = Signal(WORD_GRANULES * granule)
        full = Signal()
        count = Signal(range(WORD_GRANULES + 1))
        place = Signal(range(WORD_GRANULES))
        about = Signal(data.StructLayout({"last": 1, **_about(config)}))
        straddled = Signal()
        last = Signal()
        taken = Signal()

        end = Signal(range(2 * WORD_GRANULES))
        m.d.comb += end.eq(place + row.size)

        moved = Signal()
        straddles = Signal()
        m.d.comb += [
            straddles.eq(end > WORD_GRANULES),
            self.i.ready.eq(~full | (taken & ~last)),
            moved.eq(self.i.valid & self.i.ready),
        ]
        with m.If(taken):
            m.d.sync += [
                full.eq(last),
                count.eq(place),
                straddled.eq(0),
                last.eq(0),
                about.last.eq(last),
            ]
            with m.If(last):
                m.d.sync += place.eq(0)
        with m.If(moved):
            m.d.sync += [
                full.eq((end >= WORD_GRANULES) | row.last),
                count.eq(Mux(straddles, WORD_GRANULES, end)),
                straddled.eq(straddles),
                last.eq(straddles & row.last),
                place.eq(Mux(row.last & ~straddles, 0, end)),
                about.last.eq(row.last & ~straddles),
                *(about[name].eq(row[name]) for name in _about(config)),
            ]

        near = self._shift(m, row.bits, place)
        rest = Signal(len(near) - 8 * granule)
        behind = near[8 * granule:]
        longest = longest_granules(config)
        for block in (2, 1):
            # Long rows straddle also from here, not only from the fourth block.
            if 8 * block + 6 + (longest % 2 or config.stash) + longest > WORD_GRANULES:
                behind = Mux(place[3:5] == block, near[8 * (4 - block) * granule:], behind)
        with m.If(moved):
            m.d.sync += rest.eq(behind)
        for k in range(WORD_GRANULES):
            bits = slice(k * granule, (k + 1) * granule)
            new = Mux(row.size[-1], row.bits[bits], self._granule(near, place, k))
            # All above `place` is written: the next rows overwrite what is not theirs.
            with m.If(moved & (place <= k) if k + 1 < WORD_GRANULES else moved):
                m.d.sync += word[bits].eq(new)
            if k * granule < len(rest):
                with m.Elif(taken & straddled):
                    m.d.sync += word[bits].eq(rest[bits])

        strobe = Cat(8 * k < count * granule for k in range(WORD_GRANULES * granule // 8))
        self._emit(m, word, strobe, full, count, about, taken)
        return m

    def _shift(self, m, row, place):
        """The row moved up by ``place`` modulo 8, by steps of 1 and 2 granules.

        Granules below the row are undefined; for ``n`` = 4 the one above it is zero.
        """
        granule, size = self.config.n, longest_granules(self.config)
        even = size % 2 == 0 and not self.config.stash
        row = row[:size * granule]
        # Rows of an even size begin at even granules; the others to move by one are masks.
        if even:
            head = Mux(place[0], row[:granule], row[granule:2 * granule])
            step = Cat(row[:granule], head[:granule], row[2 * granule:])
        else:
            step = Mux(place[0], Cat(row[:granule], row), row)
        near = Signal((size + (6 if even else 7) + (granule < 8)) * granule)
        with m.Switch(place[1:3]):
            for k in range(4):
                with m.Case(k):
                    m.d.comb += near.eq(Cat(C(0, 2 * k * granule), step))
        return near

    def _granule(self, near, place, k):
        """What ``near``, moved up by 8, 16 or 24 granules as ``place`` says, has at granule k."""
        granule = self.config.n
        blocks = [block for block in range(k // 8 + 1)
                  if (k - 8 * block + 1) * granule <= len(near)]
        value = None
        for block in blocks:
            part = near[(k - 8 * block) * granule:][:granule]
            value = part if value is None else Mux(place[3:5] == block, part, value)
        return value

    def _emit(self, m, word, strobe, full, count, about, taken):
        """Send the word beat by beat."""
        config, out = self.config, self.o.p
        parts = WORD_GRANULES // config.beat_granules
        if parts == 1:
            m.d.comb += [
                self.o.valid.eq(full),
                out.beat.data.eq(word),
                out.beat.strobe.eq(strobe),
                *(out[name].eq(about[name]) for name in ("last", *_about(config))),
                taken.eq(full & self.o.ready),
            ]
            return

        part = Signal(range(parts))
        final = Signal(range(parts))
        sending = Signal.like(word)
        strobes = Signal(len(strobe))
        ended = Signal()
        sent = Signal.like(about)
        m.d.comb += [
            out.last.eq(sent.last & (part == final)),
            *(out[name].eq(sent[name]) for name in _about(config)),
            out.beat.data.eq(sending.word_select(part, config.bus_bits)),
            out.beat.strobe.eq(strobes.word_select(part, config.beat_bytes)),
            ended.eq(self.o.valid & self.o.ready & (part == final)),
            taken.eq(full & (~self.o.valid | ended)),
        ]
        with m.If(self.o.ready):
            m.d.sync += part.eq(part + 1)
        with m.If(ended):
            m.d.sync += self.o.valid.eq(0)
        with m.If(taken):
            m.d.sync += [
                sending.eq(word),
                strobes.eq(strobe),
                final.eq((count - 1) >> config.beat_granules.bit_length() - 1),
                sent.eq(about),
                part.eq(0),
                self.o.valid.eq(1),
            ]
