"""Arithmetic of one lane of the vector unit."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..numeric.fp32_add import Fp32Add
from ..numeric.fp32_format import CANONICAL_NAN, Fp32
from ..numeric.fp32_mul import Fp32Mul
from .control import Addend, Control, Factor


__all__ = ["Lane"]


class Lane(wiring.Component):
    """One lane: multiply, then add or compare.

    ```
    p = a or a·x               x = scalar0 | b | a
    o = p or p op c            c = scalar1 | b | p of another lane | (k ? scalar1 : +0)
    ```
    Each step rounds to binary32 with subnormals flushed to zero; see :mod:`vector_model`. A stage
    that is not used passes the bits unchanged and takes no time: the latency follows from
    ``control``, which is constant while values are in the lane.

    One value per cycle, :meth:`latency` cycles.

    Members
    -------
    control : In(Control)
        What to compute.
    a, b : In(32)
        Binary32 operands.
    k : In(1)
        Mask bit that belongs to ``p`` and so comes :attr:`product_latency` cycles after ``a`` if
        the multiply stage is used, otherwise with ``a``.
    p : Out(32)
        Product, for the other lanes; at the time of ``k``.
    exchanged : In(32)
        ``p`` of another lane.
    o : Out(32)
        Result.
    """

    def __init__(self):
        self._mul = Fp32Mul()
        self._add = Fp32Add()
        super().__init__({
            "control":   In(Control),
            "a":         In(32),
            "b":         In(32),
            "k":         In(1),
            "p":         Out(32),
            "exchanged": In(32),
            "o":         Out(32),
        })

    @property
    def product_latency(self):
        """Cycles from ``a`` and ``b`` to ``p`` if the multiply stage is used."""
        return self._mul.latency

    def latency(self, multiply, add):
        """Cycles from the operands to ``o``, by the stages used; max and min count as none."""
        return 2 + multiply * self._mul.latency + add * self._add.latency

    def elaborate(self, platform):
        m = Module()
        control = self.control

        # Multiply.
        m.submodules.mul = mul = self._mul
        m.d.comb += [
            mul.a.eq(self.a),
            mul.b.eq(control.scalar0),
            self.p.eq(Mux(control.multiply, mul.o, self.a)),
        ]
        with m.Switch(control.factor):
            with m.Case(Factor.ROW):
                m.d.comb += mul.b.eq(self.b)
            with m.Case(Factor.SELF):
                m.d.comb += mul.b.eq(self.a)

        late_b = self.b
        for i in range(mul.latency):
            delayed = Signal(32, name=f"b_{i + 1}")
            m.d.sync += delayed.eq(late_b)
            late_b = delayed

        # Second operand. Subtraction is a sign, inverted here.
        c = Signal(32)
        with m.Switch(control.addend):
            with m.Case(Addend.SCALAR):
                m.d.comb += c.eq(control.scalar1)
            with m.Case(Addend.ROW):
                m.d.comb += c.eq(self.b)
            with m.Case(Addend.LATE_ROW):
                m.d.comb += c.eq(late_b)
            with m.Case(Addend.LANE):
                m.d.comb += c.eq(self.exchanged)
        with m.If(control.masked & ~self.k):
            m.d.comb += c.eq(0)
        left = Signal(Fp32, reset_less=True)
        right = Signal(Fp32, reset_less=True)
        m.d.sync += [
            left.eq(self.p ^ (control.negate_p << 31)),
            right.eq(c ^ (control.negate_c << 31)),
        ]

        m.submodules.add = add = self._add
        m.d.comb += [add.a.eq(left), add.b.eq(right)]

        # Larger or smaller, -0 below +0. Subnormals are flushed in the result only: flushing never
        # changes the order of two values.
        right_larger = Mux(left.sign == right.sign, add.smaller ^ left.sign, left.sign)
        take_right = Signal()
        m.d.comb += take_right.eq(control.combine & control.extremum
                                  & (right_larger ^ control.minimum))
        take_sum = control.combine & ~control.extremum
        q = Signal(Fp32, reset_less=True)
        m.d.sync += q.eq(Mux(take_sum, add.o, Mux(take_right, right, left)))
        with m.If(control.combine & control.extremum):
            with m.If(left.is_nan | right.is_nan):
                m.d.sync += q.eq(CANONICAL_NAN)
            with m.Elif(Mux(take_right, right.is_zero, left.is_zero)):
                m.d.sync += q.frac.eq(0)

        m.d.comb += self.o.eq(q)
        return m
