"""Multiplier against its model: a new pair in every cycle."""

import numpy as np

from gradmill_hw.numeric import fp32_model
from gradmill_hw.numeric.fp32_mul import Fp32Mul
from tb.fp32_vectors import corner_pairs, product_boundary_pairs, random_pairs
from tb.pipeline import run_pipeline

SEED = 3083


def test_stream():
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    pairs = corner_pairs(), random_pairs(rng, 3000), product_boundary_pairs(rng, 4000)
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    np.testing.assert_array_equal(run_pipeline(Fp32Mul(), a=a, b=b), fp32_model.mul(a, b))


def test_rounds_up_to_the_smallest_normal():
    """Products just below 2**-126 that round to it are kept, smaller ones are flushed."""
    a = np.array([0x3F800000, 0x3F7FFFFF, 0x3F7FFFFE], dtype=np.uint32)
    half = np.uint32(0x00FFFFFF)
    pairs = np.broadcast_arrays(a[:, None], np.array([0x00800000, half, half - 1, 0x00FFFFFD]))
    a, b = (part.ravel().astype(np.uint32) for part in pairs)
    np.testing.assert_array_equal(run_pipeline(Fp32Mul(), a=a - (1 << 23), b=b),
                                  fp32_model.mul(a - np.uint32(1 << 23), b))
