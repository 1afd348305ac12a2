"""Bench for the load and store units: random programs, two memory tiers, stalls everywhere."""

import random
from collections import deque
from types import SimpleNamespace

import numpy as np
from amaranth import *
from amaranth.lib import wiring
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, Config
from gradmill_hw.isa import Kind, Opcode
from gradmill_hw.memory.axi_reader import AxiReader
from gradmill_hw.memory.axi_writer import AxiWriter
from gradmill_hw.memory.load import Load
from gradmill_hw.memory.store import Store
from gradmill_hw.regs import WINDOWS, Error, Tier
from tests.axi_memory import AxiMemory, serve_reads, serve_writes


__all__ = ["CONFIGS", "MEMORY_BYTES", "OPEN", "TransferBench", "bfp_bits", "first_failure",
           "fp32_bits", "mask_bits", "new_memory", "new_state", "random_transfer", "runs"]

MEMORY_BYTES = 1 << 16

#: Every ratio of beat to row, even and odd row sizes, granules below and above a byte.
CONFIGS = {
    "nano": NANO,
    "edge": Config(n=8, bus_bits=64, address_bits=32, burst_beats=64),
    "sim": Config(n=8),
    "narrow": Config(n=8, bus_bits=128, mantissa_bits=8, burst_beats=4, reads_in_flight=2),
    "wide": Config(n=16, bus_bits=512, mantissa_bits=4, burst_beats=32),
}

#: One window over everything.
OPEN = [[(0, MEMORY_BYTES, 1, 1)] + [(0, 0, 0, 0)] * (WINDOWS - 1) for _ in Tier]


def new_memory(rng):
    """Random bytes for both tiers."""
    return [np.frombuffer(rng.randbytes(MEMORY_BYTES), np.uint8).copy() for _ in Tier]


def new_state(config, rng):
    """Random contents of the on-chip memories, any bit patterns."""
    def noise(*shape, dtype):
        raw = rng.randbytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.frombuffer(raw, dtype).reshape(shape).copy()

    n, width = config.n, config.mantissa_bits
    return SimpleNamespace(
        acc=noise(config.acc_rows, n, dtype=np.uint32).view(np.float32),
        mantissa=noise(config.tensor_rows, n, dtype=np.int16) >> 16 - width,
        exponent=noise(config.tensor_rows, dtype=np.uint8),
        mask=noise(config.mask_rows, n, dtype=np.uint8) >= 128,
    )


def fp32_bits(state, row):
    return int.from_bytes(state.acc[row].tobytes(), "little")


def bfp_bits(config, state, row):
    width = config.mantissa_bits
    bits = int(state.exponent[row]) << config.n * width
    for k, value in enumerate(state.mantissa[row].tolist()):
        bits |= (value & (1 << width) - 1) << k * width
    return bits


def mask_bits(state, row):
    return sum(int(bit) << k for k, bit in enumerate(state.mask[row]))


