"""Load unit: memory contents, stalls and errors of every kind, against the model by bits."""

import random

import pytest
from gradmill_hw.isa import Kind, Opcode
from gradmill_hw.memory import transfer_model
from gradmill_hw.regs import Error, Tier
from tb.transfers import (
    CONFIGS,
    OPEN,
    bfp_bits,
    first_failure,
    fp32_bits,
    mask_bits,
    new_memory,
    new_state,
    random_transfer,
    runs,
)
from tests.transfer_bench import TransferBench


def rows_of(config, state, kind):
    """Bits of every row on chip."""
    if kind == Kind.FP32:
        return [fp32_bits(state, row) for row in range(len(state.acc))]
    if kind == Kind.BFP:
        return [bfp_bits(config, state, row) for row in range(len(state.mantissa))]
    return [mask_bits(state, row) for row in range(len(state.mask))]


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs(name, stall):
    config, rng = CONFIGS[name], random.Random(f"{name} {stall}")
    memory, state = new_memory(rng), new_state(config, rng)
    before = {kind: rows_of(config, state, kind) for kind in Kind}
    commands = [random_transfer(config, rng) for _ in range(12)]
    bench = TransferBench(config, Opcode.LOAD, memory, seed=1, stall=stall).run(commands)

    assert bench.results == [(Error.NONE, 0)] * len(commands)
    traffic = {}
    for command in commands:
        key = command["tier"], command["cls"]
        size = transfer_model.load(config, command, memory, state, OPEN)
        traffic[key] = traffic.get(key, 0) + size
    assert bench.traffic == traffic
    for tier in Tier:
        size = sum(size for key, size in traffic.items() if key[0] == tier)
        assert bench.tiers[tier].read_beats * config.beat_bytes == size
    for kind in Kind:
        rows = before[kind]
        for row, bits in bench.written[kind].items():
            rows[row] = bits
        assert rows == rows_of(config, state, kind)


def expected_rows(config, memory, commands):
    """Rows on chip after ``commands``, by kind, only those written."""
    state = new_state(config, random.Random(0))
    rows = {kind: {} for kind in Kind}
    for command in commands:
        transfer_model.load(config, command, memory, state, OPEN)
        for row in rows_touched(command):
            kind = command["kind"]
            rows[kind][row] = (
                fp32_bits(state, row)
                if kind == Kind.FP32
                else mask_bits(state, row)
                if kind == Kind.MASK
                else bfp_bits(config, state, row)
            )
    return rows


def rows_touched(command):
    return [row + k for _, row in runs(command) for k in range(command["run"])]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["nano", "sim"])
def test_bus_errors(name, seed):
    config, rng = CONFIGS[name], random.Random(f"{name} {seed}")
    memory = new_memory(rng)
    commands = [random_transfer(config, rng, largest=12) for _ in range(6)]
    victim = rng.choice(commands)
    mem, _ = rng.choice(list(runs(victim)))
    size = config.run_bytes(victim["kind"].name.lower(), victim["run"])
    bad = [set(), set()]
    bad[victim["tier"]].add(rng.randrange(mem, mem + size, config.beat_bytes))
    stall = rng.choice([0, 0.3])
    bench = TransferBench(config, Opcode.LOAD, memory, seed=seed, stall=stall, bad=bad)
    bench.run(commands)

    index, mem = first_failure(config, commands, bad)
    assert bench.results == [(Error.NONE, 0)] * index + [(Error.BUS_READ, mem)]
    # Complete before the bad instruction, nothing behind the bad run, nothing with bad bits.
    before = expected_rows(config, memory, commands[:index])
    through = expected_rows(config, memory, commands[: index + 1])
    for kind in Kind:
        assert before[kind].keys() <= bench.written[kind].keys() <= through[kind].keys()
        for row, bits in bench.written[kind].items():
            assert bits in (before[kind].get(row), through[kind][row])
    # What was requested was drained.
    assert sum(bench.traffic.values()) == config.beat_bytes * sum(
        tier.read_beats for tier in bench.tiers
    )


