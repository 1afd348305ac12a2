"""Bench of the vector unit: random instructions against the model, with ports that refuse."""

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from gradmill_hw.config import get_config
from gradmill_hw.isa import Opcode
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.memory.ports import READ_LATENCY
from gradmill_hw.vector import vector_model
from tb.stream import Source, stalls, start
from tb.vector_random import random_instruction, random_state


def pack(row, bits):
    """Elements of a row, element 0 lowest."""
    return sum((int(x) % (1 << bits)) << bits * j for j, x in enumerate(row))


def unpack(word, bits, n):
    """Unsigned elements of a row."""
    return [word >> bits * j & (1 << bits) - 1 for j in range(n)]


class Memories:
    """Serves every port of the unit from one state; each port refuses at random."""

    def __init__(self, dut, state, refuse):
        self.dut, self.state = dut, state
        config = state.config
        n, bits = config.n, config.mantissa_bits
        acc = state.acc.view(np.uint32)

        def tensor_row(at):
            return (pack(state.tensor_mantissa[at], bits)
                    | int(state.tensor_exponent[at]) << bits * n)

        def write_acc(at, word):
            acc[at] = unpack(word, 32, n)

        def write_mask(at, word):
            state.mask[at] = unpack(word, 1, n)

        def write_tensor(at, word):
            mantissa = np.array(unpack(word, bits, n))
            state.tensor_mantissa[at] = mantissa - (mantissa >> bits - 1 << bits)
            state.tensor_exponent[at] = word >> bits * n

        cocotb.start_soon(self._read("acc_a", lambda at: pack(acc[at], 32), stalls(refuse)))
        cocotb.start_soon(self._read("acc_b", lambda at: pack(acc[at], 32), stalls(refuse)))
        cocotb.start_soon(self._read("tensor_read", tensor_row, stalls(refuse)))
        cocotb.start_soon(self._read("mask_read", lambda at: pack(state.mask[at], 1),
                                     stalls(refuse)))
        cocotb.start_soon(self._write("acc_write", write_acc, stalls(refuse)))
        cocotb.start_soon(self._write("mask_write", write_mask, stalls(0)))
        cocotb.start_soon(self._write("tensor_write", write_tensor, stalls(0)))

    def _port(self, name, *members):
        return [getattr(self.dut, f"{name}__{member}") for member in members]

    async def _read(self, name, row, refuse):
        valid, addr, ready, data = self._port(name, "valid", "addr", "ready", "data")
        pipe = [None] * (READ_LATENCY - 1)
        asked = None
        while True:
            ready.value = not refuse()
            await RisingEdge(self.dut.clk)
            request = int(addr.value) if valid.value else None
            assert asked is None or asked == request, f"{name} changed while it waited"
            granted = request is not None and ready.value
            asked = None if granted else request
            pipe.append(row(request) if granted else None)
            word = pipe.pop(0)
            data.value = random.getrandbits(len(data)) if word is None else word

    async def _write(self, name, store, refuse):
        valid, addr, ready, data = self._port(name, "valid", "addr", "ready", "data")
        offered = None
        while True:
            ready.value = not refuse()
            await RisingEdge(self.dut.clk)
            offer = (int(addr.value), int(data.value)) if valid.value else None
            assert offered is None or offered == offer, f"{name} changed while it waited"
            taken = offer is not None and ready.value
            offered = None if taken else offer
            if taken:
                store(*offer)


@cocotb.test(timeout_time=50, timeout_unit="ms")
@cocotb.parametrize(refuse=[0.0, 0.3, 0.8])
async def matches_model(dut, refuse):
    """Instructions in a row, compared at each ``done``."""
    config = get_config(str(cocotb.plusargs["config"]))
    rng = np.random.default_rng(random.getrandbits(32))
    state = random_state(config, rng, special=0.02)
    model = state.copy()
    await start(dut)
    Memories(dut, state, refuse)
    dut.seed.value, dut.step.value = state.seed, state.step
    dut.scalars.value = pack(state.scalars, 32)

    ahead = model.copy()
    commands = []
    for _ in range(int(cocotb.plusargs["instructions"])):
        commands.append(random_instruction(ahead, rng, max_rows=40, max_blocks=4))
        vector_model.vector(commands[-1], ahead)
    source = Source(dut, "cmd", command_layout(Opcode.VECTOR), stalls(refuse))
    source.put(*commands)

    for command in commands:
        rows, nonfinite, saturate = 0, False, False
        done = False
        while not done:
            await RisingEdge(dut.clk)
            done = bool(dut.done.value)
            event = int(dut.events.value)
            rows += event & 1
            nonfinite |= bool(event >> 2 & 1)
            saturate |= bool(event >> 3 & 1)
        assert vector_model.vector(command, model) == (rows, nonfinite, saturate), command
        for name in ("acc", "tensor_mantissa", "tensor_exponent", "mask"):
            got, want = (getattr(s, name).view(np.uint8) for s in (state, model))
            assert np.array_equal(got, want), (name, command)
