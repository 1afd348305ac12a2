"""Bench of load and store around real on-chip memories: what was loaded is stored elsewhere.

While stores write out one half of the rows, loads fill the other. Loads read the lower half of
both memories, stores write the upper half, and every byte outside their runs is a canary.
"""

import random

import cocotb
from cocotb.triggers import RisingEdge
from gradmill_hw.config import get_config
from gradmill_hw.isa import Kind, Opcode
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.memory import transfer_model
from tb.axi import Canaries, check_written, set_windows, tiers
from tb.stream import Source, stalls, start
from tb.transfers import (
    HALF,
    HALVES,
    MEMORY_BYTES,
    TAGS,
    encode_source,
    new_memory,
    new_state,
    random_transfer,
    runs,
)


def placed(config, rng, command, *, base, rows=None):
    """``command`` moved into the half of memory at ``base``, and to half ``rows`` of the rows."""
    depth = {Kind.MASK: config.mask_rows, Kind.BFP: config.tensor_rows, Kind.FP32: config.acc_rows}[
        command["kind"]
    ]
    spans = list(runs(command))
    size = max(mem for mem, _ in spans) - command["mem"]
    size += config.run_bytes(command["kind"].name.lower(), command["run"], command["codec"])
    extent = max(row for _, row in spans) - command["op0"] + command["run"]
    moved = {"mem": base + rng.randrange(0, HALF - size + 1, config.beat_bytes)}
    if rows is not None:
        moved["op0"] = rows * depth // 2 + rng.randrange(depth // 2 - extent + 1)
    return command | moved


def touched(config, command):
    """Byte ranges of the runs of a command, at most."""
    if command["codec"]:
        size = config.run_bytes("bfp", command["run"], command["codec"])
        return [range(mem, mem + size) for mem, _ in runs(command)]
    granules = command["run"] * config.row_granules(command["kind"].name.lower())
    size = -(-granules * config.n // 8)
    return [range(mem, mem + size) for mem, _ in runs(command)]


def another_codec(config, rng, command):
    """A codec for a command; its runs are not longer than they were."""
    if not config.stash or command["kind"] != Kind.BFP:
        return {}
    size = config.run_bytes("bfp", command["run"], command["codec"])
    codec = rng.choice(TAGS)
    longer = config.run_bytes("bfp", command["run"], codec) > size
    return {} if longer else {"codec": codec, "stochastic": rng.randrange(2)}


def coded_loads(config, rng, images, rows):
    """Loads in stash formats, each from a quarter of the memory of its own, which is filled."""
    commands = []
    for k in range(2):
        command = random_transfer(config, rng, kind=Kind.BFP, coded=1.0)
        command = placed(config, rng, command, base=0, rows=rows) | {"mem": k * HALF // 2}
        encode_source(config, command, images, rng)
        commands.append(command)
    return commands


async def done(dut, unit, count):
    """Wait for ``count`` instructions of ``unit`` to end well."""
    while count:
        await RisingEdge(dut.clk)
        if getattr(dut, f"{unit}_done").value:
            assert int(getattr(dut, f"{unit}_error").value) == 0
            count -= 1


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(pause=[0.0, 0.3])
async def loads_and_stores(dut, pause):
    config = get_config(cocotb.plusargs["config"])
    config = config.replace(stash=bool(int(cocotb.plusargs["stash"])))
    rng = random.Random(f"{cocotb.RANDOM_SEED} {pause}")
    images, state = new_memory(rng), new_state(config, rng)
    set_windows(dut, config, HALVES)
    rams = tiers(dut, images, pause=pause)
    await start(dut)
    dut.seed.value, dut.step.value = state.seed, state.step
    sources = {
        unit: Source(dut, f"{unit}_cmd", command_layout(opcode), stalls(pause))
        for unit, opcode in (("load", Opcode.LOAD), ("store", Opcode.STORE))
    }

    loads = []
    for phase in range(int(cocotb.plusargs["phases"])):
        # Rows come and go in formats of their own.
        stores = [
            placed(config, rng, command | another_codec(config, rng, command), base=HALF)
            for command in loads
        ]
        loads = [
            placed(config, rng, random_transfer(config, rng), base=0, rows=phase % 2)
            for _ in range(10)
        ]
        if config.stash:
            loads[5:] = coded_loads(config, rng, images, phase % 2) + loads[5:]
            for ram, image in zip(rams, images, strict=True):
                ram.write(0, image[:HALF].tobytes())
        canaries = [Canaries(ram, MEMORY_BYTES) for ram in rams]
        waits = [
            cocotb.start_soon(done(dut, "load", len(loads))),
            cocotb.start_soon(done(dut, "store", len(stores))),
        ]
        sources["load"].put(*loads)
        sources["store"].put(*stores)
        for wait in waits:
            await wait

        for command in stores:
            transfer_model.store(config, command, images, state, HALVES)
        for command in loads:
            transfer_model.load(config, command, images, state, HALVES)
        written = [(command["tier"], touched(config, command)) for command in stores]
        check_written(canaries, images, written)
