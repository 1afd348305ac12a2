"""The whole control path between a host, a memory and fake units that take their time."""

import random
from collections import Counter

import pytest
from gradmill_hw.config import get_config
from gradmill_hw.control.control import ControlPath
from gradmill_hw.isa import TILE_QUEUES, Class, Kind, Opcode, Queue, encode, token
from gradmill_hw.regs import (
    ARGUMENTS,
    REGS,
    SEMAPHORE_MAX,
    SEQUENCER,
        UNLOCKED,
    WINDOWS,
    Error,
    Tier,
)

from tb.control_programs import random_chain, random_program
from tb.run import run_bench
from tests.control_bench import queue_name
from tests.control_units import CONFIG, Bench


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
            for direction, port in (("read", dut.read_traffic[0]), ("write", dut.write_traffic[0])):
                tier, cls = rng.choice([*Tier]), rng.choice([*Class])
                count = rng.choice([0, 1, 1 << 10]) * CONFIG.beat_bytes
                ctx.set(port, {"bytes": count, "cls": cls, "tier": tier, "moved": 0, "stall": 0})
                want[f"{tier.name}_{direction}_{cls.name}_bytes".lower()] += count
            await ctx.tick()
        ctx.set(dut.events, {"matrix_nonfinite": 1})
        ctx.set(dut.macs, 0)
        for port in (dut.read_traffic[0], dut.write_traffic[0]):
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
@pytest.mark.parametrize("name", ["tile", pytest.param("nano", marks=pytest.mark.long)])
def test_under_verilator(tmp_path, name):
    run_bench(
        ControlPath(get_config(name)), "tb.tb_control", tmp_path, seed=1, config=name, jobs=15
    )
