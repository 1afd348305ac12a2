"""The vector model against a reference that works on one element at a time."""

import struct
import time
from fractions import Fraction

import numpy as np
import pytest

from gradmill_hw.config import NANO, TILE
from gradmill_hw.isa import AddOp, AddSource, Alternative, FunctionOp, MaskKind, MulSource
from gradmill_hw.numeric import functions_model
from gradmill_hw.numeric.counter_rng_model import random_rows as random_bit_rows
from gradmill_hw.vector.vector_model import Events, vector
from tb.vector_random import instruction, random_instruction, random_state

NAN = 0x7fc00000
INF = 0x7f800000


def bits_of(array):
    return array.view(np.uint32).tolist()


def is_nan(bits):
    return bits & 0x7fffffff > INF


def flush(bits):
    return bits & 0x80000000 if bits >> 23 & 255 == 0 else bits


def to_double(bits):
    return struct.unpack("<f", struct.pack("<I", flush(bits)))[0]


def from_double(value):
    """Round to binary32, flushed. Exact for sums and products of two binary32 values."""
    if value != value:
        return NAN
    try:
        return flush(struct.unpack("<I", struct.pack("<f", value))[0])
    except OverflowError:
        return 0xff800000 if value < 0 else INF


def multiply(a, x):
    """``x`` is None if there is no multiplication."""
    if x is None:
        return a
    return NAN if is_nan(a) or is_nan(x) else from_double(to_double(a) * to_double(x))


def combine(op, p, c):
    """``c`` is None if there is no addition."""
    if c is None:
        return p
    if is_nan(p) or is_nan(c):
        return NAN
    if op in (AddOp.MAX, AddOp.MIN):
        ordered = sorted((p, c), key=lambda bits: (to_double(bits), -(bits >> 31)))
        return flush(ordered[op == AddOp.MAX])
    x, y = to_double(p), to_double(c)
    return from_double({AddOp.SUB: x - y, AddOp.RSUB: y - x}.get(op, x + y))


def apply_function(op, bits):
    function = {FunctionOp.EXP: functions_model.exp, FunctionOp.RECIP: functions_model.recip,
                FunctionOp.RSQRT: functions_model.rsqrt, FunctionOp.LOG: functions_model.log}
    return int(function[op](np.array([bits], np.uint32))[0]) if op in function else bits


def dequantise(mantissa, exponent, mantissa_bits):
    if exponent == 255:
        return NAN
    return from_double(float(mantissa) * 2.0**(exponent - 127 - (mantissa_bits - 2)))


def quantise_tile(tile, mantissa_bits, random):
    """Mantissas, exponent and saturation of one list of rows of bits."""
    exponent = max(flush(x) >> 23 & 255 for row in tile for x in row)
    limit = 2**(mantissa_bits - 1) - 1
    saturated = False
    rows = []
    for r, row in enumerate(tile):
        out = []
        for j, x in enumerate(row):
            if exponent == 255:
                out.append(0)
                continue
            exact = Fraction(to_double(x)) * Fraction(2)**(mantissa_bits - 2 + 127 - exponent)
            if random is None:
                rounded = round(exact)
            else:
                shift = 17 - mantissa_bits
                magnitude = int(abs(exact) * 2**shift) + int(random[r][j]) >> shift
                rounded = magnitude if exact >= 0 else -magnitude
            saturated |= abs(rounded) > limit
            out.append(max(-limit, min(limit, rounded)))
        rows.append(out)
    return rows, exponent, saturated


