"""Binary32 operands, as storage bits, that arithmetic units find hard."""

import numpy as np

#: Zeros, subnormals, the smallest and largest normals, ones, infinities, NaNs; both signs.
CORNERS = np.array([sign << 31 | bits for sign in (0, 1) for bits in (
    0x00000000, 0x00000001, 0x00400000, 0x007FFFFF,
    0x00800000, 0x00800001, 0x00FFFFFF, 0x01000000, 0x01000001, 0x0C000001,
    0x1FFFFFFF, 0x20000000, 0x33800000, 0x34000000, 0x3F000000, 0x3F7FFFFF,
    0x3F800000, 0x3F800001, 0x3FC00000, 0x3FFFFFFF, 0x40000000, 0x40490FDB,
    0x4B7FFFFF, 0x4B800000, 0x5F800000, 0x7E800000, 0x7F000000, 0x7F7FFFFF,
    0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF,
)], dtype=np.uint32)


def corner_pairs():
    """Every corner with every corner."""
    a, b = np.meshgrid(CORNERS, CORNERS)
    return a.ravel(), b.ravel()


def random_bits(rng, count):
    """A third any bits, a third near 1, a third sparse mantissas."""
    bits = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    kind = rng.integers(0, 3, count)
    near = bits & 0x80FFFFFF | rng.integers(118, 138, count, dtype=np.uint32) << 23
    sparse = bits & rng.integers(0, 1 << 32, count, dtype=np.uint32) & 0xFFF000FF
    return np.choose(kind, [bits, near, sparse]).astype(np.uint32)


def random_pairs(rng, count):
    """Random operands; half of the pairs are close in exponent, an eighth differ by few units."""
    a, b = random_bits(rng, count), random_bits(rng, count)
    exponent = (a >> 23 & 255).astype(np.int64) + rng.integers(-27, 28, count)
    close = b & 0x807FFFFF | (np.clip(exponent, 0, 255) << 23).astype(np.uint32)
    almost = (a ^ 0x80000000) + rng.integers(0, 16, count, dtype=np.uint32)
    kind = rng.integers(0, 8, count)
    return a, np.where(kind < 4, b, np.where(kind < 7, close, almost)).astype(np.uint32)


def product_boundary_pairs(rng, count):
    """Factors whose product is near 2**-126 or 2**128."""
    a = rng.integers(0, 1 << 32, count, dtype=np.uint32) & 0x807FFFFF
    e = rng.integers(1, 254, count)
    a |= e.astype(np.uint32) << 23
    total = np.where(rng.integers(0, 2, count), 127, 381) + rng.integers(-2, 3, count)
    target = np.where(rng.integers(0, 2, count), total - e, 128)
    # Half of the second factors are close to the reciprocal of the first.
    inverse = 1 / (a & 0x7FFFFF | 0x3F800000).astype(np.uint32).view(np.float32)
    b = np.where(rng.integers(0, 2, count), inverse.view(np.uint32),
                 rng.integers(0, 1 << 32, count, dtype=np.uint32))
    b = (b + rng.integers(-1, 2, count)).astype(np.uint32) & 0x807FFFFF
    return a, b | np.clip(target, 0, 255).astype(np.uint32) << 23
