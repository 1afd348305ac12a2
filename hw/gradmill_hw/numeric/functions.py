"""Elementary functions of one vector lane."""

from functools import cache

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from . import functions_tables as tables
from ..isa import FunctionOp
from .fp32_format import Fp32
from .fp32_normalise import add, choose, leading_one, normalise, pack


__all__ = ["Functions"]


class _Entry(data.Struct):
    """Table entry. Near 1, a logarithm's ``middle`` is the top of c2, otherwise of c0."""

    c0:     23
    middle: 3
    c2:     9
    c1:     signed(18)


class _Plan(data.Struct):
    """What the later stages need to know of an operation."""

    is_exp:   1
    is_log:   1
    minus:    1  # k ln2 is subtracted from the fixed-point number
    invert:   1  # which is inverted before
    tiny:     1  # the interval is a whole octave
    long_c2:  1  # ``middle`` belongs to c2
    subtract: 1  # the polynomial is subtracted from the addend
    negative: 1  # sign of the result
    zero:     1  # the result is zero, infinite or NaN whatever is computed
    infinite: 1
    nan:      1


@cache
def _entries():
    """Bits of all table entries."""
    entries = []
    for address, (c0, c1, c2) in enumerate(tables.polynomials()):
        middle = c2 >> 9 if _is_long(address) else c0 >> 23
        entry = _Entry.const({"c0": c0 % (1 << 23), "middle": middle, "c2": c2 % (1 << 9),
                              "c1": c1})
        entries.append(entry.as_value().value)
    return entries


def _is_long(address):
    """Whether ``address`` is used 2**-17 to 2**-3 away from 1."""
    return address >= 768 or (128 + 48 <= address < 128 + 80 and address % 16 >= 9)


