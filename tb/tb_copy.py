"""Bench of the copy unit between two tiers: random copies, every other byte is a canary."""

import random

import cocotb
from cocotb.triggers import RisingEdge
from gradmill_hw.config import get_config
from gradmill_hw.isa import Opcode
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.memory import copy_model
from gradmill_hw.regs import Error
from tb.axi import Canaries, check_written, set_windows, tiers
from tb.stream import Source, stalls, start
from tb.transfers import HALVES, MEMORY_BYTES, copy_command, new_memory, random_copy


COPIES = 24


async def begin(dut, config, pause):
    """Canaries over both memories, images of these, and the source of instructions."""
    images = new_memory(random.Random(f"{cocotb.RANDOM_SEED} {pause}"))
    set_windows(dut, config, HALVES)
    canaries = [Canaries(ram, MEMORY_BYTES) for ram in tiers(dut, images, pause=pause)]
    await start(dut)
    return canaries, images, Source(dut, "cmd", command_layout(Opcode.COPY), stalls(pause))


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
    canaries, images, source = await begin(dut, config, pause)
    rng = random.Random(f"{pause} {cocotb.RANDOM_SEED}")
    commands = [random_copy(config, rng) for _ in range(COPIES)]
    source.put(*commands)
    for command in commands:
        assert await end(dut) is Error.NONE
        copy_model.copy(config, command, images, HALVES)
    written = [(command["target_tier"], targets(config, command)) for command in commands]
    check_written(canaries, images, written)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_target_that_may_only_be_read(dut):
    config = get_config(cocotb.plusargs["config"])
    canaries, _, source = await begin(dut, config, 0.0)
    source.put(copy_command(target=0))
    assert await end(dut) is Error.WINDOW
    assert not any(found.strangers(()) for found in canaries)
