"""FP32 rows to block floating point: one shared exponent for each tile of n rows."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .bfp_model import random_bits


__all__ = ["TileQuantiser"]

#: Magnitude bits of an element from the tile's exponent down, and fraction bits below them.
_KEPT = 16
_DROPPED = 24 - _KEPT


def _select(index, choices):
    """``choices[index]`` of four, as the one LUT per bit that it is."""
    a, b, c, d = choices
    return Mux(index[1], Mux(index[0], d, c), Mux(index[0], b, a))


class TileQuantiser(wiring.Component):
    """Quantises tiles of ``n`` x ``n`` binary32 values, one row per cycle.

    See :func:`bfp_model.quantise_tiles` for the exact arithmetic.

    A tile is ``n`` rows, gaps allowed anywhere; the last one has ``i_last``. Its rows come out in
    ``n`` consecutive cycles, in order; the first is on ``o_*`` exactly ``delay`` cycles after the
    cycle in which the last one was on ``i_*``. There is no backpressure. A tile with fewer or
    more rows is undefined until reset.

    Parameters
    ----------
    config : Config
        ``n`` and ``mantissa_bits``.
    tag_bits : int
        Width of the tag that travels with each row.

    Members
    -------
    i_valid : In(1)
        A row is on ``i_*``.
    i_row : In(data.ArrayLayout(32, n))
        Binary32 values; padding rows are zeros.
    i_last : In(1)
        Row ``n - 1`` of its tile.
    i_stochastic : In(1)
        Round stochastically; the same in all rows of a tile.
    i_random : In(data.ArrayLayout(random_bits, n))
        Random bits; unused when rounding to nearest.
    i_tag : In(tag_bits)
        Given back unchanged with the row, for instance its destination.
    o_valid : Out(1)
        A row is on ``o_*``.
    o_mantissa : Out(data.ArrayLayout(signed(mantissa_bits), n))
        Mantissas.
    o_exponent : Out(8)
        Exponent of the tile, the same in all of its rows.
    o_tag : Out(tag_bits)
        Tag of the row.
    o_saturated : Out(1)
        A mantissa of this row rounded beyond the largest one; 0 without ``o_valid``.
    o_nonfinite : Out(1)
        The tile holds a NaN or an infinity; 0 without ``o_valid``.
    """

    def __init__(self, config, *, tag_bits=16):
        self.config = config
        self.tag_bits = tag_bits
        n = config.n
        random = random_bits(config.mantissa_bits)
        super().__init__({
            "i_valid":      In(1),
            "i_row":        In(data.ArrayLayout(32, n)),
            "i_last":       In(1),
            "i_stochastic": In(1),
            "i_random":     In(data.ArrayLayout(random, n)),
            "i_tag":        In(tag_bits),
            "o_valid":      Out(1),
            "o_mantissa":   Out(data.ArrayLayout(signed(config.mantissa_bits), n)),
            "o_exponent":   Out(8),
            "o_tag":        Out(tag_bits),
            "o_saturated":  Out(1),
            "o_nonfinite":  Out(1),
        })

    @property
    def delay(self):
        """Cycles from the last row of a tile at the input to its first row at the output."""
        return self.config.lane_bits + 7

    def elaborate(self, platform):
        m = Module()

        n = self.config.n
        random = random_bits(self.config.mantissa_bits)
        depth = max(32, 2 * n)

        # A magnitude is kept as 15 fraction bits and the OR of the lower ones. Nearest rounding
        # sees no difference; stochastic rounding drops the same bits at exponent E.
        fractions, exponents, signs = [], [], []
        for value in self.i_row:
            fractions.append(Cat(value[:_DROPPED].any(), value[_DROPPED:23]))
            exponents.append(value[23:31])
            signs.append(value[31])

        # Rows wait in a ring until the exponent of their tile is known. What is needed later is
        # read later, which saves registers.
        write = Signal(range(depth))
        with m.If(self.i_valid):
            m.d.sync += write.eq(write + 1)

        def ring(name, word):
            m.submodules[name] = memory = Memory(shape=len(word), depth=depth, init=[],
                                                 attrs={"ram_style": "distributed"})
            port = memory.write_port()
            m.d.comb += [port.en.eq(self.i_valid), port.addr.eq(write), port.data.eq(word)]
            return memory.read_port()

        exponent_port = ring("exponents", Cat(exponents))
        fraction_port = ring("fractions", Cat(fractions))
        tail_port     = ring("tails", Cat(signs, self.i_random, self.i_stochastic, self.i_tag))

        # Largest exponent: over the lanes by a tree with one register per level, then over rows.
        row_valid, row_last, level = self.i_valid, self.i_last, exponents
        for depth_of_level in range(self.config.lane_bits):
            pairs = []
            for k, (a, b) in enumerate(zip(level[::2], level[1::2], strict=True)):
                larger = Signal(8, name=f"larger_{depth_of_level}_{k}")
                m.d.sync += larger.eq(Mux(a > b, a, b))
                pairs.append(larger)
            valid_next = Signal(name=f"row_valid_{depth_of_level}")
            last_next = Signal(name=f"row_last_{depth_of_level}")
            m.d.sync += [valid_next.eq(row_valid), last_next.eq(row_last)]
            row_valid, row_last, level = valid_next, last_next, pairs

        first = Signal(init=1)
        largest = Signal(8)
        complete = Signal()
        m.d.sync += complete.eq(row_valid & row_last)
        with m.If(row_valid):
            m.d.sync += first.eq(row_last)
            with m.If(first | (level[0] > largest)):
                m.d.sync += largest.eq(level[0])

        # Read the n rows of a complete tile. Tiles start at multiples of n.
        read = Signal(range(depth))
        reading = Signal()
        more = Signal()
        m.d.comb += [
            reading.eq(complete | more),
            exponent_port.addr.eq(read),
        ]
        with m.If(reading):
            m.d.sync += [
                read.eq(read + 1),
                more.eq(~read[:self.config.lane_bits].all()),
            ]
        read_1 = Signal.like(read)
        read_2 = Signal.like(read)
        read_3 = Signal.like(read)
        m.d.sync += Cat(read_1, read_2, read_3).eq(Cat(read, read_1, read_2))
        m.d.comb += [fraction_port.addr.eq(read_1), tail_port.addr.eq(read_3)]

        valid = [Signal(name=f"valid_{stage}") for stage in range(5)]
        exponent = [Signal(8, name=f"exponent_{stage}") for stage in range(5)]
        m.d.sync += Cat(valid, self.o_valid).eq(Cat(reading, valid))
        m.d.sync += Cat(exponent[1:], self.o_exponent).eq(Cat(exponent))
        with m.If(complete):
            m.d.sync += exponent[0].eq(largest)
        nonfinite = [Signal(name=f"nonfinite_{stage}") for stage in range(4)]
        m.d.sync += Cat(nonfinite, self.o_nonfinite).eq(Cat(
            valid[0] & exponent[0].all(), nonfinite))

        tail_layout = data.StructLayout({
            "sign":       n,
            "random":     data.ArrayLayout(random, n),
            "stochastic": 1,
            "tag":        self.tag_bits,
        })
        tail = tail_layout(tail_port.data)
        tag = Signal(self.tag_bits)
        m.d.sync += [tag.eq(tail.tag), self.o_tag.eq(tag)]

        saturated = Signal(n)
        m.d.sync += self.o_saturated.eq(valid[4] & saturated.any())
        for k in range(n):
            # Distance of each element from the exponent of the tile. A zero counts as far away;
            # it can only be near where both exponents are below 16.
            lane_exponent = exponent_port.data.word_select(k, 8)
            distance = Signal(8, name=f"distance_{k}")
            is_zero = Signal(name=f"is_zero_{k}")
            m.d.sync += [
                distance.eq(exponent[0] - lane_exponent),
                is_zero.eq(~exponent[0][4:].any() & ~lane_exponent[:4].any()),
            ]

            # Align to fixed point with ``random`` fraction bits; ``sticky`` stands for what is
            # below. So far below the tile's exponent, either rounding gives zero.
            fraction = fraction_port.data.word_select(k, _KEPT)
            whole = Cat(fraction[1:], 1)
            coarse = Signal(_KEPT, name=f"coarse_{k}")
            below = Signal(name=f"below_{k}")
            quarter = Signal(2, name=f"quarter_{k}")
            far = Signal(name=f"far_{k}")
            m.d.sync += [
                coarse.eq(_select(distance[:2], [whole >> i for i in range(4)])),
                below.eq(_select(distance[:2], [fraction[:i + 1].any() for i in range(4)])),
                quarter.eq(distance[2:4]),
                far.eq(distance[4:].any() | is_zero | nonfinite[0]),
            ]
            fixed = Signal(_KEPT, name=f"fixed_{k}", reset_less=True)
            sticky = Signal(name=f"sticky_{k}", reset_less=True)
            dropped = Cat(coarse.word_select(i, 4).any() for i in range(3))
            m.d.sync += [
                fixed.eq(_select(quarter, [coarse >> 4 * i for i in range(4)])),
                sticky.eq(below | _select(quarter, [dropped[:i].any() for i in range(4)])),
            ]
            with m.If(far):
                m.d.sync += [fixed.eq(0), sticky.eq(0)]

            # Nearest even adds just less than a half, or exactly a half to what is odd or has
            # bits below. Only the carry out of the fraction is needed.
            nearest = ~tail.stochastic
            addend = Mux(nearest, (1 << random - 1) - 1, tail.random[k])
            carry_in = nearest & (fixed[random] | sticky)
            rounding = Signal(random + 2, name=f"rounding_{k}")
            m.d.comb += rounding.eq(Cat(1, fixed[:random]) + Cat(carry_in, addend))

            magnitude = Signal(self.config.mantissa_bits - 1, name=f"magnitude_{k}")
            carry = Signal(name=f"carry_{k}")
            full = Signal(name=f"full_{k}")
            sign = Signal(name=f"sign_{k}")
            m.d.sync += [
                magnitude.eq(fixed[random:]),
                full.eq(fixed[random:].all()),
                carry.eq(rounding[-1]),
                sign.eq(tail.sign[k]),
            ]

            # Carry and negation are one addition: -(a + c) = ~a + 1 - c.
            ones = (Cat(magnitude, 0) ^ sign.replicate(self.config.mantissa_bits))
            increment = (carry & ~full) ^ sign
            m.d.comb += saturated[k].eq(carry & full)
            m.d.sync += self.o_mantissa[k].eq((Cat(1, ones) + increment)[1:])

        return m
