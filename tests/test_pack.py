"""Rows to bytes and back: the model against integers, the circuits against the model."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import Config
from gradmill_hw.isa import Kind
from gradmill_hw.memory.pack import Pack
from gradmill_hw.memory.transfer_model import pack_rows, unpack_rows
from gradmill_hw.memory.unpack import Unpack, longest_granules


#: All row sizes at all ratios of beat to row.
CONFIGS = [
    Config(n=n, mantissa_bits=bits, bus_bits=bus, burst_beats=16, stash=bool(stash))
    for n, bus, bits, *stash in [
        (4, 32, 9),
        (4, 64, 6),
        (4, 128, 4),
        (8, 64, 9),
        (8, 64, 8),
        (8, 128, 5),
        (8, 256, 9),
        (8, 256, 6),
        (16, 512, 9),
        (16, 128, 7),
        (32, 1024, 9),
        (4, 32, 9, True),
        (8, 64, 9, True),
        (8, 256, 8, True),
        (16, 512, 9, True),
    ]
]


def name_of(config):
    codec = "-stash" * config.stash
    return f"n{config.n}-m{config.mantissa_bits}-bus{config.bus_bits}{codec}"


def values(config, kind, count, rng):
    """Random rows as the model has them."""
    noise = np.frombuffer(rng.randbytes(4 * config.n * count), np.uint32).reshape(count, config.n)
    if kind == Kind.FP32:
        return noise.copy()
    if kind == Kind.MASK:
        return noise >= 1 << 31
    mantissa = noise.view(np.int32) >> 32 - config.mantissa_bits
    return mantissa.astype(np.int16), (noise[:, 0] & 0xFF).astype(np.uint8)


def row_ints(config, kind, rows):
    """Each row as one integer, from its definition: fields from bit 0 up."""
    if kind == Kind.FP32:
        return [sum(int(v) << 32 * k for k, v in enumerate(row)) for row in rows]
    if kind == Kind.MASK:
        return [sum(int(v) << k for k, v in enumerate(row)) for row in rows]
    width = config.mantissa_bits
    return [
        sum((int(v) & (1 << width) - 1) << width * k for k, v in enumerate(row))
        | int(exponent) << width * config.n
        for row, exponent in zip(*rows, strict=True)
    ]


def run_int(config, kind, rows):
    """A whole run as one integer."""
    bits = config.n * config.row_granules(kind.name.lower())
    return sum(row << bits * k for k, row in enumerate(row_ints(config, kind, rows)))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_model(config, kind):
    rng = random.Random(name_of(config))
    name = kind.name.lower()
    for count in (1, 2, 3, 17, 40):
        rows = values(config, kind, count, rng)
        raw = pack_rows(config, name, rows)
        bits = config.n * config.row_granules(name) * count
        assert raw.dtype == np.uint8 and len(raw) == -(-bits // 8)
        assert int.from_bytes(raw.tobytes(), "little") == run_int(config, kind, rows)
        padded = np.concatenate([raw, np.frombuffer(rng.randbytes(64), np.uint8)])
        back = unpack_rows(config, name, padded, count)
        for ours, theirs in zip(
            np.atleast_1d(back) if kind != Kind.BFP else back, rows, strict=True
        ):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def random_runs(config, rng, count=30):
    """(kind, rows) of random runs, long enough to reach every place in a word."""
    runs = []
    for _ in range(count):
        kind = Kind(rng.randrange(3))
        length = rng.choice([1, 2, rng.randint(1, 40)])
        runs.append((kind, values(config, kind, length, rng), length))
    return runs


def run_sim(dut, *benches):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for bench in benches:
        sim.add_testbench(bench)
    sim.run()


def source(port, payloads, rng, stall):
    async def bench(ctx):
        for payload in payloads:
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(port.payload, payload)
            ctx.set(port.valid, 1)
            await ctx.tick().until(port.ready)
            ctx.set(port.valid, 0)

    return bench


def sink(port, count, received, rng, stall, *members):
    async def bench(ctx):
        while len(received) < count:
            ready = rng.random() >= stall
            ctx.set(port.ready, ready)
            _, _, valid, *values = await ctx.tick().sample(port.valid, *members)
            if valid and ready:
                received.append(values)

    return bench


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_unpack(config, stall):
    rng = random.Random(f"{name_of(config)} {stall}")
    beat = config.beat_bytes
    beats, shapes, expected = [], [], []
    for kind, rows, length in random_runs(config, rng):
        raw = pack_rows(config, kind.name.lower(), rows).tobytes()
        size = config.run_bytes(kind.name.lower(), length)
        raw += rng.randbytes(size - len(raw))
        wrong = rng.randrange(0, size, beat) if rng.random() < 0.1 else None
        # Errors are known by the beat, and spoil the rows of the whole word.
        word = 4 * config.n
        for place in range(0, size, beat):
            beats.append(
                {
                    "data": int.from_bytes(raw[place : place + beat], "little"),
                    "last": place + beat == size,
                    "error": place == wrong,
                }
            )
        row_bits = config.n * config.row_granules(kind.name.lower())
        for k, value in enumerate(row_ints(config, kind, rows)):
            shapes.append({"kind": kind, "last": k == length - 1})
            touched = range(k * row_bits // 8 // word, ((k + 1) * row_bits - 1) // 8 // word + 1)
            expected.append((kind, value, wrong is not None and wrong // word in touched))

    dut = Unpack(config)
    received = []
    run_sim(
        dut,
        source(dut.i, beats, random.Random(1), stall),
        source(dut.shape, shapes, random.Random(2), stall),
        sink(
            dut.o,
            len(expected),
            received,
            random.Random(3),
            stall,
            dut.o.p.mask,
            dut.o.p.bfp,
            dut.o.p.fp32,
            dut.o.p.error,
        ),
    )
    for (kind, value, error), (*forms, bad) in zip(expected, received, strict=True):
        assert bad == error
        assert error or forms[kind] == value


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_pack(config, stall):
    rng = random.Random(f"{name_of(config)} {stall}")
    beat = config.beat_bytes
    rows_in, expected = [], []
    low = config.n * longest_granules(config)
    for kind, rows, length in random_runs(config, rng):
        tier = rng.randrange(2)
        for k, value in enumerate(row_ints(config, kind, rows)):
            noise = 0 if kind == Kind.FP32 else rng.getrandbits(32 * config.n - low) << low
            rows_in.append(
                {
                    "bits": value | noise,
                    "size": config.row_granules(kind.name.lower()),
                    "last": k == length - 1,
                    "tier": tier,
                }
            )
        raw = pack_rows(config, kind.name.lower(), rows).tobytes()
        for place in range(0, len(raw), beat):
            part = raw[place : place + beat]
            expected.append((int.from_bytes(part, "little"), (1 << len(part)) - 1, tier))

    dut = Pack(config)
    received = []
    run_sim(
        dut,
        source(dut.i, rows_in, random.Random(1), stall),
        sink(
            dut.o,
            len(expected),
            received,
            random.Random(3),
            stall,
            dut.o.p.beat.data,
            dut.o.p.beat.strobe,
            dut.o.p.tier,
        ),
    )
    for (value, strobe, tier), (bits, bytes_, to) in zip(expected, received, strict=True):
        mask = sum(0xFF << 8 * k for k in range(beat) if strobe >> k & 1)
        assert (bits & mask, bytes_, to) == (value, strobe, tier)


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stash], ids=name_of)
def test_pack_pieces(config, stall):
    """Rows of any size between rows of fixed sizes; the last beat of each run is marked."""
    rng = random.Random(f"{name_of(config)} {stall}")
    longest, beat = longest_granules(config), config.beat_bytes
    rows_in, expected = [], []
    for _ in range(40):
        coded, whole, place = rng.randrange(2), 0, 0
        count = rng.choice([1, 2, rng.randint(1, 40)])
        for k in range(count):
            size = rng.randint(1, longest) if coded else 32
            bits = rng.getrandbits(size * config.n)
            rows_in.append({"bits": bits, "size": size, "last": k == count - 1, "tier": coded,
                            "coded": coded})  # fmt: skip
            whole |= bits << place * config.n
            place += size
        raw = whole.to_bytes(-(-place * config.n // 8), "little")
        for start in range(0, len(raw), beat):
            part = raw[start : start + beat]
            last = start + beat >= len(raw)
            value = int.from_bytes(part, "little")
            expected.append((value, (1 << len(part)) - 1, last, coded, coded))

    dut = Pack(config)
    received, out = [], dut.o.p
    run_sim(
        dut,
        source(dut.i, rows_in, random.Random(1), stall),
        sink(dut.o, len(expected), received, random.Random(3), stall,
             out.beat.data, out.beat.strobe, out.last, out.tier, out.coded),
    )  # fmt: skip
    for wanted, (bits, strobe, *flags) in zip(expected, received, strict=True):
        mask = sum(0xFF << 8 * k for k in range(beat) if strobe >> k & 1)
        assert (bits & mask, strobe, *flags) == wanted


@pytest.mark.parametrize("kind", Kind)
def test_full_rate(kind):
    """A row per cycle, or a beat per cycle where beats are fewer."""
    config, rng = Config(), random.Random(0)
    count = 320
    rows = values(config, kind, count, rng)
    beats = config.run_bytes(kind.name.lower(), count) // config.beat_bytes
    stored = [
        {
            "bits": bits,
            "size": config.row_granules(kind.name.lower()),
            "last": k == count - 1,
            "tier": 0,
        }
        for k, bits in enumerate(row_ints(config, kind, rows))
    ]
    dut = Pack(config)
    cycles = [0]

    async def clock(ctx):
        while len(received) < beats:
            await ctx.tick()
            cycles[0] += 1

    received = []
    run_sim(
        dut,
        source(dut.i, stored, random.Random(1), 0),
        sink(dut.o, beats, received, random.Random(3), 0, dut.o.p.beat.data),
        clock,
    )
    assert cycles[0] <= max(count, beats) + 4

    sent = [
        {"data": bits, "last": k == beats - 1, "error": 0} for k, (bits,) in enumerate(received)
    ]
    shapes = [{"kind": kind, "last": k == count - 1} for k in range(count)]
    dut = Unpack(config)
    unpacked = []

    async def clock_rows(ctx):
        while len(unpacked) < count:
            await ctx.tick()
            cycles[0] += 1

    cycles[0] = 0
    run_sim(
        dut,
        source(dut.i, sent, random.Random(1), 0),
        source(dut.shape, shapes, random.Random(2), 0),
        sink(dut.o, count, unpacked, random.Random(3), 0, dut.o.p.mask),
        clock_rows,
    )
    assert cycles[0] <= max(count, beats) + 4
