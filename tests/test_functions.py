"""Function unit: the model against the exact functions, the RTL against the model."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from gradmill_hw.isa import FunctionOp
from gradmill_hw.numeric import functions_model, functions_tables
from gradmill_hw.numeric.functions import Functions
from tb.function_vectors import corners, random_operands
from tb.pipeline import run_pipeline

SEED = 3086
INFINITY, NAN, ONE, SIGN = 0x7F800000, 0x7FC00000, 0x3F800000, 0x80000000

FLOAT64 = {"exp": np.exp, "recip": np.reciprocal, "rsqrt": lambda x: 1 / np.sqrt(x), "log": np.log}
DECIMAL = {"exp": Decimal.exp, "recip": lambda x: 1 / x, "rsqrt": lambda x: 1 / x.sqrt(),
           "log": Decimal.ln}
#: Largest error over the sweeps below, in ulp, with a little room.
LIMIT = {"exp": 1.40, "recip": 1.24, "rsqrt": 1.23, "log": 1.74}


def floats(low, high, step=1):
    """Bits of every ``step``-th float from ``low`` to ``high``."""
    low, high = (int(np.float32(x).view(np.uint32)) for x in (low, high))
    return np.arange(low, high, step, dtype=np.uint32)


def sweep(name):
    """About a million operands with a finite, normal result."""
    if name == "exp":
        bits = np.concatenate([floats(1e-9, 1e-2, 997), floats(1e-2, 87.3, 211)])
        return np.concatenate([bits, bits | SIGN, floats(87.3, 88.72)])
    if name == "recip":
        bits = np.concatenate([floats(1, 2, 7), floats(2.0**-126, 2.0**126, 9973)])
        return np.concatenate([bits, bits[::5] | SIGN])
    if name == "rsqrt":
        return np.concatenate([floats(1, 4, 13), floats(2.0**-126, 3.4e38, 9973)])
    return np.concatenate([floats(0.99, 1, 1)[::-1], floats(1.0000001, 1.01), floats(0.5, 2, 13),
                           floats(2.0**-126, 3.4e38, 9973)])


@pytest.mark.parametrize("name", FLOAT64)
def test_error_below_2_ulp(name):
    bits = sweep(name)
    results = getattr(functions_model, name)(bits).view(np.float32).astype(np.float64)
    exact = FLOAT64[name](bits.view(np.float32).astype(np.float64))
    ulp = np.ldexp(1.0, np.frexp(exact)[1] - 24)
    error = np.abs(results - exact) / ulp
    worst = np.argmax(error)
    print(f"{name}: {error[worst]:.4f} ulp of {bits.size} at {bits[worst]:#010x}")
    assert error[worst] <= LIMIT[name]


@pytest.mark.parametrize("name", DECIMAL)
def test_error_by_decimal(name):
    """The same with 50 digits, so that the sweep does not rest on a math library."""
    print(f"seed {SEED}")
    bits = np.random.default_rng(SEED).choice(sweep(name), 2000)
    results = getattr(functions_model, name)(bits).view(np.float32)
    with localcontext(prec=50):
        for x, y in zip(bits.view(np.float32).tolist(), results.tolist(), strict=True):
            exact = DECIMAL[name](Decimal(x))
            ulp = Decimal(2) ** int(np.frexp(float(exact))[1] - 24)
            assert abs(Decimal(y) - exact) <= Decimal(str(LIMIT[name])) * ulp


@pytest.mark.parametrize(("name", "cases"), [
    ("exp", {0: ONE, SIGN: ONE, 1: ONE, INFINITY: INFINITY, SIGN | INFINITY: 0, 0x7F800001: NAN,
             0x42B17217: 0x7F7FFF84, 0x42B17218: INFINITY, 0xC2AEAC4F: 0x00800026,
             0xC2AEAC51: 0, 0x43000000: INFINITY, 0xC3000000: 0, 0x00800000: ONE}),
    ("recip", {0: INFINITY, SIGN: SIGN | INFINITY, 1: INFINITY, INFINITY: 0,
               SIGN | INFINITY: SIGN, NAN | 5: NAN, ONE: ONE, SIGN | ONE: SIGN | ONE,
               0x7E800000: 0x00800000, 0x7E800001: 0, 0xFF7FFFFF: SIGN, 0x00800000: 0x7E800000}),
    ("rsqrt", {0: INFINITY, SIGN: SIGN | INFINITY, SIGN | 1: SIGN | INFINITY, INFINITY: 0,
               SIGN | INFINITY: NAN, SIGN | ONE: NAN, 0xFFC00000: NAN, ONE: ONE,
               0x40800000: 0x3F000000, 0x00800000: 0x5F000000}),
    ("log", {0: SIGN | INFINITY, SIGN: SIGN | INFINITY, 1: SIGN | INFINITY, INFINITY: INFINITY,
             SIGN | INFINITY: NAN, SIGN | ONE: NAN, 0x7F800001: NAN, ONE: 0,
             ONE + 1: 0x34000000, ONE - 1: 0xB3800000, 0x40000000: 0x3F317218}),
])
def test_special_cases(name, cases):
    results = getattr(functions_model, name)(np.array(list(cases), dtype=np.uint32))
    assert ([f"{x:08x}: {y:08x}" for x, y in zip(cases, results.tolist(), strict=True)]
            == [f"{x:08x}: {y:08x}" for x, y in cases.items()])


def test_powers_are_exact():
    e = np.arange(-125, 126)
    powers = np.ldexp(np.float32(1), e).view(np.uint32)
    np.testing.assert_array_equal(functions_model.recip(powers), powers[::-1])
    np.testing.assert_array_equal(functions_model.rsqrt(powers[1::2]),
                                  np.ldexp(np.float32(1), -e[1::2] // 2).view(np.uint32))


def test_tables_fit():
    """Fields of the memory word, and the octave of every argument of exp."""
    for address, (c0, c1, c2) in enumerate(functions_tables.polynomials()):
        assert 0 <= c0 < 1 << 26
        assert -1 << 17 <= c1 < 1 << 17
        assert 0 <= c2 < 1 << 9 or (c0 < 1 << 23 and c2 < 1 << 12), address
    integer, fraction = (np.array(t) for t in functions_tables.octave_multiples())
    x = np.arange(1 << 12)
    k = integer[x >> 5] + fraction[x & 31] >> 6
    for end in (x, x + 1):
        assert np.abs(end / 32 - k * np.log(2)).max() < 0.375


def expected(op, operands):
    functions = {FunctionOp[name.upper()]: getattr(functions_model, name) for name in FLOAT64}
    return np.select([op == key for key in functions], [f(operands) for f in functions.values()])


def test_stream():
    """A new operand and another function in every cycle."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    special = np.repeat(corners(), 4)
    operands = np.concatenate([special, random_operands(rng, 2500)]).astype(np.uint32)
    op = rng.integers(1, 5, operands.size)
    op[:special.size] = np.resize([1, 2, 3, 4], special.size)
    order = rng.permutation(operands.size)
    operands, op = operands[order], op[order]
    results = run_pipeline(Functions(), i=operands, op=op)
    np.testing.assert_array_equal(results, expected(op, operands))


