"""Signs, magnitudes and blocks of incoming rows, and the shared exponent of each unit."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .formats import GROUP
from .tag import decode_tag, last_place


__all__ = ["MAGNITUDE_BITS", "Measure", "MeasuredRow", "RowToEncode"]

#: Magnitudes are aligned to 8 bits: 128 means two to the exponent.
MAGNITUDE_BITS = 8


class RowToEncode(data.StructLayout):
    """A row on its way to memory.

    Members
    -------
    mantissa : data.ArrayLayout(signed(mantissa_bits), n)
    exponent : 8
        Its row of block floating point.
    tag : 8
        Format and block size; the same in all rows of a block.
    stochastic : 1
        Round stochastically.
    layer : 8; index : 40
        Key of the random bits; ``index`` counts rows.
    last : 1
        Last row of the run.
    """

    def __init__(self, config):
        super().__init__({
            "mantissa": data.ArrayLayout(signed(config.mantissa_bits), config.n),
            "exponent": 8, "tag": 8, "stochastic": 1, "layer": 8, "index": 40, "last": 1,
        })


class MeasuredRow(data.StructLayout):
    """A row of magnitudes.

    Members
    -------
    mag : data.ArrayLayout(8, n)
        ``mag * 2**(exponent - 127 - 7)``; zero where a negative value counts as zero.
    neg : n
        Negative values.
    exponent, tag, stochastic, layer, index
        As in :class:`RowToEncode`.
    head, last, end : 1
        First row of its block; last row of its unit; last row of the run.
    """

    def __init__(self, config):
        super().__init__({
            "mag": data.ArrayLayout(MAGNITUDE_BITS, config.n),
            "neg": config.n,
            "exponent": 8, "tag": 8, "stochastic": 1, "layer": 8, "index": 40,
            "head": 1, "last": 1, "end": 1,
        })


class Measure(wiring.Component):
    """Finds the units of rows that share an exponent, and that exponent.

    A unit is a block, or a group of 16 values where the format is hierarchical. One row per cycle;
    rows leave 2 cycles later, the exponent of a unit ``latency`` cycles after its last row
    entered.

    Parameters
    ----------
    config : Config
        ``n`` and ``mantissa_bits``.

    Members
    -------
    i_valid, i_row : In(RowToEncode(config))
    o_valid, o_row : Out(MeasuredRow(config))
    exponent_valid, exponent : Out(8)
        Shared exponent of a unit, 255 if one of its rows has it.
    """

    latency = 5

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i_valid": In(1), "i_row": In(RowToEncode(config)),
            "o_valid": Out(1), "o_row": Out(MeasuredRow(config)),
            "exponent_valid": Out(1), "exponent": Out(8),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        row, n = self.i_row, config.n

        # Magnitudes; rows without a value, and values that the format drops, become zeros.
        valid = Signal()
        read = Signal(MeasuredRow(config))
        bad = Signal()
        info = decode_tag(m, row.tag, "info")
        m.d.comb += bad.eq(row.exponent.all())
        m.d.sync += valid.eq(self.i_valid)
        for name in ("exponent", "tag", "stochastic", "layer", "index"):
            m.d.sync += read[name].eq(row[name])
        m.d.sync += read.end.eq(row.last)
        for k, mantissa in enumerate(row.mantissa):
            negative = mantissa[-1]
            magnitude = (mantissa ^ negative.replicate(config.mantissa_bits)) + negative
            width = config.mantissa_bits - 1
            # The lowest mantissa has no magnitude of its own.
            limited = magnitude[:width] | magnitude[width].replicate(width)
            m.d.sync += [
                read.mag[k].eq(limited << MAGNITUDE_BITS - width),
                read.neg[k].eq(negative),
            ]
            with m.If((negative & info.positive) | bad):
                m.d.sync += read.mag[k].eq(0)

        # Blocks begin anew with each run; its groups are found from the same count.
        place = Signal(range(128 // n))
        size = last_place(read.tag, n)
        group = GROUP // n - 1
        hierarchical = Signal()
        block_end = Signal()
        unit_end = Signal()
        unit_first = Signal()
        m.d.sync += hierarchical.eq(info.hierarchical)
        m.d.comb += [
            block_end.eq((place == size) | read.end),
            unit_end.eq(block_end | (hierarchical & ((place & group) == group))),
            unit_first.eq((place == 0) | (hierarchical & ((place & group) == 0))),
        ]
        with m.If(valid):
            m.d.sync += place.eq(Mux(block_end, 0, place + 1))
        m.d.sync += [
            self.o_valid.eq(valid),
            self.o_row.eq(read),
            self.o_row.head.eq(place == 0),
            self.o_row.last.eq(unit_end),
        ]

        # Exponent of the row from its largest magnitude.
        used = Signal(MAGNITUDE_BITS)
        stage = [Signal(data.StructLayout({"valid": 1, "first": 1, "last": 1, "exponent": 9,
                                           "bad": 1}), name=f"stage_{k}") for k in range(2)]
        first, second = stage
        m.d.sync += [
            used.eq(Cat(Cat(mag[bit] for mag in read.mag).any()
                        for bit in range(MAGNITUDE_BITS))),
            first.valid.eq(valid),
            first.first.eq(unit_first),
            first.last.eq(unit_end),
            first.exponent.eq(read.exponent),
            first.bad.eq(read.exponent.all()),
        ]
        below = Signal(range(MAGNITUDE_BITS))
        for bit in range(MAGNITUDE_BITS):
            with m.If(used[bit]):
                m.d.comb += below.eq(MAGNITUDE_BITS - 1 - bit)
        exponent = Signal(9)
        m.d.comb += exponent.eq(first.exponent - below)
        m.d.sync += [second.eq(first), second.exponent.eq(exponent)]
        with m.If(~first.bad & (exponent[-1] | ~used.any())):
            m.d.sync += second.exponent.eq(0)

        largest = Signal(8)
        with m.If(second.valid & (second.first | (second.exponent[:8] > largest))):
            m.d.sync += largest.eq(second.exponent)
        done = Signal()
        m.d.sync += [
            done.eq(second.valid & second.last),
            self.exponent_valid.eq(done),
            self.exponent.eq(largest),
        ]
        return m
