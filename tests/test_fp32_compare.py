"""Combinational order and rounding of binary32 values against the model."""

import numpy as np
import pytest
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.hdl import Module

from gradmill_hw.numeric import fp32_model
from gradmill_hw.numeric.fp32_compare import fp32_less, fp32_max, fp32_min
from gradmill_hw.numeric.fp32_round import fp32_round_bf16
from tb.fp32_vectors import corner_pairs, random_pairs
from tb.pipeline import run_pipeline

SEED = 3084


class Registered(wiring.Component):
    """``function`` of ``a`` and ``b``, one cycle later."""

    latency = 1
    a: In(32)
    b: In(32)
    o: Out(32)

    def __init__(self, function):
        self.function = function
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.function(self.a, self.b))
        return m


def less(a, b):
    different = fp32_model.maximum(a, b) != fp32_model.minimum(a, b)
    return different & (fp32_model.minimum(a, b) == fp32_model.flush(a))


@pytest.mark.parametrize(("function", "model"), [
    (fp32_max, fp32_model.maximum),
    (fp32_min, fp32_model.minimum),
    (fp32_less, less),
    (lambda a, b: fp32_round_bf16(a), lambda a, b: fp32_model.round_bf16(a)),
], ids=["max", "min", "less", "round_bf16"])
def test_stream(function, model):
    print(f"seed {SEED}")
    pairs = corner_pairs(), random_pairs(np.random.default_rng(SEED), 2000)
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    np.testing.assert_array_equal(run_pipeline(Registered(function), a=a, b=b), model(a, b))
