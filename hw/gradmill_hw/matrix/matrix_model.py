"""Golden model of :mod:`gradmill_hw.matrix.matrix`. NumPy only, vectorised, bit-exact.

For row r of A and column j of W, both of block kb, with mantissas a and w of P bits::

    p = sum over i of a[i] * w[i]  *  2**(Ea + Ew - 254 - 2 (P - 2))
    s = p for kb = 0 unless `accumulate`, otherwise accumulator + p
    accumulator = s, or s rounded to bfloat16 if `narrow`

for kb = 0, 1, ... The sum of products is exact, as an integer. p, s and their roundings are
binary32: nearest even, subnormals are zeros of their sign before and after, one NaN.
p is NaN if Ea or Ew is 255.
"""

from functools import lru_cache

import numpy as np

from ..numeric.fp32_model import CANONICAL_NAN, add_f32, round_bf16_f32
from ..numeric.int_to_fp32_model import int_to_f32


__all__ = ["TURNAROUND", "cycles", "matmul"]

#: Cycles from a row to the next row that may add to the same accumulators.
TURNAROUND = 8

NAN_EXPONENT = 255
BIAS = 127

#: Powers of two from -126 to 127.
_POWERS = (2.0**np.arange(-126, 128)).astype(np.float32)


def _blocks(elements, n):
    return -(-elements // n)


def cycles(command, config):
    """Cycles from acceptance to `done` if the unit is idle and no read of A is refused."""
    m, k, c, n = command["m"], command["k"], command["c"], config.n
    fill = 2 * n + 11
    if not m * k * c:
        return fill
    return (_blocks(k, n) * _blocks(c, n) - 1) * max(m, n, TURNAROUND) + m + fill


@lru_cache(maxsize=4096)
def _a_offsets(m, blocks, stride_m, stride_k, n):
    """Rows of A relative to `op0`, by block and row."""
    row = np.arange(m)
    return np.arange(blocks)[:, None] * stride_k + row // n * stride_m + row % n


@lru_cache(maxsize=4096)
def _w_offsets(k_blocks, c_blocks, stride_k, stride_c, n):
    """Rows of W relative to `op1`, by contraction block, row of the tile and column block."""
    return (np.arange(k_blocks)[:, None, None] * stride_k + np.arange(n)[:, None]
            + np.arange(c_blocks) * stride_c)


@lru_cache(maxsize=4096)
def _d_offsets(m, blocks, stride_c):
    """Rows of the product relative to `op2`, by column block and row."""
    return np.arange(blocks)[:, None] * stride_c + np.arange(m)


def _read(mantissa, exponent, rows, transpose, n):
    """Rows of the tensor memory as binary32, lanes in a new last axis, and their exponents."""
    rows = rows & 0xffff
    if transpose:
        tile = rows & -n
        element = (tile * n + (rows - tile))[..., None] + np.arange(0, n * n, n)
        lanes, exponents = mantissa.reshape(-1).take(element), exponent.take(tile)
    else:
        lanes, exponents = mantissa.take(rows, axis=0), exponent.take(rows)
    return lanes.astype(np.float32), exponents.astype(np.int32)


def _round_coarse(x):
    """``x``, neither subnormal nor NaN, rounded to bfloat16."""
    bits = x.view(np.uint32)
    return ((bits + (0x7fff + (bits >> 16 & 1))) & 0xffff0000).view(np.float32)


def _is_coarse(x):
    """Whether every value is a multiple of 2**-126: zero, or not below 2**-103."""
    return not ((x.view(np.uint32) << 1) - 1 < 24 << 24).any()


def _add_coarse(start, products, narrow):
    """Sums over the first axis, added to ``start`` if there is one; all multiples of 2**-126.

    Every sum is such a multiple too, so none is subnormal and NumPy rounds as the machine does.
    Returns None if a sum is not finite.
    """
    total = (products[0] if start is None else start).copy()
    if narrow and start is None:
        total = _round_coarse(total)
    for product in products if start is not None else products[1:]:
        total += product
        if narrow:
            total = _round_coarse(total)
    return total if np.isfinite(total).all() else None


def _add(total, products, narrow):
    """Sums over the first axis added to ``total``, and how many rows were not finite."""
    nonfinite = 0
    for product in products:
        total = product if total is None else add_f32(total, product)
        if narrow:
            total = round_bf16_f32(total)
        nonfinite += np.count_nonzero(~np.isfinite(total).all(axis=-1))
    return total, nonfinite


def matmul(command, tensor_mantissa, tensor_exponent, acc, config):
    """Execute MATMUL on the contents of the memories.

    Parameters
    ----------
    command : dict
        Fields of the instruction; operands with their base registers added.
    tensor_mantissa : array of int16, shape (tensor_rows, n)
    tensor_exponent : array of uint8, shape (tensor_rows,)
    acc : array of float32, or uint32 storage bits, shape (acc_rows, n)
        Changed in place.
    config : Config

    Returns
    -------
    dict
        Sums over the events of the unit: ``macs``, ``rows``, ``nonfinite``.
    """
    n, narrow, accumulate = config.n, command["narrow"], command["accumulate"]
    m, k, c = command["m"], command["k"], command["c"]
    if not m * k * c:
        return {"macs": 0, "rows": 0, "nonfinite": 0}
    k_blocks, c_blocks = _blocks(k, n), _blocks(c, n)
    if accumulate and c_blocks > 1 and command["d_stride_c"] < m:
        raise ValueError(f"d_stride_c={command['d_stride_c']} is undefined with accumulate: the "
                         f"column blocks of m={m} rows overlap")

    a, a_exponent = _read(
        tensor_mantissa, tensor_exponent,
        _a_offsets(m, k_blocks, command["a_stride_m"], command["a_stride_k"], n) + command["op0"],
        command["a_transpose"], n)
    w, w_exponent = _read(
        tensor_mantissa, tensor_exponent,
        _w_offsets(k_blocks, c_blocks, command["w_stride_k"], command["w_stride_c"], n)
        + command["op1"],
        command["w_transpose"], n)
    w_exponent = w_exponent[:, 0]

    # Integers below 2**24 are exact in binary32, in whatever order they are added. Adding zero
    # leaves no negative zero.
    sums = np.matmul(a, w.reshape(k_blocks, n, c_blocks * n))
    sums += np.float32(0)
    sums = sums.reshape(k_blocks, m, c_blocks, n)
    exponent = a_exponent[:, :, None] + w_exponent[:, None, :]
    exponent -= 2 * (BIAS + config.mantissa_bits - 2)

    # A tile of zeros may have any exponent.
    tiny = exponent < -126
    if tiny.any() and not sums[tiny].any():
        exponent[tiny] = -126

    largest = int(exponent.max()) + 2 * (config.mantissa_bits - 1) + config.lane_bits
    nan = int(a_exponent.max()) == NAN_EXPONENT or int(w_exponent.max()) == NAN_EXPONENT
    normal = not nan and int(exponent.min()) >= -126 and largest < 128
    if normal:
        sums *= _POWERS.take(exponent + 126)[..., None]
    else:
        sums = int_to_f32(sums, exponent[..., None])
        if nan:
            sums[a_exponent == NAN_EXPONENT] = CANONICAL_NAN.view(np.float32)
            np.moveaxis(sums, 1, 2)[w_exponent == NAN_EXPONENT] = CANONICAL_NAN.view(np.float32)

    acc = acc.view(np.float32)
    rows = (_d_offsets(m, c_blocks, command["d_stride_c"]) + command["op2"]) & 0xffff
    start = acc[rows].swapaxes(0, 1) if accumulate else None
    total, nonfinite = None, 0
    with np.errstate(over="ignore", invalid="ignore"):
        if normal and (not accumulate or _is_coarse(start)):
            total = _add_coarse(start, sums, narrow)
        if total is None:
            total, nonfinite = _add(start, sums, narrow)
    acc[rows] = total.swapaxes(0, 1)
    return {"macs": m * k * c, "rows": m * k_blocks * c_blocks, "nonfinite": nonfinite}
