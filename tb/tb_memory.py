"""Bench for the tensor memory: every port runs on its own, a monitor compares every row read."""

import random

import cocotb
from cocotb.triggers import RisingEdge

from tb.stream import start


LATENCY = 2
READERS, WRITERS = 4, 2
CYCLES = 3000


class Tiles:
    """Rows as lists of mantissas, with an exponent; zero until written."""

    def __init__(self, n, bits):
        self.n, self.bits = n, bits
        self.rows = {}

    def write(self, addr, word):
        mantissas = [word >> self.bits * i & (1 << self.bits) - 1 for i in range(self.n)]
        self.rows[addr] = mantissas, word >> self.bits * self.n

    def read(self, addr, transpose):
        mantissas, exponent = self._row(addr)
        if transpose:
            first = addr // self.n * self.n
            exponent = self._row(first)[1]
            mantissas = [self._row(first + i)[0][addr % self.n] for i in range(self.n)]
        word = exponent << self.bits * self.n
        return word | sum(value << self.bits * i for i, value in enumerate(mantissas))

    def _row(self, addr):
        return self.rows.get(addr, ([0] * self.n, 0))


class Port:
    """Signals of one port of ``dut``."""

    def __init__(self, dut, name, *members):
        for member in ("valid", "ready", "addr", "data", *members):
            setattr(self, member, getattr(dut, f"{name}__{member}"))
        self.valid.value = 0


async def ask(clk, port, rows, idle, width=None):
    """Ask for random rows for ever, each until it is granted."""
    while True:
        while random.random() < idle:
            await RisingEdge(clk)
        port.addr.value = random.randrange(rows)
        if width is None:
            port.transpose.value = random.getrandbits(1)
        else:
            port.data.value = random.getrandbits(width)
        port.valid.value = 1
        await RisingEdge(clk)
        while not port.ready.value:
            await RisingEdge(clk)
        port.valid.value = 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=[0.0, 0.6])
async def rows_and_columns(dut, idle):
    n, bits, rows = (int(cocotb.plusargs[name]) for name in ("n", "mantissa_bits", "rows"))
    reads = [Port(dut, f"read__{i}", "transpose") for i in range(READERS)]
    writes = [Port(dut, f"write__{i}") for i in range(WRITERS)]
    await start(dut)

    # What an earlier test left is unknown.
    tiles = Tiles(n, bits)
    for addr in range(rows):
        word = random.getrandbits(n * bits + 8)
        writes[0].addr.value, writes[0].data.value, writes[0].valid.value = addr, word, 1
        await RisingEdge(dut.clk)
        assert writes[0].ready.value
        tiles.write(addr, word)
    writes[0].valid.value = 0

    for port in reads:
        cocotb.start_soon(ask(dut.clk, port, rows, idle))
    for port in writes:
        cocotb.start_soon(ask(dut.clk, port, rows, idle, n * bits + 8))

    history = [[None] * READERS for _ in range(LATENCY)]
    granted = [0] * (READERS + WRITERS)
    for _ in range(CYCLES):
        await RisingEdge(dut.clk)
        expected = history.pop(0)
        for port, word in zip(reads, expected, strict=True):
            assert word is None or int(port.data.value) == word
        history.append(
            [
                tiles.read(int(port.addr.value), int(port.transpose.value))
                if port.valid.value and port.ready.value
                else None
                for port in reads
            ]
        )
        for port in writes:
            if port.valid.value and port.ready.value:
                tiles.write(int(port.addr.value), int(port.data.value))
        for number, port in enumerate((*reads, *writes)):
            granted[number] += bool(port.valid.value and port.ready.value)
        assert not dut.fault.value
    # Priorities are fixed: only clients that pause leave something to the last of them.
    assert not idle or min(granted) > CYCLES // 50, granted
