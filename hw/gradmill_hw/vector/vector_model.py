"""Golden model of :mod:`vector`. NumPy only, vectorised, bit-exact.

Rows are binary32. Multiply, add and function round one after the other, each to nearest even,
with subnormal operands and results flushed to zero of the same sign and every NaN result
0x7fc00000. Max and min take -0 for less than +0, flush the result, and are NaN if an operand is.
A stage that is not used passes the bits of its operand unchanged, so that an instruction without
any copies NaNs and subnormals as they are.

Encodings that no enumeration lists act as ``NONE``, as addition, and as the alternative zero. The
lane distance of a butterfly is below n; with a larger one every lane meets itself.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..isa import (
    AddOp, AddSource, Alternative, FunctionOp, MaskKind, MulSource, Space,
)
from ..numeric import fp32_model as fp32
from ..numeric import functions_model
from ..numeric.bfp_model import dequantise, quantise_events, random_bits
from ..numeric.counter_rng_model import random_rows


__all__ = ["Events", "vector"]

#: Row addresses wrap at this number.
ADDRESSES = 1 << 16
#: Element numbers of the random stream wrap at this number.
ELEMENTS = 1 << 40

INFINITY = np.uint32(0x7f80_0000)
NEG_INFINITY = np.uint32(0xff80_0000)
MAGNITUDE = np.uint32(0x7fff_ffff)
EXPONENT = np.uint32(0x7f80_0000)
SMALLEST_NORMAL = np.uint32(0x0080_0000)
SIGN = np.uint32(0x8000_0000)


_FUNCTIONS = {
    FunctionOp.EXP: functions_model.exp,
    FunctionOp.RECIP: functions_model.recip,
    FunctionOp.RSQRT: functions_model.rsqrt,
    FunctionOp.LOG: functions_model.log,
}


class Events(NamedTuple):
    """What an instruction reports: rows issued, sticky flags."""
    rows:      int
    nonfinite: bool
    saturate:  bool


@lru_cache(maxsize=4096)
def _offsets(rows, blocks, stride, step):
    """Addresses of an operand less its base, in the order of the rows."""
    offsets = np.add.outer(np.arange(blocks) * stride, np.arange(rows) * step).ravel()
    offsets.setflags(write=False)
    return offsets, int(offsets[-1])


class _Operand(NamedTuple):
    """Rows that an instruction reads or writes in one memory."""
    name:   str
    base:   int
    rows:   int
    blocks: int
    stride: int
    step:   int = 1

    def addresses(self, depth):
        """Row addresses in order; all below ``depth``."""
        offsets, last = _offsets(self.rows, self.blocks, self.stride, self.step)
        if self.base + last < depth:
            return offsets + self.base
        addresses = (offsets + self.base) % ADDRESSES
        if addresses.max() >= depth:
            raise ValueError(f"row {addresses.max()} of {self.name} is beyond the {depth} rows "
                             f"of its memory")
        return addresses

    def disjoint(self, other):
        """Whether the address ranges are, seen without looking at every row."""
        last = self.base + (self.blocks - 1) * self.stride + (self.rows - 1) * self.step
        other_last = other.base + (other.blocks - 1) * other.stride + (other.rows - 1) * other.step
        return (last < other.base or other_last < self.base) and max(last, other_last) < ADDRESSES

    def repeats(self):
        """Whether a row may be addressed twice."""
        return ((self.rows > 1 and not self.step)
                or (self.blocks > 1 and self.stride < (self.rows - 1) * self.step + 1)
                or (self.blocks - 1) * self.stride + self.rows > ADDRESSES)


def _check_order(read, write):
    """Refuse a row that is read after an earlier row of the same instruction wrote it."""
    if read.disjoint(write) or (read[1:] == write[1:] and not write.repeats()):
        return

    def order(operand):
        row = np.add.outer(np.arange(operand.blocks) * max(read.rows, write.rows),
                           np.arange(operand.rows))
        return row.ravel()

    reads, writes = read.addresses(ADDRESSES), write.addresses(ADDRESSES)
    written = np.full(ADDRESSES, np.iinfo(np.int64).max)
    written[writes[::-1]] = order(write)[::-1]
    late = written[reads] < order(read)
    if late.any():
        raise ValueError(f"row {reads[late][0]} is read as {read.name} after the same instruction "
                         f"wrote it as {write.name}")


def _scalar(command, name, scalars):
    value = command[name]
    return np.uint32(scalars[value % len(scalars)] if command[f"{name}_reg"] else value)


def _is_nan(x):
    return (x & MAGNITUDE) > INFINITY


def _combine(operation, p, c):
    match operation:
        case AddOp.MAX:
            return fp32.maximum(p, c)
        case AddOp.MIN:
            return fp32.minimum(p, c)
        case AddOp.SUB:
            return fp32.add(p, c ^ SIGN)
        case AddOp.RSUB:
            return fp32.add(p ^ SIGN, c)
        case _:
            return fp32.add(p, c)


def _compute(command, a, b, k, scalar0, scalar1):
    """Multiply, add and function stage: storage bits of all rows."""
    match command["mul"]:
        case MulSource.SCALAR:
            p = fp32.mul(a, np.broadcast_to(scalar0, a.shape))
        case MulSource.ROW:
            p = fp32.mul(a, b)
        case MulSource.SELF:
            p = fp32.mul(a, a)
        case _:
            p = a

    lanes = np.arange(a.shape[1])
    distance = 1 << command["butterfly"]
    match command["add_source"]:
        case AddSource.SCALAR:
            q = _combine(command["add_op"], p, np.full_like(p, scalar1))
        case AddSource.ROW:
            q = _combine(command["add_op"], p, b)
        case AddSource.BUTTERFLY:
            other = lanes ^ distance if distance < len(lanes) else lanes
            q = _combine(command["add_op"], p, p[:, other])
        case AddSource.MASKED:
            q = _combine(command["add_op"], p, np.where(k, scalar1, np.uint32(0)))
        case _:
            q = p

    function = _FUNCTIONS.get(command["function"])
    return function(q) if function else q


def vector(command, state):
    """Execute one instruction.

    Parameters
    ----------
    command : dict
        Fields of :attr:`isa.Opcode.VECTOR` with final addresses.
    state : object
        ``config``; ``acc`` float32 [rows, n], ``tensor_mantissa`` int16 [rows, n],
        ``tensor_exponent`` uint8 [rows], ``mask`` bool [rows, n], all changed in place;
        ``scalars`` uint32 [8]; ``seed`` and ``step``, int.

    Returns
    -------
    Events

    Raises
    ------
    ValueError
        If a row is beyond a memory, or is read after an earlier row of the instruction wrote it.
    """
    rows, blocks = command["rows"], command["blocks"]
    if rows == 0 or blocks == 0:
        return Events(0, False, False)
    n = state.config.n
    acc = state.acc.view(np.uint32)
    count = rows * blocks
    padded_rows = -(-rows // n) * n
    a_at = _Operand("A", command["op0"], rows, blocks, command["a_stride"], command["a_step"])
    b_at = _Operand("B", command["op1"], rows, blocks, command["b_stride"], command["b_step"])
    d_at = _Operand("result", command["op2"], rows, blocks, command["d_stride"])
    t_at = _Operand("tensor result", command["op3"], padded_rows, blocks, command["t_stride"])
    k_at = _Operand("mask", command["op4"], rows, blocks, command["k_stride"])

    # Sources.
    from_tensor = command["a_space"] == Space.TENSOR
    read_b = command["mul"] == MulSource.ROW or command["add_source"] == AddSource.ROW
    read_mask = (command["mask"] == MaskKind.MEMORY
                 or command["add_source"] == AddSource.MASKED)
    if from_tensor:
        at = a_at.addresses(len(state.tensor_mantissa))
        a = dequantise(state.tensor_mantissa[at], state.tensor_exponent[at],
                       state.config.mantissa_bits).view(np.uint32)
    else:
        a = acc[a_at.addresses(len(acc))]
    b = acc[b_at.addresses(len(acc))] if read_b else None
    k = state.mask[k_at.addresses(len(state.mask))] if read_mask else None

    if command["write_acc"]:
        if not from_tensor:
            _check_order(a_at, d_at)
        if read_b:
            _check_order(b_at, d_at)
    if command["write_tensor"] and from_tensor:
        _check_order(a_at, t_at)
    if command["write_mask"] and read_mask:
        _check_order(k_at, k_at)

    # Arithmetic.
    scalar1 = _scalar(command, "scalar1", state.scalars)
    value = _compute(command, a, b, k, _scalar(command, "scalar0", state.scalars), scalar1)

    # Masks and padding lanes.
    match command["mask"]:
        case MaskKind.MEMORY:
            keep = k
        case MaskKind.POSITIVE:
            keep = (value - SMALLEST_NORMAL <= INFINITY - SMALLEST_NORMAL) | _is_nan(value)
        case _:
            keep = None
    result = value
    if keep is not None:
        alternative = {Alternative.NEG_INFINITY: NEG_INFINITY,
                       Alternative.SCALAR: scalar1}.get(command["alternative"], np.uint32(0))
        result = np.where(keep, value, alternative)
    if command["cols"] < blocks * n:
        inside = (np.arange(blocks * n) < command["cols"]).reshape(blocks, 1, n)
        inside = np.broadcast_to(inside, (blocks, rows, n)).reshape(count, n)
        result = np.where(inside, result, NEG_INFINITY if command["pad"] else np.uint32(0))
        keep = inside if keep is None else keep & inside

    # Results.
    nonfinite = saturate = False
    if command["write_acc"] or command["write_tensor"]:
        unbounded = (value & EXPONENT) == EXPONENT
        nonfinite = bool((unbounded if keep is None else unbounded & keep).any())
    if command["write_acc"]:
        acc[d_at.addresses(len(acc))] = result
    if command["write_mask"]:
        state.mask[k_at.addresses(len(state.mask))] = True if keep is None else keep
    if command["write_tensor"]:
        if padded_rows != rows:
            padded = np.zeros((blocks, padded_rows, n), np.uint32)
            padded[:, :rows] = result.reshape(blocks, rows, n)
            result = padded.reshape(-1, n)
        random = None
        if command["stochastic"]:
            index = (command["mem"] + np.arange(len(result))) % ELEMENTS
            random = random_rows(state.seed, state.step, command["layer"], index, n,
                                 random_bits(state.config.mantissa_bits))
        mantissa, exponent, saturate, _ = quantise_events(
            result, n, state.config.mantissa_bits, bool(command["stochastic"]), random)
        at = t_at.addresses(len(state.tensor_mantissa))
        state.tensor_mantissa[at] = mantissa
        state.tensor_exponent[at] = exponent
    return Events(count, nonfinite, saturate)
