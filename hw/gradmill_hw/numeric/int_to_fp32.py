"""Conversion of scaled integers to binary32."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .fp32_normalise import normalise, pack


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

        # A shift by 16 comes before the register, which makes both halves as long.
        absolute = abs(self.integer)[:self.width]
        far = C(0, 1)
        if self.width > 16:
            far = ~absolute[-16:].any()
        magnitude = Signal(self.width, reset_less=True)
        far_1 = Signal(reset_less=True)
        sign = Signal(reset_less=True)
        exp_1 = Signal(signed(12), reset_less=True)
        nan_1 = Signal(reset_less=True)
        m.d.sync += [
            magnitude.eq(Mux(far, absolute << 16, absolute)),
            far_1.eq(far),
            sign.eq(self.integer < 0),
            exp_1.eq(self.exponent + (127 + self.width - 1)),
            nan_1.eq(self.nan),
        ]

        normal, fine = normalise(m, magnitude, min(4, (self.width - 1).bit_length()))
        skipped = Cat(fine, C(0, 4 - len(fine)), far_1)
        # The bit below the fraction, which exists for ``width`` 25, is zero for every integer.
        frac = Cat(C(0, 24), normal)[self.width:][:23]
        pack(m, self.o, sign=sign, exp=(exp_1 - skipped)[:12], frac=frac,
             zero=~normal[-1], infinite=0, nan=nan_1)
        return m
