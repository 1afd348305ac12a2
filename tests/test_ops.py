"""gm.ops.matmul on the emulator against the number format and float32 sums, by bits."""

import re

import numpy as np
import pytest

import gradmill as gm
from gradmill_hw.config import NANO, TILE, Config, ConfigError


def _values(matrix, config):
    """The quantised matrix as float64, exact."""
    n, bits = config.n, config.mantissa_bits
    return gm.dequantize(*gm.quantize(matrix, n, bits), bits, n).astype(np.float64)


def _reference(a, b, transpose_a, transpose_b, config):
    left, right = _values(a, config), _values(b, config)
    left, right = left.T if transpose_a else left, right.T if transpose_b else right
    n, total = config.n, None
    for start in range(0, left.shape[1], n):
        # Exact in float64: mantissas of one exponent each on both sides.
        block = (left[:, start:start + n] @ right[start:start + n]).astype(np.float32)
        total = block if total is None else total + block
    return total


def _matrix(rng, rows, cols):
    scale = 2.0 ** rng.integers(-8, 9, (rows, 1))
    return (rng.normal(size=(rows, cols)) * scale).astype(np.float32)


def _shapes(count, largest, seed):
    rng = np.random.default_rng(seed)
    return [tuple(int(2 ** e) for e in rng.uniform(0, np.log2(largest + 1), 3))
            for _ in range(count)]


#: Beyond the memories of nano, 1024 tensor rows of 4: 100 x 70 are 1800 rows.
SHAPES = [(NANO, (100, 70, 90)), (NANO, (33, 130, 35)), (NANO, (5, 300, 3)), (NANO, (150, 3, 90)),
          (TILE, (8, 8, 8)), (TILE, (1, 1, 1)), (TILE, (130, 70, 90)),
          *((NANO, shape) for shape in _shapes(6, 60, 1)),
          *((TILE, shape) for shape in _shapes(6, 150, 2))]


