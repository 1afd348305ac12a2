"""cocotb bench of the whole device: replays recorded runs of the driver over AXI.

Register writes go through an independent AXI4-Lite manager, both memories are independent AXI4
models with random pauses on every channel. After each run every byte of both memories must be what
the recording says, so a write beyond a buffer is seen wherever it lands.
"""

import itertools
import json
import random
from pathlib import Path

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, RisingEdge, Timer
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam


PERIOD_NS = 10


def pauses(seed, chance):
    """Endless random pauses."""
    rng = random.Random(seed)
    return (rng.random() < chance for _ in itertools.count())


def memory(dut, name, size, chance):
    """An AXI memory on manager port ``name`` whose five channels pause at random."""
    ram = AxiRam(AxiBus.from_prefix(dut, name), dut.clk, dut.rst, size=size)
    write, read = ram.write_if, ram.read_if
    for k, channel in enumerate((write.aw_channel, write.w_channel, write.b_channel,
                                 read.ar_channel, read.r_channel)):
        channel.set_pause_generator(pauses(f"{name}{k}{random.random()}", chance))
    return ram


@cocotb.test(timeout_time=400, timeout_unit="ms")
@cocotb.parametrize(chance=[0.0, 0.3])
async def replays(dut, chance):
    folder = Path(cocotb.plusargs["recording"])
    runs = json.loads((folder / "runs.json").read_text())
    cocotb.start_soon(Clock(dut.clk, PERIOD_NS, "ns").start())
    images = [dict(np.load(folder / f"run{k}.npz")) for k in range(len(runs))]
    rams = {tier: memory(dut, f"m_axi_{tier}", images[0][f"{tier}_before"].size, chance)
            for tier in ("near", "far")}
    host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
    dut.rst.value = 1
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0

    for number, (run, image) in enumerate(zip(runs, images, strict=True)):
        for tier, ram in rams.items():
            ram.write(0, image[f"{tier}_before"].tobytes())
        for offset, value in run["writes"]:
            await host.write_dword(offset, value)
        if not dut.irq.value:
            await First(RisingEdge(dut.irq), Timer(100, "ms"))
        assert dut.irq.value == 1, f"run {number} did not end"
        status = await host.read_dword(run["status"])
        assert status == run["status_value"], f"run {number}: status {status:#x}"
        for tier, ram in rams.items():
            found = np.frombuffer(ram.read(0, image[f"{tier}_after"].size), np.uint8)
            wrong = np.flatnonzero(found != image[f"{tier}_after"])
            assert not wrong.size, f"run {number}: {tier} byte {wrong[0]:#x} differs"
    for name, (offset, value) in runs[-1]["counters"].items():
        low, high = await host.read_dword(offset), await host.read_dword(offset + 4)
        assert low | high << 32 == value, name