class Functions(wiring.Component):
    """Exponential, reciprocal, reciprocal square root or natural logarithm.

    ```
    o = 2**q (addend -+ (c0 + c1 d + c2 d**2))
    ```
    with c0, c1, c2 from one table and addend 0 except for logarithms; see
    :mod:`functions_model` for the exact arithmetic and docs/numerics.md for its reasons.

    One result per cycle, ``latency`` cycles later; operations mix freely. Two multipliers of at
    most 18 x 18 bits and a table of 1024 x 53 bits.

    Members
    -------
    op : In(FunctionOp)
        What to compute; for ``NONE`` and undefined encodings ``o`` is undefined.
    i : In(32)
        Operand, binary32.
    o : Out(32)
        Result of the operand of ``latency`` cycles ago.
    """

    latency = 9

    def __init__(self):
        super().__init__({"op": In(FunctionOp), "i": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()

        def register(name, value):
            """``value`` one cycle later."""
            signal = Signal.like(value, name=name)
            m.d.sync += signal.eq(value)
            return signal

        # 1: unpack. For logarithms x = 2**e m with m in [0.75, 1.5), of which only the distance
        # from 1 is kept, less one unit if m < 1.
        x = Fp32(self.i)
        is_exp = self.op == FunctionOp.EXP
        is_rsqrt = self.op == FunctionOp.RSQRT
        is_log = self.op == FunctionOp.LOG
        half = x.frac[22]
        below = x.exp < 127
        frac = Signal(23)
        length = Signal(5)
        near = Signal()
        tiny = Signal()
        m.d.comb += [
            frac.eq(x.frac ^ (is_log & half).replicate(23)),
            length.eq(leading_one(Cat(C(1, 1), frac))),
            near.eq(is_log & Mux(half, (x.exp == 126) & ~frac[21:].any(),
                                 (x.exp == 127) & ~frac[20:].any())),
            tiny.eq(near & ~Mux(half, frac[14:], frac[13:]).any()),
        ]

        # The operand as fixed-point number; near 1 the distance with its leading one at bit 24.
        shift = Signal(8)
        with m.If(is_exp):
            m.d.comb += shift.eq(148 - x.exp)
        with m.Elif(near):
            m.d.comb += shift.eq(length)
        with m.Else():
            m.d.comb += shift.eq(21 + half)
        aligned = Mux(shift[6:].any(), 0, Cat(C(0, 25), frac, is_exp))
        for step in (4, 2):
            shifted = Signal(33 + (1 << step), name=f"aligned_{step}")
            m.d.comb += shifted.eq(choose(shift[step:step + 2],
                                           [aligned[k << step:] for k in range(4)]))
            aligned = shifted
        aligned_1 = register("aligned_1", aligned)
        shift_1 = register("shift_1", shift[:2])

        huge = is_exp & (x.exp >= 134)
        plan = Signal(_Plan)
        m.d.comb += [
            plan.is_exp.eq(is_exp),
            plan.is_log.eq(is_log),
            plan.minus.eq(is_exp & ~x.sign),
            plan.invert.eq(Mux(is_exp, x.sign, half ^ below)),
            plan.tiny.eq(tiny),
            plan.long_c2.eq(near & frac[7:].any()),
            plan.subtract.eq(is_log & ~below),
            plan.negative.eq(Mux(is_log, below, ~is_exp & x.sign)),
            plan.zero.eq(Mux(is_exp, huge & x.sign,
                             Mux(is_log, (x.exp == 127) & ~x.frac.any(), x.is_special))),
            plan.infinite.eq(Mux(is_exp, huge & ~x.sign,
                                 x.is_zero | is_log & x.is_special)),
            plan.nan.eq(x.is_nan | (is_rsqrt | is_log) & x.sign & ~x.is_zero),
        ]
        plan_1 = register("plan_1", plan)
        # Intervals are 2**-7, 2**-8, 2**-9 or 2**-10 of a mantissa.
        fine_1 = register("fine_1", Mux(near, 2 | ~half, is_log)[:2])
        bank_1 = register("bank_1", Mux(is_log, Cat(Mux(near, half, x.frac[22]), near, C(1, 1)),
                                        Cat(~x.exp[0] & is_rsqrt, is_rsqrt, C(0, 1))))
        rsqrt_1 = register("rsqrt_1", is_rsqrt)
        length_1 = register("length_1", length)
        exp_1 = register("exp_1", x.exp)
        frac_1 = register("frac_1", x.frac)
        half_1 = frac_1[22]

        # 2: multiple of ln2; interval and exponent of all but exp. An exponent here is 10 more
        # than that of a result with its leading one at bit 26.
        octaves_int, octaves_frac = map(Array, tables.octave_multiples())
        fixed = Signal(34)
        octaves = Signal(14)
        power = Signal(signed(9))
        k = Signal(8)
        m.d.comb += [
            fixed.eq(choose(shift_1, [aligned_1[k:] for k in range(4)])),
            octaves.eq(octaves_int[fixed[27:]] + octaves_frac[fixed[22:27]]),
            power.eq(exp_1 - 127 + half_1),
            k.eq(Mux(plan_1.is_exp, octaves[6:], Mux(fine_1[1], 0, abs(power)))),
        ]
        address = Cat(choose(fine_1, [frac_1[size:size + 7] for size in (16, 15, 14, 13)]),
                      bank_1)
        place = choose(fine_1, [Cat(C(0, gap), frac_1)[:18] for gap in (2, 3, 4, 5)])
        exponent = Signal(signed(10))
        with m.If(plan_1.is_exp):
            m.d.comb += exponent.eq(136 + plan_1.invert)
        with m.Elif(rsqrt_1):
            m.d.comb += exponent.eq((400 - exp_1) >> 1)
        with m.Elif(~plan_1.is_log):
            m.d.comb += exponent.eq(263 - exp_1)
        with m.Elif(fine_1[1]):
            m.d.comb += exponent.eq(113 + length_1 - half_1)
        with m.Else():
            m.d.comb += exponent.eq(134)
        plan_2 = register("plan_2", plan_1)
        fixed_2 = register("fixed_2", Cat(C(0, 2), fixed) ^ plan_1.invert.replicate(36))
        k_2 = register("k_2", k)
        address_2 = register("address_2", address)
        place_2 = register("place_2", place)
        exponent_2 = register("exponent_2", exponent)
        octave_2 = register("octave_2", Cat((23 - length_1)[:4], ~half_1, ~half_1, half_1))

        # 3, 4: addend or, for exp, reduced argument.
        ln2_low, ln2_high = map(Array, tables.ln2_multiples())
        partial = add(fixed_2, ln2_low[k_2[:4]] ^ plan_2.minus.replicate(36), plan_2.minus)
        partial_3 = register("partial_3", partial[:36])
        plan_3 = register("plan_3", plan_2)
        high_3 = register("high_3", k_2[4:])
        address_3 = register("address_3", Mux(plan_2.tiny, Cat(octave_2, C(1, 3)), address_2))
        place_3 = register("place_3", place_2)
        signed_k = Mux(plan_2.is_exp, k_2 ^ plan_2.invert.replicate(10), 0).as_signed()
        exponent_3 = register("exponent_3", (exponent_2 + signed_k)[:10].as_signed())

        addend = Signal(36)
        m.submodules.entries = entries = memory.Memory(
            shape=_Entry.as_shape().size, depth=tables.ENTRIES, init=_entries())
        port = entries.read_port()
        m.d.comb += [
            addend.eq(add(partial_3, ln2_high[high_3] ^ plan_3.minus.replicate(36),
                           plan_3.minus)),
            port.addr.eq(Mux(plan_3.is_exp, Cat(addend[22:29], C(1, 3)), address_3)),
        ]
        plan_4 = register("plan_4", plan_3)
        addend_4 = register("addend_4", addend)
        place_4 = register("place_4", place_3)
        exponent_4 = register("exponent_4", exponent_3)

        # 5: table entry; place in the interval, from its middle.
        d = Mux(plan_4.is_exp, addend_4[4:22], Mux(plan_4.tiny, addend_4[8:26], place_4))
        plan_5 = register("plan_5", plan_4)
        entry_5 = _Entry(register("entry_5", port.data))
        d_5 = register("d_5", (d[:18] ^ (1 << 17)).as_signed())
        exponent_5 = register("exponent_5", (
            exponent_4 + (plan_4.is_exp & ~addend_4[28]))[:10].as_signed())
        addend_5 = Signal(36, reset_less=True)
        m.d.sync += addend_5.eq(Mux(plan_4.is_log, addend_4, 0))

        # 6: inner product.
        c0 = Cat(entry_5.c0, Mux(plan_5.long_c2, 0, entry_5.middle)[:3])
        c2 = Cat(entry_5.c2, Mux(plan_5.long_c2, entry_5.middle, 0)[:3])
        inner = c2 * d_5[6:].as_signed()
        plan_6 = register("plan_6", plan_5)
        slope_6 = register("slope_6", (entry_5.c1 + (inner >> 11))[:18].as_signed())
        d_6 = register("d_6", d_5)
        exponent_6 = register("exponent_6", exponent_5)
        base_6 = register("base_6", add(
            addend_5, Cat(C(0, 1), c0, C(0, 9)) ^ plan_5.subtract.replicate(36),
            plan_5.subtract)[:36])

        # 7: outer product.
        plan_7 = register("plan_7", plan_6)
        outer_7 = register("outer_7", ((slope_6 * d_6) >> 15).as_signed())
        exponent_7 = register("exponent_7", exponent_6)
        base_7 = register("base_7", base_6)

        # 8: sum, normalised.
        total = Signal(36)
        outer = Signal(signed(36))
        m.d.comb += [
            outer.eq(outer_7),
            total.eq(add(base_7, outer ^ plan_7.subtract.replicate(36), plan_7.subtract)),
        ]
        normal, skipped = normalise(m, total, 4)
        plan_8 = register("plan_8", plan_7)
        normal_8 = register("normal_8", normal[11:35])
        skipped_8 = register("skipped_8", skipped)
        exponent_8 = register("exponent_8", exponent_7)

        # 9: round half up and pack.
        rounded = Signal(33)
        m.d.comb += rounded.eq(Cat(normal_8[1:], exponent_8)
                               + Cat(C(0, 23), ~skipped_8, C(0b111111, 6))
                               + normal_8[0])
        pack(m, self.o, sign=plan_8.negative & ~(plan_8.zero & plan_8.is_log),
             exp=rounded[23:], frac=rounded[:23], zero=plan_8.zero,
             infinite=plan_8.infinite, nan=plan_8.nan)
        return m
