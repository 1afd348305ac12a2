"""Window check against the model, with addresses around every edge."""

import random

import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import CARD, NANO, TILE
from gradmill_hw.isa import Kind
from gradmill_hw.memory import transfer_model
from gradmill_hw.memory.window import DIMENSIONS, WindowCheck
from gradmill_hw.regs import WINDOWS, Error, Tier
from gradmill_hw.stash.formats import from_tag


CONFIGS = {
    "sim": TILE,
    "edge": NANO.replace(address_bits=32),
    "nano": NANO.replace(stash=True),
    "card": CARD,
}


TAGS = [tag for tag in range(256) if from_tag(tag)]


def question(config, rng, windows):
    """A command that is nearly legal, or just legal."""
    beat = config.beat_bytes
    tier = rng.randrange(2)
    base, limit, _, _ = rng.choice(windows[tier])
    big = rng.random() < 0.2
    command = {
        "tier": tier,
        "kind": rng.choice([0, 1, 2]),
        "codec": 0,
        "run": rng.randint(1, 65535 if big else 20),
        **{
            f"count{d}": rng.choice([1, rng.randint(1, 65535 if big else 5)])
            for d in range(DIMENSIONS)
        },
        **{
            f"mem_stride{d}": beat
            * rng.choice([0, 1, rng.randint(0, 20), rng.randrange((1 << 32) // beat) if big else 7])
            for d in range(DIMENSIONS)
        },
    }
    if config.stash and command["kind"] == Kind.BFP and rng.random() < 0.7:
        command["codec"] = rng.choice(TAGS)
    # The extent begins or ends at an edge of the window, or a beat beside it.
    extent = sum((command[f"count{d}"] - 1) * command[f"mem_stride{d}"] for d in range(DIMENSIONS))
    kind = ("mask", "bfp", "fp32")[command["kind"]]
    extent += config.run_bytes(kind, command["run"], command["codec"])
    place = rng.choice([base, limit - extent, rng.randint(0, limit)])
    command["mem"] = (place + beat * rng.choice([-1, 0, 0, 0, 1])) // beat * beat % (1 << 40)
    if rng.random() < 0.35:
        name, value = rng.choice(
            [
                ("kind", rng.randint(3, 7)),
                ("codec", rng.randint(1, 255)),
                ("codec", rng.choice([tag for tag in range(1, 256) if tag not in TAGS])),
                ("run", 0),
                ("count0", 0),
                ("count1", 0),
                ("count2", 0),
                ("mem", command["mem"] | 1),
                ("mem_stride0", 1),
                ("mem_stride1", beat // 2),
                ("mem_stride2", beat + 2),
            ]
        )
        command[name] = value
    return command


def random_windows(config, rng):
    """Windows of all sizes, some closed, some up to the last byte, some beyond it."""
    top = 1 << config.address_bits
    windows = []
    for _ in Tier:
        row = []
        for _ in range(WINDOWS):
            base = rng.choice([0, rng.randrange(top), rng.randrange(top) // 4096 * 4096])
            limit = rng.choice(
                [top, min(top, base + rng.randrange(1 << 16)), rng.randrange(2 * top)]
            )
            row.append((base, limit, rng.random() < 0.8, rng.random() < 0.8))
        windows.append(row)
    return windows


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_questions(name, write):
    config, rng = CONFIGS[name], random.Random(f"{name} {write}")
    dut = WindowCheck(config, write=write)
    seen = dict.fromkeys(Error, 0)

    async def bench(ctx):
        for _ in range(40):
            windows = random_windows(config, rng)
            for tier in Tier:
                for k, (base, limit, read, write_) in enumerate(windows[tier]):
                    ctx.set(
                        dut.windows[tier][k],
                        {"base": base, "limit": limit, "read": read, "write": write_},
                    )
            for _ in range(10):
                command = question(config, rng, windows)
                ctx.set(
                    dut.i.payload,
                    {
                        **{
                            field: command[field]
                            for field in ("mem", "tier", "kind", "codec", "run")
                        },
                        "count": [command[f"count{d}"] for d in range(DIMENSIONS)],
                        "stride": [command[f"mem_stride{d}"] for d in range(DIMENSIONS)],
                    },
                )
                ctx.set(dut.i.valid, 1)
                error, beats, packed = (
                    await ctx.tick().sample(dut.error, dut.beats, dut.packed).until(dut.i.ready)
                )
                ctx.set(dut.i.valid, 0)
                expected = transfer_model.check(config, command, windows, write=write)
                assert Error(error) == expected, command
                seen[expected] += 1
                if expected == Error.NONE:
                    kind = ("mask", "bfp", "fp32")[command["kind"]]
                    size = config.run_bytes(kind, command["run"], command["codec"])
                    assert beats * config.beat_bytes == size
                    assert packed == bool(command["codec"] and from_tag(command["codec"]).packed)
                if rng.random() < 0.5:
                    await ctx.tick().repeat(rng.randint(1, 3))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert all(
        seen[error] >= 5
        for error in (
            Error.NONE,
            Error.KIND,
            Error.CODEC,
            Error.COUNT,
            Error.ALIGNMENT,
            Error.WINDOW,
        )
    ), seen
