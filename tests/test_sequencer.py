"""Fetch and sequencer against the model, on random programs."""

import random

import pytest
from amaranth import *
from amaranth.lib.wiring import connect
from amaranth.sim import Simulator
from gradmill_hw.config import NANO
from gradmill_hw.control.fetch import Fetch
from gradmill_hw.control.sequencer import Sequencer, illegal
from gradmill_hw.isa import (
    CHAIN_QUEUES,
    INSTRUCTION_BYTES,
    INSTRUCTIONS,
    TILE_QUEUES,
    Opcode,
    encode,
)
from gradmill_hw.regs import ARGUMENTS, REGS, Error
from gradmill_hw.sequencer_model import SequencerFault, commands

from tb.control_programs import command_bits, random_fields, random_program
from tests.control_bench import serve_reads


BUSES = {
    32: NANO,
    128: NANO.replace(bus_bits=128),
    512: NANO.replace(n=16, bus_bits=512, burst_beats=16),
    1024: NANO.replace(n=32, bus_bits=1024, burst_beats=16),
}


class FrontEnd(Elaboratable):
    def __init__(self, config):
        self.fetch = Fetch(config)
        self.sequencer = Sequencer()

    def elaborate(self, platform):
        m = Module()
        m.submodules.fetch = self.fetch
        m.submodules.sequencer = self.sequencer
        connect(m, self.fetch.o, self.sequencer.i)
        connect(m, self.sequencer.jump, self.fetch.jump)
        return m


