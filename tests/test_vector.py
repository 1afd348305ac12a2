"""The vector unit against its model: memories that refuse at random, instructions of every kind."""

from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradmill_hw.config import CONFIGS, NANO, TILE
from gradmill_hw.isa import AddOp, AddSource, MaskKind, MulSource
from gradmill_hw.memory.ports import READ_LATENCY
from gradmill_hw.vector import vector_model
from gradmill_hw.vector.vector import VectorUnit
from tb.run import run_bench
from tb.vector_random import FIELDS, instruction, random_instruction, random_state

SMALL = TILE.replace(tensor_rows=512, acc_rows=256, mask_rows=128)


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
        return self.pipe.pop(0)

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
    command:   dict
    events:    vector_model.Events
    cycles:    int = 0
    rows:      int = 0
    stalls:    int = 0
    nonfinite: int = 0
    saturate:  int = 0

    def see(self, ctx, events):
        """Take in one cycle."""
        self.cycles += 1
        self.rows += ctx.get(events.row)
        self.stalls += ctx.get(events.stall)
        self.nonfinite |= ctx.get(events.nonfinite)
        self.saturate |= ctx.get(events.saturate)

    @property
    def seen(self):
        """Events as the model gives them."""
        return self.rows, self.nonfinite, self.saturate


