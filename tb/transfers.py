"""Random transfer instructions, the memories they work on, and what to expect of them."""

from types import SimpleNamespace

import numpy as np
from gradmill_hw.config import NANO, Config
from gradmill_hw.isa import Class, Kind
from gradmill_hw.memory import transfer_model
from gradmill_hw.regs import WINDOWS, Tier
from gradmill_hw.stash.formats import from_tag
from gradmill_hw.stash.tables import PRESETS
from tb.stash_runs import blocks_of_rows


__all__ = [
    "CONFIGS",
    "HALF",
    "HALVES",
    "MEMORY_BYTES",
    "OPEN",
    "TAGS",
    "bfp_bits",
    "copy_command",
    "encode_source",
    "first_failure",
    "fp32_bits",
    "mask_bits",
    "new_memory",
    "new_state",
    "random_copy",
    "random_transfer",
    "runs",
]

MEMORY_BYTES = 1 << 16

#: Every ratio of beat to row, even and odd row sizes, granules below and above a byte.
CONFIGS = {
    "nano": NANO,
    "edge": Config(n=8, bus_bits=64, address_bits=32, burst_beats=64),
    "sim": Config(n=8),
    "narrow": Config(n=8, bus_bits=128, mantissa_bits=8, burst_beats=4, reads_in_flight=2),
    "wide": Config(n=16, bus_bits=512, mantissa_bits=4, burst_beats=32),
}

#: One window over everything.
OPEN = [[(0, MEMORY_BYTES, 1, 1)] + [(0, 0, 0, 0)] * (WINDOWS - 1) for _ in Tier]

HALF = MEMORY_BYTES // 2
#: The lower half may be read, the upper one written.
HALVES = [
    [(0, HALF, 1, 0), (HALF, MEMORY_BYTES, 0, 1)] + [(0, 0, 0, 0)] * (WINDOWS - 2) for _ in Tier
]


def new_memory(rng):
    """Random bytes for both tiers."""
    return [np.frombuffer(rng.randbytes(MEMORY_BYTES), np.uint8).copy() for _ in Tier]


def new_state(config, rng):
    """Random contents of the on-chip memories, any bit patterns."""

    def noise(*shape, dtype):
        raw = rng.randbytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.frombuffer(raw, dtype).reshape(shape).copy()

    n, width = config.n, config.mantissa_bits
    return SimpleNamespace(
        acc=noise(config.acc_rows, n, dtype=np.uint32).view(np.float32),
        mantissa=noise(config.tensor_rows, n, dtype=np.int16) >> 16 - width,
        exponent=noise(config.tensor_rows, dtype=np.uint8),
        mask=noise(config.mask_rows, n, dtype=np.uint8) >= 128,
        seed=rng.getrandbits(32),
        step=rng.getrandbits(32),
        tables=PRESETS,
    )


def fp32_bits(state, row):
    return int.from_bytes(state.acc[row].tobytes(), "little")


def bfp_bits(config, state, row):
    width = config.mantissa_bits
    bits = int(state.exponent[row]) << config.n * width
    for k, value in enumerate(state.mantissa[row].tolist()):
        bits |= (value & (1 << width) - 1) << k * width
    return bits


def mask_bits(state, row):
    return sum(int(bit) << k for k, bit in enumerate(state.mask[row]))


#: Every stash format.
TAGS = [tag for tag in range(256) if from_tag(tag)]