def run(
    config,
    memory,
    start,
    *,
    rng,
    arguments=(0,) * ARGUMENTS,
    stall_in=0.0,
    stall_out=0.0,
    latency=5,
    windows=None,
    bad=(),
    runs=1,
    cycles=40000,
):
    """Dispatched ``(pc, opcode queue, wait, post, command bits)``, the end and the cycles."""
    dut = FrontEnd(config)
    got, result = [], {}

    async def host(ctx):
        sequencer = dut.sequencer
        for k, (low, high, read) in enumerate(windows or [(0, len(memory), 1)]):
            ctx.set(dut.fetch.windows[k], {"base": low, "limit": high, "read": read, "write": 0})
        ctx.set(sequencer.arguments.valid, 1)
        for k, value in enumerate(arguments):
            for half in range(2):
                address = REGS[f"argument{k}_lo"].offset // 4 + half
                ctx.set(sequencer.arguments.addr, address)
                ctx.set(sequencer.arguments.data, value >> 32 * half & 0xFFFF_FFFF)
                await ctx.tick()
        ctx.set(sequencer.arguments.valid, 0)
        for _ in range(runs):
            ctx.set(sequencer.program, start // INSTRUCTION_BYTES)
            ctx.set(sequencer.start, 1)
            await ctx.tick()
            ctx.set(sequencer.start, 0)
            got.clear()
            for cycle in range(cycles):
                _, _, done, fault, pc = await ctx.tick().sample(
                    sequencer.done, sequencer.fault, sequencer.pc
                )
                if done or fault:
                    result.update(fault=fault, pc=pc * INSTRUCTION_BYTES, cycles=cycle)
                    break
            else:
                raise AssertionError(f"not finished after {cycles} cycles")

    async def queues(ctx):
        o = dut.sequencer.o
        busy = 0
        while True:
            ctx.set(o.ready, rng.random() >= stall_out)
            _, _, valid, ready, item = await ctx.tick().sample(o.valid, o.ready, o.payload)
            if valid and ready:
                got.append(
                    (
                        item.pc * INSTRUCTION_BYTES,
                        item.queue,
                        item.wait,
                        item.post,
                        item.command.as_bits(),
                    )
                )
                busy = rng.randrange(1, 6)
            busy = max(0, busy - 1)
            ctx.set(dut.sequencer.queues_empty, busy == 0)

    async def near(ctx):
        await serve_reads(
            ctx,
            dut.fetch.client,
            memory,
            rng,
            beat_bytes=config.beat_bytes,
            latency=latency,
            stall=stall_in,
            bad=bad,
        )

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(host)
    sim.add_testbench(queues, background=True)
    sim.add_testbench(near, background=True)
    sim.run()
    return got, result


def expect(memory, start, limit, arguments, queues=TILE_QUEUES):
    """What the model says, in the form of :func:`run`."""
    want, fault, pc = [], Error.NONE, None
    try:
        for command in commands(memory[start:limit], arguments, start, queues):
            width = sum(f.width for f in INSTRUCTIONS[command.opcode].body) + 8 + 5 * 16 + 40
            want.append(
                (
                    command.pc,
                    command.opcode.queue,
                    command.fields["wait"],
                    command.fields["post"],
                    command_bits(command),
                    width,
                )
            )
    except SequencerFault as refusal:
        fault, pc = refusal.error, refusal.pc
    return want, fault, pc


def check(got, result, memory, start, limit, arguments=(0,) * ARGUMENTS):
    want, fault, pc = expect(memory, start, limit, arguments)
    assert len(got) == len(want)
    for one, (*head, bits, width) in zip(got, want, strict=True):
        assert list(one[:4]) == head
        assert one[4] & (1 << width) - 1 == bits
    assert result["fault"] == fault
    assert fault == Error.NONE or result["pc"] == pc


@pytest.mark.parametrize("bus_bits", BUSES)
@pytest.mark.parametrize("stall_in, stall_out", [(0.0, 0.0), (0.0, 0.7), (0.3, 0.3)])
def test_random_programs(bus_bits, stall_in, stall_out):
    config = BUSES[bus_bits]
    for seed in range(2):
        print("seed", seed)
        rng = random.Random(seed)
        raw = b"".join(random_program(rng))
        start = rng.randrange(4) * INSTRUCTION_BYTES
        memory = rng.randbytes(start) + raw
        memory += rng.randbytes(-len(memory) % config.beat_bytes + 3 * config.beat_bytes)
        arguments = [rng.getrandbits(40) for _ in range(ARGUMENTS)]
        got, result = run(
            config,
            memory,
            start,
            rng=rng,
            arguments=arguments,
            runs=2,
            stall_in=stall_in,
            stall_out=stall_out,
            latency=rng.randrange(20),
        )
        check(got, result, memory, start, len(memory), arguments)


def line(opcode, **fields):
    return encode(opcode, **fields)


HALT = line(Opcode.HALT)
SPACER = line(Opcode.LOAD, layer=7, op0=9)


def with_bit(raw, bit):
    return (int.from_bytes(raw, "little") | 1 << bit).to_bytes(INSTRUCTION_BYTES, "little")


def judgements(queues):
    """Instructions, and whether the first look of a tile with ``queues`` calls them illegal."""
    yield "opcode", bytes([0x70]) + HALT[1:], 1
    yield "opcode zero", bytes(INSTRUCTION_BYTES), 1
    for opcode, layout in INSTRUCTIONS.items():
        fields = {"LOOP": {"count": 1}, "BASE": {"register": 1}}.get(opcode.name, {})
        raw = line(opcode, **fields)
        strange = opcode.queue is not None and opcode.queue not in queues
        yield f"plain {opcode.name}", raw, strange
        for lsb, field in layout.items():
            if field.name.startswith("reserved"):
                for bit in range(lsb, lsb + field.width):
                    yield f"reserved bit {bit} {opcode.name}", with_bit(raw, bit), 1
        for bit in range(16):
            other = bit // 2 in queues and bit // 2 != opcode.queue is not None
            for name, lsb in (("wait", 8), ("post", 24)):
                yield f"{name} {bit} {opcode.name}", with_bit(raw, lsb + bit), \
                    strange or not other
    yield "count", line(Opcode.LOOP, count=0), 1
    yield "register", line(Opcode.BASE, register=0), 1
    for argument in range(16):
        yield "argument", line(Opcode.BASE, register=1, argument=argument), argument > 8
    for name, last in (
        ("add_source", 4),
        ("add_op", 4),
        ("function", 4),
        ("mask", 2),
        ("alternative", 2),
        ("mul", 3),
    ):
        width = next(f.width for f in INSTRUCTIONS[Opcode.VECTOR].body if f.name == name)
        for value in range(1 << width):
            yield f"{name} {value}", line(Opcode.VECTOR, **{name: value}), value > last
    yield "kind is the unit's", line(Opcode.LOAD, kind=7, codec=255), 0


@pytest.mark.parametrize("queues", [TILE_QUEUES, CHAIN_QUEUES], ids=["alone", "chain"])
def test_illegal(queues):
    """The circuit's judgement of one instruction, and the model's."""
    m = Module()
    word = Signal(8 * INSTRUCTION_BYTES)
    wrong = Signal()
    m.d.comb += wrong.eq(illegal(word, queues))

    async def bench(ctx):
        for name, raw, expected in judgements(queues):
            ctx.set(word, int.from_bytes(raw, "little"))
            assert ctx.get(wrong) == expected, name
            _, fault, _ = expect(raw, 0, INSTRUCTION_BYTES, (0,) * ARGUMENTS, queues)
            assert (fault == Error.ILLEGAL_INSTRUCTION) == expected, name

    sim = Simulator(m)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize(
    "name, program, error",
    [
        ("illegal", [bytes(INSTRUCTION_BYTES)], Error.ILLEGAL_INSTRUCTION),
        ("nesting", [line(Opcode.LOOP, count=2)] * 5, Error.LOOP),
        ("next", [line(Opcode.NEXT)], Error.LOOP),
        ("halt in a loop", [line(Opcode.LOOP, count=9)], Error.NONE),
    ],
)
def test_refusals(name, program, error):
    memory = b"".join([SPACER, *program, HALT, HALT])
    got, result = run(NANO.replace(bus_bits=128), memory, 0, rng=random.Random(1), latency=0)
    assert result["fault"] == error
    check(got, result, memory, 0, len(memory))


@pytest.mark.parametrize(
    "windows, fault, pc",
    [
        ([(0, 256, 1)], Error.NONE, None),
        ([(0, 256, 0)], Error.FETCH, 64),
        ([(0, 255, 1)], Error.FETCH, 192),
        ([(0, 64, 1)], Error.FETCH, 64),
        ([(65, 256, 1)], Error.FETCH, 64),
        ([(0, 0, 0), (64, 192, 1), (0, 256, 1)], Error.FETCH, 192),
        ([(0, 0, 0), (0, 256, 0), (0, 64, 1), (64, 256, 1)], Error.NONE, None),
    ],
)
def test_windows(windows, fault, pc):
    memory = bytes(64) + SPACER + SPACER + HALT
    got, result = run(BUSES[128], memory, 64, rng=random.Random(1), windows=windows)
    assert result["fault"] == fault
    assert fault == Error.NONE or result["pc"] == pc
    assert len(got) == (2 if pc is None else pc // 64 - 1)


@pytest.mark.parametrize("bus_bits", BUSES)
def test_bus_errors(bus_bits):
    """An error stops the program when its turn comes, and only then."""
    config = BUSES[bus_bits]
    memory = SPACER * 4 + HALT + bytes(7 * 64)
    for address in random.Random(bus_bits).sample(range(0, 7 * 64, config.beat_bytes), 3):
        got, result = run(config, memory, 0, rng=random.Random(1), bad={address})
        first = address // 64
        assert len(got) == min(first, 4)
        assert result["fault"] == (Error.FETCH if first <= 4 else Error.NONE)
        assert first > 4 or result["pc"] == 64 * first


def test_address_beyond_the_bus():
    config = NANO.replace(bus_bits=128, address_bits=32)
    memory = HALT * 2
    _, result = run(config, memory, 1 << 32, rng=random.Random(1))
    assert result["fault"] == Error.FETCH


def test_throughput():
    """One instruction every four cycles at a latency of 30 cycles."""
    config = NANO.replace(n=8, bus_bits=256)
    rng = random.Random(1)
    memory = b"".join(line(Opcode.LOAD, **random_fields(rng, Opcode.LOAD)) for _ in range(127))
    memory += HALT
    _, result = run(config, memory, 0, rng=rng, latency=30)
    print(result["cycles"], "cycles for 128 instructions")
    assert result["cycles"] < 4 * 128 + 60