class Bench:
    """Runs batches of instructions on the unit and on the model, and compares at each ``done``.

    A batch begins with a state and is a list of instructions that follow each other, offered with
    ``gap``, the probability of a pause. ``refuse`` gives the probability that a port refuses.
    ``shared_bank`` lets A of the accumulators keep B waiting, as one bank does.
    """

    def __init__(self, config, seed):
        print(f"{seed=}")
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.dut = VectorUnit(config)
        self.batches = []
        self.records = []

    def add(self, state, commands, refuse=None, gap=0.0, shared_bank=False):
        self.batches.append((state, list(commands), refuse or {}, gap, shared_bank))

    def add_random(self, count, **options):
        """A batch of ``count`` random instructions."""
        state = random_state(self.config, self.rng)
        ahead = state.copy()
        commands = []
        for _ in range(count):
            commands.append(random_instruction(ahead, self.rng))
            vector_model.vector(commands[-1], ahead)
        self.add(state, commands, **options)

    def run(self):
        """The records of all instructions, in order."""
        async def bench(ctx):
            for batch in self.batches:
                await self._batch(ctx, *batch)

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()
        return self.records

    def expected_cycles(self, command):
        """Cycles of an instruction if no port refuses."""
        n = self.config.n
        rows = -(-command["rows"] // n) * n if command["write_tensor"] else command["rows"]
        rows *= command["blocks"]
        if not rows:
            return 1
        return (rows - 1) * self.dut.interval(command) + 1 + self.dut.overhead(command)

    async def _batch(self, ctx, state, commands, refuse, gap, shared_bank):
        dut, rng = self.dut, self.rng
        n, bits = self.config.n, self.config.mantissa_bits
        model = state.copy()
        acc = state.acc.view(np.uint32)
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

        current, offered, waiting = None, None, None
        while commands or offered or current:
            if offered is None and commands and rng.random() >= gap:
                offered = commands.pop(0)
                ctx.set(dut.cmd.payload, offered)
            ctx.set(dut.cmd.valid, int(offered is not None))
            ctx.set(dut.acc_write.ready, int(rng.random() >= refuse.get("acc_write", 0)))
            if shared_bank and ctx.get(dut.acc_a.valid):
                ctx.set(dut.acc_b.ready, 0)

            # What is on the ports in this cycle.
            accepted = offered is not None and ctx.get(dut.cmd.ready)
            rows = [memory.tick(ctx) for memory in reads]
            assert not ctx.get(dut.tensor_read.valid) or not ctx.get(dut.tensor_read.transpose)
            write = None
            if ctx.get(dut.acc_write.valid):
                write = ctx.get(dut.acc_write.addr), ctx.get(dut.acc_write.data.as_value())
            assert waiting is None or write == waiting, "a refused write changed"
            waiting = None if ctx.get(dut.acc_write.ready) else write
            if write and not waiting:
                acc[write[0]] = unpack(write[1], 32, n)
            if ctx.get(dut.mask_write.valid):
                state.mask[ctx.get(dut.mask_write.addr)] = \
                    unpack(ctx.get(dut.mask_write.data.as_value()), 1, n)
            if ctx.get(dut.tensor_write.valid):
                at = ctx.get(dut.tensor_write.addr)
                state.tensor_mantissa[at] = [ctx.get(x) for x in dut.tensor_write.data.mantissa]
                state.tensor_exponent[at] = ctx.get(dut.tensor_write.data.exponent)

            assert ctx.get(dut.busy) == (current is not None)
            if current:
                current.see(ctx, dut.events)
                assert current.cycles < 2000, f"hangs: {current}"
            else:
                assert not ctx.get(dut.events.as_value())
            if ctx.get(dut.done):
                self._compare(state, model, current)
                current = None
            if accepted:
                assert current is None, "taken too early"
                current = Record(offered, vector_model.vector(offered, model))
                offered = None

            await ctx.tick()
            for memory, row in zip(reads, rows, strict=True):
                memory.drive(ctx, row)

    def _compare(self, state, model, record):
        assert record is not None, "done without an instruction"
        for name in ("acc", "tensor_mantissa", "tensor_exponent", "mask"):
            got, want = (getattr(s, name) for s in (state, model))
            if got.dtype == np.float32:
                got, want = got.view(np.uint32), want.view(np.uint32)
            where = np.argwhere(got != want)
            assert not len(where), (name, where[:4], got[got != want][:4], want[got != want][:4],
                                    record)
        assert record.seen == record.events, record
        self.records.append(record)


@pytest.mark.parametrize(("config", "count"), [
    (NANO, 30), (NANO.replace(lanes_per_function=1), 20), (SMALL, 8)], ids=["n4", "wide", "n8"])
def test_rows_take_no_longer_than_they_must(config, count):
    bench = Bench(config, seed=1)
    bench.add_random(count)
    for record in bench.run():
        assert record.cycles == bench.expected_cycles(record.command), record
        assert not record.stalls, record


def test_ports_refuse():
    bench = Bench(NANO, seed=2)
    for port in ("acc_a", "acc_b", "tensor_read", "mask_read"):
        bench.add_random(6, refuse={port: 0.7})
    for record in bench.run():
        # The event counts exactly the cycles that were lost.
        assert record.cycles == bench.expected_cycles(record.command) + record.stalls, record

    bench = Bench(NANO, seed=3)
    bench.add_random(8, refuse={"acc_write": 0.9})
    bench.add_random(20, gap=0.3, refuse={"acc_a": 0.3, "acc_b": 0.5, "tensor_read": 0.4,
                                          "mask_read": 0.6, "acc_write": 0.5})
    bench.run()


def test_every_encoding():
    bench = Bench(NANO, seed=4)
    state = random_state(NANO, bench.rng)
    ahead = state.copy()
    commands = []
    for name in ("mul", "add_source", "add_op", "function", "mask", "alternative", "butterfly"):
        for value in range(1 << FIELDS[name]):
            fixed = {name: value, "write_acc": 1, "write_mask": 1}
            if name in ("add_op", "butterfly"):
                fixed["add_source"] = AddSource.BUTTERFLY
            if name == "alternative":
                fixed["mask"] = MaskKind.MEMORY
            commands.append(random_instruction(ahead, bench.rng, max_rows=6, max_blocks=2, **fixed))
            vector_model.vector(commands[-1], ahead)
    bench.add(state, commands)
    bench.run()


def test_difficult_values():
    """Pairs of infinities, NaNs, subnormals and neighbours of powers of two in every operation."""
    bench = Bench(NANO, seed=6)
    state = random_state(NANO, bench.rng, special=1.0)
    bench.add(state, [
        instruction(op0=0, op1=100 + 20 * add_op, op2=400, rows=100, blocks=1, cols=4, a_step=1,
                    b_step=1, write_acc=1, add_source=AddSource.ROW, add_op=add_op)
        for add_op in AddOp])
    bench.run()


def test_sources_in_one_bank_take_turns():
    bench = Bench(NANO, seed=5)
    rows = 40
    command = instruction(op0=0, op1=100, op2=200, rows=rows, blocks=1, cols=4, a_step=1, b_step=1,
                          write_acc=1, mul=MulSource.ROW)
    bench.add(random_state(NANO, bench.rng), [command], shared_bank=True)
    record, = bench.run()
    assert record.stalls == rows
    assert record.cycles == bench.expected_cycles(command) + rows


@pytest.mark.rtl
def test_rtl(tmp_path):
    config = CONFIGS["edge"]
    run_bench(VectorUnit(config), "tb.tb_vector", tmp_path, config=config.name, instructions=150)
