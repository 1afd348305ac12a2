"""Conversion of scaled integers to binary32."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .fp32_format import CANONICAL_NAN, Fp32


__all__ = ["IntToFp32"]


class IntToFp32(wiring.Component):
    """``o = integer * 2**exponent`` in binary32, exact unless it overflows or underflows.

    See :func:`int_to_fp32_model.int_to_fp32`. One conversion per cycle, ``latency`` cycles later:
    absolute value; normalise and pack.

    Parameters
    ----------
    width : int
        Bits of ``integer``, 2 to 25.

    Members
    -------
    integer : In(signed(width))
        Integer factor.
    exponent : In(signed(11))
        Power of two.
    nan : In(1)
        Forces the canonical NaN.
    o : Out(32)
        Value of the inputs of ``latency`` cycles ago.
    """

    latency = 2

    def __init__(self, *, width):
        if not 2 <= width <= 25:
            raise ValueError(f"width must be 2 to 25, not {width}")
        self.width = width
        super().__init__({
            "integer":  In(signed(width)),
            "exponent": In(signed(11)),
            "nan":      In(1),
            "o":        Out(32),
        })

    def elaborate(self, platform):
        m = Module()

        magnitude = Signal(self.width, reset_less=True)
        sign = Signal(reset_less=True)
        exp_1 = Signal(signed(12), reset_less=True)
        nan_1 = Signal(reset_less=True)
        m.d.sync += [
            magnitude.eq(abs(self.integer)),
            sign.eq(self.integer < 0),
            exp_1.eq(self.exponent + (127 + self.width - 1)),
            nan_1.eq(self.nan),
        ]

        # Normalise: skip leading zeros, coarse steps first.
        normal = magnitude
        skipped = []
        for step in reversed(range((self.width - 1).bit_length())):
            amount = 1 << step
            skip = Signal(name=f"skip_{amount}")
            shifted = Signal(self.width, name=f"normal_{amount}")
            m.d.comb += [
                skip.eq(~normal[self.width - amount:].any()),
                shifted.eq(Mux(skip, normal << amount, normal)),
            ]
            skipped.insert(0, skip)
            normal = shifted

        # The bit below the fraction, which exists for ``width`` 25, is zero for every integer.
        exp = Signal(signed(12))
        zero = Signal()
        under = Signal()
        over = Signal()
        m.d.comb += [
            exp.eq(exp_1 - Cat(skipped)),
            zero.eq(~normal[self.width - 1]),
            under.eq(zero | (exp <= 0)),
            over.eq(~zero & (exp >= 255)),
        ]
        o = Fp32(self.o)
        with m.If(nan_1):
            m.d.sync += self.o.eq(CANONICAL_NAN)
        with m.Else():
            m.d.sync += [
                o.sign.eq(sign),
                o.exp.eq(Mux(over, 255, Mux(under, 0, exp[:8]))),
                o.frac.eq(Mux(over | under, 0, Cat(C(0, 24), normal)[self.width:][:23])),
            ]
        return m
