"""Loads and stores in stash formats: every format, stalls and errors, against the model by bits."""

import random

import numpy as np
import pytest
from gradmill_hw.config import CARD, NANO, TILE
from gradmill_hw.isa import Kind, Opcode
from gradmill_hw.memory import transfer_model
from gradmill_hw.regs import Error, Tier
from gradmill_hw.stash import codec_model
from gradmill_hw.stash.formats import Format, from_tag
from tb.stash_runs import blocks_of_rows
from tb.transfers import (
    MEMORY_BYTES,
    OPEN,
    TAGS,
    bfp_bits,
    encode_source,
    new_memory,
    new_state,
    random_transfer,
    runs,
)
from tests.transfer_bench import TransferBench


CODEC = TILE.replace(stash=True)
#: Beats of a word, of half and of a quarter; granules below and above a byte.
CONFIGS = {
    "nano": NANO.replace(stash=True),
    "edge": CODEC.replace(bus_bits=64),
    "sim": CODEC,
    "card": CARD,
}
#: All of them in `make regress`.
MOST = [pytest.param(name, marks=pytest.mark.long) if name == "sim" else name for name in CONFIGS]


def numbers(rng, config, rows):
    """Rows of block floating point, as training has them and odd ones."""
    return blocks_of_rows(
        np.random.default_rng(rng.getrandbits(32)), config.n, config.mantissa_bits, rows
    )


def apart(config, rng, commands):
    """The commands, each in its own quarter of the memory."""
    quarter = MEMORY_BYTES // 4
    for k, command in enumerate(commands):
        extent = max(mem for mem, _ in runs(command)) - command["mem"]
        extent += config.run_bytes(command["kind"].name.lower(), command["run"], command["codec"])
        start = quarter * (k % 4) + rng.randrange(0, quarter - extent + 1, config.beat_bytes)
        yield command | {"mem": start}


def one_run(config, rng, entry, rows, **fields):
    """A command of a single run of ``rows`` rows."""
    command = random_transfer(config, rng, kind=Kind.BFP)
    zero = {f"{name}_stride{d}": 0 for name in ("mem", "row") for d in range(3)}
    return command | zero | {
        "mem": 0, "op0": 0, "run": rows, "codec": entry.tag, "tier": 0, "count0": 1, "count1": 1,
        "count2": 1, "stochastic": 0, **fields,
    }  # fmt: skip


def store_all(config, commands, memory, state):
    """What the model does: traffic, rows encoded, outliers without room."""
    traffic, rows, saturated = {}, 0, 0
    for command in commands:
        key = command["tier"], command["cls"]
        stored = transfer_model.store(config, command, memory, state, OPEN)
        traffic[key] = traffic.get(key, 0) + stored.bytes
        rows += stored.rows
        saturated += stored.saturated
    return traffic, rows, saturated


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("name", MOST)
def test_random_stores(name, stall):
    config, rng = CONFIGS[name], random.Random(f"{name} {stall}")
    memory, state = new_memory(rng), new_state(config, rng)
    state.mantissa, state.exponent = numbers(rng, config, len(state.mantissa))
    expected = [tier.copy() for tier in memory]
    commands = [random_transfer(config, rng, coded=0.8) for _ in range(14)]
    bench = TransferBench(config, Opcode.STORE, memory, state, seed=1, stall=stall).run(commands)
    assert bench.results == [(Error.NONE, 0)] * len(commands)
    traffic, rows, saturated = store_all(config, commands, expected, state)
    for tier in Tier:
        assert np.array_equal(memory[tier], expected[tier])
    assert bench.traffic == traffic
    assert (bench.encoded, bench.saturated) == (rows, saturated) and rows


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("name", MOST)
def test_random_loads(name, stall):
    config, rng = CONFIGS[name], random.Random(f"{name} {stall}")
    memory, state = new_memory(rng), new_state(config, rng)
    for _ in range(2):
        commands = [random_transfer(config, rng, coded=0.8) for _ in range(4)]
        commands = list(apart(config, rng, commands))
        for command in commands:
            encode_source(config, command, memory, rng)
        bench = TransferBench(config, Opcode.LOAD, memory, state, seed=1, stall=stall)
        bench.run(commands)
        assert bench.results == [(Error.NONE, 0)] * len(commands)
        traffic = {}
        for command in commands:
            key = command["tier"], command["cls"]
            size = transfer_model.load(config, command, memory, state, OPEN)
            traffic[key] = traffic.get(key, 0) + size
        assert bench.traffic == traffic
        for row, bits in bench.written[Kind.BFP].items():
            assert bits == bfp_bits(config, state, row), row
        touched = {row + k for command in commands if command["kind"] == Kind.BFP
                   for _, row in runs(command) for k in range(command["run"])}  # fmt: skip
        assert set(bench.written[Kind.BFP]) == touched


