"""The model of the matrix unit against exact fractions, one element at a time."""

import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from gradmill_hw.config import Config
from gradmill_hw.matrix.matrix_model import matmul
from tb.matrix_cases import EXPONENTS, INFINITY, NAN, random_command, random_memories


def to_bits(value, zero_sign=0):
    """Binary32 of a fraction: nearest even, subnormals flushed."""
    if value == 0:
        return zero_sign << 31
    sign, value = int(value < 0) << 31, abs(value)
    exponent = 0
    while value >= 2:
        value, exponent = value / 2, exponent + 1
    while value < 1:
        value, exponent = value * 2, exponent - 1
    significand = round(value * 2**23)  # Fraction rounds to nearest even
    if significand == 1 << 24:
        significand, exponent = 1 << 23, exponent + 1
    if exponent < -126:
        return sign
    return sign | (INFINITY if exponent > 127 else exponent + 127 << 23 | significand - (1 << 23))


def from_bits(bits):
    """Fraction of a finite binary32, subnormals flushed."""
    field = bits >> 23 & 0xFF
    if field == 0:
        return Fraction(0)
    value = Fraction(bits & 0x7FFFFF | 1 << 23) * Fraction(2) ** (field - 150)
    return -value if bits >> 31 else value


def add(x, y):
    x, y = (bits & 0x80000000 if bits & INFINITY == 0 else bits for bits in (x, y))
    if any(bits & 0x7FFFFFFF > INFINITY for bits in (x, y)):
        return NAN
    infinite = [bits for bits in (x, y) if bits & 0x7FFFFFFF == INFINITY]
    if infinite:
        return infinite[0] if len(set(infinite)) == 1 else NAN
    return to_bits(from_bits(x) + from_bits(y), zero_sign=x >> 31 & y >> 31)


def narrowed(bits):
    if bits == NAN:
        return bits
    high, low = bits >> 16, bits & 0xFFFF
    return (high + (low > 0x8000 or (low == 0x8000 and high & 1))) << 16


