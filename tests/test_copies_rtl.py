"""Programs that load, store and copy at the same time: RTL and emulator leave the same bytes."""

import numpy as np
import pytest

import gradmill as gm
from gradmill_hw.config import NANO
from gradmill_hw.isa import Class, Kind, Queue
from gradmill_hw.regs import COUNTERS, Tier

pytestmark = pytest.mark.rtl

CONFIG = NANO.replace(copy=True)
SIZES = {"near_bytes": 1 << 17, "far_bytes": 1 << 16, "seed": 3}
WINDOWS = [(0, 1 << 16, 1, 1)]
PROGRAM = 1 << 16


def _program(rng):
    """A block goes far, comes back elsewhere, goes through the tile, and far again; several
    blocks at a time, in disjoint places."""
    program = gm.Program(CONFIG)
    for block in range(12):
        rows, runs = int(rng.integers(1, 40)), int(rng.integers(1, 4))
        size = CONFIG.run_bytes("fp32", rows)
        near, far, row = 0x1000 * block, 0x1000 * block, 40 * (block % 12)
        shape = {"kind": Kind.FP32, "run": rows}
        spread = size + CONFIG.beat_bytes * int(rng.integers(0, 9))
        program.copy(**shape, count=runs, mem=near, mem_stride=size, target_tier=Tier.FAR,
                     target=far, target_stride=spread, cls=Class.STASH)
        program.copy(**shape, count=runs, tier=Tier.FAR, mem=far, mem_stride=spread,
                     target_tier=Tier.NEAR, target=near + 0x800, target_stride=size,
                     cls=Class.WEIGHT, post=[Queue.LOAD])
        program.load(**shape, mem=near + 0x800, op0=row, cls=Class.DATA, wait=[Queue.COPY],
                     post=[Queue.STORE])
        program.store(**shape, mem=near + 0x400, op0=row, cls=Class.RESULT, wait=[Queue.LOAD],
                      post=[Queue.COPY])
        program.copy(**shape, mem=near + 0x400, target_tier=Tier.FAR, target=far + 0x800,
                     cls=Class.GRADIENT, wait=[Queue.STORE])
    program.halt()
    return program.assemble()


def _run(device, words):
    rng = np.random.default_rng(1)
    for tier in Tier:
        device.write_memory(tier, 0, rng.integers(0, 256, device.size(tier), np.uint8))
    device.write_memory(Tier.NEAR, PROGRAM, words)
    device.clear_counters()
    device.run(PROGRAM, timeout_cycles=200_000)
    counters = device.counters()
    exact = {counter.name: counters[counter.name] for counter in COUNTERS if not counter.timing}
    return [device.read_memory(tier, 0, device.size(tier)) for tier in Tier], exact


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_copies_beside_loads_and_stores(stall):
    words = _program(np.random.default_rng(int(10 * stall)))
    with gm.open("emulator", CONFIG, **SIZES) as device:
        expected, exact = _run(device, words)
    with gm.open("verilator", CONFIG, **SIZES, stall=stall) as device:
        found, ours = _run(device, words)
    for tier in Tier:
        assert (found[tier] == expected[tier]).all(), tier.name
    assert ours == exact
    assert ours["instructions_copy"] == 36


def test_blocks_of_256_bytes_use_both_buses_in_both_directions():
    """A copy from near to far, a load from far and a store to near at the same time."""
    runs, rows = 120, 256 // CONFIG.run_bytes("fp32", 1)
    shape = {"kind": Kind.FP32, "run": rows}
    program = gm.Program(CONFIG)
    program.copy(**shape, count=runs, mem=0, mem_stride=256, target_tier=Tier.FAR, target=0x8000,
                 target_stride=256, cls=Class.STASH)
    program.load(**shape, count0=runs, count1=1, count2=1, tier=Tier.FAR, mem=0, mem_stride0=256,
                 op0=0, row_stride0=0, cls=Class.DATA)
    program.store(**shape, count0=runs, count1=1, count2=1, mem=0x8000, mem_stride0=256, op0=64,
                  row_stride0=0, cls=Class.RESULT)
    program.halt()
    with gm.open("verilator", CONFIG, **SIZES) as device:
        _run(device, program.assemble())
        counters = device.counters()
    moved = runs * 256
    assert [counters[f"near_read_{Class.STASH.name.lower()}_bytes"],
            counters["far_write_stash_bytes"], counters["far_read_data_bytes"],
            counters["near_write_result_bytes"]] == [moved] * 4
    share = moved / CONFIG.beat_bytes / counters["cycles"]
    print(f"{share:.1%} of the beats in {counters['cycles']} cycles, begin and end included")
    assert share >= 0.9
