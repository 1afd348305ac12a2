"""Counter-based random bits: statistics of the model, and the RTL against the model."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradmill_hw.config import TILE
from gradmill_hw.numeric.bfp_model import random_bits
from gradmill_hw.numeric.counter_rng import CounterRng
from gradmill_hw.numeric.counter_rng_model import random_rows


SEED = 20240613
ROWS = 1 << 16
#: With two rounds fewer, neighbouring keys show at 64 and 128, the distance of one index bit.
LAGS = (1, 64, 128)


def plain(seed, step, layer, index, n, bits):
    """One row by Python integers, from the text of docs/numerics.md."""
    rotations = [(30, 3, 1, 11, 0), (37, 34, 1, 26, 26), (60, 5, 28, 43, 61),
                 (52, 29, 28, 3, 60), (18, 40, 31, 26, 50), (26, 43, 61, 2, 43),
                 (36, 47, 31, 58, 62), (36, 38, 58, 20, 35)]
    key = seed + (step << 32)
    row = 0
    for block in range(-(-n * bits // 64)):
        word = index + (layer << 40) + (block << 48)
        for number, (a, b, c, d, k) in enumerate(rotations, 1):
            doubled = word << 64 | word
            rotated = [doubled >> 64 - by & 2**64 - 1 for by in (a, b, c, d)]
            word ^= rotated[0] ^ rotated[1] ^ (rotated[2] & rotated[3])
            word ^= (key << 64 | key) >> 64 - k & 2**64 - 1
            word ^= number * 0x9e3779b97f4a7c15 & 2**64 - 1
        row |= word << 64 * block
    return [row >> lane * bits & (1 << bits) - 1 for lane in range(n)]


@pytest.mark.parametrize(("n", "bits"), [(4, 8), (8, 8), (8, 9), (8, 11), (8, 13), (16, 8),
                                         (32, 13)])
def test_plain_integers(n, bits):
    rng = np.random.default_rng(SEED)
    for _ in range(8):
        seed, step = (int(v) for v in rng.integers(0, 1 << 32, 2))
        layer = int(rng.integers(0, 1 << 8))
        index = rng.integers(0, 1 << 40, 5)
        rows = random_rows(seed, step, layer, index, n, bits)
        assert rows.dtype == np.uint16
        assert rows.tolist() == [plain(seed, step, layer, int(i), n, bits) for i in index]


def test_known_values():
    # Once published, these never change: training runs repeat from their seed.
    assert random_rows(0, 0, 0, [0, 1], 8, 8).tolist() == [
        [180, 32, 83, 229, 220, 26, 201, 6], [33, 115, 15, 162, 133, 90, 198, 168]]
    assert random_rows(1, 2, 3, [4, 2**40 - 1], 4, 13).tolist() == [
        [6371, 3631, 1068, 3952], [2982, 764, 2848, 975]]


STREAMS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0x12345678, 999, 7),
           (0xffffffff, 0xffffffff, 0xff)]


def words(seed, step, layer, rows=ROWS, first=0):
    """64 random bits for each row, as eight bytes."""
    index = np.arange(first, first + rows)
    return random_rows(seed, step, layer, index, 8, 8).astype(np.uint8)


def signs(values):
    """The 64 bits of each row as -1 and +1."""
    return np.unpackbits(values, axis=1, bitorder="little").astype(np.float32) * 2 - 1


def deviations(values):
    """Largest deviations of bit balance and of bit correlations, in standard deviations."""
    bits = signs(values)
    scale = np.sqrt(len(bits))
    balance = np.abs(bits.sum(axis=0)).max() / scale
    pairs = bits.T @ bits
    np.fill_diagonal(pairs, 0)
    lags = [np.abs(bits[:-lag].T @ bits[lag:]).max() for lag in LAGS]
    return balance, np.abs(pairs).max() / scale, max(lags) / scale


@pytest.mark.parametrize("stream", STREAMS)
def test_balance_and_correlation(stream):
    # Of 64 bits, 2016 pairs and 12288 lagged pairs.
    balance, pairs, lags = deviations(words(*stream))
    assert balance < 4.5 and pairs < 5 and lags < 5.5


@pytest.mark.parametrize("change", [(1, 0, 0, 0), (2, 0, 0, 0), (1 << 31, 0, 0, 0),
                                    (0, 1, 0, 0), (0, 1 << 16, 0, 0), (0, 0, 1, 0),
                                    (0, 0, 0, 1), (0, 0, 0, 8)])
def test_neighbouring_streams(change):
    # What two streams with nearly the same key, or shifted ones, have in common.
    seed, step, layer, first = (a ^ b for a, b in zip((5, 5, 5, 0), change, strict=True))
    balance, pairs, lags = deviations(words(5, 5, 5) ^ words(seed, step, layer, first=first))
    assert balance < 4.5 and pairs < 5 and lags < 5.5


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("lane", range(4))
def test_chi_square(stream, lane):
    # 65536 values of 16 bits in 4096 cells: 4095 degrees of freedom.
    values = words(*stream).view("<u2")[:, lane]
    for cells in (values >> 4, values & 0xfff):
        counts = np.bincount(cells, minlength=4096)
        chi = ((counts - 16)**2 / 16).sum()
        assert abs(chi - 4095) < 5 * np.sqrt(2 * 4095)


def test_steps_make_a_stream_too():
    values = np.concatenate([words(3, step, 1, rows=16) for step in range(2048)])
    balance, pairs, lags = deviations(values)
    assert balance < 4.5 and pairs < 5 and lags < 5.5


@pytest.mark.parametrize("part", ["index", "layer", "seed", "step"])
def test_avalanche(part):
    # Any bit of counter or key flips every output bit half of the time.
    rng = np.random.default_rng(SEED)
    index = rng.integers(0, 1 << 20, 4096)
    base = random_rows(17, 23, 5, index, 4, 16)
    for bit in range({"index": 40, "layer": 8, "seed": 32, "step": 32}[part]):
        arguments = {"seed": 17, "step": 23, "layer": 5, "index": index}
        arguments[part] = arguments[part] ^ (1 << bit)
        flipped = base ^ random_rows(**arguments, n=4, bits=16)
        rate = (flipped[..., None] >> np.arange(16) & 1).mean(axis=0)
        assert np.abs(rate - 0.5).max() < 5.5 * 0.5 / np.sqrt(4096)
        assert abs(rate.mean() - 0.5) < 0.01


def test_index_decides_not_arrival():
    index = np.random.default_rng(SEED).permutation(1000)
    shuffled = random_rows(1, 2, 3, index, 8, 8)
    assert np.array_equal(shuffled, random_rows(1, 2, 3, np.arange(1000), 8, 8)[index])


@pytest.mark.parametrize(("n", "mantissa_bits"), [(4, 9), (8, 9), (8, 8), (8, 4), (16, 6)])
def test_rtl_matches_model(n, mantissa_bits):
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED + n)
    dut = CounterRng(TILE.replace(n=n, bus_bits=8 * n, mantissa_bits=mantissa_bits))
    cycles = 60
    # The key changes from row to row.
    keys = [{"seed": int(rng.integers(0, 1 << 32)), "step": int(rng.integers(0, 1 << 32)),
             "layer": int(rng.integers(0, 1 << 8)), "index": int(rng.integers(0, 1 << 40))}
            for _ in range(cycles)]

    async def bench(ctx):
        for cycle in range(cycles + dut.latency):
            if cycle < cycles:
                for name, value in keys[cycle].items():
                    ctx.set(getattr(dut, name), value)
            if cycle >= dut.latency:
                key = keys[cycle - dut.latency]
                expected = random_rows(**{**key, "index": [key["index"]]}, n=n,
                                       bits=random_bits(mantissa_bits))
                assert [ctx.get(lane) for lane in dut.random] == expected[0].tolist()
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
