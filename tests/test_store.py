"""Store unit: every byte of memory against the model, under stalls and errors."""

import random

import numpy as np
import pytest
from gradmill_hw.isa import Kind, Opcode
from gradmill_hw.memory import transfer_model
from gradmill_hw.regs import Error, Tier
from tb.transfers import (
    CONFIGS,
    OPEN,
    first_failure,
    new_memory,
    new_state,
    random_transfer,
    runs,
)
from tests.transfer_bench import TransferBench


def copies(memory):
    return [tier.copy() for tier in memory]


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs(name, stall):
    config, rng = CONFIGS[name], random.Random(f"{name} {stall}")
    memory, state = new_memory(rng), new_state(config, rng)
    expected = copies(memory)
    commands = [random_transfer(config, rng) for _ in range(12)]
    bench = TransferBench(config, Opcode.STORE, memory, state, seed=1, stall=stall).run(commands)

    assert bench.results == [(Error.NONE, 0)] * len(commands)
    traffic = {}
    for command in commands:
        key = command["tier"], command["cls"]
        size = transfer_model.store(config, command, expected, state, OPEN).bytes
        traffic[key] = traffic.get(key, 0) + size
    assert bench.traffic == traffic
    for tier in Tier:
        size = sum(size for key, size in traffic.items() if key[0] == tier)
        assert bench.tiers[tier].write_beats * config.beat_bytes == size
        # Canaries are everywhere: bytes between runs and behind them keep their value.
        assert np.array_equal(memory[tier], expected[tier])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["nano", "sim"])
def test_bus_errors(name, seed):
    config, rng = CONFIGS[name], random.Random(f"{name} {seed}")
    memory, state = new_memory(rng), new_state(config, rng)
    commands = [random_transfer(config, rng, largest=12) for _ in range(6)]
    victim = rng.choice(commands)
    mem, _ = rng.choice(list(runs(victim)))
    size = config.run_bytes(victim["kind"].name.lower(), victim["run"])
    bad = [set(), set()]
    bad[victim["tier"]].add(rng.randrange(mem, mem + size, config.beat_bytes))
    before = copies(memory)
    bench = TransferBench(
        config, Opcode.STORE, memory, state, seed=seed, bad=bad, stall=rng.choice([0, 0.3])
    ).run(commands)

    index, mem = first_failure(config, commands, bad)
    assert bench.results == [(Error.NONE, 0)] * index + [(Error.BUS_WRITE, mem)]
    # Every byte is as it was or as some instruction wrote it; those before are complete.
    candidates = [before]
    for command in commands:
        candidates.append(copies(candidates[-1]))
        transfer_model.store(config, command, candidates[-1], state, OPEN)
    for tier in Tier:
        written = np.any([memory[tier] == c[tier] for c in candidates], axis=0)
        assert written.all()
        settled = np.all([candidates[index][tier] == c[tier] for c in candidates[index:]], axis=0)
        assert np.array_equal(memory[tier][settled], candidates[index][tier][settled])
    assert sum(bench.traffic.values()) == config.beat_bytes * sum(
        tier.write_beats for tier in bench.tiers
    )


@pytest.mark.parametrize("seed", range(6))
def test_refusals_keep_order(seed):
    config, rng = CONFIGS["sim"], random.Random(seed)
    memory, state = new_memory(rng), new_state(config, rng)
    expected = copies(memory)
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
    bench = TransferBench(config, Opcode.STORE, memory, state, seed=seed, stall=0.2).run(commands)
    assert bench.results == [(Error.NONE, 0)] * index + [(error, commands[index]["mem"])]
    for command in commands[:index]:
        transfer_model.store(config, command, expected, state, OPEN)
    for tier in Tier:
        assert np.array_equal(memory[tier], expected[tier])


@pytest.mark.parametrize("seed", range(4))
def test_abort_and_go_on(seed):
    config, rng = CONFIGS["sim"], random.Random(seed)
    memory, state = new_memory(rng), new_state(config, rng)
    expected = copies(memory)
    commands = [random_transfer(config, rng, largest=12) for _ in range(4)]
    bench = TransferBench(config, Opcode.STORE, memory, state, seed=seed, stall=0.3)
    bench.run(commands, abort_at=rng.randrange(400), hold=seed % 2, then=commands)
    assert bench.results == [(Error.NONE, 0)] * len(commands)
    for command in commands:
        transfer_model.store(config, command, expected, state, OPEN)
    for tier in Tier:
        assert np.array_equal(memory[tier], expected[tier])


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
    bench = TransferBench(config, Opcode.STORE, new_memory(rng), new_state(config, rng))
    bench.run([command], abort_at=100)
    assert bench.results == []
    assert 0 < sum(bench.traffic.values()) < 256 * 40


def test_small_runs_fill_the_bus():
    """256-byte runs, a stride apart: 90 % of the beats."""
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
    bench = TransferBench(
        config, Opcode.STORE, new_memory(rng), new_state(config, rng), latency_cycles=20
    ).run([command])
    beats = 8 * 8 * 8
    assert beats / (bench.cycles - 50 - 20) >= 0.9
