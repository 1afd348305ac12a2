"""Stash encoder: rows to pieces of stash blocks, in every format."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..numeric.counter_rng import CounterRng
from .align import Align
from .assemble import OUTLIERS, Assemble, CodedUnit, Piece, WaitingRow
from .block_ring import BlockRing
from .body_rank import ABOVE, DISTANCE_BITS, Body, BodyRank
from .compact import Compact
from .elements_model import ENCODE_STREAM, NONFINITE
from .formats import GROUP, INDEX_BITS
from .groups import Groups
from .measure import MAGNITUDE_BITS, Measure, MeasuredRow, RowToEncode
from .quantise import EncodeEntry, Quantise
from .tag import TagInfo, decode_tag


__all__ = ["Encoder"]


class _RankedRow(data.StructLayout):
    """A :class:`MeasuredRow` whose exponent has become a distance."""

    def __init__(self, config):
        super().__init__({
            "mag": data.ArrayLayout(MAGNITUDE_BITS, config.n), "neg": config.n,
            "distance": DISTANCE_BITS, "largest": 8, "tag": 8, "stochastic": 1, "layer": 8,
            "index": 40, "head": 1, "last": 1, "end": 1,
        })


class Encoder(wiring.Component):
    """Encodes runs of rows; see ``docs/stash-formats.md`` for the bits.

    A row waits until its block is complete, in three rings: for the exponent, for the rank of
    outliers, and for the list of outliers. Between them are pipelines without backpressure; a row
    goes on when the next ring has room. One row in and one piece out per cycle in every format.

    A tag that is no format is the caller's error: what comes out is undefined until reset.

    Parameters
    ----------
    config : Config
        ``n`` (4, 8 or 16) and ``mantissa_bits``.

    Members
    -------
    seed, step : In(32)
        Key of the random bits; constant while there are rows in the unit.
    i : In(stream.Signature(RowToEncode(config)))
        Rows.
    entry_valid : In(1); entry : In(EncodeEntry())
        Write one entry of an encoding table, while no rows are in the unit.
    o : Out(stream.Signature(Piece(n)))
        One piece for each row.
    dropped : Out(range(n + 1))
        Outliers that found no room, for a counter: in each cycle those of one row.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "seed": In(32), "step": In(32),
            "i": In(stream.Signature(RowToEncode(config))),
            "entry_valid": In(1), "entry": In(EncodeEntry()),
            "o": Out(stream.Signature(Piece(config.n))),
            "dropped": Out(range(config.n + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        config, n = self.config, self.config.n
        depth = max(32, 256 // n)

        # To the shared exponent.
        m.submodules.measure = measure = Measure(config)
        m.submodules.measured = measured = BlockRing(MeasuredRow(config), 8, depth=depth)
        m.d.comb += [
            self.i.ready.eq(measured.room),
            measured.claim.eq(self.i.valid & self.i.ready),
            measure.i_valid.eq(measured.claim),
            measure.i_row.eq(self.i.p),
            measured.i_valid.eq(measure.o_valid),
            measured.i_row.eq(measure.o_row),
            measured.summary_valid.eq(measure.exponent_valid),
            measured.summary.eq(measure.exponent),
        ]

        # To the exponent of the body and the outliers.
        m.submodules.rank = rank = BodyRank(n)
        m.submodules.ranked = ranked = BlockRing(_RankedRow(config), Body(), depth=depth)
        m.d.comb += [measured.go.eq(ranked.room), ranked.claim.eq(measured.read)]
        self._rank(m, measured, rank, ranked)

        # To codes.
        m.submodules.align = align = Align(n)
        m.submodules.random = random = CounterRng(config.replace(mantissa_bits=9))
        m.submodules.quantise = quantise = Quantise(n)
        m.submodules.compact = compact = Compact(n)
        m.submodules.groups = groups = Groups(n, depth=depth)
        m.submodules.waiting = waiting = BlockRing(
            WaitingRow(n), CodedUnit(), depth=depth, holds=True)
        m.d.comb += [ranked.go.eq(waiting.room), waiting.claim.eq(ranked.read)]
        entered, coded, counted, done = self._flight(m, ranked, align, quantise, compact)
        row = ranked.o_row
        m.d.comb += [
            align.i_valid.eq(entered.valid),
            *(getattr(align, name).eq(row[name]) for name in ("mag", "neg", "distance", "last")),
            align.bad.eq(entered.bad), align.info.eq(entered.info),
            align.body.eq(ranked.o_summary),
            random.seed.eq(self.seed), random.step.eq(self.step),
            random.layer.eq(row.layer), random.index.eq(row.index | ENCODE_STREAM),
            quantise.i_row.eq(align.o_row), quantise.random.eq(random.random),
            quantise.entry_valid.eq(self.entry_valid), quantise.entry.eq(self.entry),
            compact.i_valid.eq(coded.valid), compact.first.eq(coded.first),
            compact.last.eq(coded.last), compact.straight.eq(coded.info.outlier),
            compact.codes.eq(quantise.o_row.codes),
            compact.marks.eq(Mux(coded.info.outlier, quantise.o_row.listed,
                                 quantise.o_row.keep)),
            groups.i_valid.eq(compact.o_valid), groups.i_codes.eq(compact.o_codes),
            groups.i_next.eq(compact.o_next),
            groups.full.eq(compact.o_full), groups.ended.eq(compact.o_ended),
            self.dropped.eq(align.dropped),
        ]
        self._wait(m, quantise, compact, counted, done, waiting)

        # To pieces. These last two stages stop when nothing is taken.
        m.submodules.assemble = assemble = Assemble(n)
        moving = Signal()
        codes = Signal.like(groups.codes)
        m.d.comb += [
            moving.eq(self.o.ready | ~self.o.valid),
            waiting.go.eq(moving),
            groups.read.eq(waiting.read & waiting.next_row.group),
            assemble.advance.eq(moving),
            assemble.valid.eq(waiting.o_valid),
            assemble.row.eq(waiting.o_row),
            assemble.unit.eq(waiting.o_summary),
            assemble.codes.eq(codes),
        ]
        with m.If(moving):
            m.d.sync += [
                codes.eq(groups.codes),
                self.o.valid.eq(waiting.o_valid),
                self.o.payload.eq(assemble.piece),
            ]
        return m

    def _rank(self, m, measured, rank, ranked):
        """Distances of rows from the largest exponent, and their ranks."""
        row = measured.o_row
        info = decode_tag(m, row.tag, "ranked_info")
        distance = Signal(signed(10))
        valid = Signal()
        kept = Signal(_RankedRow(self.config))
        four = Signal()
        most = (1 << DISTANCE_BITS) - 1
        m.d.comb += distance.eq(measured.o_summary - row.exponent + ABOVE)
        m.d.sync += [
            valid.eq(measured.o_valid),
            four.eq(info.four),
            *(kept[name].eq(row[name]) for name in (
                "mag", "neg", "tag", "stochastic", "layer", "index", "head", "last", "end")),
            kept.largest.eq(measured.o_summary),
            kept.distance.eq(Mux(distance < 0, 0, Mux(distance > most, most, distance))),
        ]
        m.d.comb += [
            ranked.i_valid.eq(valid),
            ranked.i_row.eq(kept),
            rank.i_valid.eq(valid),
            *(getattr(rank, name).eq(kept[name])
              for name in ("mag", "distance", "largest", "last")),
            rank.four.eq(four),
            ranked.summary_valid.eq(rank.body_valid),
            ranked.summary.eq(rank.body),
        ]

    def _flight(self, m, ranked, align, quantise, compact):
        """What is known of a row travels beside its values: as it enters, is coded, is counted
        and is done."""
        flight = data.StructLayout({
            "valid": 1, "tag": 8, "stochastic": 1, "bad": 1, "largest": 8, "drop": 3, "first": 1,
            "head": 1, "last": 1, "end": 1, "info": TagInfo()})
        row = ranked.o_row
        info = decode_tag(m, row.tag, "info")
        fresh = Signal(init=1)
        entered = Signal(flight)
        m.d.comb += [
            entered.valid.eq(ranked.o_valid), entered.bad.eq(row.largest == NONFINITE),
            entered.info.eq(info), entered.first.eq(fresh),
            entered.drop.eq(Mux(info.outlier & ~entered.bad, ranked.o_summary.drop, 0)),
            *(entered[name].eq(row[name]) for name in (
                "tag", "stochastic", "largest", "head", "last", "end")),
        ]
        with m.If(ranked.o_valid):
            m.d.sync += fresh.eq(row.last)
        states = [entered]
        for stage in range(align.latency + quantise.latency + compact.latency):
            later = Signal(flight, name=f"flight_{stage}")
            m.d.sync += later.eq(states[-1])
            states.append(later)
        aligned = states[align.latency]
        m.d.comb += [
            quantise.stochastic.eq(aligned.stochastic), quantise.bad.eq(aligned.bad),
            quantise.info.eq(aligned.info),
        ]
        coded = align.latency + quantise.latency
        return entered, states[coded], states[coded + compact.rank_latency], states[-1]

    def _wait(self, m, quantise, compact, counted, done, waiting):
        """A row waits with its bitmap; its unit collects microexponents and outliers."""
        n = self.config.n
        lane_bits = n.bit_length() - 1
        values = [quantise.o_row]
        for stage in range(compact.rank_latency):
            later = Signal(quantise.o_row.shape(), name=f"coded_{stage}")
            m.d.sync += later.eq(values[-1])
            values.append(later)
        value = values[-1]
        m.d.comb += [
            waiting.i_valid.eq(counted.valid),
            *(waiting.i_row[name].eq(counted[name])
              for name in ("tag", "head", "first", "last", "end")),
            waiting.i_row.bitmap.eq(value.keep),
            waiting.i_row.group.eq(compact.begins),
        ]

        unit = Signal(CodedUnit())
        place = Signal(range(128 // n))
        here = Signal.like(place)
        pairs = Cat(value.other[2 * k] for k in range(n // 2))
        m.d.comb += here.eq(Mux(counted.first, 0, place))
        with m.If(counted.valid):
            m.d.sync += [
                place.eq(here + 1),
                unit.exponent.eq(counted.largest - counted.drop),
                unit.stored.eq(compact.count),
            ]
            with m.If(counted.info.hierarchical):
                before = Mux(counted.first, 0, unit.second)
                part = here & (GROUP // n - 1)
                m.d.sync += unit.second.eq(before | (pairs << part[:2] * (n // 2)))
            with m.Else():
                m.d.sync += unit.second.eq(Mux(compact.count != 0, counted.largest, 0))
            with m.If(counted.first):
                m.d.sync += unit.entries.eq(0)
            for number in range(OUTLIERS):
                for lane in range(n):
                    # What is left of the list repeats its last entry.
                    with m.If(value.listed[lane] & (compact.rank[lane][:3] <= number)):
                        m.d.sync += unit.entries[number].eq(Cat(
                            Const(lane, lane_bits), here[:INDEX_BITS - lane_bits],
                            value.high[lane]))
        finished = Signal(CodedUnit())
        m.d.sync += finished.eq(unit)
        m.d.comb += [
            waiting.summary_valid.eq(done.valid & done.last),
            waiting.summary.eq(finished),
        ]
