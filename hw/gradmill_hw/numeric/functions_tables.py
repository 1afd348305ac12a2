"""Tables of the function unit, the same numbers for circuit and model.

Computed with :mod:`decimal` at 50 digits, so that every machine gets the same tables. Each of the
1024 entries of ``POLYNOMIALS`` is a quadratic ``c0 + c1 d + c2 d**2`` that replaces a function on
an interval, ``d`` running from -1/2 to 1/2. It meets the function at d = 0 and +-sqrt(3)/4, the
Chebyshev nodes.
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cache


__all__ = ["ENTRIES", "ln2_multiples", "octave_multiples", "polynomials"]


ENTRIES = 1024

_CONTEXT = Context(prec=50, rounding=ROUND_HALF_EVEN)


def _power(exponent):
    return Decimal(2) ** exponent


def _round(value):
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def _shortfall(z, below, scale):
    """How far log(1 + z) lies below z, where ``below`` is what z itself was rounded down by."""
    return (z + below - (1 + z).ln()) * scale


def _recip(index):
    return lambda u: 2 / (1 + (index + u) / 128)


def _rsqrt(odd, index):
    return lambda u: 2 / ((1 + odd) * (1 + (index + u) / 128)).sqrt()


def _exp(index):
    """``index`` is signed; the half unit is the mean of what the argument was truncated by."""
    return lambda u: (((index + u) / 128 + _power(-26)).exp() * (2 if index < 0 else 1))


def _log_wide(index):
    """Intervals of the whole mantissa; the upper half stands for mantissas below 1."""
    if index < 128:
        return lambda u: _shortfall((index + u) / 256, 0, 8)
    return lambda u: _shortfall((index + u) / 512 - Decimal(1) / 2, _power(-24), 8)


def _log_near(below_one, index):
    """Arguments 2**-10 to 2**-3 away from 1, scaled by their distance."""
    distance = 127 - index if below_one else index
    if not distance:
        return None
    scale = _power(11 - distance.bit_length())
    if below_one:
        return lambda u: _shortfall((index + u - 128) / 1024, _power(-24), scale)
    return lambda u: _shortfall((index + u) / 1024, 0, scale)


def _log_tiny(below_one, zeros):
    """Arguments closer to 1 than 2**-10: one interval for each distance 2**-k."""
    if below_one:
        k = zeros + 2
        if zeros == 23:
            return lambda u: -(1 - _power(-24)).ln() * _power(k)
        return lambda u: _shortfall(-(1 + u) * _power(-k) - _power(-24), _power(-24), _power(k))
    if zeros == 23:
        return None
    return lambda u: _shortfall((1 + u) * _power(-zeros - 1), 0, _power(zeros + 1))


def _intervals():
    """Function of u in [0, 1) for each table entry, None where nothing is looked up."""
    functions = [None] * ENTRIES
    for index in range(128):
        functions[index] = _recip(index)
        functions[256 + index] = _rsqrt(0, index)
        functions[384 + index] = _rsqrt(1, index)
        functions[768 + index] = _log_near(False, index)
        functions[896 + index] = _log_near(True, index)
    for index in range(256):
        functions[512 + index] = _log_wide(index)
    for index in range(-48, 48):
        functions[128 + index % 128] = _exp(index)
    for zeros in range(9, 24):
        functions[128 + 48 + zeros % 16] = _log_tiny(False, zeros)
        functions[128 + 64 + zeros % 16] = _log_tiny(True, zeros)
    return functions


def _coefficients(function):
    if function is None:
        return 0, 0, 0
    node = Decimal(3).sqrt() / 4
    low, middle, high = (function(Decimal(1) / 2 + d) for d in (-node, Decimal(0), node))
    c1 = (high - low) / (2 * node)
    c2 = (high + low - 2 * middle) / (2 * node**2)
    # What rounding takes from c2 is given to c0 in the mean; the quarter and the half are the
    # mean of what truncation takes from the products.
    c2_units = _round(c2 * _power(22))
    c0 = middle + (c2 - c2_units * _power(-22)) / 8
    c0_units = min(max(_round(c0 * _power(25) + Decimal("0.25")), 0), (1 << 26) - 1)
    c1_units = _round(c1 * _power(23) + Decimal("0.5"))
    return c0_units, c1_units, c2_units


@cache
def polynomials():
    """``(c0, c1, c2)`` of every entry, integers in units of 2**-25, 2**-23 and 2**-22.

    ``c0`` has 26 bits, ``c1`` 18 and a sign among them, ``c2`` 9; for logarithms
    2**-17 to 2**-3 away from 1, ``c0`` has 23 bits and ``c2`` 12.
    """
    with localcontext(_CONTEXT):
        return tuple(_coefficients(function) for function in _intervals())


@cache
def ln2_multiples():
    """Two tables of 16: ``ln2 * k`` and ``ln2 * 16 k`` in units of 2**-29."""
    with localcontext(_CONTEXT):
        unit = Decimal(2).ln() * _power(29)
        return tuple(tuple(_round(unit * step * k) for k in range(16)) for step in (1, 16))


@cache
def octave_multiples():
    """Two tables that add up to x / ln2 + 1/2 in units of 2**-6.

    The first is indexed by the integer part of x, 7 bits, the second by the next 5 bits.
    """
    with localcontext(_CONTEXT):
        unit = _power(6) / Decimal(2).ln()
        return (tuple(_round(unit * k) for k in range(128)),
                tuple(_round(unit * (2 * k + 1) / 64) + 32 for k in range(32)))