def random_transfer(config, rng, *, kind=None, tier=None, largest=24):
    """A legal command whose runs do not overlap, in memory or on chip."""
    kind = Kind(rng.randrange(3)) if kind is None else kind
    depth = {Kind.MASK: config.mask_rows, Kind.BFP: config.tensor_rows,
             Kind.FP32: config.acc_rows}[kind]
    beat = config.beat_bytes
    while True:
        run = rng.choice([1, rng.randint(1, largest)])
        counts = [rng.choice([1, rng.randint(1, 4)]) for _ in range(3)]
        size, rows = config.run_bytes(kind.name.lower(), run), run
        strides, row_strides = [0, 0, 0], [0, 0, 0]
        for d in rng.sample(range(3), 3):
            if counts[d] > 1 or rng.random() < 0.5:
                strides[d] = size + beat * rng.choice([0, rng.randint(0, 5)])
                row_strides[d] = rows + rng.choice([0, rng.randint(0, 5)])
                size += (counts[d] - 1) * strides[d]
                rows += (counts[d] - 1) * row_strides[d]
        if size <= MEMORY_BYTES // 4 and rows <= depth // 2:
            break
    # Addresses near a page boundary as often as not.
    mem = rng.randrange(0, MEMORY_BYTES - size, beat)
    if rng.random() < 0.5:
        mem = min(mem // 4096 * 4096 + 4096 - beat * rng.randint(0, 3), MEMORY_BYTES - size)
    return {
        "mem": mem, "op0": rng.randrange(depth - rows + 1), "kind": kind,
        "tier": rng.randrange(2) if tier is None else tier, "cls": rng.randrange(8), "run": run,
        "codec": 0,
        **{f"count{d}": counts[d] for d in range(3)},
        **{f"mem_stride{d}": strides[d] for d in range(3)},
        **{f"row_stride{d}": row_strides[d] for d in range(3)},
    }


def runs(command):
    """(memory address, first row) of each run in order."""
    for i2 in range(command["count2"]):
        for i1 in range(command["count1"]):
            for i0 in range(command["count0"]):
                index = (i0, i1, i2)
                yield (command["mem"] + sum(i * command[f"mem_stride{d}"]
                                            for d, i in enumerate(index)),
                       command["op0"] + sum(i * command[f"row_stride{d}"]
                                            for d, i in enumerate(index)))


def first_failure(config, commands, bad):
    """(index of the command, address of the run) that first meets a bad beat."""
    for index, command in enumerate(commands):
        size = config.run_bytes(command["kind"].name.lower(), command["run"])
        for mem, _ in runs(command):
            if any(mem <= addr < mem + size for addr in bad[command["tier"]]):
                return index, mem
    return None


class _Machine(wiring.Component):
    """A load or store unit and the bus sides of both tiers."""

    def __init__(self, config, opcode):
        self.opcode = opcode
        self.unit = Load(config) if opcode == Opcode.LOAD else Store(config)
        side = (lambda: AxiReader(config, clients=2)) if opcode == Opcode.LOAD else (
            lambda: AxiWriter(config))
        self.sides = [side() for _ in Tier]
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = self.unit
        for tier, (side, client) in enumerate(
                zip(self.sides, (self.unit.near, self.unit.far), strict=True)):
            m.submodules[f"side{tier}"] = side
            port = side.clients[0] if self.opcode == Opcode.LOAD else side.client
            wiring.connect(m, client, port)
        return m


class TransferBench:
    """Runs commands through a unit; commands, bus, on-chip memories and results run freely.

    After :meth:`run`: ``results`` holds (error, error address) of each ``done``, ``written`` the
    rows of a load by kind, ``traffic`` bytes by (tier, class), ``cycles`` the length.
    """

    def __init__(self, config, opcode, memory, state=None, *, windows=OPEN, seed=0, stall=0.0,
                 latency_cycles=6, bad=((), ())):
        self.config = config
        self.opcode = opcode
        self.random = random.Random(seed)
        self.stall = stall
        self.machine = _Machine(config, opcode)
        self.unit = self.machine.unit
        self.windows = windows
        self.tiers = [AxiMemory(config, data, seed=seed + 10 + tier, stall=stall,
                                latency_cycles=latency_cycles, bad=bad[tier])
                      for tier, data in enumerate(memory)]
        self.written = {kind: {} for kind in Kind}
        self.state = state
        self.results = []
        self.traffic = {}
        self.cycles = 0

    def _ports(self):
        names = ("mask", "tensor", "acc")
        suffix = "write" if self.opcode == Opcode.LOAD else "read"
        return {kind: getattr(self.unit, f"{name}_{suffix}")
                for kind, name in zip(Kind, names, strict=True)}

    def _rows(self, kind):
        bits = {Kind.MASK: mask_bits, Kind.FP32: fp32_bits,
                Kind.BFP: lambda state, row: bfp_bits(self.config, state, row)}[kind]

        class View:
            def __getitem__(view, row):
                return bits(self.state, row)
        return View()

    def run(self, commands, *, abort_at=None, hold=False, then=(), limit=20_000):
        """Run ``commands``; ends when all are done or at the first error.

        In cycle ``abort_at`` the unit is aborted, with ``hold`` until it has drained; then it
        gets ``then``, whose results are all that ``results`` shows.
        """
        sim = Simulator(self.machine)
        sim.add_clock(1e-6)
        for memory, side in zip(self.tiers, self.machine.sides, strict=True):
            bench = memory.reader if self.opcode == Opcode.LOAD else memory.writer
            sim.add_testbench(bench(side.axi), background=True)
        for kind, port in self._ports().items():
            if self.opcode == Opcode.LOAD:
                bench = serve_writes(port, self.written[kind], seed=kind, stall=self.stall)
            else:
                bench = serve_reads(port, self._rows(kind), latency_cycles=2, seed=kind,
                                    stall=self.stall)
            sim.add_testbench(bench, background=True)

        unit = self.unit
        pending = deque(commands)

        async def issue(ctx):
            for tier in Tier:
                for k, (base, end, read, write) in enumerate(self.windows[tier]):
                    ctx.set(unit.windows[tier][k],
                            {"base": base, "limit": end, "read": read, "write": write})
            standing = False
            while True:
                standing = bool(pending) and (standing or self.random.random() >= self.stall)
                ctx.set(unit.cmd.valid, standing)
                if standing:
                    ctx.set(unit.cmd.payload, pending[0])
                _, _, ready = await ctx.tick().sample(unit.cmd.ready)
                if standing and ready:
                    standing = False
                    pending.popleft()

        async def watch(ctx):
            expected = len(commands)
            while len(self.results) < expected:
                if self.cycles == abort_at:
                    pending.clear()
                ctx.set(unit.abort, self.cycles == abort_at)
                busy = await self._step(ctx)
                assert self.cycles < limit, "no end"
                if abort_at is not None and self.cycles == abort_at + 1:
                    ctx.set(unit.abort, hold)
                    while await self._step(ctx):
                        assert self.cycles < limit, "no end"
                    ctx.set(unit.abort, 0)
                    self.results.clear()
                    pending.extend(then)
                    expected = len(then)
                if self.results and self.results[-1][0]:
                    break
            # Nothing follows, and an error has stopped the unit for good.
            events = len(self.results), dict(self.traffic)
            for _ in range(50):
                busy = await self._step(ctx)
            assert not busy and events == (len(self.results), self.traffic)

        sim.add_testbench(issue, background=True)
        sim.add_testbench(watch)
        sim.run()
        return self

    async def _step(self, ctx):
        """One cycle; returns whether the unit was busy."""
        unit = self.unit
        _, _, done, error, mem, busy, size, cls, tier = await ctx.tick().sample(
            unit.done, unit.error, unit.error_mem, unit.busy, unit.traffic.bytes,
            unit.traffic.cls, unit.traffic.tier)
        self.cycles += 1
        if size:
            self.traffic[tier, cls] = self.traffic.get((tier, cls), 0) + size
        if done:
            self.results.append((Error(error), mem))
        return busy