def test_every_table_entry():
    """One operand at a random place of each interval."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    index = np.arange(128)
    low = rng.integers(0, 1 << 16, 128)
    mantissa = index << 16 | low
    distance = (1 << np.arange(24)) - 1 & rng.integers(0, 1 << 23, 24) | (1 << np.arange(24)) >> 1
    reduced = ((index - 64) / 128 + rng.uniform(0, 1 / 128, 128)).astype(np.float32)
    parts = [
        (FunctionOp.RECIP, 127 << 23 | mantissa),
        (FunctionOp.RSQRT, 127 << 23 | mantissa),
        (FunctionOp.RSQRT, 128 << 23 | mantissa),
        (FunctionOp.EXP, reduced.view(np.uint32)),
        (FunctionOp.LOG, 130 << 23 | mantissa),
        (FunctionOp.LOG, 121 << 23 | mantissa ^ 1 << 15),
        (FunctionOp.LOG, 127 << 23 | mantissa >> 3),
        (FunctionOp.LOG, 126 << 23 | 3 << 21 | mantissa >> 2),
        (FunctionOp.LOG, 127 << 23 | distance),
        (FunctionOp.LOG, 126 << 23 | distance ^ 0x7FFFFF),
    ]
    op = np.concatenate([np.full(part.size, key) for key, part in parts])
    operands = np.concatenate([part for _, part in parts]).astype(np.uint32)
    results = run_pipeline(Functions(), i=operands, op=op)
    np.testing.assert_array_equal(results, expected(op, operands))