def random_transfer(config, rng, *, kind=None, largest=24, coded=0.0):
    """A legal command whose runs do not overlap, in memory or on chip.

    It takes at most a quarter of the memory and half of the rows; of rows of block floating point
    a share of ``coded`` is in a stash format.
    """
    kind = Kind(rng.randrange(3)) if kind is None else kind
    depth = {Kind.MASK: config.mask_rows, Kind.BFP: config.tensor_rows, Kind.FP32: config.acc_rows}[
        kind
    ]
    beat = config.beat_bytes
    codec = rng.choice(TAGS) if kind == Kind.BFP and rng.random() < coded else 0
    while True:
        run = rng.choice([1, rng.randint(1, largest)])
        counts = [rng.choice([1, rng.randint(1, 4)]) for _ in range(3)]
        size, rows = config.run_bytes(kind.name.lower(), run, codec), run
        strides, row_strides = [0, 0, 0], [0, 0, 0]
        for d in rng.sample(range(3), 3):
            if counts[d] > 1 or rng.random() < 0.5:
                strides[d] = size + beat * rng.choice([0, rng.randint(0, 5)])
                row_strides[d] = rows + rng.choice([0, rng.randint(0, 5)])
                size += (counts[d] - 1) * strides[d]
                rows += (counts[d] - 1) * row_strides[d]
        if size <= MEMORY_BYTES // 4 and rows <= depth // 2:
            break
    # Addresses near a page boundary as often as not.
    mem = rng.randrange(0, MEMORY_BYTES - size, beat)
    if rng.random() < 0.5:
        mem = min(mem // 4096 * 4096 + 4096 - beat * rng.randint(0, 3), MEMORY_BYTES - size)
    return {
        "mem": mem,
        "op0": rng.randrange(depth - rows + 1),
        "kind": kind,
        "tier": rng.randrange(2),
        "cls": rng.randrange(8),
        "run": run,
        "codec": codec,
        "stochastic": rng.randrange(2) if codec else 0,
        "layer": rng.randrange(256),
        **{f"op{k}": rng.randrange(1 << 16) for k in (1, 2, 3)},
        **{f"count{d}": counts[d] for d in range(3)},
        **{f"mem_stride{d}": strides[d] for d in range(3)},
        **{f"row_stride{d}": row_strides[d] for d in range(3)},
    }


def copy_command(**fields):
    """A copy of one run, from near to the second half of far, where ``fields`` do not say more."""
    return {
        "mem": 0,
        "target": HALF,
        "tier": Tier.NEAR,
        "target_tier": Tier.FAR,
        "kind": Kind.FP32,
        "codec": 0,
        "cls": Class.STASH,
        "run": 1,
        "count": 1,
        "mem_stride": 0,
        "target_stride": 0,
    } | fields


def random_copy(config, rng):
    """A copy from the first to the second half of any tiers."""
    step = config.beat_bytes
    kind, rows, count = rng.choice(list(Kind)), rng.randint(1, 40), rng.randint(1, 5)
    size = config.run_bytes(kind.name.lower(), rows)
    room = (HALF - 4096) // count // step * step
    stride, target_stride = (step * rng.randint(size // step, room // step) for _ in "ab")
    return copy_command(
        kind=kind,
        run=rows,
        count=count,
        cls=rng.choice(list(Class)),
        tier=rng.choice(list(Tier)),
        target_tier=rng.choice(list(Tier)),
        mem=step * rng.randrange(2048 // step),
        target=HALF + step * rng.randrange(2048 // step),
        mem_stride=stride,
        target_stride=target_stride,
    )


def runs(command):
    """(memory address, first row) of each run in order."""
    for i2 in range(command["count2"]):
        for i1 in range(command["count1"]):
            for i0 in range(command["count0"]):
                index = (i0, i1, i2)
                yield (
                    command["mem"]
                    + sum(i * command[f"mem_stride{d}"] for d, i in enumerate(index)),
                    command["op0"]
                    + sum(i * command[f"row_stride{d}"] for d, i in enumerate(index)),
                )


def encode_source(config, command, memory, rng):
    """Fill the memory that a coded load reads with blocks of training-like and of odd rows."""
    if command["codec"]:
        state = new_state(config, rng)
        rows, noise = len(state.mantissa), np.random.default_rng(rng.getrandbits(32))
        state.mantissa, state.exponent = blocks_of_rows(noise, config.n, config.mantissa_bits, rows)
        transfer_model.store(config, command, memory, state)


def first_failure(config, commands, bad):
    """(index of the command, address of the run) that first meets a bad beat."""
    for index, command in enumerate(commands):
        size = config.run_bytes(command["kind"].name.lower(), command["run"], command["codec"])
        for mem, _ in runs(command):
            if any(mem <= addr < mem + size for addr in bad[command["tier"]]):
                return index, mem
    return None
