"""The vector unit against its model: memories that refuse at random, instructions of every kind."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradmill_hw.config import CONFIGS, NANO, SIM
from gradmill_hw.isa import AddSource, MaskKind
from gradmill_hw.memory.ports import READ_LATENCY
from gradmill_hw.vector import vector_model
from gradmill_hw.vector.vector import VectorUnit
from tb.run import run_bench
from tb.vector_random import FIELDS, random_instruction, random_state

SMALL = SIM.replace(tensor_rows=512, acc_rows=256, mask_rows=128)


class ReadMemory:
    """Serves one read port: data exactly ``READ_LATENCY`` cycles after the grant, else noise."""

    def __init__(self, port, row, rng, refuse):
        self.port, self.row, self.rng, self.refuse = port, row, rng, refuse
        self.pipe = [None] * (READ_LATENCY - 1)
        self.waiting = None

    def tick(self, ctx):
        request = (ctx.get(self.port.addr), ) if ctx.get(self.port.valid) else None
        if self.waiting is not None:
            assert request == self.waiting, "a refused read changed"
        granted = request is not None and ctx.get(self.port.ready)
        self.waiting = request if request is not None and not granted else None
        self.pipe.append(self.row(*request) if granted else None)
        value = self.pipe.pop(0)
        return value

    def drive(self, ctx, value):
        data = self.port.data.as_value()
        ctx.set(data, int.from_bytes(self.rng.bytes(len(data) + 7 >> 3), "little")
                % (1 << len(data)) if value is None else value)
        ctx.set(self.port.ready, int(self.rng.random() >= self.refuse))


def pack(values, bits):
    return sum((int(v) % (1 << bits)) << bits * k for k, v in enumerate(values))


def unpack(word, bits, n):
    return [word >> bits * k & (1 << bits) - 1 for k in range(n)]


@dataclass
class Record:
    """What was seen from the acceptance of an instruction to ``done``."""
    cycles:    int = 0
    rows:      int = 0
    stalls:    int = 0
    nonfinite: bool = False
    saturate:  bool = False
    events:    vector_model.Events = None
    command:   dict = None


@dataclass
class Bench:
    """Runs instructions on the unit and on the model, and compares at each ``done``."""
    config: object
    seed:   int
    refuse: dict = field(default_factory=dict)
    gap:    float = 0.0

    def run(self, batches):
        """``batches``: lists of (state or None to go on with the last one, instructions)."""
        dut = VectorUnit(self.config)
        records = []

        async def bench(ctx):
            for state, commands in batches:
                records.extend(await self._batch(ctx, dut, state, commands))

        sim = Simulator(dut)
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()
        return dut, records

    async def _batch(self, ctx, dut, state, commands):
        n, bits = self.config.n, self.config.mantissa_bits
        rng = np.random.default_rng(self.seed)
        model = state.copy()
        acc = state.acc.view(np.uint32)
        refuse = self.refuse
        reads = [
            ReadMemory(dut.acc_a, lambda at: pack(acc[at], 32), rng, refuse.get("acc_a", 0)),
            ReadMemory(dut.acc_b, lambda at: pack(acc[at], 32), rng, refuse.get("acc_b", 0)),
            ReadMemory(dut.tensor_read, lambda at: pack(state.tensor_mantissa[at], bits)
                       | int(state.tensor_exponent[at]) << bits * n, rng,
                       refuse.get("tensor_read", 0)),
            ReadMemory(dut.mask_read, lambda at: pack(state.mask[at], 1), rng,
                       refuse.get("mask_read", 0)),
        ]
        ctx.set(dut.seed, state.seed)
        ctx.set(dut.step, state.step)
        ctx.set(dut.scalars, [int(x) for x in state.scalars])
        ctx.set(dut.tensor_write.ready, 1)
        ctx.set(dut.mask_write.ready, 1)
        ctx.set(dut.acc_write.ready, 1)

        commands = list(commands)
        records, current, offered, waiting = [], None, None, None
        idle = 0
        while commands or offered or current or idle < 3:
            if offered is None and commands and rng.random() >= self.gap:
                offered = commands.pop(0)
                ctx.set(dut.cmd.payload, offered)
            ctx.set(dut.cmd.valid, int(offered is not None))
            idle = 0 if commands or offered or current else idle + 1

            # What is on the ports in this cycle.
            accepted = offered is not None and ctx.get(dut.cmd.ready)
            done = ctx.get(dut.done)
            values = [memory.tick(ctx) for memory in reads]
            assert not ctx.get(dut.tensor_read.valid) or not ctx.get(dut.tensor_read.transpose)
            write = None
            if ctx.get(dut.acc_write.valid):
                write = ctx.get(dut.acc_write.addr), ctx.get(dut.acc_write.data.as_value())
            assert waiting is None or write == waiting, "a refused write changed"
            waiting = write if not ctx.get(dut.acc_write.ready) else None
            if write and not waiting:
                acc[write[0]] = unpack(write[1], 32, n)
            if ctx.get(dut.mask_write.valid):
                state.mask[ctx.get(dut.mask_write.addr)] = \
                    unpack(ctx.get(dut.mask_write.data.as_value()), 1, n)
            if ctx.get(dut.tensor_write.valid):
                at = ctx.get(dut.tensor_write.addr)
                state.tensor_mantissa[at] = [ctx.get(x) for x in dut.tensor_write.data.mantissa]
                state.tensor_exponent[at] = ctx.get(dut.tensor_write.data.exponent)

            if current:
                current.cycles += 1
                current.rows += ctx.get(dut.events.row)
                current.stalls += ctx.get(dut.events.stall)
                current.nonfinite |= bool(ctx.get(dut.events.nonfinite))
                current.saturate |= bool(ctx.get(dut.events.saturate))
            else:
                assert not ctx.get(dut.events.as_value())
            assert ctx.get(dut.busy) == (current is not None)
            if done:
                self._compare(state, model, current)
                records.append(current)
                current = None
            if accepted:
                assert current is None
                current = Record(events=vector_model.vector(offered, model), command=offered)
                offered = None
            assert current is None or current.cycles < 500, f"hangs: {current}"

            await ctx.tick()
            for memory, value in zip(reads, values, strict=True):
                memory.drive(ctx, value)
            ctx.set(dut.acc_write.ready, int(rng.random() >= refuse.get("acc_write", 0)))
        return records

    def _compare(self, state, model, record):
        assert record is not None, "done without an instruction"
        for name in ("acc", "tensor_mantissa", "tensor_exponent", "mask"):
            got, want = getattr(state, name), getattr(model, name)
            if got.dtype == np.float32:
                got, want = got.view(np.uint32), want.view(np.uint32)
            where = np.argwhere(got != want)
            assert not len(where), (name, where[:4], got[got != want][:4], want[got != want][:4],
                                    record.command)
        seen = record.rows, record.nonfinite, record.saturate
        assert seen == tuple(record.events), record.command


def batches(config, seed, count, length, **options):
    rng = np.random.default_rng(seed)
    print(f"{seed=}")
    for _ in range(count):
        state = random_state(config, rng)
        ahead = state.copy()
        commands = []
        for _ in range(length):
            commands.append(random_instruction(ahead, rng, **options))
            vector_model.vector(commands[-1], ahead)
        yield state, commands


def check_throughput(dut, records):
    """Without refusals each instruction takes exactly one cycle per row, and the overhead."""
    for record in records:
        c = record.command
        n = dut.config.n
        rows = -(-c["rows"] // n) * n if c["write_tensor"] else c["rows"]
        expected = rows * c["blocks"] + dut.overhead(c) if rows * c["blocks"] else 1
        assert record.cycles == expected, c
        assert not record.stalls, c


@pytest.mark.parametrize("config", [NANO, SMALL], ids=["n4", "n8"])
def test_every_instruction_at_full_speed(config):
    dut, records = Bench(config, seed=1).run(batches(config, 1, 6, 8))
    check_throughput(dut, records)


@pytest.mark.parametrize("port", ["acc_a", "acc_b", "tensor_read", "mask_read", "acc_write"])
def test_one_port_refuses(port):
    bench = Bench(NANO, seed=2, refuse={port: 0.7})
    bench.run(batches(NANO, hash_of(port), 3, 5))


def hash_of(name):
    """A fixed number for each name."""
    return sum(name.encode())


@pytest.mark.parametrize("seed", range(3, 7))
def test_all_ports_refuse(seed):
    refuse = {"acc_a": 0.3, "acc_b": 0.5, "tensor_read": 0.4, "mask_read": 0.6, "acc_write": 0.5}
    bench = Bench(NANO, seed=seed, gap=0.3, refuse=refuse)
    bench.run(batches(NANO, seed, 4, 6))


def test_every_encoding():
    rng = np.random.default_rng(8)
    state = random_state(NANO, rng)
    ahead = state.copy()
    commands = []
    for name in ("mul", "add_source", "add_op", "function", "mask", "alternative", "butterfly"):
        for value in range(1 << FIELDS[name]):
            fixed = {name: value, "write_acc": 1, "write_mask": 1}
            if name in ("add_op", "butterfly"):
                fixed["add_source"] = AddSource.BUTTERFLY
            if name == "alternative":
                fixed["mask"] = MaskKind.MEMORY
            commands.append(random_instruction(ahead, rng, max_rows=6, max_blocks=2, **fixed))
            vector_model.vector(commands[-1], ahead)
    Bench(NANO, seed=8).run([(state, commands)])


@pytest.mark.rtl
def test_rtl(tmp_path):
    config = CONFIGS["edge"]
    run_bench(VectorUnit(config), "tb.tb_vector", tmp_path, config=config.name, instructions=150)
