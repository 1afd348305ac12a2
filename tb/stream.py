"""Source and sink for valid/ready streams, with random stalls. Both run freely.

Make them after :func:`start`: they do not look at reset.
"""

import random

import cocotb
from amaranth.hdl import Const
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.queue import Queue
from cocotb.triggers import ClockCycles, RisingEdge


__all__ = ["Sink", "Source", "pack", "stalls", "start", "unpack"]


def stalls(probability):
    """A function that returns True with ``probability``, from the seeded generator."""
    if not probability:
        return lambda: False
    return lambda: random.random() < probability


def pack(shape, value):
    """The bits of ``value`` as an int. ``shape`` is an Amaranth layout, or None for a number."""
    if shape is None or isinstance(value, int):
        return int(value)
    return shape.const(value).as_value().value


def unpack(shape, bits):
    """``bits`` as a constant of ``shape``, whose fields are read by name or by index."""
    if shape is None:
        return bits
    if isinstance(shape, data.Layout):
        return shape.from_bits(bits)
    return Const(bits, shape).value


async def start(dut, *, period_ns=10, cycles=2):
    """Start the clock and hold reset for ``cycles``."""
    cocotb.start_soon(Clock(dut.clk, period_ns, "ns").start())
    dut.rst.value = 1
    await ClockCycles(dut.clk, cycles)
    dut.rst.value = 0


class Source:
    """Drives stream ``name`` of ``dut`` with what is put into its queue.

    ``stall()`` returns True to hold off one cycle. Once ``valid`` is up it stays up, and the
    payload with it, until ``ready``.
    """

    def __init__(self, dut, name, shape=None, stall=lambda: False):
        self.clk, self.shape, self.stall = dut.clk, shape, stall
        self.payload, self.valid, self.ready = (
            getattr(dut, f"{name}__{part}") for part in ("payload", "valid", "ready"))
        self.valid.value = 0
        self.queue = Queue()
        self.pending = 0
        cocotb.start_soon(self._run())

    def put(self, *payloads):
        """Queue ``payloads`` and return at once."""
        for payload in payloads:
            self.queue.put_nowait(pack(self.shape, payload))
            self.pending += 1

    async def send(self, payload):
        """Queue ``payload`` and wait until everything queued was accepted."""
        self.put(payload)
        await self.drained()

    async def drained(self):
        """Wait until everything queued was accepted."""
        while self.pending:
            await RisingEdge(self.clk)

    async def _run(self):
        edge = RisingEdge(self.clk)
        while True:
            payload = await self.queue.get()
            while self.stall():
                await edge
            self.payload.value = payload
            self.valid.value = 1
            await edge
            while not self.ready.value:
                await edge
            self.pending -= 1
            self.valid.value = 0


class Sink:
    """Receives stream ``name`` of ``dut`` into its queue, whoever reads it.

    ``stall()`` returns True to hold off one cycle; ``ready`` does not look at ``valid``.
    """

    def __init__(self, dut, name, shape=None, stall=lambda: False):
        self.clk, self.shape, self.stall = dut.clk, shape, stall
        self.payload, self.valid, self.ready = (
            getattr(dut, f"{name}__{part}") for part in ("payload", "valid", "ready"))
        self.ready.value = 0
        self.queue = Queue()
        cocotb.start_soon(self._run())

    async def recv(self):
        """Next payload."""
        return unpack(self.shape, await self.queue.get())

    async def recv_many(self, count):
        """Next ``count`` payloads."""
        return [await self.recv() for _ in range(count)]

    async def _run(self):
        edge = RisingEdge(self.clk)
        while True:
            ready = not self.stall()
            self.ready.value = ready
            await edge
            if ready and self.valid.value:
                self.queue.put_nowait(int(self.payload.value))
