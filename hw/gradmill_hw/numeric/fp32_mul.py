"""Product of two binary32 values."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .fp32_format import Fp32
from .fp32_normalise import pack


__all__ = ["Fp32Mul"]


class Fp32Mul(wiring.Component):
    """``o = a * b`` in binary32, to nearest even, subnormals flushed.

    See :func:`fp32_model.mul` for the exact rules. One product per cycle, ``latency`` cycles
    later: two partial products; their sum; round and pack.

    Members
    -------
    a, b : In(32)
        Operands.
    o : Out(32)
        Product of the operands of ``latency`` cycles ago.
    """

    latency = 3

    def __init__(self):
        super().__init__({"a": In(32), "b": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()

        # One 24 x 17 and one 24 x 7 product fit the multipliers of most FPGAs.
        a, b = Fp32(self.a), Fp32(self.b)
        a_sig = Cat(a.frac, C(1, 1))
        b_sig = Cat(b.frac, C(1, 1))
        low = Signal(41, reset_less=True)
        high = Signal(31, reset_less=True)
        exp_1 = Signal(9, reset_less=True)
        sign_1 = Signal(reset_less=True)
        zero_1 = Signal(reset_less=True)
        special_1 = Signal(reset_less=True)
        nan_1 = Signal(reset_less=True)
        m.d.sync += [
            low.eq(a_sig * b_sig[:17]),
            high.eq(a_sig * b_sig[17:]),
            exp_1.eq(a.exp + b.exp),
            sign_1.eq(a.sign ^ b.sign),
            zero_1.eq(a.is_zero | b.is_zero),
            special_1.eq(a.is_special | b.is_special),
            nan_1.eq(a.is_nan | b.is_nan),
        ]

        upper = Signal(31)
        m.d.comb += upper.eq(low[17:] + high)

        product = Signal(26, reset_less=True)
        lost = Signal(reset_less=True)
        exp_2 = Signal(signed(10), reset_less=True)
        below_1 = Signal(reset_less=True)
        below_2 = Signal(reset_less=True)
        sign_2 = Signal(reset_less=True)
        zero_2 = Signal(reset_less=True)
        special_2 = Signal(reset_less=True)
        nan_2 = Signal(reset_less=True)
        m.d.sync += [
            product.eq(upper[5:]),
            lost.eq(upper[:5].any() | low[:17].any()),
            exp_2.eq(exp_1 - 127),
            below_1.eq(exp_1 == 127),
            below_2.eq(exp_1 == 126),
            sign_2.eq(sign_1),
            zero_2.eq(zero_1),
            special_2.eq(special_1),
            nan_2.eq(nan_1 | special_1 & zero_1),
        ]

        # ``product`` has its point below bit 24: 1 to 4 with two bits below the fraction. A value
        # with exponent 0 is carried to 2**-126 if all its bits are ones, else flushed.
        carry = product[25]
        significand = Mux(carry, product[2:25], product[1:24])
        guard = Mux(carry, product[1], product[0])
        sticky = lost | carry & product[0]
        up = guard & (sticky | significand[0]) | Mux(carry, below_2, below_1)
        rounded = Signal(33)
        m.d.comb += rounded.eq(Cat(significand, exp_2) + Cat(C(0, 23), carry) + up)
        pack(m, self.o, sign=sign_2, exp=rounded[23:], frac=rounded[:23], zero=zero_2,
             infinite=special_2, nan=nan_2)
        return m
