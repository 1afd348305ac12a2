"""What the lanes and the mask unit need to know of an instruction."""

from amaranth import *
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from ..isa import AddOp, AddSource, FunctionOp, MaskKind, MulSource, Opcode
from ..isa_layout import command_layout


__all__ = ["SCALARS", "Addend", "Control", "Decoder", "Factor"]

#: Scalar registers that an instruction can name.
SCALARS = 8


class Factor(enum.Enum, shape=2):
    """Second operand of the multiply stage."""
    SCALAR = 0
    ROW    = 1
    SELF   = 2


class Addend(enum.Enum, shape=2):
    """Second operand of the add stage."""
    SCALAR   = 0
    ROW      = 1  # b with the multiply stage unused
    LATE_ROW = 2  # b after as many cycles as the multiply stage takes
    LANE     = 3  # p of another lane


class Control(data.Struct):
    """An instruction as the lanes see it; constant while one is in the pipeline."""
    multiply:     1  # the multiply stage is used
    factor:       Factor
    combine:      1  # the add stage is used
    extremum:     1  # for max or min
    minimum:      1  # for min
    negate_p:     1
    negate_c:     1
    addend:       Addend
    butterfly:    3  # log2 of the distance of the other lane; log2(n): the same lane
    masked:       1  # c is +0 where the mask bit is 0
    use_function: 1  # the function stage is used
    function:     FunctionOp
    scalar0:      32
    scalar1:      32


class Decoder(wiring.Component):
    """Control signals of a vector command; combinational.

    Values that no enumeration lists have no effect: an unknown source or function is none, an
    unknown operation adds.

    Parameters
    ----------
    config : Config
        ``n``.

    Members
    -------
    cmd : In(command_layout(Opcode.VECTOR))
        Command.
    scalars : In(data.ArrayLayout(32, SCALARS))
        Scalar registers.
    control : Out(Control)
        Control of the lanes.
    read_b, read_mask : Out(1)
        The instruction uses rows of B, bits of the mask memory.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "cmd":       In(command_layout(Opcode.VECTOR)),
            "scalars":   In(data.ArrayLayout(32, SCALARS)),
            "control":   Out(Control),
            "read_b":    Out(1),
            "read_mask": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        cmd = self.cmd
        control = self.control
        same_lane = self.config.lane_bits

        m.d.comb += control.multiply.eq(1)
        with m.Switch(cmd.mul):
            with m.Case(MulSource.SCALAR):
                m.d.comb += control.factor.eq(Factor.SCALAR)
            with m.Case(MulSource.ROW):
                m.d.comb += [control.factor.eq(Factor.ROW), self.read_b.eq(1)]
            with m.Case(MulSource.SELF):
                m.d.comb += control.factor.eq(Factor.SELF)
            with m.Default():
                m.d.comb += control.multiply.eq(0)

        m.d.comb += control.combine.eq(1)
        with m.Switch(cmd.add_source):
            with m.Case(AddSource.SCALAR):
                m.d.comb += control.addend.eq(Addend.SCALAR)
            with m.Case(AddSource.ROW):
                m.d.comb += [
                    control.addend.eq(Mux(control.multiply, Addend.LATE_ROW, Addend.ROW)),
                    self.read_b.eq(1),
                ]
            with m.Case(AddSource.BUTTERFLY):
                m.d.comb += control.addend.eq(Addend.LANE)
            with m.Case(AddSource.MASKED):
                m.d.comb += [
                    control.addend.eq(Addend.SCALAR),
                    control.masked.eq(1),
                    self.read_mask.eq(1),
                ]
            with m.Default():
                m.d.comb += control.combine.eq(0)

        with m.Switch(cmd.add_op):
            with m.Case(AddOp.SUB):
                m.d.comb += control.negate_c.eq(1)
            with m.Case(AddOp.RSUB):
                m.d.comb += control.negate_p.eq(control.combine)
            with m.Case(AddOp.MAX):
                m.d.comb += control.extremum.eq(1)
            with m.Case(AddOp.MIN):
                m.d.comb += [control.extremum.eq(1), control.minimum.eq(1)]

        # Cut to the bits that are needed, which makes multiplexers of lanes as small as can be.
        m.d.comb += control.butterfly.eq(
            Mux(cmd.butterfly < same_lane, cmd.butterfly, same_lane)[:same_lane.bit_length()])
        with m.If(cmd.mask == MaskKind.MEMORY):
            m.d.comb += self.read_mask.eq(1)
        m.d.comb += [
            control.use_function.eq((cmd.function != FunctionOp.NONE)
                                    & (cmd.function <= max(FunctionOp))),
            control.function.eq(cmd.function),
            control.scalar0.eq(Mux(cmd.scalar0_reg, self.scalars[cmd.scalar0[:3]], cmd.scalar0)),
            control.scalar1.eq(Mux(cmd.scalar1_reg, self.scalars[cmd.scalar1[:3]], cmd.scalar1)),
        ]
        return m