@pytest.mark.parametrize("name", ["sim", pytest.param("card", marks=pytest.mark.long)])
def test_many_formats_there_and_back(name):
    """A long run of each, all through one unit without a pause."""
    config, rng = CONFIGS[name], random.Random(name)
    # Among them runs of several pieces, and values that are drawn.
    named = ("mx9/128", "nonuniform-lite/64", "bfp(8)/16", "nonuniform-normal+zeros/16")
    tags = [*rng.sample(TAGS, 8), *(Format.parse(name).tag for name in named)]
    memory, state = new_memory(rng), new_state(config, rng)
    state.mantissa, state.exponent = numbers(rng, config, len(state.mantissa))
    commands = [
        one_run(config, rng, from_tag(tag), 70, mem=k * 2048, op0=70 * k, stochastic=k % 2)
        for k, tag in enumerate(tags)
    ]
    expected = [tier.copy() for tier in memory]
    bench = TransferBench(config, Opcode.STORE, memory, state).run(commands)
    assert bench.results == [(Error.NONE, 0)] * len(commands)
    store_all(config, commands, expected, state)
    assert np.array_equal(memory[0], expected[0])
    bench = TransferBench(config, Opcode.LOAD, memory, state).run(commands)
    for command in commands:
        transfer_model.load(config, command, memory, state, OPEN)
    assert len(bench.written[Kind.BFP]) == 70 * len(commands)
    for row, bits in bench.written[Kind.BFP].items():
        assert bits == bfp_bits(config, state, row), row


@pytest.mark.parametrize("widest", ["mx9/16", "bfp(8)+zeros/16"])
def test_every_block_another_format(widest):
    """A run whose blocks say by their tags what they are; the codec only says how far to read."""
    config, rng = CODEC, random.Random(widest)
    memory, state = new_memory(rng), new_state(config, rng)
    most, parts, rows = Format.parse(widest), [], 0
    for _ in range(24):
        entry = from_tag(rng.choice([tag for tag in TAGS if from_tag(tag).packed <= most.packed]))
        count = entry.rows(config.n)
        mantissa, exponent = numbers(rng, config, count)
        parts.append(codec_model.encode_rows(config, entry, mantissa, exponent).raw)
        rows += count
    raw = np.concatenate(parts)
    memory[0][: len(raw)] = raw
    for stall in (0, 0.3):
        command = one_run(config, rng, most, rows, stochastic=int(stall > 0))
        bench = TransferBench(config, Opcode.LOAD, memory, state, stall=stall).run([command])
        read = transfer_model.load(config, command, memory, state, OPEN)
        assert sum(bench.traffic.values()) == read
        assert len(bench.written[Kind.BFP]) == rows
        for row, bits in bench.written[Kind.BFP].items():
            assert bits == bfp_bits(config, state, row), row


@pytest.mark.parametrize("name", ["nano", "edge"])
def test_packed_runs_of_every_length(name):
    """Sparse rows, so that runs end behind a bitmap, and at every place in a beat and a piece."""
    config, rng = CONFIGS[name], random.Random(name)
    memory, state = new_memory(rng), new_state(config, rng)
    noise = np.random.default_rng(3)
    rows = len(state.mantissa)
    state.mantissa = np.where(
        noise.random((rows, config.n)) < 0.2, noise.integers(-255, 256, (rows, config.n)), 0
    ).astype(np.int16)
    state.exponent = np.full(rows, 127, np.uint8)
    texts = ("ubfp(3)+zeros/16", "bfp(6)+zeros/64", "mask+bfp(5)/128", "nonuniform-lite+zeros/32")
    commands, row = [], 0
    for k in range(32):
        entry = Format.parse(texts[k % 4])
        commands.append(one_run(config, rng, entry, k + 1, mem=k * 1024, op0=row))
        row += k + 1
    expected = [tier.copy() for tier in memory]
    bench = TransferBench(config, Opcode.STORE, memory, state).run(commands)
    assert bench.traffic == store_all(config, commands, expected, state)[0]
    assert np.array_equal(memory[0], expected[0])
    bench = TransferBench(config, Opcode.LOAD, memory, state, stall=0.2).run(commands)
    traffic = {}
    for command in commands:
        key = command["tier"], command["cls"]
        size = transfer_model.load(config, command, memory, state, OPEN)
        traffic[key] = traffic.get(key, 0) + size
    assert bench.traffic == traffic
    for row, bits in bench.written[Kind.BFP].items():
        assert bits == bfp_bits(config, state, row), row


