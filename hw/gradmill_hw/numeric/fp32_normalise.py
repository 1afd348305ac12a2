"""Steps that every unit with a binary32 result ends in."""

from amaranth import *

from .fp32_format import CANONICAL_NAN, Fp32


__all__ = ["add", "choose", "leading_one", "normalise", "pack"]


def add(a, b, carry):
    """``a + b + carry`` of two operands of one width, modulo that width, on one carry chain.

    ``b`` may be any logic of a few inputs, ``a`` should be registers. Only one operand of a carry
    chain can be computed in the LUTs of the chain itself, and synthesis is free to pick the other
    one for a sum; the operands of a difference stay where they are.
    """
    return (Cat(carry, a) - Cat(~carry, ~b))[1:len(a) + 1]


def choose(index, values):
    """One of four values by the two bits of ``index``: a LUT6 per bit."""
    return Mux(index[1], Mux(index[0], values[3], values[2]),
               Mux(index[0], values[1], values[0]))


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
    there is no one within their reach. Two bits of it at a time are found from the top of what the
    bits before have left, and so shift by one LUT6 per bit.
    """
    if steps is None:
        steps = (len(value) - 1).bit_length()
    normal, skipped = value, []
    while steps:
        bits = 2 - steps % 2
        steps -= bits
        size = 1 << steps
        chunks = [normal[-size * (k + 1):len(normal) - size * k].any() for k in range(3)]
        shift = Signal(bits, name=f"shift_{steps}")
        shifted = Signal(len(value), name=f"normal_{steps}")
        if bits == 2:
            m.d.comb += shift.eq(Mux(chunks[0], 0, Mux(chunks[1], 1, Mux(chunks[2], 2, 3))))
        else:
            m.d.comb += shift.eq(~chunks[0])
        choices = [Cat(C(0, size * k), normal)[:len(value)] for k in range(1 << bits)]
        m.d.comb += shifted.eq(Array(choices)[shift])
        normal = shifted
        skipped.insert(0, shift)
    return normal, Cat(skipped)


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
