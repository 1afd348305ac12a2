"""Memory models for Amaranth's simulator: AXI4 subordinates and on-chip memories, with stalls.

Every model is an asynchronous testbench that runs freely beside the others and stalls at random.
"""

import random
from collections import deque

import numpy as np


__all__ = ["AxiMemory", "serve_reads", "serve_writes"]

_OKAY, _SLVERR = 0, 2


class _Stable:
    """Checks that an offer stands unchanged until it is taken."""

    def __init__(self, name):
        self.name = name
        self.offer = None

    def __call__(self, valid, ready, payload):
        if self.offer is not None:
            assert valid, f"{self.name}: valid fell before ready"
            assert payload == self.offer, f"{self.name}: payload changed before ready"
        self.offer = payload if valid and not ready else None
        return valid and ready


class AxiMemory:
    """A memory tier behind an AXI4 port; checks the rules of the bus as it goes.

    Parameters
    ----------
    config : Config
        Widths.
    data : numpy.ndarray of uint8
        Contents; index = address.
    seed : int
        Of the stalls.
    stall : float
        Probability that a channel holds off, each cycle.
    latency_cycles : int
        From an address to its first beat or answer.
    bad : set of int
        Addresses of beats that are answered with an error.

    Attributes
    ----------
    read_beats, write_beats : int
        Beats transferred so far.
    """

    def __init__(self, config, data, *, seed=0, stall=0.0, latency_cycles=4, bad=()):
        self.config = config
        self.data = data
        self.random = random.Random(seed)
        self.stall = stall
        self.latency_cycles = latency_cycles
        self.bad = set(bad)
        self.read_beats = 0
        self.write_beats = 0

    def _go(self):
        return self.stall == 0 or self.random.random() >= self.stall

    def _burst(self, addr, length, size, burst):
        step = self.config.beat_bytes
        beats = length + 1
        assert burst == 1 and 1 << size == step, "not a full-width INCR burst"
        assert addr % step == 0, f"burst at {addr:#x} is not aligned"
        assert addr // 4096 == (addr + beats * step - 1) // 4096, f"burst at {addr:#x} crosses 4 KB"
        assert beats <= self.config.burst_beats, f"burst of {beats} beats"
        assert addr + beats * step <= len(self.data), f"burst at {addr:#x} is outside the memory"
        return [addr + k * step for k in range(beats)]

    def reader(self, port):
        """The testbench that serves AR and R of ``port``."""

        async def bench(ctx):
            step = self.config.beat_bytes
            stable = _Stable("ar")
            beats = deque()
            now = 0
            standing = False
            while True:
                now += 1
                take = self._go()
                ctx.set(port.arready, take)
                if not standing and beats and beats[0][0] <= now and self._go():
                    _, addr, last = beats[0]
                    standing = True
                    wrong = addr in self.bad
                    raw = self.data[addr : addr + step] ^ (0xFF if wrong else 0)
                    ctx.set(port.rdata, int.from_bytes(raw.tobytes(), "little"))
                    ctx.set(port.rresp, _SLVERR if wrong else _OKAY)
                    ctx.set(port.rlast, last)
                ctx.set(port.rvalid, standing)
                _, _, valid, addr, length, size, burst, ready = await ctx.tick().sample(
                    port.arvalid, port.araddr, port.arlen, port.arsize, port.arburst, port.rready
                )
                if stable(valid, take, (addr, length)):
                    addrs = self._burst(addr, length, size, burst)
                    beats.extend((now + self.latency_cycles, a, a == addrs[-1]) for a in addrs)
                if standing and ready:
                    standing = False
                    self.read_beats += 1
                    beats.popleft()

        return bench

    def writer(self, port):
        """The testbench that serves AW, W and B of ``port``."""

        async def bench(ctx):
            step = self.config.beat_bytes
            stable_aw, stable_w = _Stable("aw"), _Stable("w")
            bursts = deque()  # addresses still to come of each burst
            early = deque()  # beats that came before their address
            answers = deque()
            wrong = False
            now = 0
            standing = False
            while True:
                now += 1
                take_aw, take_w = self._go(), self._go()
                ctx.set(port.awready, take_aw)
                ctx.set(port.wready, take_w)
                if not standing and answers and answers[0][0] <= now and self._go():
                    standing = True
                    ctx.set(port.bresp, answers[0][1])
                ctx.set(port.bvalid, standing)
                (
                    _,
                    _,
                    aw_valid,
                    addr,
                    length,
                    size,
                    burst,
                    w_valid,
                    w_data,
                    w_strobe,
                    w_last,
                    b_ready,
                ) = await ctx.tick().sample(
                    port.awvalid,
                    port.awaddr,
                    port.awlen,
                    port.awsize,
                    port.awburst,
                    port.wvalid,
                    port.wdata,
                    port.wstrb,
                    port.wlast,
                    port.bready,
                )
                if stable_aw(aw_valid, take_aw, (addr, length)):
                    bursts.append(deque(self._burst(addr, length, size, burst)))
                if stable_w(w_valid, take_w, (w_data, w_strobe, w_last)):
                    early.append((w_data, w_strobe, w_last))
                    self.write_beats += 1
                while early and bursts:
                    w_data, w_strobe, w_last = early.popleft()
                    addr = bursts[0].popleft()
                    assert w_last == (not bursts[0]), f"wlast is wrong at {addr:#x}"
                    wrong |= addr in self.bad
                    raw = np.frombuffer(w_data.to_bytes(step, "little"), np.uint8)
                    strobe = [bool(w_strobe >> k & 1) for k in range(step)]
                    if addr not in self.bad:
                        self.data[addr : addr + step][strobe] = raw[strobe]
                    if w_last:
                        bursts.popleft()
                        code = _SLVERR if wrong else _OKAY
                        answers.append((now + self.latency_cycles, code))
                        wrong = False
                if standing and b_ready:
                    standing = False
                    answers.popleft()

        return bench


def serve_writes(port, rows, *, seed=0, stall=0.0):
    """Testbench of an on-chip write port: ``rows`` maps addresses to the bits written."""
    rng = random.Random(seed)

    async def bench(ctx):
        stable = _Stable("write port")
        data = port.data.as_value()
        while True:
            take = stall == 0 or rng.random() >= stall
            ctx.set(port.ready, take)
            _, _, valid, addr, bits = await ctx.tick().sample(port.valid, port.addr, data)
            if stable(valid, take, (addr, bits)):
                rows[addr] = bits

    return bench


def serve_reads(port, rows, *, latency_cycles, seed=0, stall=0.0):
    """Testbench of an on-chip read port: ``rows[addr]`` is the bits of a row.

    What is not granted reads as noise.
    """
    rng = random.Random(seed)

    async def bench(ctx):
        stable = _Stable("read port")
        data = port.data.as_value()
        flight = deque([None] * (latency_cycles - 1))
        while True:
            take = stall == 0 or rng.random() >= stall
            ctx.set(port.ready, take)
            _, _, valid, addr = await ctx.tick().sample(port.valid, port.addr)
            flight.append(rows[addr] if stable(valid, take, addr) else None)
            bits = flight.popleft()
            ctx.set(data, rng.getrandbits(len(data)) if bits is None else bits)

    return bench
