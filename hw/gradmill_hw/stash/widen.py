"""Codes back to mantissas under the exponent of their tile."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..memory.ports import BfpRow
from .elements_model import NONFINITE, RANDOM_BITS
from .expand import ExpandedRow
from .formats import HIGH_BITS, SLOTS
from .measure import MAGNITUDE_BITS
from .quantise import BIN_BITS
from .tables import DECODE_BITS, PRESETS
from .tag import decode_tag


__all__ = ["DecodeEntry", "Widen"]

SPREAD_BITS = 3


class DecodeEntry(data.StructLayout):
    """One entry of the decoding tables: the bin ``code`` of table ``slot``."""

    def __init__(self):
        super().__init__({"code": BIN_BITS, "slot": range(len(SLOTS)), "low": DECODE_BITS,
                          "spread": SPREAD_BITS})


class Widen(wiring.Component):
    """Decodes magnitudes and shifts them to the exponent of the tile.

    One row per cycle, ``latency`` cycles; the random bits come ``random_latency`` after the row.

    Parameters
    ----------
    config : Config
        ``n`` and ``mantissa_bits``.

    Members
    -------
    i_row : In(ExpandedRow(n))
    exponent : In(8)
        Of the tile.
    random : In(data.ArrayLayout(8, n))
        For values drawn from their bins.
    draws : In(1)
        With ``random``: draw; otherwise take the middle.
    entry_valid : In(1); entry : In(DecodeEntry())
        Write one entry of a table.
    o_row : Out(BfpRow(config))
    """

    random_latency = 4
    latency = 7

    def __init__(self, config):
        self.config = config
        n = config.n
        super().__init__({
            "i_row": In(ExpandedRow(n)), "exponent": In(8),
            "random": In(data.ArrayLayout(RANDOM_BITS, n)), "draws": In(1),
            "entry_valid": In(1), "entry": In(DecodeEntry()),
            "o_row": Out(BfpRow(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config, n = self.config, self.config.n

        rows = [self.i_row]
        exponents = [self.exponent]
        for stage in range(self.latency - 1):
            exponent = Signal(8, name=f"exponent_{stage}")
            m.d.sync += exponent.eq(exponents[-1])
            exponents.append(exponent)
        for stage in range(self.random_latency):
            row = Signal(ExpandedRow(n), name=f"row_{stage}")
            m.d.sync += row.eq(rows[-1])
            rows.append(row)

        # How far right: to the exponent of the tile, and by the bits of the code.
        first = rows[1]
        info = decode_tag(m, first.tag, "info")
        apart = Signal(9)
        apart_second = Signal(9)
        bits = Signal(5)
        listed_bits = Signal(5)
        micro = Signal()
        m.d.sync += [
            apart.eq(exponents[1] - first.exponent),
            apart_second.eq(exponents[1] - first.second),
            bits.eq(Mux(info.mask, 1, info.bits + info.between)),
            listed_bits.eq(info.bits + HIGH_BITS),
            micro.eq(info.hierarchical),
        ]
        main = Signal(5)
        other = Signal(5)

        def clipped(distance, more):
            total = distance + more
            return Mux(total > 31, 31, total)

        m.d.sync += [
            main.eq(clipped(apart, bits)),
            other.eq(Mux(micro, clipped(apart, bits + 1), clipped(apart_second, listed_bits))),
        ]
        shifts = Signal(data.ArrayLayout(5, n))
        for k in range(n):
            m.d.sync += shifts[k].eq(Mux(rows[3].other[k], other, main))

        # Tables, and the magnitude that a code means.
        m.submodules.table = table = Memory(
            shape=DECODE_BITS + SPREAD_BITS, depth=1 << BIN_BITS + 2, init=_initial())
        port = table.write_port()
        m.d.comb += [
            port.en.eq(self.entry_valid),
            port.addr.eq(Cat(self.entry.code, self.entry.slot)),
            port.data.eq(Cat(self.entry.low, self.entry.spread)),
        ]
        row = rows[4]
        last_info = decode_tag(m, row.tag, "last_info")
        info = Signal(last_info.shape(), name="drawn_info")
        m.d.comb += info.eq(last_info)
        drawn = Signal(data.ArrayLayout(DECODE_BITS, n))
        plain = Signal(data.ArrayLayout(MAGNITUDE_BITS, n))
        sign = Signal(n)
        nonuniform = Signal()
        shifts_2 = Signal.like(shifts)
        m.d.sync += [nonuniform.eq(info.nonuniform), shifts_2.eq(shifts)]
        for k in range(n):
            code = row.codes[k]
            read = table.read_port(domain="comb")
            low, spread = read.data[:DECODE_BITS], read.data[DECODE_BITS:]
            addend = Cat(Mux(self.draws, self.random[k][bit] & (spread > bit), spread == bit + 1)
                         for bit in range(DECODE_BITS - 1))
            m.d.comb += read.addr.eq(Cat(code[1:1 + BIN_BITS], info.slot))
            m.d.sync += drawn[k].eq(low + addend)
            with m.If(info.between):
                m.d.sync += plain[k].eq(Cat(row.present[k], code))
            with m.Elif(info.signed):
                m.d.sync += plain[k].eq(code[1:])
            with m.Else():
                m.d.sync += plain[k].eq(code)
            m.d.sync += sign[k].eq(info.signed & code[0])

        # Shift by up to three, then by fours; then the sign.
        fine = Signal(data.ArrayLayout(MAGNITUDE_BITS + 3, n))
        coarse = Signal(data.ArrayLayout(3, n))
        neg = Signal(n)
        m.d.sync += [neg.eq(sign), self.o_row.exponent.eq(exponents[-1])]
        bad = exponents[-1] == NONFINITE
        for k in range(n):
            magnitude = Mux(nonuniform, drawn[k], plain[k])
            m.d.sync += [
                fine[k].eq((magnitude << 3) >> shifts_2[k][:2]),
                coarse[k].eq(shifts_2[k][2:]),
            ]
            placed = _place(fine[k], coarse[k])[MAGNITUDE_BITS + 1 - config.mantissa_bits:]
            flip = neg[k].replicate(config.mantissa_bits)
            m.d.sync += self.o_row.mantissa[k].eq((Cat(placed, 0) ^ flip) + neg[k])
            with m.If(bad):
                m.d.sync += self.o_row.mantissa[k].eq(0)
        return m


def _initial():
    """Presets, by slot and code."""
    words = [0] * (1 << BIN_BITS + 2)
    for slot, name in enumerate(SLOTS):
        table = PRESETS[name]
        for code, (low, spread) in enumerate(zip(table.low, table.spread, strict=True)):
            words[slot << BIN_BITS | code] = spread << DECODE_BITS | low
    return words


def _place(fine, coarse):
    """``fine << 5 >> 4 * coarse``, 8 bits."""
    bits = []
    for bit in range(MAGNITUDE_BITS):
        at = Const(0, 1)
        for step in range(8):
            source = bit + 4 * step - 5
            if 0 <= source < len(fine):
                at = at | (fine[source] & (coarse == step))
        bits.append(at)
    return Cat(*bits)
