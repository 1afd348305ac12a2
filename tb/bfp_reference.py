"""Block floating point by Python integers; shares nothing with model or RTL."""

import struct
from fractions import Fraction


def _parts(bits):
    """``(sign, significand, power)`` of a number significand * 2**power; None if not finite."""
    sign, exponent, fraction = bits >> 31, bits >> 23 & 255, bits & 0x7fffff
    if exponent == 255:
        return None
    if exponent == 0:
        return sign, 0, 0
    return sign, 0x800000 | fraction, exponent - 150


def _nearest_even(numerator, denominator):
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2))


def quantise_tile(tile, mantissa_bits, random=None):
    """``(mantissas, exponent, saturated)`` of a list of storage bits.

    Nearest even; stochastic if ``random`` gives a number for each element.
    """
    numbers = [_parts(bits) for bits in tile]
    if None in numbers:
        return [0] * len(tile), 255, [False] * len(tile)
    # The exponent is the floor of log2 of the largest magnitude, plus 127.
    exponent = max((power + significand.bit_length() - 1 + 127
                    for _, significand, power in numbers if significand), default=0)
    ulp_power = exponent - 127 - (mantissa_bits - 2)
    limit = 2**(mantissa_bits - 1) - 1
    mantissas, saturated = [], []
    for k, (sign, significand, power) in enumerate(numbers):
        # The magnitude in mantissa units is numerator / denominator.
        shift = power - ulp_power
        numerator, denominator = significand << max(shift, 0), 1 << max(-shift, 0)
        if random is None:
            magnitude = _nearest_even(numerator, denominator)
        else:
            steps = 2**(17 - mantissa_bits)
            magnitude = (numerator * steps // denominator + random[k]) // steps
        saturated.append(magnitude > limit)
        magnitude = min(magnitude, limit)
        mantissas.append(-magnitude if sign else magnitude)
    return mantissas, exponent, saturated


def element_bits(mantissa, exponent, mantissa_bits):
    """Binary32 bits of one element; below the smallest normal number a zero of its sign."""
    if exponent == 255:
        return 0x7fc00000
    value = mantissa * Fraction(2)**(exponent - 127 - (mantissa_bits - 2))
    if abs(value) < Fraction(2)**-126:
        return 0x80000000 if mantissa < 0 else 0
    return struct.unpack("<I", struct.pack("<f", float(value)))[0]