def reference(c, state):
    """The instruction, row after row as the architecture states it. Returns its events."""
    config = state.config
    n = config.n
    rows_seen, nonfinite, saturate = 0, False, False
    scalar0, scalar1 = (int(state.scalars[c[s] % 8]) if c[s + "_reg"] else c[s]
                        for s in ("scalar0", "scalar1"))
    element = c["mem"]
    for block in range(c["blocks"]):
        results = []
        for r in range(-(-c["rows"] // n) * n if c["rows"] else 0):
            if r >= c["rows"]:
                results.append([0] * n)
                continue
            rows_seen += 1
            at = c["op0"] + block * c["a_stride"] + r * c["a_step"]
            if c["a_space"]:
                a = [dequantise(x, int(state.tensor_exponent[at]), config.mantissa_bits)
                     for x in state.tensor_mantissa[at].tolist()]
            else:
                a = bits_of(state.acc[at])
            b = k = [0] * n
            if c["mul"] == MulSource.ROW or c["add_source"] == AddSource.ROW:
                b = bits_of(state.acc[c["op1"] + block * c["b_stride"] + r * c["b_step"]])
            mask_row = c["op4"] + block * c["k_stride"] + r
            if c["mask"] == MaskKind.MEMORY or c["add_source"] == AddSource.MASKED:
                k = state.mask[mask_row].tolist()

            p = [multiply(a[j], {MulSource.SCALAR: scalar0, MulSource.ROW: b[j],
                                 MulSource.SELF: a[j]}.get(c["mul"])) for j in range(n)]
            result, keeps = [], []
            for j in range(n):
                other = j ^ 1 << c["butterfly"] if 1 << c["butterfly"] < n else j
                q = combine(c["add_op"], p[j], {
                    AddSource.SCALAR: scalar1, AddSource.ROW: b[j], AddSource.BUTTERFLY: p[other],
                    AddSource.MASKED: scalar1 if k[j] else 0}.get(c["add_source"]))
                f = apply_function(c["function"], q)
                keep = {MaskKind.MEMORY: k[j], MaskKind.POSITIVE: is_nan(f) or to_double(f) > 0,
                        }.get(c["mask"], True)
                if block * n + j >= c["cols"]:
                    keep, v = False, 0xff800000 if c["pad"] else 0
                elif keep:
                    v = f
                    nonfinite |= f >> 23 & 255 == 255
                else:
                    v = {Alternative.NEG_INFINITY: 0xff800000,
                         Alternative.SCALAR: scalar1}.get(c["alternative"], 0)
                keeps.append(keep)
                result.append(v)
            results.append(result)
            if c["write_acc"]:
                at = c["op2"] + block * c["d_stride"] + r
                state.acc.view(np.uint32)[at] = result
            if c["write_mask"]:
                state.mask[mask_row] = keeps

        for first in range(0, len(results) if c["write_tensor"] else 0, n):
            tile = results[first:first + n]
            random = None
            if c["stochastic"]:
                index = [(element + i) % 2**40 for i in range(n)]
                random = random_bit_rows(state.seed, state.step, c["layer"], np.array(index), n,
                                         17 - config.mantissa_bits)
            mantissa, exponent, saturated = quantise_tile(tile, config.mantissa_bits, random)
            element += n
            saturate |= saturated
            at = c["op3"] + block * c["t_stride"] + first
            state.tensor_mantissa[at:at + n] = mantissa
            state.tensor_exponent[at:at + n] = exponent
    writes = c["write_acc"] or c["write_tensor"]
    return Events(rows_seen, bool(nonfinite and writes), saturate)


def assert_same(state, expected):
    assert np.array_equal(state.acc.view(np.uint32), expected.acc.view(np.uint32))
    assert np.array_equal(state.tensor_mantissa, expected.tensor_mantissa)
    assert np.array_equal(state.tensor_exponent, expected.tensor_exponent)
    assert np.array_equal(state.mask, expected.mask)


@pytest.mark.parametrize("config", [NANO, NANO.replace(mantissa_bits=5),
                                    TILE.replace(tensor_rows=512, acc_rows=256, mask_rows=256)])
@pytest.mark.parametrize("special", [0.0, 0.15])
def test_matches_reference(config, special):
    seed = 20 + int(special * 100)
    print(f"{seed=}")
    rng = np.random.default_rng(seed)
    for _ in range(60):
        state = random_state(config, rng, special=special)
        for _ in range(2):
            command = random_instruction(state, rng)
            expected = state.copy()
            events = reference(command, expected)
            assert vector(command, state) == events, command
            assert_same(state, expected)


def test_moves_keep_every_bit():
    rng = np.random.default_rng(3)
    state = random_state(NANO, rng, special=0.9)
    source = state.acc[:100].copy()
    command = instruction(op0=0, op2=200, rows=100, blocks=1, cols=4, a_step=1, write_acc=1)
    vector(command, state)
    assert np.array_equal(state.acc[200:300].view(np.uint32), source.view(np.uint32))


def test_masked_infinity_is_not_reported():
    state = random_state(NANO, np.random.default_rng(4), special=0)
    state.acc[7] = np.inf, np.nan, 1, 2
    state.mask[0] = False, False, True, True
    command = instruction(op0=7, op2=8, rows=1, blocks=1, cols=4, write_acc=1,
                          mask=MaskKind.MEMORY, alternative=Alternative.NEG_INFINITY)
    assert vector(command, state) == Events(1, False, False)
    assert state.acc[8].tolist() == [-np.inf, -np.inf, 1, 2]
    state.mask[0, 1] = True
    assert vector(command, state) == Events(1, True, False)


def some(**fields):
    return fields


@pytest.mark.parametrize(("fields", "legal"), [
    (some(op0=10, op2=10, a_stride=5, d_stride=5), True),       # in place
    (some(op0=10, op2=9, a_stride=5, d_stride=5), True),        # behind the reads
    (some(op0=10, op2=11, a_stride=5, d_stride=5), False),      # ahead of the reads
    (some(op0=10, op2=10, a_stride=0, d_stride=0), False),      # block 1 reads what block 0 wrote
    (some(op0=10, op2=100, a_stride=0, d_stride=0), True),
    (some(op0=10, op2=10, a_stride=5, d_stride=6), False),
    (some(op0=10, op2=10, a_stride=6, d_stride=5), True),
    (some(op0=10, op2=14, a_stride=5, d_stride=100), False),
    (some(op0=10, op2=6, a_stride=5, d_stride=5, a_step=0), True),
    (some(op0=10, op2=10, a_stride=5, d_stride=100, a_step=0), False),
    (some(op0=10, op1=200, op2=200, a_stride=5, b_stride=5, d_stride=5,
          mul=MulSource.ROW, b_step=1), True),
    (some(op0=10, op1=199, op2=200, a_stride=5, b_stride=5, d_stride=5,
          mul=MulSource.ROW, b_step=1), False),
])
def test_order_of_reads_and_writes(fields, legal):
    state = random_state(NANO, np.random.default_rng(5))
    command = instruction(rows=5, blocks=2, cols=8, **{"a_step": 1, "write_acc": 1} | fields)
    if legal:
        expected = state.copy()
        reference(command, expected)
        vector(command, state)
        assert_same(state, expected)
    else:
        with pytest.raises(ValueError, match="same instruction"):
            vector(command, state)


def test_rows_beyond_a_memory_are_refused():
    state = random_state(NANO, np.random.default_rng(6))
    for operand, fields in (("op0", {}), ("op1", {"mul": MulSource.ROW}), ("op2", {}),
                            ("op3", {"write_tensor": 1}), ("op4", {"write_mask": 1})):
        command = instruction(rows=2, blocks=1, cols=4, a_step=1, b_step=1, write_acc=1,
                              **{"op2": 100, operand: 60000}, **fields)
        with pytest.raises(ValueError, match="beyond"):
            vector(command, state)


def test_is_fast():
    """An emulated training run replays more than 100,000 instructions."""
    state = random_state(TILE, np.random.default_rng(7), special=0)
    command = instruction(op0=0, op1=1000, op2=2000, rows=256, blocks=1, cols=8, a_step=1,
                          b_step=1, mul=MulSource.SCALAR, scalar0=0x3f000000, write_acc=1,
                          add_source=AddSource.ROW, add_op=AddOp.ADD)
    fastest = np.inf
    for _ in range(50):
        start = time.perf_counter()
        vector(command, state)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 1e-3
