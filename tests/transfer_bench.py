"""Bench for the load and store units: commands, bus, on-chip memories and results run freely."""

import random
from collections import deque

from amaranth import *
from amaranth.lib import wiring
from amaranth.sim import Simulator
from gradmill_hw.isa import Kind, Opcode
from gradmill_hw.memory.axi_reader import AxiReader
from gradmill_hw.memory.axi_writer import AxiWriter
from gradmill_hw.memory.load import Load
from gradmill_hw.memory.store import Store
from gradmill_hw.regs import Error, Tier
from tb.transfers import OPEN, bfp_bits, fp32_bits, mask_bits
from tests.axi_memory import AxiMemory, serve_reads, serve_writes


__all__ = ["TransferBench"]


class _Machine(wiring.Component):
    """A load or store unit and the bus sides of both tiers."""

    def __init__(self, config, opcode):
        self.opcode = opcode
        self.unit = Load(config) if opcode == Opcode.LOAD else Store(config)
        side = (
            (lambda: AxiReader(config, clients=2))
            if opcode == Opcode.LOAD
            else (lambda: AxiWriter(config))
        )
        self.sides = [side() for _ in Tier]
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = self.unit
        for tier, (side, client) in enumerate(
            zip(self.sides, (self.unit.near, self.unit.far), strict=True)
        ):
            m.submodules[f"side{tier}"] = side
            port = side.clients[0] if self.opcode == Opcode.LOAD else side.client
            wiring.connect(m, client, port)
        return m


class TransferBench:
    """Runs commands through a unit; commands, bus, on-chip memories and results run freely.

    After :meth:`run`: ``results`` holds (error, error address) of each ``done``, ``written`` the
    rows of a load by kind, ``traffic`` bytes by (tier, class), ``cycles`` the length.
    """

    def __init__(
        self,
        config,
        opcode,
        memory,
        state=None,
        *,
        windows=OPEN,
        seed=0,
        stall=0.0,
        latency_cycles=6,
        bad=((), ()),
    ):
        self.config = config
        self.opcode = opcode
        self.random = random.Random(seed)
        self.stall = stall
        self.machine = _Machine(config, opcode)
        self.unit = self.machine.unit
        self.windows = windows
        self.tiers = [
            AxiMemory(
                config,
                data,
                seed=seed + 10 + tier,
                stall=stall,
                latency_cycles=latency_cycles,
                bad=bad[tier],
            )
            for tier, data in enumerate(memory)
        ]
        self.written = {kind: {} for kind in Kind}
        self.state = state
        self.results = []
        self.traffic = {}
        self.encoded = self.saturated = 0
        self.cycles = 0

    def _ports(self):
        names = ("mask", "tensor", "acc")
        suffix = "write" if self.opcode == Opcode.LOAD else "read"
        return {
            kind: getattr(self.unit, f"{name}_{suffix}")
            for kind, name in zip(Kind, names, strict=True)
        }

    def _rows(self, kind):
        bits = {
            Kind.MASK: mask_bits,
            Kind.FP32: fp32_bits,
            Kind.BFP: lambda state, row: bfp_bits(self.config, state, row),
        }[kind]

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
                bench = serve_reads(
                    port, self._rows(kind), latency_cycles=2, seed=kind, stall=self.stall
                )
            sim.add_testbench(bench, background=True)

        unit = self.unit
        pending = deque(commands)

        async def issue(ctx):
            for tier in Tier:
                for k, (base, end, read, write) in enumerate(self.windows[tier]):
                    ctx.set(
                        unit.windows[tier][k],
                        {"base": base, "limit": end, "read": read, "write": write},
                    )
            if self.state is not None:
                ctx.set(unit.seed, self.state.seed)
                ctx.set(unit.step, self.state.step)
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
            unit.done,
            unit.error,
            unit.error_mem,
            unit.busy,
            unit.traffic.bytes,
            unit.traffic.cls,
            unit.traffic.tier,
        )
        self.cycles += 1
        if self.opcode == Opcode.STORE:
            self.encoded += ctx.get(unit.encoded)
            self.saturated += ctx.get(unit.saturated)
        if size:
            self.traffic[tier, cls] = self.traffic.get((tier, cls), 0) + size
        if done:
            self.results.append((Error(error), mem))
        return busy
