"""Operands of the function unit, as storage bits, that reach every part of its tables."""

import numpy as np

from .fp32_vectors import CORNERS


def _bits(values):
    return np.asarray(values, dtype=np.float32).view(np.uint32)


def corners():
    """Corner values, the ends of every range, and their neighbours."""
    ends = _bits([0.5, 0.75, 0.875, 1, 1.125, 1.25, 1.5, 2, 3, 4, 2.0**126, 2.0**127,
                  88.722835, 88.722839, 87.33654, 87.33655, 88.02969, 88.02970, 103.3, 127.99999,
                  128, 0.375, 0.34657359, 0.6931472, 2.0**-27, 2.0**-26, 1e-9])
    bits = np.concatenate([CORNERS & 0x7FFFFFFF, ends - np.uint32(1), ends,
                           ends + np.uint32(1)])
    return np.concatenate([bits, bits | 0x80000000])


def random_operands(rng, count):
    """Any bits, every distance from 1, and small and large arguments of exp."""
    anything = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    near_one = _bits(1 + rng.choice([-0.5, 1], count) * 2.0**rng.uniform(-24, -0.9, count))
    arguments = _bits(rng.uniform(-90, 90, count))
    small = _bits(rng.choice([-1, 1], count) * 2.0**rng.uniform(-30, 5, count))
    return np.choose(rng.integers(0, 4, count), [anything, near_one, arguments, small])
