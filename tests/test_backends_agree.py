"""The RTL gives the emulator's bits in every byte of both memories, whatever the bus does."""

import numpy as np
import pytest

import gradmill as gm
from gradmill_hw.config import NANO, TILE
from gradmill_hw.isa import Class
from gradmill_hw.regs import COUNTERS, Tier
from tests.training_like import FAR_BYTES, NEAR_BYTES, SAMPLES, training_like


def _run(device, iterations):
    """Memories and counters after a run over random samples."""
    config = device.config
    rng = np.random.default_rng(9)
    data = rng.normal(size=(iterations, 3 * config.n, config.n)).astype(np.float32)
    device.write_memory(Tier.NEAR, 0, training_like(config, iterations).assemble())
    device.write_memory(Tier.NEAR, SAMPLES, data)
    device.run(0, scalars=[0.75], step=3)
    return [device.read_memory(tier, 0, device.size(tier)) for tier in Tier], device.counters()


@pytest.mark.rtl
@pytest.mark.parametrize("timing", [
    {}, {"latency": 1}, {"stall": 0.5}, {"bandwidth": 0.2}, {"latency": 200, "outstanding": 2},
    {"stall": {"r": 0.9, "b": 0.9, "ar": 0.9}},
], ids=["plain", "fast", "stalls", "narrow", "slow", "starved"])
@pytest.mark.parametrize("config", [NANO, TILE], ids=lambda config: config.name)
def test_memories_and_counters_are_equal(config, timing):
    sizes = {"near_bytes": NEAR_BYTES, "far_bytes": FAR_BYTES, "seed": 5}
    with gm.open("emulator", config, **sizes) as emulator:
        memories, counters = _run(emulator, 12)
    with gm.open("verilator", config, **sizes, **timing) as board:
        assert board.read_register("seed")["value"] == 5
        found, measured = _run(board, 12)
        traffic = board.traffic()
    for tier in Tier:
        assert (found[tier] == memories[tier]).all(), tier.name
    for counter in COUNTERS:
        if not counter.timing:
            assert measured[counter.name] == counters[counter.name], counter.name
    assert measured["cycles"] > measured["array_rows"] + measured["vector_rows"] // 2

    # Independent count of what crossed the buses. Instructions are also fetched ahead and dropped.
    for tier in Tier:
        name = tier.name.lower()
        read, written = (sum(measured[f"{name}_{direction}_{cls.name}_bytes".lower()]
                             for cls in Class) for direction in ("read", "write"))
        assert traffic[f"{name}_write_bytes"] <= written
        assert written - traffic[f"{name}_write_bytes"] < config.beat_bytes * 12 * 3
        assert traffic[f"{name}_overlaps"] == 0
        if tier is Tier.FAR:
            assert traffic[f"{name}_read_bytes"] == read
        else:
            assert read <= traffic[f"{name}_read_bytes"] < 2 * read


@pytest.mark.rtl
@pytest.mark.parametrize("stall", [0.0, 0.3])
@pytest.mark.parametrize(("config", "shape"), [(NANO, (50, 90, 45)), (TILE, (130, 70, 90))],
                         ids=["nano", "sim"])
def test_products_are_equal(config, shape, stall):
    m, k, c = shape
    a, b = (np.random.default_rng(m).normal(size=size).astype(np.float32)
            for size in ((k, m), (c, k)))
    with gm.open("emulator", config, near_bytes=1 << 20) as emulator:
        expected = gm.ops.matmul(emulator, a, b, transpose_a=True, transpose_b=True)
    with gm.open("verilator", config, near_bytes=1 << 20, stall=stall, seed=3) as board:
        found = gm.ops.matmul(board, a, b, transpose_a=True, transpose_b=True)
    assert found.tobytes() == expected.tobytes()
