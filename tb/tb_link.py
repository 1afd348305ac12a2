"""Bench of both link units, the links and real on-chip memories: what is sent arrives elsewhere.

Both units work on the same memories, so that each half of the rows is sent while the other is
received. Memories refuse at random.
"""

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge
from gradmill_hw.config import get_config
from gradmill_hw.isa import Opcode, Peer
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.link.link_model import receive, send
from gradmill_hw.memory.ports import READ_LATENCY
from tb.link_cases import new_tile, op_of, random_receive, random_send, row_bits
from tb.stream import Source, stalls, start


def tensor_words(config, tile):
    """Storage bits of every tensor row."""
    return [row_bits(config, *row) for row in zip(tile.mantissa, tile.exponent, strict=True)]


def mask_words(config, tile):
    """Storage bits of every mask row."""
    return [int(word) for word in (tile.mask << np.arange(config.n)).sum(axis=1)]


async def fill(dut, name, words):
    """Write ``words`` from row 0 on."""
    port = {part: getattr(dut, f"fill_{name}__{part}") for part in ("valid", "addr", "data")}
    port["valid"].value = 1
    for address, word in enumerate(words):
        port["addr"].value = address
        port["data"].value = word
        await RisingEdge(dut.clk)
    port["valid"].value = 0


async def peek(dut, name, count):
    """Rows 0 to ``count - 1``."""
    port = {part: getattr(dut, f"peek_{name}__{part}") for part in ("valid", "addr", "data")}
    words = []
    port["valid"].value = 1
    for address in range(count + READ_LATENCY + 1):
        port["addr"].value = min(address, count - 1)
        await RisingEdge(dut.clk)
        words.append(int(port["data"].value))
    port["valid"].value = 0
    return words[READ_LATENCY:][:count]


async def refuse(dut, probability):
    """Hold back some of the four memory ports in each cycle."""
    stall = stalls(probability)
    while True:
        dut.hold.value = sum(stall() << k for k in range(4))
        await RisingEdge(dut.clk)


async def done(dut, unit, count):
    """Wait for ``count`` commands of ``unit`` to end well."""
    while count:
        await RisingEdge(dut.clk)
        if getattr(dut, f"{unit}_done").value:
            assert int(getattr(dut, f"{unit}_error").value) == 0
            count -= 1


def halves(depth, phase):
    """Rows that are sent, rows that are received."""
    low, high = range(depth // 2), range(depth // 2, depth)
    return (high, low) if phase % 2 else (low, high)


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(pause=[0.0, 0.3], refused=[0.0, 0.4])
async def sends_and_receives(dut, pause, refused):
    config = get_config(cocotb.plusargs["config"])
    rng = np.random.default_rng([cocotb.RANDOM_SEED, int(10 * pause), int(10 * refused)])
    random.seed(f"{cocotb.RANDOM_SEED} {pause} {refused}")
    tile = new_tile(config, rng)
    memories = tile.mantissa, tile.exponent, tile.mask
    for port in ("fill_tensor", "fill_mask", "peek_tensor", "peek_mask"):
        getattr(dut, f"{port}__valid").value = 0
    dut.hold.value = 0
    await start(dut)
    await fill(dut, "tensor", tensor_words(config, tile))
    await fill(dut, "mask", mask_words(config, tile))
    sources = {
        unit: Source(dut, f"{unit}_cmd", command_layout(opcode), stalls(pause))
        for unit, opcode in (("send", Opcode.SEND), ("receive", Opcode.RECEIVE))
    }
    cocotb.start_soon(refuse(dut, refused))

    for phase in range(int(cocotb.plusargs["phases"])):
        tensor_from, tensor_to = halves(config.tensor_rows, phase)
        mask_from, mask_to = halves(config.mask_rows, phase)
        count = 12
        waits = [cocotb.start_soon(done(dut, unit, count)) for unit in sources]
        for _ in range(count):
            sent = random_send(config, rng, tensor=tensor_from, mask=mask_from)
            received = random_receive(config, rng, sent, tensor=tensor_to, mask=mask_to)
            received["peer"] = Peer(1 - sent["peer"])
            sources["send"].put(sent)
            sources["receive"].put(received)
            transfer = send(sent, op_of(sent), *memories, config)
            receive(received, op_of(received), transfer, *memories, config)
        for wait in waits:
            await wait
        assert not dut.link_error.value
        assert await peek(dut, "tensor", config.tensor_rows) == tensor_words(config, tile)
        assert await peek(dut, "mask", config.mask_rows) == mask_words(config, tile)
