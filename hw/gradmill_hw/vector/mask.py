"""Selects, lane by lane, between the value of a row and its alternative."""

from amaranth import *
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Alternative, MaskKind
from ..memory.ports import fp32_row, mask_row
from ..numeric.fp32_format import Fp32


__all__ = ["MaskControl", "MaskUnit"]


class MaskControl(data.Struct):
    """What the mask unit selects; constant during an instruction."""
    rows:        16  # rows of a column block
    cols:        16  # columns in all
    padded:      1   # each block comes with padding rows, up to the next multiple of n
    kind:        4   # isa.MaskKind
    alternative: 2   # isa.Alternative; an unknown one is zero
    pad:         1   # value of padding lanes: 0 zero, 1 minus infinity
    scalar:      32  # binary32, alternative value


class Choice(enum.Enum, shape=2):
    """What a lane of the result is."""
    VALUE        = 0
    SCALAR       = 1
    ZERO         = 2
    NEG_INFINITY = 3


class MaskUnit(wiring.Component):
    """Masks and pads the rows at the end of the pipeline.

    Lane j of the row that is number ``row`` of the column block that begins at ``column`` gets

    - zero if the row is padding (``row >= rows``),
    - the pad value if ``column + j >= cols``,
    - the value if ``keep``, otherwise the alternative.

    Kinds of masks differ in ``keep`` alone: 1, the bit from the mask memory, or value > 0 or
    NaN (subnormals are zeros). Kinds that are not listed keep every lane. The bit given out is 0
    in all lanes that are padding. A lane takes its result as it is, so that NaN of a lane that is
    not kept goes nowhere.

    One row per cycle; results appear one cycle later.

    Parameters
    ----------
    config : Config
        ``n``.

    Members
    -------
    start : In(1)
        The next row is row 0 of block 0.
    control : In(MaskControl)
        What to select; constant from the cycle after ``start``.
    i_valid : In(1)
        A row is on ``i_row`` and ``i_mask``.
    i_row : In(fp32_row(config))
        Values.
    i_mask : In(mask_row(config))
        Bits from the mask memory.
    o_valid : Out(1)
        A row is on ``o_*``.
    o_row : Out(fp32_row(config))
        Masked values.
    o_keep : Out(mask_row(config))
        Lanes that kept their value.
    o_padding : Out(1)
        It is a padding row.
    o_last : Out(1)
        It is row ``n - 1`` of a tile.
    o_nonfinite : Out(1)
        A lane that kept its value holds NaN or an infinity.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "start":       In(1),
            "control":     In(MaskControl),
            "i_valid":     In(1),
            "i_row":       In(fp32_row(config)),
            "i_mask":      In(mask_row(config)),
            "o_valid":     Out(1),
            "o_row":       Out(fp32_row(config)),
            "o_keep":      Out(mask_row(config)),
            "o_padding":   Out(1),
            "o_last":      Out(1),
            "o_nonfinite": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        n = self.config.n
        lane_bits = self.config.lane_bits
        control = self.control

        # Position of lane 0 of the row at the input.
        row = Signal(16)
        column = Signal(12 + lane_bits)
        last_row = Signal(16)
        m.d.comb += last_row.eq((control.rows - 1) | Mux(control.padded, n - 1, 0))
        with m.If(self.i_valid):
            m.d.sync += row.eq(row + 1)
            with m.If(row == last_row):
                m.d.sync += [row.eq(0), column.eq(column + n)]
        with m.If(self.start):
            m.d.sync += [row.eq(0), column.eq(0)]

        padding = Signal()
        columns_left = Signal(signed(1 + max(16, len(column))))
        inside = Signal(n)
        m.d.comb += [
            padding.eq(row >= control.rows),
            columns_left.eq(control.cols - column),
            inside.eq(Mux(columns_left < 0, 0, Mux(columns_left[lane_bits:].any(), -1,
                                                   ~(-1 << columns_left[:lane_bits])))),
        ]
        m.d.sync += [
            self.o_valid.eq(self.i_valid),
            self.o_padding.eq(padding),
            self.o_last.eq(row[:lane_bits] == n - 1),
        ]

        alternative = Signal(Choice)
        with m.Switch(control.alternative):
            with m.Case(Alternative.NEG_INFINITY):
                m.d.comb += alternative.eq(Choice.NEG_INFINITY)
            with m.Case(Alternative.SCALAR):
                m.d.comb += alternative.eq(Choice.SCALAR)
            with m.Default():
                m.d.comb += alternative.eq(Choice.ZERO)

        result = Signal(fp32_row(self.config), reset_less=True)
        m.d.comb += self.o_row.eq(result)

        nonfinite = Signal(n)
        m.d.sync += self.o_nonfinite.eq(nonfinite.any())
        for j in range(n):
            value = Fp32(self.i_row[j])

            keep = Signal(name=f"keep{j}")
            with m.Switch(control.kind):
                with m.Case(MaskKind.MEMORY):
                    m.d.comb += keep.eq(self.i_mask[j])
                with m.Case(MaskKind.POSITIVE):
                    m.d.comb += keep.eq(value.is_nan | ~(value.sign | value.is_zero))
                with m.Default():
                    m.d.comb += keep.eq(1)

            choice = Signal(Choice, name=f"choice{j}")
            with m.If(padding):
                m.d.comb += choice.eq(Choice.ZERO)
            with m.Elif(~inside[j]):
                m.d.comb += choice.eq(Mux(control.pad, Choice.NEG_INFINITY, Choice.ZERO))
            with m.Elif(~keep):
                m.d.comb += choice.eq(alternative)
            with m.Else():
                m.d.comb += choice.eq(Choice.VALUE)

            kept = choice == Choice.VALUE
            m.d.comb += nonfinite[j].eq(kept & value.is_special)
            m.d.sync += self.o_keep[j].eq(kept)
            with m.Switch(choice):
                with m.Case(Choice.VALUE):
                    m.d.sync += result[j].eq(value)
                with m.Case(Choice.SCALAR):
                    m.d.sync += result[j].eq(control.scalar)
                with m.Case(Choice.ZERO):
                    m.d.sync += result[j].eq(0)
                with m.Case(Choice.NEG_INFINITY):
                    m.d.sync += result[j].eq(0xff80_0000)
        return m
