"""Steps that every unit with a binary32 result ends in."""

from amaranth import *

from .fp32_format import CANONICAL_NAN, Fp32


__all__ = ["leading_one", "normalise", "pack"]


def leading_one(value):
    """Position of the leading one of ``value``, 0 if there is none."""
    if len(value) == 1:
        return C(0, 0)
    half = 1 << (len(value) - 1).bit_length() - 1
    low, high = leading_one(value[:half]), leading_one(value[half:])
    above = value[half:].any()
    return Cat(Mux(above, high, low)[:len(low)], above)


def normalise(m, value, steps=None):
    """``value`` shifted to have its leading one on top, and how far.

    The distance has ``steps`` bits, by default as many as ``value`` may need. They are all ones if
    there is no one within their reach.
    """
    if steps is None:
        steps = (len(value) - 1).bit_length()
    skipped = Signal(steps)
    m.d.comb += skipped.eq(~leading_one(Cat(C(0, 1 << steps), value)[-1 << steps:]))
    normal = value
    for step in reversed(range(steps)):
        shifted = Signal(len(value), name=f"normal_{step}")
        m.d.comb += shifted.eq(Mux(skipped[step], normal << (1 << step), normal))
        normal = shifted
    return normal, skipped


def pack(m, o, *, sign, exp, frac, zero, infinite, nan):
    """Register ``o``, with an exponent out of range as zero or infinity.

    ``exp`` is the biased exponent, signed. NaN goes before ``infinite`` before ``zero``.
    """
    negative = exp[-1]
    under = Signal()
    over = Signal()
    m.d.comb += [
        under.eq(zero | negative | ~exp.any()),
        over.eq(infinite | ~(zero | negative) & (exp[8:-1].any() | exp[:8].all())),
    ]
    o = Fp32(o)
    with m.If(nan):
        m.d.sync += o.eq(Fp32.from_bits(CANONICAL_NAN))
    with m.Else():
        m.d.sync += [
            o.sign.eq(sign),
            o.exp.eq(Mux(over, 255, Mux(under, 0, exp[:8]))),
            o.frac.eq(Mux(over | under, 0, frac)),
        ]
