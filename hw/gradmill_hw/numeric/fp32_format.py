"""Layout of binary32 values and the bit patterns that the arithmetic units produce."""

from amaranth import *
from amaranth.lib import data


__all__ = ["CANONICAL_NAN", "Fp32"]


#: The only NaN that any unit produces.
CANONICAL_NAN = 0x7FC00000


class Fp32(data.Struct):
    """IEEE 754-2019 binary32; subnormals stand for zero of the same sign everywhere."""

    frac: 23
    exp:  8
    sign: 1

    @property
    def magnitude(self):
        """Exponent and fraction as one unsigned number, which orders absolute values."""
        return self.as_value()[:31]

    @property
    def is_zero(self):
        """Zero or subnormal."""
        return ~self.exp.any()

    @property
    def is_special(self):
        """Infinite or NaN."""
        return self.exp.all()

    @property
    def is_nan(self):
        return self.exp.all() & self.frac.any()
