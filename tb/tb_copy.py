"""Bench of the copy unit between two tiers: random copies, every other byte is a canary."""

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge
from gradmill_hw.config import get_config
from gradmill_hw.isa import Opcode
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.memory import copy_model
from gradmill_hw.memory.window import windows_layout
from gradmill_hw.regs import WINDOWS, Error, Tier
from tb.axi import Canaries, memory
from tb.stream import Source, pack, stalls, start
from tb.transfers import MEMORY_BYTES, copy_command, new_memory, random_copy


HALF = MEMORY_BYTES // 2
#: Copies read below, and write above.
WINDOW_SET = [
    [(0, HALF, 1, 0), (HALF, MEMORY_BYTES, 0, 1)] + [(0, 0, 0, 0)] * (WINDOWS - 2) for _ in Tier
]
COPIES = 24


async def begin(dut, config, pause):
    """Memories with random bytes, their images, and the source of instructions."""
    images = new_memory(random.Random(f"{cocotb.RANDOM_SEED} {pause}"))
    names = ("base", "limit", "read", "write")
    dut.windows.value = pack(
        windows_layout(config),
        [[dict(zip(names, window, strict=True)) for window in row] for row in WINDOW_SET],
    )
    rams = [
        memory(dut, f"{tier.name.lower()}__", MEMORY_BYTES, pause=pause, seed=tier) for tier in Tier
    ]
    for ram, image in zip(rams, images, strict=True):
        ram.write(0, image.tobytes())
    await start(dut)
    return rams, images, Source(dut, "cmd", command_layout(Opcode.COPY), stalls(pause))


async def end(dut):
    """Wait for an instruction to end; return how."""
    while True:
        await RisingEdge(dut.clk)
        if dut.done.value:
            return Error(int(dut.error.value))


def targets(config, command):
    """Byte ranges that a copy writes."""
    size = config.run_bytes(command["kind"].name.lower(), command["run"])
    starts = (command["target"] + k * command["target_stride"] for k in range(command["count"]))
    return [range(at, at + size) for at in starts]


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(pause=[0.0, 0.3])
async def copies(dut, pause):
    config = get_config(cocotb.plusargs["config"])
    rams, images, source = await begin(dut, config, pause)
    canaries = [Canaries(ram, MEMORY_BYTES) for ram in rams]
    rng = random.Random(f"{pause} {cocotb.RANDOM_SEED}")
    commands = [random_copy(config, rng) for _ in range(COPIES)]
    source.put(*commands)
    for command in commands:
        assert await end(dut) is Error.NONE
        copy_model.copy(config, command, images, WINDOW_SET)
    for tier in Tier:
        spans = [
            span
            for command in commands
            if command["target_tier"] == tier
            for span in targets(config, command)
        ]
        assert not canaries[tier].strangers(spans)
        got = np.frombuffer(bytes(rams[tier].read(0, MEMORY_BYTES)), np.uint8)
        assert np.array_equal(got, images[tier])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_target_that_may_only_be_read(dut):
    config = get_config(cocotb.plusargs["config"])
    rams, _, source = await begin(dut, config, 0.0)
    canaries = [Canaries(ram, MEMORY_BYTES) for ram in rams]
    source.put(copy_command(target=0))
    assert await end(dut) is Error.WINDOW
    assert not any(found.strangers(()) for found in canaries)
