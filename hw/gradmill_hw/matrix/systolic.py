"""Weight-stationary systolic array of integer multiply-accumulate elements."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .delay import delay


__all__ = ["SystolicArray", "sum_bits"]


def sum_bits(config, products=None):
    """Width of the signed sum of ``products`` (default ``n``) products of any two mantissas."""
    products = config.n if products is None else products
    return (products << 2 * (config.mantissa_bits - 1)).bit_length() + 1


class SystolicArray(wiring.Component):
    """Product of one row of ``n`` mantissas and an ``n`` x ``n`` weight tile, every cycle::

        o[j] = sum over i of a[i] * weight[i][j]

    Exact for every operand. The result of the row at `a` stands on `o` `latency` cycles later.

    PE (i, j) holds weight (i, j) twice. Row i of the next tile is written to the *shadow* weights
    while the products of this tile run; `swap` copies the shadow over the *active* weights. Both
    strobes and the operands reach PE (i, j) exactly i + j cycles after row 0 and column 0, so the
    edge sees an array without skew: row i of a tile is loaded i cycles after row 0, and `swap` may
    come as early as the cycle after `load` of row 0. `swap` acts on the operands that follow it.
    A PE is a register behind the multiplier, a register behind the adder, and no multiplexer.

    Parameters
    ----------
    config : Config
        Gives ``n`` and ``mantissa_bits``.

    Members
    -------
    a : In(ArrayLayout(signed(mantissa_bits), n))
        Mantissas of a row.
    swap : In(1)
        The weight tile that is (being) loaded multiplies the rows from the next cycle on.
    w : In(ArrayLayout(signed(mantissa_bits), n))
        Row `load_row` of the next weight tile.
    load : In(1)
        Write `w` to the shadow weights. Rows 0 to n-1 follow each other in consecutive cycles.
    load_row : In(log2(n))
        Row of the tile on `w`.
    o : Out(ArrayLayout(signed(sum_bits(config)), n))
        Dot products.
    """

    def __init__(self, config):
        self.config = config
        mantissas = data.ArrayLayout(signed(config.mantissa_bits), config.n)
        super().__init__({
            "a":        In(mantissas),
            "swap":     In(1),
            "w":        In(mantissas),
            "load":     In(1),
            "load_row": In(config.lane_bits),
            "o":        Out(data.ArrayLayout(signed(sum_bits(config)), config.n)),
        })

    @property
    def latency(self):
        """Cycles from `a` to `o`."""
        return 2 * self.config.n

    def elaborate(self, platform):
        m = Module()
        n, bits = self.config.n, self.config.mantissa_bits

        def register(name, shape=1, **kwargs):
            return Signal(shape, name=f"{name}_{i}_{j}", **kwargs)

        columns = [delay(m, self.w[j], j, name=f"w_{j}") for j in range(n)]
        sums = [Const(0, signed(1))] * n

        for i in range(n):
            a = delay(m, self.a[i], i, name=f"a_{i}")
            swap = delay(m, self.swap, i, reset=True, name=f"swap_{i}")
            load = self.load & (self.load_row == i)

            for j in range(n):
                shadow  = register("shadow", signed(bits), reset_less=True)
                weight  = register("weight", signed(bits), reset_less=True)
                product = register("product", signed(2 * bits), reset_less=True)
                total   = register("sum", signed(sum_bits(self.config, i + 1)), reset_less=True)
                with m.If(load):
                    m.d.sync += shadow.eq(columns[j])
                with m.If(swap):
                    m.d.sync += weight.eq(shadow)
                m.d.sync += [
                    product.eq(a * weight),
                    total.eq(sums[j] + product),
                ]
                sums[j] = total

                if j < n - 1:  # what the right-hand neighbour sees a cycle later
                    a_right    = register("right_a", signed(bits), reset_less=True)
                    swap_right = register("right_swap")
                    load_right = register("right_load")
                    m.d.sync += [a_right.eq(a), swap_right.eq(swap), load_right.eq(load)]
                    a, swap, load = a_right, swap_right, load_right

        for j in range(n):
            m.d.comb += self.o[j].eq(delay(m, sums[j], n - 1 - j, name=f"o_{j}"))

        return m
