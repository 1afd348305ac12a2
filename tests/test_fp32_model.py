"""Binary32 model against Berkeley SoftFloat, ml_dtypes and the order of Python floats."""

import math

import ml_dtypes
import numpy as np
import pytest
import softfloatpy

from gradmill_hw.numeric import fp32_model
from tb.fp32_vectors import CORNERS, corner_pairs, product_boundary_pairs, random_bits, random_pairs

SEED = 3081
NAN = 0x7FC00000


def flushed(bits):
    if bits & 0x7F800000 == 0:
        return bits & 0x80000000
    return NAN if bits & 0x7FFFFFFF > 0x7F800000 else bits


def operands():
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    parts = corner_pairs(), random_pairs(rng, 100_000), product_boundary_pairs(rng, 50_000)
    return (np.concatenate(part) for part in zip(*parts, strict=True))


@pytest.mark.parametrize("name", ["add", "mul"])
def test_arithmetic(name):
    reference = getattr(softfloatpy, f"f32_{name}")

    def exact(a, b):
        a, b = (softfloatpy.Float32.from_bytes(flushed(x).to_bytes(4, "big")) for x in (a, b))
        return flushed(int.from_bytes(reference(a, b).to_bytes(), "big"))

    a, b = operands()
    expected = np.array([exact(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    np.testing.assert_array_equal(getattr(fp32_model, name)(a, b), expected)


@pytest.mark.parametrize("name", ["add", "mul"])
def test_flushed_operands_need_no_flush(name):
    a, b = (fp32_model.flush(x).view(np.float32) for x in operands())
    operator = getattr(fp32_model, f"{name}_f32")
    np.testing.assert_array_equal(operator(a, b, flushed=True).view(np.uint32),
                                  operator(a, b).view(np.uint32))


@pytest.mark.parametrize(("name", "pick"), [("maximum", max), ("minimum", min)])
def test_order(name, pick):
    def key(bits):
        value = float(np.uint32(bits).view(np.float32))
        return value, math.copysign(1, value)

    def exact(a, b):
        a, b = flushed(a), flushed(b)
        return NAN if NAN in (a, b) else pick(a, b, key=key)

    rng = np.random.default_rng(SEED)
    a, b = (np.concatenate(part) for part in zip(corner_pairs(), random_pairs(rng, 10_000),
                                                 strict=True))
    expected = np.array([exact(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    np.testing.assert_array_equal(getattr(fp32_model, name)(a, b), expected)


def test_round_bf16():
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    bits = (upper | lower).ravel()
    with np.errstate(all="ignore"):
        rounded = fp32_model.flush(bits).view(np.float32).astype(ml_dtypes.bfloat16)
        expected = rounded.astype(np.float32).view(np.uint32)
    expected[np.isnan(expected.view(np.float32))] = NAN
    found = fp32_model.round_bf16_f32(bits.view(np.float32))
    np.testing.assert_array_equal(found.view(np.uint32), expected)


def test_flush():
    bits = np.concatenate([CORNERS, random_bits(np.random.default_rng(SEED), 10_000)])
    expected = np.array([flushed(x) for x in bits.tolist()])
    before = bits.copy()
    np.testing.assert_array_equal(fp32_model.flush(bits), expected)
    np.testing.assert_array_equal(bits, before)


def test_scalars_and_shapes():
    assert fp32_model.add(0x3F800000, 0x3F800000) == 0x40000000
    column, row = np.ones((3, 1), np.float32), np.ones((1, 4), np.float32)
    assert fp32_model.add_f32(column, row).shape == (3, 4)
    assert fp32_model.mul_f32(np.zeros(0, np.float32), np.float32(2)).shape == (0,)
