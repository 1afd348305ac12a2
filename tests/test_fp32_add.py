"""Adder against its model: a new pair in every cycle."""

import numpy as np

from gradmill_hw.numeric import fp32_model
from gradmill_hw.numeric.fp32_add import Fp32Add
from tb.fp32_vectors import corner_pairs, random_pairs
from tb.pipeline import run_pipeline

SEED = 3082


def test_stream():
    print(f"seed {SEED}")
    pairs = corner_pairs(), random_pairs(np.random.default_rng(SEED), 6000)
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    np.testing.assert_array_equal(run_pipeline(Fp32Add(), a=a, b=b), fp32_model.add(a, b))


def test_last_bit_lost():
    """One bit far below decides how a sum rounds, at every distance and on both sides."""
    distance, bit, sign, odd = (
        part.ravel() for part in np.meshgrid(range(28), range(23), (0, 1), (0, 1))
    )
    large = (150 << 23) + odd
    small = sign << 31 | (150 - distance) << 23 | 1 << bit
    a = np.concatenate([large, small]).astype(np.uint32)
    b = np.concatenate([small, large]).astype(np.uint32)
    np.testing.assert_array_equal(run_pipeline(Fp32Add(), a=a, b=b), fp32_model.add(a, b))


def test_skip_a():
    print(f"seed {SEED}")
    pairs = corner_pairs(), random_pairs(np.random.default_rng(SEED), 500)
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    skip = np.arange(len(a)) % 3 != 0
    expected = fp32_model.add(np.where(skip, 0x8000_0000, a).astype(np.uint32), b)
    np.testing.assert_array_equal(run_pipeline(Fp32Add(), a=a, b=b, skip_a=skip), expected)
