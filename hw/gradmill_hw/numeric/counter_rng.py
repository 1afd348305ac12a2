"""Counter-based random bits for stochastic rounding."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .bfp_model import random_bits
from .counter_rng_model import ROUNDS


__all__ = ["CounterRng"]


class CounterRng(wiring.Component):
    """Random bits of one row as a function of seed, step, layer and row index alone.

    See :func:`counter_rng_model.random_rows` for the algorithm. A round is one LUT6 for each of
    64 bits; there is one pipeline of eight rounds for each 64 random bits of a row.

    One row per cycle, ``latency`` cycles. The key travels with the row.

    Parameters
    ----------
    config : Config
        ``n`` and ``mantissa_bits``.

    Members
    -------
    seed, step : In(32)
        Key.
    layer : In(8)
        Key.
    index : In(40)
        Counter, one for each row.
    random : Out(data.ArrayLayout(random_bits, n))
        ``17 - mantissa_bits`` random bits for each lane.
    """

    #: Rounds between registers.
    ROUNDS_PER_CYCLE = 2

    def __init__(self, config):
        self.config = config
        bits = random_bits(config.mantissa_bits)
        super().__init__({
            "seed":   In(32),
            "step":   In(32),
            "layer":  In(8),
            "index":  In(40),
            "random": Out(data.ArrayLayout(bits, config.n)),
        })

    @property
    def latency(self):
        """Cycles from key and index to the random bits."""
        return len(ROUNDS) // self.ROUNDS_PER_CYCLE

    def elaborate(self, platform):
        m = Module()

        blocks = -(-len(self.random.as_value()) // 64)
        key = Cat(self.seed, self.step)
        words = [Cat(self.index, self.layer, Const(block, 16)) for block in range(blocks)]
        for stage in range(self.latency):
            first = stage * self.ROUNDS_PER_CYCLE
            for number in range(first, first + self.ROUNDS_PER_CYCLE):
                a, b, c, d, k, constant = ROUNDS[number]
                # Kept, because synthesis would mix the rounds of a cycle and need more LUTs.
                mixed = [Signal(64, name=f"round_{number}_{block}", attrs={"keep": 1})
                         for block in range(blocks)]
                m.d.comb += [new.eq(word ^ word.rotate_left(a) ^ word.rotate_left(b)
                                    ^ (word.rotate_left(c) & word.rotate_left(d))
                                    ^ key.rotate_left(k) ^ Const(constant, 64))
                             for new, word in zip(mixed, words, strict=True)]
                words = mixed

            key_next = Signal(64, name=f"key_{stage}")
            m.d.sync += key_next.eq(key)
            key = key_next
            words_next = [Signal(64, name=f"words_{stage}_{block}") for block in range(blocks)]
            m.d.sync += [new.eq(word) for new, word in zip(words_next, words, strict=True)]
            words = words_next

        m.d.comb += self.random.as_value().eq(Cat(words))
        return m
