"""Golden model of :mod:`counter_rng`. NumPy only, vectorised, bit-exact.

Eight rounds of AND, rotate and XOR turn a 64-bit counter word under a 64-bit key into 64 random
bits. Not for cryptography.
"""

import numpy as np


__all__ = ["ROUNDS", "random_rows"]

#: Rotations (a, b, c, d, k) and constant of each round:
#: ``s ^ rotl(s, a) ^ rotl(s, b) ^ (rotl(s, c) & rotl(s, d)) ^ rotl(key, k) ^ constant``.
ROUNDS = tuple(
    (*rotations, (number + 1) * 0x9e3779b97f4a7c15 % 2**64)
    for number, rotations in enumerate((
        (30,  3,  1, 11,  0),
        (37, 34,  1, 26, 26),
        (60,  5, 28, 43, 61),
        (52, 29, 28,  3, 60),
        (18, 40, 31, 26, 50),
        (26, 43, 61,  2, 43),
        (36, 47, 31, 58, 62),
        (36, 38, 58, 20, 35),
    )))


def _rotate(words, by):
    return words << np.uint64(by) | words >> np.uint64(64 - by)


def _permute(words, key):
    """64 random bits for each of ``words`` under ``key``, an int."""
    for a, b, c, d, k, constant in ROUNDS:
        mixed = _rotate(words, c)
        mixed &= _rotate(words, d)
        mixed ^= _rotate(words, a)
        mixed ^= _rotate(words, b)
        mixed ^= words
        mixed ^= np.uint64((key << k | key >> 64 - k) % 2**64 ^ constant)
        words = mixed
    return words


def random_rows(seed, step, layer, index, n, bits):
    """Random numbers of rows ``index``, as a function of the arguments alone.

    The key is ``seed + 2**32 * step``. Block b of a row is the permutation of
    ``index + 2**40 * layer + 2**48 * b``; blocks are joined, block 0 lowest, and lane k takes
    ``bits`` bits from bit ``k * bits`` up.

    Parameters
    ----------
    seed, step : int, 32 bits
    layer : int, 8 bits
    index : array of integers, 40 bits
        One for each row.
    n : int
        Lanes.
    bits : int
        Random bits of a lane, up to 16.

    Returns
    -------
    array of uint16, shape (len(index), n)
    """
    first = np.arange(n) * bits
    blocks = -(-n * bits // 64)
    words = np.asarray(index).astype(np.uint64)
    words = words | np.arange(blocks, dtype=np.uint64)[:, None] << np.uint64(48)
    words |= np.uint64(layer << 40)
    words = _permute(words, int(seed) | int(step) << 32).T

    offset = (first % 64).astype(np.uint64)
    numbers = words[:, first // 64] >> offset
    if 64 % bits:
        # A lane may end in the next block.
        following = words[:, np.minimum(first // 64 + 1, blocks - 1)]
        numbers |= following << (np.uint64(63) - offset) << np.uint64(1)
    return numbers.astype(np.uint16, order="C") & np.uint16((1 << bits) - 1)
