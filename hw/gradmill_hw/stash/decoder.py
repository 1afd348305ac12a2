"""Stash decoder: stash blocks back to rows, in every format."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..memory.fifo import StreamFifo
from ..memory.ports import BfpRow
from ..numeric.counter_rng import CounterRng
from .block_ring import BlockRing
from .elements_model import DECODE_STREAM
from .expand import Expand, ExpandedRow
from .parse import Parse, RowSizes, View
from .tag import decode_tag
from .widen import DecodeEntry, Widen


__all__ = ["DecodedRow", "Decoder", "RowToDecode"]

#: Rows at the exit: those in the last pipeline, and a few.
ROWS_BUFFERED = 16


class RowToDecode(data.StructLayout):
    """A row that is wanted.

    Members
    -------
    draws : 1
        Draw values of ``nonuniform`` from their bins.
    layer : 8; index : 40
        Key of the random bits; ``index`` counts rows.
    last : 1
        Last row of the run.
    """

    def __init__(self):
        super().__init__({"draws": 1, "layer": 8, "index": 40, "last": 1})


class DecodedRow(data.StructLayout):
    """A row; with ``error`` the place of one whose block is corrupted, with ``spoiled`` that of one
    whose view was. It is undefined then, and so are the rows before it in the same tile.
    """

    def __init__(self, config):
        super().__init__({"row": BfpRow(config), "error": 1, "spoiled": 1})


class _ExpandedInTile(data.StructLayout):
    def __init__(self, n):
        super().__init__({"row": ExpandedRow(n), "draws": 1, "layer": 8, "index": 40,
                          "error": 1, "spoiled": 1, "last": 1})


class Decoder(wiring.Component):
    """Decodes runs of blocks; see ``docs/stash-formats.md`` for the bits.

    Each wanted row gives exactly one row at the output. Rows wait until their tile is complete,
    because they need its exponent. After a tag that is no format, or where a run ends within a
    block, the rest of the rows of the run come with ``error`` and nothing more is read; the next
    run is not touched. One row per cycle in every format.

    Parameters
    ----------
    config : Config
        ``n`` (4, 8 or 16) and ``mantissa_bits``.

    Members
    -------
    seed, step : In(32)
        Key of the random bits; constant while there are rows in the unit.
    i : In(stream.Signature(View(n)))
        What comes next in the run: W granules, or all that are left of it.
    sizes : Out(RowSizes(n))
        With a transfer of ``i``: granules that it takes; the next view begins behind them. Of a
        corrupted row more than there are, perhaps; nothing is read of that run any more.
    ends : Out(1)
        The last row of the run is taken, perhaps without a transfer: the next view is that of the
        next run.
    wanted : In(stream.Signature(RowToDecode()))
        Rows to decode.
    entry_valid : In(1); entry : In(DecodeEntry())
        Write one entry of a decoding table, while no rows are in the unit.
    o : Out(stream.Signature(DecodedRow(config)))
        Rows.
    """

    def __init__(self, config):
        self.config = config
        n = config.n
        super().__init__({
            "seed": In(32), "step": In(32),
            "i": In(stream.Signature(View(n))), "sizes": Out(RowSizes(n)), "ends": Out(1),
            "wanted": In(stream.Signature(RowToDecode())),
            "entry_valid": In(1), "entry": In(DecodeEntry()),
            "o": Out(stream.Signature(DecodedRow(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config, n = self.config, self.config.n

        # Into codes.
        m.submodules.parse = parse = Parse(n)
        m.submodules.expand = expand = Expand(n)
        m.submodules.tile = tile = BlockRing(_ExpandedInTile(n), 8, depth=max(32, 2 * n))
        wanted = self.wanted.p
        failed = Signal()
        step = Signal()
        lane = Signal(range(n))
        stuck = Signal()
        open_step = Signal()
        m.d.comb += [
            step.eq(self.wanted.valid & tile.room & (self.i.valid | failed)),
            self.wanted.ready.eq(step),
            self.i.ready.eq(self.wanted.valid & tile.room & ~failed),
            self.sizes.eq(parse.sizes),
            # A row proves corrupted in the cycle after its step.
            failed.eq(stuck | (open_step & parse.broken)),
            self.ends.eq(step & wanted.last),
            tile.claim.eq(step),
            parse.step.eq(step), parse.last.eq(wanted.last), parse.view.eq(self.i.p),
        ]
        m.d.sync += [
            stuck.eq(failed & ~self.ends),
            open_step.eq(step & ~wanted.last),
        ]
        with m.If(step):
            m.d.sync += lane.eq(Mux(wanted.last, 0, lane + 1))

        flight = data.StructLayout({"valid": 1, "error": 1, "spoiled": 1, "last": 1, "draws": 1,
                                    "layer": 8, "index": 40})
        now = Signal(flight)
        m.d.comb += [
            now.valid.eq(step), now.error.eq(failed),
            now.spoiled.eq(self.i.p.spoiled & ~failed),
            now.last.eq(wanted.last | (lane == n - 1)), now.draws.eq(wanted.draws),
            now.layer.eq(wanted.layer), now.index.eq(wanted.index),
        ]
        states = [now]
        for stage in range(parse.latency + expand.latency):
            later = Signal(flight, name=f"flight_{stage}")
            m.d.sync += later.eq(states[-1])
            if stage == 1:
                m.d.sync += later.error.eq(states[-1].error | parse.broken)
            states.append(later)
        arrived, row = states[-1], tile.i_row
        m.d.comb += [
            expand.i_valid.eq(states[parse.latency].valid), expand.i_row.eq(parse.o_row),
            tile.i_valid.eq(arrived.valid), row.row.eq(expand.o_row),
            *(row[name].eq(arrived[name])
              for name in ("draws", "layer", "index", "error", "spoiled", "last")),
        ]
        self._exponent(m, tile, arrived, expand.o_row)

        # Into rows.
        m.submodules.random = random = CounterRng(config.replace(mantissa_bits=9))
        m.submodules.widen = widen = Widen(config)
        m.submodules.rows = rows = StreamFifo(
            DecodedRow(config), depth=ROWS_BUFFERED, buffered=False)
        wiring.connect(m, rows.o, wiring.flipped(self.o))
        leaving = tile.o_row
        m.d.comb += [
            random.seed.eq(self.seed), random.step.eq(self.step),
            random.layer.eq(leaving.layer), random.index.eq(leaving.index | DECODE_STREAM),
            widen.i_row.eq(leaving.row), widen.exponent.eq(tile.o_summary),
            widen.random.eq(random.random),
            widen.entry_valid.eq(self.entry_valid), widen.entry.eq(self.entry),
        ]
        spoken_for = Signal(range(ROWS_BUFFERED + 1))
        m.d.comb += tile.go.eq(spoken_for != ROWS_BUFFERED)
        m.d.sync += spoken_for.eq(spoken_for + tile.read - (rows.o.valid & rows.o.ready))
        last = data.StructLayout({"valid": 1, "error": 1, "spoiled": 1, "draws": 1})
        states = [Signal(last, name="leaving")]
        m.d.comb += [states[0].valid.eq(tile.o_valid), states[0].error.eq(leaving.error),
                     states[0].spoiled.eq(leaving.spoiled), states[0].draws.eq(leaving.draws)]
        for stage in range(widen.latency):
            later = Signal(last, name=f"leaving_{stage}")
            m.d.sync += later.eq(states[-1])
            states.append(later)
        m.d.comb += [
            widen.draws.eq(states[widen.random_latency].draws),
            rows.i.valid.eq(states[-1].valid),
            rows.i.p.row.eq(widen.o_row),
            rows.i.p.error.eq(states[-1].error),
            rows.i.p.spoiled.eq(states[-1].spoiled),
        ]
        return m

    def _exponent(self, m, tile, arrived, row):
        """The largest exponent that a row of the tile asks for."""
        info = decode_tag(m, row.tag, "tile_info")
        asked = Signal(8)
        valid = Signal()
        last = Signal()
        outliers = info.outlier & row.other.any() & (row.second > row.exponent)
        m.d.sync += [
            valid.eq(arrived.valid), last.eq(arrived.last),
            asked.eq(Mux(outliers, row.second, row.exponent)),
        ]
        fresh = Signal(init=1)
        largest = Signal(8)
        with m.If(valid):
            m.d.sync += fresh.eq(last)
            with m.If(fresh | (asked > largest)):
                m.d.sync += largest.eq(asked)
        m.d.sync += tile.summary_valid.eq(valid & last)
        m.d.comb += tile.summary.eq(largest)
