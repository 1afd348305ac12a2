"""The whole control path between a host, a memory and fake units that take their time."""

import random
from collections import Counter

import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, get_config
from gradmill_hw.control.control import ControlPath
from gradmill_hw.isa import INSTRUCTION_BYTES, Class, Kind, Opcode, Queue, encode, token
from gradmill_hw.regs import (
    ARGUMENTS,
    REGS,
    SEMAPHORE_MAX,
    SEQUENCER,
    TILE_QUEUES,
    UNLOCKED,
    WINDOWS,
    Error,
    Tier,
)
from gradmill_hw.sequencer_model import commands

from tb.control_programs import command_bits, random_chain, random_program
from tb.run import run_bench
from tests.control_bench import Host, queue_name, serve_reads


CONFIG = NANO.replace(bus_bits=128, queue_depth=4)


class Bench:
    """Control path with units that take commands when they like and end them when they like.

    ``fail`` maps ``(queue, number)`` to the error with which that command ends.
    """

    def __init__(self, seed, program, *, origin=0, stall=0.3, slow=12, fail=None, hang=()):
        self.rng = random.Random(seed)
        self.dut = ControlPath(CONFIG)
        self.memory = bytes(origin) + b"".join(program)
        self.memory += bytes(8 * INSTRUCTION_BYTES)
        self.origin, self.stall, self.slow = origin, stall, slow
        self.fail, self.hang = fail or {}, hang
        self.taken = {queue: [] for queue in TILE_QUEUES}
        self.ended = Counter()
        self.running = Counter()
        self.tokens = Counter()
        self.masks = {queue: [] for queue in TILE_QUEUES}
        self.resets = 0

    def expect(self, arguments=(0,) * ARGUMENTS):
        """Commands of each queue by the model; remembers their semaphores."""
        want = {queue: [] for queue in TILE_QUEUES}
        for command in commands(self.memory[self.origin :], arguments, self.origin):
            want[command.opcode.queue].append((command.pc, command_bits(command)))
            self.masks[command.opcode.queue].append(
                (command.fields["wait"], command.fields["post"])
            )
        return want

    async def unit(self, ctx, queue):
        """Takes up to three commands at a time and ends them in order."""
        cmd = getattr(self.dut, f"{queue_name(queue)}_cmd")
        end = getattr(self.dut, f"{queue_name(queue)}_end")
        rng, left, number = self.rng, [], 0
        while True:
            ready = len(left) < 3 and rng.random() >= self.stall
            ctx.set(cmd.ready, ready)
            left = [max(0, k - 1) for k in left]
            done = bool(left) and left[0] == 0 and (queue, number) not in self.hang
            error = self.fail.get((queue, number), Error.NONE) if done else Error.NONE
            ctx.set(end.done, done)
            ctx.set(end.error, error)
            ctx.set(end.address, 0x12_3456_7890 if error else 0)
            _, _, valid, payload, abort = await ctx.tick().sample(
                cmd.valid, cmd.payload, self.dut.abort
            )
            if done:
                left.pop(0)
                self.running[queue] -= 1
                if not error:
                    self.ended[queue] += 1
                    if self.masks[queue]:
                        self.post(queue, number)
                number += 1
            if valid and ready:
                if self.masks[queue]:
                    self.take(queue, len(self.taken[queue]))
                self.taken[queue].append(payload.as_bits())
                left.append(rng.randrange(1, self.slow))
                self.running[queue] += 1
            if abort:
                left, number = [], 0
                self.running[queue] = 0
                self.taken[queue].clear()

    def take(self, queue, number):
        wait = self.masks[queue][number][0]
        for bit in range(16):
            if wait >> bit & 1:
                self.tokens[bit // 2, queue, bit % 2] -= 1
                assert self.tokens[bit // 2, queue, bit % 2] >= 0

    def post(self, queue, number):
        post = self.masks[queue][number][1]
        for bit in range(16):
            if post >> bit & 1:
                self.tokens[queue, bit // 2, bit % 2] += 1

    async def near(self, ctx):
        await serve_reads(
            ctx,
            self.dut.fetch,
            self.memory,
            self.rng,
            stall=self.stall,
            beat_bytes=CONFIG.beat_bytes,
        )

    async def set_up(self, host):
        await host.write_pair("near_window0_base", 0)
        await host.write_pair("near_window0_limit", len(self.memory))
        await host.write("near_window0_control", read=1)
        await host.write_pair("program", self.origin)
        await host.write("irq_enable", done=1, error=1)

    async def until_irq(self, ctx, cycles=20000):
        for _ in range(cycles):
            if ctx.get(self.dut.irq):
                return
            await ctx.tick()
        raise AssertionError(f"no interrupt in {cycles} cycles")

    def run(self, scenario):
        """Run ``scenario(ctx, host)`` to its end."""

        async def main(ctx):
            await scenario(ctx, Host(ctx, self.dut.bus, self.rng))

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(main)
        sim.add_testbench(self.near, background=True)
        for queue in TILE_QUEUES:

            async def unit(ctx, queue=queue):
                await self.unit(ctx, queue)

            sim.add_testbench(unit, background=True)
        sim.run()

    def check(self, want):
        for queue in TILE_QUEUES:
            got = self.taken[queue]
            for one, (_, bits) in zip(got, want[queue], strict=True):
                assert one == bits


@pytest.mark.parametrize("seed", range(3))
def test_random_programs(seed):
    """Twice the same program: order, contents, semaphores, counters."""
    rng = random.Random(seed)
    program = random_program(rng, command=random_chain, length=10)
    bench = Bench(
        seed,
        program,
        origin=64 * rng.randrange(3),
        stall=rng.choice([0, 0.3, 0.6]),
        slow=rng.choice([2, 12]),
    )
    arguments = [rng.getrandbits(40) for _ in range(ARGUMENTS)]
    want = bench.expect(arguments)
    for queue in TILE_QUEUES:
        bench.masks[queue] *= 2
        want[queue] *= 2

    async def scenario(ctx, host):
        await bench.set_up(host)
        for k, value in enumerate(arguments):
            await host.write_pair(f"argument{k}", value)
        for _ in range(2):
            await host.write("ctrl", start=1)
            assert (await host.read("status"))["busy"]
            await bench.until_irq(ctx)
            assert await host.read("status") == {
                "busy": 0,
                "done": 1,
                "error": 0,
                "resetting": 0,
                "locked": 0,
            }
            await host.write("irq_status", done=1)
            await host.write("status", done=1)
            assert not (await host.read("status"))["done"]
        for queue in TILE_QUEUES:
            name = f"counter_instructions_{queue_name(queue)}"
            assert await host.read_pair(name) == len(want[queue])
        executed = await host.read_pair("counter_near_read_command_bytes") // 64
        assert executed >= sum(map(len, want.values())) + 2
        assert await host.read_pair("counter_cycles") > executed
        await host.write("ctrl", clear_counters=1)
        await ctx.tick().repeat(40)
        assert await host.read_pair("counter_near_read_command_bytes") == 0
        assert await host.read_pair("counter_cycles") == 0
        assert await host.read("error") == {"code": 0, "queue": 0}

    bench.run(scenario)
    bench.check(want)
    assert bench.ended == {queue: len(want[queue]) for queue in TILE_QUEUES if want[queue]}
    assert not any(bench.tokens.values())


@pytest.mark.parametrize("seed", range(4))
def test_unit_error(seed):
    """The error is named, what was started ends, nothing starts; after a reset all is well."""
    rng = random.Random(seed)
    lines = []
    while len(lines) < 40:
        lines += random_chain(rng)
    program = [*lines, encode(Opcode.HALT)]
    queue = TILE_QUEUES[seed]
    bench = Bench(seed, program, fail={(queue, 3): Error.WINDOW}, slow=60)
    want = bench.expect()
    assert len(want[queue]) > 3

    async def scenario(ctx, host):
        await bench.set_up(host)
        await host.write("ctrl", start=1)
        await bench.until_irq(ctx)
        others = [q for q in TILE_QUEUES if q != queue]
        assert not any(bench.running[q] for q in others)
        assert await host.read("irq_status") == {"done": 0, "error": 1}
        status = await host.read("status")
        assert status["error"] and not status["busy"] and not status["done"]
        assert await host.read("error") == {"code": Error.WINDOW, "queue": queue}
        assert await host.read_pair("error_pc") == want[queue][3][0]
        assert await host.read_pair("error_address") == 0x12_3456_7890
        counts = {q: len(bench.taken[q]) for q in TILE_QUEUES}
        await ctx.tick().repeat(100)
        assert counts == {q: len(bench.taken[q]) for q in TILE_QUEUES}
        await host.write("ctrl", start=1)
        assert not (await host.read("status"))["busy"]

        await host.write("ctrl", soft_reset=1)
        while (await host.read("status"))["busy"]:
            pass
        bench.fail.clear()
        bench.tokens.clear()
        assert await host.read("error") == {"code": 0, "queue": 0}
        assert (await host.read("irq_status"))["error"]
        await host.write("irq_status", error=1)
        await host.write("ctrl", start=1)
        await bench.until_irq(ctx)
        assert (await host.read("status"))["done"]

    bench.run(scenario)
    bench.check(want)


def test_reset_at_any_time():
    """A reset in the middle, again and again; the program then runs as if nothing had been."""
    rng = random.Random(1)
    bench = Bench(1, random_program(rng, command=random_chain, length=24))
    want = bench.expect()
    bench.masks = {queue: [] for queue in TILE_QUEUES}

    async def scenario(ctx, host):
        await bench.set_up(host)
        for _ in range(12):
            await host.write("ctrl", start=1)
            await ctx.tick().repeat(rng.randrange(rng.choice([30, 200])))
            ctx.set(bench.dut.bus_busy, 1)
            await host.write("ctrl", soft_reset=1)
            await ctx.tick().repeat(rng.randrange(60))
            status = await host.read("status")
            assert status["resetting"] and status["busy"]
            for queue in TILE_QUEUES:
                assert not ctx.get(getattr(bench.dut, f"{queue_name(queue)}_cmd").valid)
            ctx.set(bench.dut.bus_busy, 0)
            while (await host.read("status"))["busy"]:
                pass
            await host.write("irq_status", done=1)
        await host.write("ctrl", start=1)
        await bench.until_irq(ctx)
        assert (await host.read("status"))["done"]

    bench.run(scenario)
    bench.check(want)


def test_fence():
    """What follows a fence starts after everything before it has ended."""
    program = [
        *[encode(Opcode.LOAD)] * 3,
        encode(Opcode.FENCE),
        *[encode(Opcode.STORE)] * 2,
        encode(Opcode.HALT),
    ]
    bench = Bench(1, program, slow=60, stall=0)

    async def scenario(ctx, host):
        await bench.set_up(host)
        await host.write("ctrl", start=1)
        await ctx.tick().until(bench.dut.store_cmd.valid)
        assert bench.ended[Queue.LOAD] == 3
        await bench.until_irq(ctx)
        assert bench.ended[Queue.STORE] == 2

    bench.run(scenario)


def test_sequencer_error():
    good = encode(Opcode.LOAD)
    bench = Bench(1, [good] * 3 + [bytes(64)] + [good])
    bench.expect = None

    async def scenario(ctx, host):
        await bench.set_up(host)
        await host.write("ctrl", start=1)
        await bench.until_irq(ctx)
        assert await host.read("error") == {"code": Error.ILLEGAL_INSTRUCTION, "queue": SEQUENCER}
        assert await host.read_pair("error_pc") == 3 * 64
        assert not any(bench.running.values())

    bench.run(scenario)


def test_watchdog_names_the_waiting():
    """A load that never ends, a vector instruction that waits for it, a store for that."""
    program = [
        encode(Opcode.MATMUL),
        encode(Opcode.LOAD, post=token(Queue.VECTOR, 1)),
        encode(Opcode.VECTOR, wait=token(Queue.LOAD, 1), post=token(Queue.STORE)),
        encode(Opcode.STORE, wait=token(Queue.VECTOR) | token(Queue.MATRIX, 1)),
        encode(Opcode.HALT),
    ]
    bench = Bench(1, program, hang={(Queue.LOAD, 0)})

    async def scenario(ctx, host):
        await bench.set_up(host)
        await host.write("watchdog", value=200)
        await host.write("ctrl", start=1)
        await ctx.tick().repeat(190)
        assert not ctx.get(bench.dut.irq)
        await bench.until_irq(ctx, 200)
        assert await host.read("error") == {"code": Error.WATCHDOG, "queue": SEQUENCER}
        assert await host.read_pair("error_pc") == 4 * 64
        names = {
            "load": (64, 0, 1),
            "vector": (128, token(Queue.LOAD, 1), 0),
            "store": (192, token(Queue.VECTOR) | token(Queue.MATRIX, 1), 0),
        }
        for name, (pc, missing, started) in names.items():
            assert await host.read(f"waiting_{name}") == {
                "missing": missing,
                "valid": 1,
                "started": started,
            }
            assert await host.read_pair(f"waiting_{name}_pc") == pc
        assert not (await host.read("waiting_matrix"))["valid"]
        await host.write("ctrl", soft_reset=1)
        while (await host.read("status"))["busy"]:
            pass
        assert not (await host.read("waiting_load"))["valid"]

    bench.run(scenario)


def test_semaphore_overflow():
    """One post too many is an error of the instruction that posts."""
    program = [
        encode(Opcode.LOOP, count=(SEMAPHORE_MAX + 1) // 16),
        *[encode(Opcode.MATMUL, post=token(Queue.LOAD))] * 16,
        encode(Opcode.NEXT),
        encode(Opcode.HALT),
    ]
    bench = Bench(1, program, stall=0, slow=2)

    async def scenario(ctx, host):
        await bench.set_up(host)
        await host.write("ctrl", start=1)
        await bench.until_irq(ctx)
        assert await host.read("error") == {"code": Error.SEMAPHORE_OVERFLOW, "queue": Queue.MATRIX}
        assert await host.read_pair("error_pc") == 16 * 64
        assert bench.ended[Queue.MATRIX] == SEMAPHORE_MAX + 1

    bench.run(scenario)


def test_windows_scalars_and_counters():
    """What the host writes reaches the units, what the units tell reaches the host."""
    bench = Bench(1, [encode(Opcode.HALT)])
    dut, rng = bench.dut, random.Random(2)

    async def scenario(ctx, host):
        windows = {}
        for tier in Tier:
            for k in range(WINDOWS):
                name = f"{tier.name.lower()}_window{k}"
                base, limit = rng.getrandbits(40), rng.choice([1 << 40, rng.getrandbits(40)])
                bits = rng.getrandbits(2)
                windows[tier, k] = base, limit, bits & 1, bits >> 1
                await host.write_pair(f"{name}_base", base)
                await host.write_pair(f"{name}_limit", limit)
                await host.write(f"{name}_control", read=bits & 1, write=bits >> 1)
        for (tier, k), expected in windows.items():
            window = ctx.get(dut.windows[tier][k])
            assert (window.base, window.limit, window.read, window.write) == expected
        await host.write_pair("far_window1_limit", (1 << 40) + 1)
        await host.write("far_window1_control", read=1, write=1)
        assert not ctx.get(dut.windows[1][1].read) and not ctx.get(dut.windows[1][1].write)
        for k in range(8):
            await host.write(f"scalar{k}", value=k * 0x1111_1111)
            assert ctx.get(dut.scalars[k]) == k * 0x1111_1111
        await host.write("seed", value=5)
        await host.write("step", value=6)
        assert (ctx.get(dut.seed), ctx.get(dut.step)) == (5, 6)

        want = Counter()
        for _ in range(300):
            events = {
                name: rng.getrandbits(1)
                for name in (
                    "array_rows",
                    "matrix_stall",
                    "matrix_stall_weights",
                    "vector_rows",
                    "vector_stall",
                )
            }
            macs = rng.randrange(17)
            ctx.set(dut.events, events)
            ctx.set(dut.macs, macs)
            want.update(events, macs=macs)
            for direction, port in (("read", dut.load_traffic), ("write", dut.store_traffic)):
                tier, cls = rng.choice([*Tier]), rng.choice([*Class])
                count = rng.choice([0, 1, 1 << 10]) * CONFIG.beat_bytes
                ctx.set(port, {"bytes": count, "cls": cls, "tier": tier, "moved": 0, "stall": 0})
                want[f"{tier.name}_{direction}_{cls.name}_bytes".lower()] += count
            await ctx.tick()
        ctx.set(dut.events, {"matrix_nonfinite": 1})
        ctx.set(dut.macs, 0)
        for port in (dut.load_traffic, dut.store_traffic):
            ctx.set(port.bytes, 0)
        await ctx.tick()
        ctx.set(dut.events, {})
        for name, value in want.items():
            assert await host.read_pair(f"counter_{name}") == value, name
        assert await host.read("flags") == {
            "matrix_nonfinite": 1,
            "vector_nonfinite": 0,
            "saturated": 0,
        }
        await host.write("flags", matrix_nonfinite=1)
        assert not any((await host.read("flags")).values())

    bench.run(scenario)


def test_frozen_and_locked():
    """Job registers are frozen while busy; locked windows stay locked over a soft reset."""
    bench = Bench(1, [encode(Opcode.LOAD), encode(Opcode.HALT)], hang={(Queue.LOAD, 0)})

    async def scenario(ctx, host):
        await bench.set_up(host)
        assert await host.read("window_lock") == {"value": UNLOCKED}
        await host.write("ctrl", start=1)
        for name in (
            "seed",
            "scalar3",
            "argument7_hi",
            "near_window0_base_lo",
            "window_lock",
            "program_lo",
            "watchdog",
        ):
            assert await host.write_address(REGS[name].offset, 0) == 2, name
        assert await host.read_pair("near_window0_limit") == len(bench.memory)
        await host.write("irq_enable", done=0)
        await host.write("ctrl", soft_reset=1)
        while (await host.read("status"))["busy"]:
            pass
        await host.write("window_lock", value=0x5B)
        assert (await host.read("status"))["locked"]
        for name in ("near_window0_base_lo", "far_window3_control", "window_lock"):
            assert await host.write_address(REGS[name].offset, UNLOCKED) == 2, name
        await host.write("ctrl", soft_reset=1)
        while (await host.read("status"))["busy"]:
            pass
        assert (await host.read("status"))["locked"]
        assert ctx.get(bench.dut.windows[0][0].read)
        await host.write("seed", value=1)

    bench.run(scenario)


def test_kinds_are_the_units():
    """Row formats and codecs are passed on as they are."""
    bench = Bench(1, [encode(Opcode.LOAD, kind=7, codec=9), encode(Opcode.HALT)])
    want = bench.expect()
    assert len(want[Queue.LOAD]) == 1 and 7 not in [*Kind]

    async def scenario(ctx, host):
        await bench.set_up(host)
        await host.write("ctrl", start=1)
        await bench.until_irq(ctx)

    bench.run(scenario)
    bench.check(want)


@pytest.mark.rtl
@pytest.mark.parametrize("name", ["sim", pytest.param("nano", marks=pytest.mark.long)])
def test_under_verilator(tmp_path, name):
    run_bench(
        ControlPath(get_config(name)), "tb.tb_control", tmp_path, seed=1, config=name, jobs=15
    )