@pytest.mark.parametrize(("transpose_a", "transpose_b"),
                         [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("config", "shape"), SHAPES,
                         ids=[f"{c.name}-{m}x{k}x{n}" for c, (m, k, n) in SHAPES])
def test_product_equals_the_reference(config, shape, transpose_a, transpose_b):
    m, k, c = shape
    rng = np.random.default_rng((m, k, c))
    a = _matrix(rng, *((k, m) if transpose_a else (m, k)))
    b = _matrix(rng, *((c, k) if transpose_b else (k, c)))
    with gm.open("emulator", config, near_bytes=1 << 22) as device:
        found = gm.ops.matmul(device, a, b, transpose_a=transpose_a, transpose_b=transpose_b)
        assert device.heap.largest == device.heap.size, "everything is given back"
        assert device.counters()["macs"] == m * k * c
    expected = _reference(a, b, transpose_a, transpose_b, config)
    assert found.dtype == np.float32 and found.shape == (m, c)
    assert found.view(np.uint32).tolist() == expected.view(np.uint32).tolist()


#: Memories close to the smallest: blocks of a few tiles.
SMALL = [
    Config(n=4, tensor_rows=64, acc_rows=32, mask_rows=16, banks=2, bus_bits=32, burst_beats=16),
    Config(n=4, tensor_rows=512, acc_rows=128, mask_rows=32, banks=8, bus_bits=64, burst_beats=16),
    Config(n=8, tensor_rows=128, acc_rows=64, mask_rows=64, banks=8, bus_bits=128),
    Config(n=16, tensor_rows=256, acc_rows=128, mask_rows=64, bus_bits=512, mantissa_bits=4),
]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("config", SMALL, ids=lambda config: f"{config.n}-{config.bus_bits}")
def test_small_memories(config, transpose):
    a, b = (_matrix(np.random.default_rng(seed), 45, 45) for seed in (7, 8))
    with gm.open("emulator", config, near_bytes=1 << 20) as device:
        found = gm.ops.matmul(device, a, b, transpose_a=transpose, transpose_b=transpose)
    assert found.tobytes() == _reference(a, b, transpose, transpose, config).tobytes()


@pytest.mark.parametrize("sizes", [
    {"n": 4, "bus_bits": 128, "tensor_rows": 64}, {"n": 4, "bus_bits": 128, "acc_rows": 32},
    {"n": 16, "bus_bits": 512, "tensor_rows": 128, "acc_rows": 64, "mantissa_bits": 4},
], ids=str)
def test_memories_that_are_too_small_for_a_block_are_refused(sizes):
    a = _matrix(np.random.default_rng(7), 61, 61)
    config = TILE.replace(**sizes)
    with gm.open("emulator", config) as device:
        with pytest.raises(ConfigError, match="too few for blocks of") as refusal:
            gm.ops.matmul(device, a, a)
        assert device.heap.largest == device.heap.size
    enough = dict(re.findall(r"(\w+_rows)=(\d+)", str(refusal.value).split("choose")[1]))
    config = config.replace(**{name: int(rows) for name, rows in enough.items()})
    with gm.open("emulator", config) as device:
        found = gm.ops.matmul(device, a, a)
    assert found.tobytes() == _reference(a, a, False, False, config).tobytes()


def test_products_on_one_device_do_not_disturb_each_other_or_a_trainer():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(16, 6)).astype(np.float32), rng.integers(0, 3, 16)
    a = _matrix(rng, 20, 30)

    def train(device, between):
        model = gm.Sequential(gm.Linear(6, 3))
        trainer = gm.Trainer(model, device, optimizer=gm.SGD(lr=0.1), virtual_minibatch=8,
                             sub_minibatch=4)
        for _ in range(2):
            trainer.fit(x, y, epochs=1)
            between(device)
        return model.state_dict()

    def multiply(device):
        for _ in range(2):
            found = gm.ops.matmul(device, a, a, transpose_b=True)
            expected = _reference(a, a, False, True, TILE)
            assert found.tobytes() == expected.tobytes()

    with gm.open("emulator", TILE) as device:
        disturbed = train(device, multiply)
    with gm.open("emulator", TILE) as device:
        alone = train(device, lambda device: None)
    assert all(disturbed[name].tobytes() == alone[name].tobytes() for name in alone)


def test_views_need_not_be_contiguous():
    a = _matrix(np.random.default_rng(4), 40, 24)
    with gm.open("emulator", TILE) as device:
        found = gm.ops.matmul(device, a[::2, ::-3], a[:8].T[::3][:, ::-1])
    expected = _reference(a[::2, ::-3].copy(), a[:8].T[::3][:, ::-1].copy(), False, False, TILE)
    assert found.tobytes() == expected.tobytes()


F32 = np.float32


@pytest.mark.parametrize(("a", "b", "words"), [
    (np.ones((3, 4), F32), np.ones((3, 4), F32), r"\(3, 4\).*inner sizes 4 and 3"),
    (np.ones((3, 4)), np.ones((4, 2), F32), "a is float64"),
    (np.ones((3, 4), F32), np.ones((4, 2), int), "b is int64"),
    (np.ones(3, F32), np.ones((3, 2), F32), r"a is float32 \(3,\).*two-dimensional"),
    (np.ones((0, 3), F32), np.ones((3, 2), F32), "non-empty"),
    (np.ones((2, 3), F32), np.full((3, 2), np.nan, F32), "b has NaN or infinity"),
    (np.full((2, 3), np.inf, F32), np.ones((3, 2), F32), "a has NaN or infinity"),
])
def test_bad_operands_are_refused(a, b, words):
    with gm.open("emulator", TILE) as device, pytest.raises(ValueError, match=words):
        gm.ops.matmul(device, a, b)


def test_product_beyond_near_memory_is_refused_and_leaks_nothing():
    with gm.open("emulator", TILE, near_bytes=1 << 14) as device:
        with pytest.raises(ConfigError, match="larger near_bytes"):
            gm.ops.matmul(device, np.ones((60, 60), F32), np.ones((60, 60), F32))
        assert device.heap.largest == device.heap.size