def reference(f, mantissa, exponent, acc, config):
    """Architecture manual, MATMUL, word for word."""
    n, unit = config.n, config.mantissa_bits - 2

    def read(address, lane, transpose):
        tile, row = address // n * n, address % n
        return mantissa[tile + lane][row] if transpose else mantissa[address][lane]

    def exponent_of(address, transpose):
        return exponent[address // n * n if transpose else address]

    counters = {"macs": 0, "rows": 0, "nonfinite": 0}
    for cb in range(-(-f["c"] // n)):
        for kb in range(-(-f["k"] // n)):
            w_row = f["op1"] + kb * f["w_stride_k"] + cb * f["w_stride_c"]
            for r in range(f["m"]):
                a_row = f["op0"] + r // n * f["a_stride_m"] + r % n + kb * f["a_stride_k"]
                ea = exponent_of(a_row, f["a_transpose"])
                ew = exponent_of(w_row, f["w_transpose"])
                d_row = f["op2"] + cb * f["d_stride_c"] + r
                for j in range(n):
                    dot = sum(
                        read(a_row, i, f["a_transpose"]) * read(w_row + i, j, f["w_transpose"])
                        for i in range(n)
                    )
                    scale = Fraction(2) ** (ea + ew - 254 - 2 * unit)
                    product = NAN if 255 in (ea, ew) else to_bits(dot * scale)
                    if kb or f["accumulate"]:
                        product = add(acc[d_row][j], product)
                    acc[d_row][j] = narrowed(product) if f["narrow"] else product
                counters["rows"] += 1
                counters["macs"] += min(n, f["k"] - kb * n) * min(n, f["c"] - cb * n)
                counters["nonfinite"] += any(x & INFINITY == INFINITY for x in acc[d_row])
    return counters


@pytest.mark.parametrize("exponents", EXPONENTS)
@pytest.mark.parametrize(("n", "mantissa_bits"), [(4, 4), (4, 9), (8, 9)])
def test_against_fractions(n, mantissa_bits, exponents):
    rng = random.Random(f"{n} {mantissa_bits} {exponents}")
    config = Config(
        n=n,
        mantissa_bits=mantissa_bits,
        bus_bits=8 * n,
        burst_beats=16,
        tensor_rows=512,
        acc_rows=128,
    )
    for special in (0, 0, 0.01, 0.1, 0.1):
        mantissa, exponent, acc = random_memories(
            rng, config, EXPONENTS[exponents], special=special
        )
        command = random_command(rng, config, largest=2 * n + 3)
        expected = acc.tolist()
        counters = reference(command, mantissa.tolist(), exponent.tolist(), expected, config)
        assert matmul(command, mantissa, exponent, acc, config) == counters, command
        assert acc.tolist() == expected, command


def test_long_contraction_rounds_in_order():
    """Many blocks of which every addition rounds; another order gives other bits."""
    rng = random.Random(1)
    config = Config(n=4, bus_bits=32, burst_beats=16, tensor_rows=1024, acc_rows=64)
    mantissa, exponent, acc = random_memories(rng, config, range(110, 140))
    command = {
        "m": 5,
        "k": 4 * 60,
        "c": 4,
        "a_stride_m": 4,
        "a_stride_k": 8,
        "w_stride_k": 4,
        "w_stride_c": 0,
        "d_stride_c": 0,
        "a_transpose": 0,
        "w_transpose": 0,
        "accumulate": 0,
        "narrow": 0,
        "op0": 0,
        "op1": 512,
        "op2": 7,
    }
    expected, backwards = acc.tolist(), acc.copy()
    reference(command, mantissa.tolist(), exponent.tolist(), expected, config)
    matmul(command, mantissa, exponent, acc, config)
    assert acc.tolist() == expected

    reverse = {**command, "op0": 8 * 59, "a_stride_k": -8, "op1": 512 + 4 * 59, "w_stride_k": -4}
    matmul(reverse, mantissa, exponent, backwards, config)
    assert backwards.tolist() != expected


@pytest.mark.parametrize("size", ["m", "k", "c"])
def test_nothing_to_do(size):
    config = Config(n=4, bus_bits=32, burst_beats=16)
    rng = random.Random(2)
    command = {**random_command(rng, config), size: 0}
    mantissa, exponent, acc = random_memories(rng, config, [127])
    before = acc.copy()
    assert matmul(command, mantissa, exponent, acc, config)["rows"] == 0
    assert (acc == before).all()


def test_unaligned_and_wrapping_addresses():
    """Operands need not start at a tile, and addresses are modulo 2**16."""
    rng = random.Random(3)
    config = Config(n=4, bus_bits=32, burst_beats=16, tensor_rows=65536, acc_rows=65536)
    mantissa = np.zeros((65536, 4), np.int16)
    edge = np.r_[65500:65536, 0:64]
    mantissa[edge] = np.array([rng.randint(-255, 255) for _ in range(400)]).reshape(100, 4)
    exponent = np.full(65536, 127, np.uint8)
    exponent[edge] = [rng.randint(120, 130) for _ in edge]
    for a_transpose, w_transpose in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        command = {
            "m": 9,
            "k": 8,
            "c": 8,
            "op0": 65533,
            "op1": 65522,
            "op2": 65530,
            "a_stride_m": 5,
            "a_stride_k": 65535,
            "w_stride_k": 6,
            "w_stride_c": 4,
            "d_stride_c": 10,
            "a_transpose": a_transpose,
            "w_transpose": w_transpose,
            "accumulate": 0,
            "narrow": 0,
        }
        acc = np.zeros((65536, 4), np.uint32)
        matmul(command, mantissa, exponent, acc, config)

        # The same on a copy of the memory that is rotated so that nothing wraps.
        shift, expected = 1000, np.zeros((65536, 4), np.uint32).tolist()
        rotated = {
            **command,
            "a_stride_k": -1,
            **{f"op{o}": (command[f"op{o}"] + shift) % 65536 for o in range(3)},
        }
        reference(
            rotated,
            np.roll(mantissa, shift, 0).tolist(),
            np.roll(exponent, shift).tolist(),
            expected,
            config,
        )
        assert np.roll(acc, shift, 0).tolist() == expected


def test_overlapping_columns_are_refused_where_undefined():
    config = Config(n=4, bus_bits=32, burst_beats=16)
    rng = random.Random(4)
    mantissa, exponent, acc = random_memories(rng, config, [127])
    command = {**random_command(rng, config), "m": 5, "c": 5, "d_stride_c": 4, "accumulate": 1}
    with pytest.raises(ValueError, match="d_stride_c=4"):
        matmul(command, mantissa, exponent, acc, config)


def test_imports_no_amaranth():
    script = "import sys, gradmill_hw.matrix.matrix_model; sys.exit('amaranth' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": "hw"})
