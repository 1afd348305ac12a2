"""Sum of two binary32 values."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .fp32_format import Fp32
from .fp32_normalise import normalise, pack


__all__ = ["Fp32Add"]


class Fp32Add(wiring.Component):
    """``o = a + b`` in binary32, to nearest even, subnormals flushed.

    See :func:`fp32_model.add` for the exact rules. One sum per cycle, ``latency`` cycles later:
    order by magnitude; align and add; normalise; round and pack.

    Members
    -------
    a, b : In(32)
        Operands.
    o : Out(32)
        Sum of the operands of ``latency`` cycles ago.
    """

    latency = 4

    def __init__(self):
        super().__init__({"a": In(32), "b": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()

        # Order by magnitude. The exponents of the difference give the distance up to the borrow
        # of the fractions, which becomes one more step of the aligning shifter.
        a, b = Fp32(self.a), Fp32(self.b)
        difference = Signal(signed(32))
        swap = Signal()
        borrow = Signal()
        m.d.comb += [
            difference.eq(a.magnitude - b.magnitude),
            swap.eq(difference[31]),
            borrow.eq(difference[23] ^ a.exp[0] ^ b.exp[0]),
        ]

        large = Signal(Fp32, reset_less=True)
        small = Signal(24, reset_less=True)
        distance = Signal(8, reset_less=True)
        further = Signal(reset_less=True)
        subtract_1 = Signal(reset_less=True)
        both_special = Signal(reset_less=True)
        m.d.sync += [
            large.eq(Mux(swap, self.b, self.a)),
            small.eq(Mux(swap, Cat(a.frac, ~a.is_zero), Cat(b.frac, ~b.is_zero))),
            distance.eq(difference[23:31] ^ swap.replicate(8)),
            further.eq(borrow ^ swap),
            subtract_1.eq(a.sign ^ b.sign),
            both_special.eq(a.is_special & b.is_special),
        ]

        # Align to two bits below the larger fraction; ``sticky`` is what falls off.
        aligned = Cat(C(0, 2), small)
        sticky = C(0, 1)
        for amount, shift in ((16, distance[4]), (8, distance[3]), (4, distance[2]),
                              (2, distance[1]), (1, distance[0]), (1, further)):
            shifted = Signal(26, name=f"aligned_{amount}")
            m.d.comb += shifted.eq(Mux(shift, aligned[amount:], aligned))
            sticky |= shift & aligned[:amount].any()
            aligned = shifted
        far = Signal()
        lost = Signal()
        addend = Signal(26)
        m.d.comb += [
            far.eq(distance[5:].any() | ~small[23]),
            lost.eq(Mux(far, small[23], sticky)),
            addend.eq(Mux(far, 0, aligned) ^ subtract_1.replicate(26)),
        ]

        total = Signal(27, reset_less=True)
        lost_2 = Signal(reset_less=True)
        exp_2 = Signal(8, reset_less=True)
        sign_2 = Signal(reset_less=True)
        cancel_2 = Signal(reset_less=True)
        special_2 = Signal(reset_less=True)
        nan_2 = Signal(reset_less=True)
        # All ones in front of an inverted addend make the difference positive.
        m.d.sync += [
            total.eq(Cat(C(0, 2), large.frac, ~large.is_zero)
                     + Cat(addend, subtract_1) + (subtract_1 & ~lost)),
            lost_2.eq(lost),
            exp_2.eq(large.exp),
            sign_2.eq(large.sign),
            cancel_2.eq(subtract_1),
            special_2.eq(large.is_special),
            nan_2.eq(large.is_nan | both_special & subtract_1),
        ]

        normal, skipped = normalise(m, total)
        significand = Signal(24, reset_less=True)
        guard = Signal(reset_less=True)
        lost_3 = Signal(reset_less=True)
        skipped_3 = Signal(5, reset_less=True)
        exp_3 = Signal(9, reset_less=True)
        sign_3 = Signal(reset_less=True)
        zero_3 = Signal(reset_less=True)
        special_3 = Signal(reset_less=True)
        nan_3 = Signal(reset_less=True)
        m.d.sync += [
            significand.eq(normal[3:]),
            guard.eq(normal[2]),
            lost_3.eq(normal[:2].any() | lost_2),
            skipped_3.eq(skipped),
            exp_3.eq(exp_2 + 2),
            sign_3.eq(sign_2 & ~(cancel_2 & (~total.any() | (exp_2 == 0)))),
            zero_3.eq(~total.any()),
            special_3.eq(special_2),
            nan_3.eq(nan_2),
        ]

        # The exponent is ``exp_3 - 1 - skipped_3``, one more if the fraction rounds up to 2.
        rounded = Signal(33)
        m.d.comb += rounded.eq(Cat(significand[:23], exp_3)
                               + Cat(C(0, 23), ~skipped_3, C(0b11111, 5))
                               + (guard & (significand[0] | lost_3)))
        pack(m, self.o, sign=sign_3, exp=rounded[23:], frac=rounded[:23], zero=zero_3,
             infinite=special_3, nan=nan_3)
        return m