@pytest.mark.parametrize("text", ["bfp(4)/64", "mx6/64", "mask+bfp(3)/128", "outlier(3, 4)/128"])
def test_a_row_per_cycle(text):
    config, rng, rows = CODEC, random.Random(text), 512
    memory, state = new_memory(rng), new_state(config, rng)
    state.mantissa, state.exponent = numbers(rng, config, len(state.mantissa))
    command = one_run(config, rng, Format.parse(text), rows)
    latency = 200
    bench = TransferBench(config, Opcode.STORE, memory, state, latency_cycles=4).run([command])
    assert bench.cycles < rows + latency
    bench = TransferBench(config, Opcode.LOAD, memory, state, latency_cycles=4).run([command])
    assert bench.cycles < rows + latency


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_corrupted_blocks(seed, short):
    """A tag that does not exist, or one whose block is longer than the run: rows before it are
    right, none behind it are written, what was asked for is drained."""
    config, rng = list(CONFIGS.values())[seed % 4], random.Random(f"corrupted {seed} {short}")
    memory, state = new_memory(rng), new_state(config, rng)
    entry = from_tag(rng.choice(TAGS))
    if short:
        entry = Format.parse(rng.choice(["mask/128", "ubfp(1)+zeros/128"]))
    rows = rng.randint(1, 4 * entry.rows(config.n)) + short * entry.rows(config.n)
    good, bad, after = (
        one_run(config, rng, entry, rows, mem=16384 * k, op0=rows * k) for k in range(3)
    )
    for command in (good, bad, after):
        encode_source(config, command, memory, rng)
    wrong = [tag for tag in range(256) if tag not in TAGS]
    memory[0][16384] = Format("mx9", block=128).tag if short else rng.choice(wrong)
    with pytest.raises(transfer_model.TransferError, match="STASH"):
        transfer_model.load(config, bad, memory, new_state(config, rng))
    bench = TransferBench(config, Opcode.LOAD, memory, state, seed=seed, stall=0.2 * (seed % 3))
    bench.run([good, bad, after])
    assert bench.results == [(Error.NONE, 0), (Error.STASH, 16384)]
    transfer_model.load(config, good, memory, state, OPEN)
    written = bench.written[Kind.BFP]
    for row in range(rows):
        assert written[row] == bfp_bits(config, state, row)
    assert all(row < 2 * rows for row in written)
    assert sum(bench.traffic.values()) == config.beat_bytes * bench.tiers[0].read_beats


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_bus_errors(seed, packed):
    config, rng = CODEC, random.Random(f"{seed} {packed}")
    memory, state = new_memory(rng), new_state(config, rng)
    entry = from_tag(rng.choice([tag for tag in TAGS if from_tag(tag).packed == packed]))
    commands = [one_run(config, rng, entry, 200, mem=8192 * k, op0=200 * k) for k in range(3)]
    for command in commands:
        encode_source(config, command, memory, rng)
    bad = [{8192 + config.beat_bytes * rng.randrange(6)}, set()]
    bench = TransferBench(config, Opcode.LOAD, memory, state, seed=seed, stall=0.2, bad=bad)
    bench.run(commands)
    assert bench.results == [(Error.NONE, 0), (Error.BUS_READ, 8192)]
    assert sum(bench.traffic.values()) == config.beat_bytes * bench.tiers[0].read_beats
    bench = TransferBench(config, Opcode.STORE, memory, state, seed=seed, stall=0.2, bad=bad)
    bench.run(commands)
    assert bench.results == [(Error.NONE, 0), (Error.BUS_WRITE, 8192)]


@pytest.mark.parametrize("opcode", [Opcode.LOAD, Opcode.STORE])
@pytest.mark.parametrize("seed", range(4))
def test_abort_and_go_on(seed, opcode):
    config, rng = CODEC, random.Random(f"{seed} {opcode}")
    memory, state = new_memory(rng), new_state(config, rng)
    state.mantissa, state.exponent = numbers(rng, config, len(state.mantissa))
    commands = [random_transfer(config, rng, kind=Kind.BFP, coded=1.0) for _ in range(4)]
    commands = list(apart(config, rng, commands))
    if opcode == Opcode.LOAD:
        for command in commands:
            encode_source(config, command, memory, rng)
    bench = TransferBench(config, opcode, memory, state, seed=seed, stall=0.3)
    bench.run(commands, abort_at=rng.randrange(600), hold=seed % 2, then=commands)
    assert bench.results == [(Error.NONE, 0)] * len(commands)
    if opcode == Opcode.LOAD:
        for command in commands:
            transfer_model.load(config, command, memory, state, OPEN)
        for row, bits in bench.written[Kind.BFP].items():
            assert bits == bfp_bits(config, state, row)
    else:
        expected = [tier.copy() for tier in memory]
        store_all(config, commands, expected, state)
        for tier in Tier:
            assert np.array_equal(memory[tier], expected[tier])


@pytest.mark.parametrize("fields", [{"codec": 59}, {"codec": 67, "kind": Kind.FP32}, {"codec": 64}])
@pytest.mark.parametrize("opcode", [Opcode.LOAD, Opcode.STORE])
def test_refusals(opcode, fields):
    rng = random.Random(0)
    command = random_transfer(CODEC, rng, kind=Kind.BFP) | fields
    bench = TransferBench(CODEC, opcode, new_memory(rng), new_state(CODEC, rng)).run([command])
    assert bench.results == [(Error.CODEC, command["mem"])]
