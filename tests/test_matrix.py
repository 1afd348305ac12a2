"""The matrix unit against its model: bits, order, cycles and counters, under random refusals."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from amaranth.hdl import Cat, Value
from amaranth.sim import Simulator

from gradmill_hw.config import Config
from gradmill_hw.matrix.accumulate import turnaround
from gradmill_hw.matrix.matrix import MatrixUnit
from gradmill_hw.matrix.matrix_model import TURNAROUND, cycles, matmul
from tb.matrix_cases import EXPONENTS, Memories, random_command, random_memories, traffic
from tb.run import run_bench


EVENTS = ("row", "macs", "stall", "stall_weights", "nonfinite")


def config(n, mantissa_bits=9):
    return Config(
        n=n,
        mantissa_bits=mantissa_bits,
        bus_bits=8 * n,
        burst_beats=16,
        tensor_rows=1024,
        acc_rows=256,
        banks=2,
    )


class Log:
    """Serves the memory ports of ``dut`` and writes down what happens."""

    def __init__(self, dut, memories, rng, refuse):
        self.dut, self.memories, self.rng, self.refuse = dut, memories, rng, refuse
        self.events = Counter()
        self.accepted, self.done = [], []

    async def run(self, ctx):
        """Grant what is asked for, at random for A."""
        dut = self.dut
        data = Cat(Value.cast(port.data) for port in (dut.a, dut.w, dut.acc_read))
        shifts = [*itertools.accumulate(self.memories.widths[:2], initial=0)]
        for port in (dut.a, dut.w, dut.acc_read, dut.acc_write):
            ctx.set(port.ready, 1)
        ready, refused = 1, None
        ticks = ctx.tick().sample(
            dut.a.valid,
            dut.a.addr,
            dut.a.transpose,
            dut.w.valid,
            dut.w.addr,
            dut.w.transpose,
            dut.acc_read.valid,
            dut.acc_read.addr,
            dut.acc_write.valid,
            dut.acc_write.addr,
            Value.cast(dut.acc_write.data),
            Value.cast(dut.events),
            dut.cmd.valid & dut.cmd.ready,
            dut.done,
            dut.busy,
        )
        cycle = 0
        async for (
            _,
            _,
            a,
            a_addr,
            a_transpose,
            w,
            w_addr,
            w_transpose,
            read,
            read_addr,
            write,
            write_addr,
            row,
            events,
            accept,
            done,
            busy,
        ) in ticks:
            request = (a_addr, a_transpose) if a else None
            assert refused in (None, request), "a refused request changed"
            refused = None if ready else request
            rows = self.memories.cycle(
                request if ready else None,
                (w_addr, w_transpose) if w else None,
                read_addr if read else None,
                (write_addr, row) if write else None,
            )

            events = dut.events.shape().from_bits(events)
            self.events.update({name: events[name] for name in EVENTS})
            assert busy == (len(self.accepted) > len(self.done))
            if accept:
                self.accepted.append(cycle)
            if done:
                self.done.append(cycle)
            cycle += 1

            ctx.set(data, sum(row << shift for row, shift in zip(rows, shifts, strict=True)))
            ready = int(self.rng.random() >= self.refuse)
            ctx.set(dut.a.ready, ready)


def run(dut, commands, memories, *, rng, refuse=0.0, idle=0.0):
    """Execute ``commands`` and return the log."""
    log = Log(dut, Memories(dut.config, *memories, rng), rng, refuse)

    async def source(ctx):
        for command in commands:
            while rng.random() < idle:
                await ctx.tick()
            ctx.set(dut.cmd.payload, command)
            ctx.set(dut.cmd.valid, 1)
            await ctx.tick().until(dut.cmd.ready)
            ctx.set(dut.cmd.valid, 0)
            ctx.set(dut.cmd.payload, {"m": rng.getrandbits(16), "op2": rng.getrandbits(16)})

    async def watchdog(ctx):
        for _ in range(5000):
            await ctx.tick()
            if len(log.done) >= len(commands):
                break
        await ctx.tick().repeat(5)  # nothing may happen any more

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_process(source)
    simulator.add_process(log.run)
    simulator.add_testbench(watchdog)
    simulator.run()
    assert len(log.done) == len(log.accepted) == len(commands)
    return log


def check(commands, n, *, seed, exponents="usual", mantissa_bits=9, special=0.1, **stalls):
    """Run what ``commands`` draws on unit and model; compare accumulators and counters."""
    rng = random.Random(seed)
    dut = MatrixUnit(config(n, mantissa_bits))
    commands = commands(rng, dut.config)
    mantissa, exponent, acc = random_memories(
        rng, dut.config, EXPONENTS[exponents], special=special
    )
    expected, counters = acc.copy(), Counter()
    for command in commands:
        counters.update(matmul(command, mantissa, exponent, expected, dut.config))
    log = run(dut, commands, (mantissa, exponent, acc), rng=rng, **stalls)
    wrong = np.flatnonzero((acc != expected).any(axis=1))
    assert not len(wrong), f"rows {wrong} differ: {commands}"
    assert log.memories.traffic == traffic(commands, dut.config)
    for event, counter in {"macs": "macs", "row": "rows", "nonfinite": "nonfinite"}.items():
        assert log.events[event] == counters[counter], event
    return commands, log


@pytest.mark.parametrize("exponents", EXPONENTS)
@pytest.mark.parametrize(("refuse", "idle"), [(0, 0), (0.6, 0), (0.2, 0.95)])
def test_random_sequences(refuse, idle, exponents):
    check(
        lambda rng, config: [random_command(rng, config, largest=11) for _ in range(5)],
        4,
        seed=f"{refuse} {idle} {exponents}",
        exponents=exponents,
        refuse=refuse,
        idle=idle,
    )


@pytest.mark.parametrize(("n", "mantissa_bits"), [(4, 4), (8, 9), (8, 7)])
def test_other_sizes(n, mantissa_bits):
    check(
        lambda rng, config: [random_command(rng, config, largest=18) for _ in range(3)],
        n,
        seed=n,
        mantissa_bits=mantissa_bits,
        refuse=0.2,
    )


@pytest.mark.parametrize("refuse", [0, 0.7])
def test_no_row_comes_back_before_it_was_written(refuse):
    """Short tiles through several blocks, with rows held up in the middle."""
    check(
        lambda rng, config: [
            random_command(rng, config, m=m, k=9, c=5, accumulate=a)
            for m, a in zip((1, 2, 3, 5, 7, 8, 9), (0, 1) * 4, strict=False)
        ],
        4,
        seed=refuse,
        refuse=refuse,
        special=0,
    )


def test_accumulate_sees_the_instruction_before():
    def commands(rng, config):
        first = random_command(rng, config, m=9, k=4, c=4, accumulate=0)
        same = {"op2": first["op2"], "c": 4, "accumulate": 1}
        return [first, *(random_command(rng, config, m=m, k=4, **same) for m in (9, 1, 1, 9, 2))]

    check(commands, 4, seed=5, special=0)


@pytest.mark.parametrize("size", ["m", "k", "c"])
def test_empty_instructions_finish_in_order(size):
    def commands(rng, config):
        full = [random_command(rng, config, largest=9) for _ in range(3)]
        empty = {**random_command(rng, config), size: 0}
        return [empty, full[0], empty, empty, full[1], full[2], *[empty] * 8]

    check(commands, 4, seed=size, refuse=0.3)


@pytest.mark.parametrize(
    ("n", "m", "a_transpose", "w_transpose"),
    [
        (4, 8, 0, 0),
        (4, 8, 0, 1),
        (4, 8, 1, 0),
        (4, 3, 0, 0),
        (8, 8, 0, 0),
        (8, 11, 1, 1),
        (8, 5, 0, 0),
    ],
)
def test_cycles_of_one_instruction(n, m, a_transpose, w_transpose):
    (command,), log = check(
        lambda rng, config: [
            random_command(
                rng, config, m=m, k=n + 1, c=2 * n, a_transpose=a_transpose, w_transpose=w_transpose
            )
        ],
        n,
        seed=m,
    )
    taken = log.done[0] - log.accepted[0]
    assert taken == cycles(command, config(n))
    assert taken <= 4 * max(m, n, turnaround()) + 2 * n + 16
    assert log.events["stall"] == 0


@pytest.mark.parametrize(("n", "m"), [(4, 8), (4, 11), (8, 8)])
@pytest.mark.parametrize(("k", "c"), [(1, 1), (9, 5)])
def test_no_bubble_between_instructions(n, m, k, c):
    _, log = check(
        lambda rng, config: [
            random_command(rng, config, m=m, k=k, c=c, accumulate=0) for _ in range(4)
        ],
        n,
        seed=m,
    )
    rows = m * -(-k // n) * -(-c // n)
    assert log.events["row"] == 4 * rows
    assert log.done == [log.accepted[0] + rows * (i + 1) + 2 * n + 11 for i in range(4)]


def test_stalls_are_counted():
    """Every cycle from the first request to the last row is a row, a refusal or a weight wait."""
    _, log = check(
        lambda rng, config: [
            random_command(rng, config, m=10, k=8, c=8, accumulate=0) for _ in range(3)
        ],
        4,
        seed=1,
        refuse=0.5,
    )
    assert log.events["stall"] > 0
    active = log.done[-1] - log.accepted[0] - 2 * 4 - 9
    assert log.events["row"] + log.events["stall"] + log.events["stall_weights"] == active


def test_turnaround():
    assert turnaround() == TURNAROUND


@pytest.mark.rtl
@pytest.mark.parametrize(("n", "mantissa_bits"), [
    (8, 9), pytest.param(8, 8, marks=pytest.mark.long)])
def test_rtl(tmp_path, n, mantissa_bits):
    run_bench(
        MatrixUnit(config(n, mantissa_bits)),
        "tb.tb_matrix",
        tmp_path,
        seed=1,
        n=n,
        mantissa_bits=mantissa_bits,
    )
