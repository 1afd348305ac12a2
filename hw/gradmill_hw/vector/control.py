"""What the lanes and the mask unit need to know of an instruction."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..isa import AddOp, AddSource, FunctionOp, MaskKind, MulSource, Opcode
from ..isa_layout import command_layout


__all__ = ["SCALARS", "Control", "Decoder"]

#: Scalar registers that an instruction can name.
SCALARS = 8


class Control(data.Struct):
    """An instruction as the pipeline sees it; constant while one is in the pipeline."""
    multiply:      1   # the multiply stage is used
    factor_row:    1   # x = b
    factor_self:   1   # x = a
    combine:       1   # the add stage is used
    extremum:      1   # it is max or min
    minimum:       1
    negate_p:      1
    negate_c:      1
    c_row:         1
    c_butterfly:   1
    c_masked:      1
    butterfly:     3   # log2 of the lane distance
    use_function:  1
    function:      FunctionOp
    mask_memory:   1
    mask_positive: 1
    scalar0:       32
    scalar1:       32


class Decoder(wiring.Component):
    """Control signals of a vector command; combinational.

    Values that no enumeration lists have no effect: an unknown source, function or mask kind is
    none, an unknown operation adds.

    Members
    -------
    cmd : In(command_layout(Opcode.VECTOR))
        Command.
    scalars : In(data.ArrayLayout(32, SCALARS))
        Scalar registers.
    control : Out(Control)
        Pipeline control.
    read_b, read_mask : Out(1)
        The instruction uses rows of B, bits of the mask memory.
    """

    def __init__(self):
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

        combine = (cmd.add_source != AddSource.NONE) & (cmd.add_source <= AddSource.MASKED)
        m.d.comb += [
            control.multiply.eq(cmd.mul != MulSource.NONE),
            control.factor_row.eq(cmd.mul == MulSource.ROW),
            control.factor_self.eq(cmd.mul == MulSource.SELF),
            control.combine.eq(combine),
            control.extremum.eq((cmd.add_op == AddOp.MAX) | (cmd.add_op == AddOp.MIN)),
            control.minimum.eq(cmd.add_op == AddOp.MIN),
            control.negate_p.eq(combine & (cmd.add_op == AddOp.RSUB)),
            control.negate_c.eq(cmd.add_op == AddOp.SUB),
            control.c_row.eq(cmd.add_source == AddSource.ROW),
            control.c_butterfly.eq(cmd.add_source == AddSource.BUTTERFLY),
            control.c_masked.eq(cmd.add_source == AddSource.MASKED),
            control.butterfly.eq(cmd.butterfly),
            control.use_function.eq((cmd.function != FunctionOp.NONE)
                                    & (cmd.function <= FunctionOp.LOG)),
            control.function.eq(cmd.function),
            control.mask_memory.eq(cmd.mask == MaskKind.MEMORY),
            control.mask_positive.eq(cmd.mask == MaskKind.POSITIVE),
            control.scalar0.eq(Mux(cmd.scalar0_reg, self.scalars[cmd.scalar0[:3]], cmd.scalar0)),
            control.scalar1.eq(Mux(cmd.scalar1_reg, self.scalars[cmd.scalar1[:3]], cmd.scalar1)),
            self.read_b.eq(control.factor_row | control.c_row),
            self.read_mask.eq(control.mask_memory | control.c_masked),
        ]
        return m