@pytest.mark.parametrize("seed", range(6))
def test_refusals_keep_order(seed):
    config, rng = CONFIGS["sim"], random.Random(seed)
    memory = new_memory(rng)
    commands = [random_transfer(config, rng, largest=12) for _ in range(4)]
    wrong, error = [
        ({"kind": 3}, Error.KIND),
        ({"codec": 1}, Error.CODEC),
        ({"count1": 0}, Error.COUNT),
        ({"mem_stride2": 33}, Error.ALIGNMENT),
        ({"mem": 1 << 39}, Error.WINDOW),
        ({"run": 0, "mem": 8}, Error.COUNT),
    ][seed]
    index = rng.randrange(4)
    commands[index] = {**commands[index], **wrong}
    bench = TransferBench(config, Opcode.LOAD, memory, seed=seed, stall=0.2).run(commands)
    assert bench.results == [(Error.NONE, 0)] * index + [(error, commands[index]["mem"])]
    assert bench.written == expected_rows(config, memory, commands[:index])


@pytest.mark.parametrize("seed", range(4))
def test_abort_and_go_on(seed):
    config, rng = CONFIGS["sim"], random.Random(seed)
    memory = new_memory(rng)
    commands = [random_transfer(config, rng, largest=12) for _ in range(4)]
    bench = TransferBench(config, Opcode.LOAD, memory, seed=seed, stall=0.3)
    bench.run(commands, abort_at=rng.randrange(400), hold=seed % 2, then=commands)
    assert bench.results == [(Error.NONE, 0)] * len(commands)
    assert bench.written == expected_rows(config, memory, commands)


def test_abort_ends_a_long_instruction():
    """Only what was requested is drained: far from all of it."""
    config, rng = CONFIGS["sim"], random.Random(0)
    command = random_transfer(config, rng, kind=Kind.FP32) | {
        "mem": 0,
        "op0": 0,
        "run": 8,
        "count0": 8,
        "count1": 8,
        "count2": 8,
        "mem_stride0": 256,
        "mem_stride1": 2048,
        "mem_stride2": 2048,
        "row_stride0": 8,
        "row_stride1": 64,
        "row_stride2": 64,
    }
    bench = TransferBench(config, Opcode.LOAD, new_memory(rng))
    bench.run([command], abort_at=100)
    assert bench.results == []
    assert 0 < sum(bench.traffic.values()) < 256 * 40


def test_small_runs_fill_the_bus():
    """256-byte runs, a stride apart, from a memory 20 cycles away: 90 % of the beats."""
    config, rng = CONFIGS["sim"], random.Random(0)
    command = random_transfer(config, rng, kind=Kind.FP32) | {
        "mem": 0,
        "op0": 0,
        "run": 8,
        "count0": 8,
        "count1": 8,
        "count2": 1,
        "mem_stride0": 512,
        "mem_stride1": 4096,
        "row_stride0": 8,
        "row_stride1": 64,
    }
    bench = TransferBench(config, Opcode.LOAD, new_memory(rng), latency_cycles=20).run([command])
    beats = 8 * 8 * 8
    assert beats / (bench.cycles - 50 - 20) >= 0.9


def test_runs_wait_in_both_tiers():
    """More runs than the unit remembers are on their way before the first beat arrives."""
    config, rng = CONFIGS["sim"], random.Random(0)
    memory = new_memory(rng)
    commands = [
        random_transfer(config, rng, kind=Kind.FP32)
        | {
            "tier": tier,
            "mem": 0,
            "op0": 64 * tier,
            "run": 1,
            "count0": 20,
            "count1": 1,
            "count2": 1,
            "mem_stride0": 4096 // 2,
            "row_stride0": 2,
        }
        for tier in Tier
    ]
    bench = TransferBench(config, Opcode.LOAD, memory, latency_cycles=150).run(commands)
    assert bench.results == [(Error.NONE, 0)] * len(commands)
    assert bench.written == expected_rows(config, memory, commands)
