"""Random states and instructions of the vector unit, shared by its tests and its bench."""

from dataclasses import dataclass

import numpy as np

from gradmill_hw.config import Config
from gradmill_hw.isa import INSTRUCTIONS, AddOp, AddSource, FunctionOp, MaskKind, Opcode
from gradmill_hw.vector import vector_model


__all__ = ["FIELDS", "State", "instruction", "random_instruction", "random_rows", "random_state"]

#: Width of every field of a vector command.
FIELDS = {f.name: f.width for f in INSTRUCTIONS[Opcode.VECTOR].fields
          if f.name in ("layer", "mem") or (f.name.startswith("op") and f.name[2:].isdigit())}
FIELDS |= {f.name: f.width for f in INSTRUCTIONS[Opcode.VECTOR].body}

_SPECIAL = np.array([0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
                     0x7fc00000, 0xffc00001, 0x7f800001, 0xff923456, 0x00000001, 0x807fffff,
                     0x00400000, 0x00800000, 0x80800000, 0x7f7fffff, 0xff7fffff, 0x1e3ce508,
                     0x33800000, 0x42b17218, 0xc2aeac50], np.uint32)


@dataclass
class State:
    """What a vector instruction can see and change."""
    config:          Config
    acc:             np.ndarray
    tensor_mantissa: np.ndarray
    tensor_exponent: np.ndarray
    mask:            np.ndarray
    scalars:         np.ndarray
    seed:            int
    step:            int

    def copy(self):
        """An independent copy."""
        return State(self.config, self.acc.copy(), self.tensor_mantissa.copy(),
                     self.tensor_exponent.copy(), self.mask.copy(), self.scalars.copy(),
                     self.seed, self.step)


def random_rows(rng, rows, n, *, special=0.1):
    """Rows of binary32 of moderate size, among them the ``special`` share of difficult ones."""
    values = rng.standard_normal((rows, n)).astype(np.float32)
    values *= np.exp2(rng.integers(-6, 7, (rows, 1))).astype(np.float32)
    bits = values.view(np.uint32)
    where = rng.random((rows, n))
    bits = np.where(where < special, rng.choice(_SPECIAL, (rows, n)), bits)
    bits = np.where(where < special / 2, rng.integers(0, 1 << 32, (rows, n), np.uint32), bits)
    return bits.view(np.float32)


def random_state(config, rng, *, special=0.1):
    """Memories full of random rows."""
    n, limit = config.n, (1 << config.mantissa_bits - 1) - 1
    exponent = rng.integers(110, 140, config.tensor_rows)
    exponent = np.where(rng.random(config.tensor_rows) < special,
                        rng.choice([0, 1, 5, 8, 9, 253, 254, 255], config.tensor_rows), exponent)
    return State(
        config=config,
        acc=random_rows(rng, config.acc_rows, n, special=special),
        tensor_mantissa=rng.integers(-limit, limit + 1, (config.tensor_rows, n), np.int16),
        tensor_exponent=exponent.astype(np.uint8),
        mask=rng.integers(0, 2, (config.mask_rows, n)).astype(bool),
        scalars=random_rows(rng, 1, 8, special=0.3).view(np.uint32)[0],
        seed=int(rng.integers(1 << 32)),
        step=int(rng.integers(1 << 32)),
    )


def instruction(**fields):
    """All fields of a command; zero unless given."""
    unknown = fields.keys() - FIELDS.keys()
    if unknown:
        raise ValueError(f"no such field: {', '.join(sorted(unknown))}")
    return dict.fromkeys(FIELDS, 0) | {name: int(value) for name, value in fields.items()}


def _place(rng, depth, rows, blocks):
    """Stride and base of an operand that fits into ``depth`` rows, mostly without overlaps."""
    spare = max(depth - rows * blocks, 0)
    stride = rows + int(rng.integers(0, spare // max(blocks, 1) // 2 + 1))
    if rng.random() < 0.1:
        stride = 0
    base = int(rng.integers(0, max(depth - rows - stride * max(blocks - 1, 0), 0) + 1))
    return base, stride


def _random_fields(config, rng, max_rows, max_blocks):
    rows = int(rng.integers(0, max_rows + 1))
    blocks = int(rng.integers(0, max_blocks + 1)) if rng.random() < 0.1 else \
        int(rng.integers(1, max_blocks + 1))
    c = {name: int(rng.integers(1 << width)) for name, width in FIELDS.items() if width <= 4}
    n = config.n
    padded = -(-rows // n) * n
    # The interesting encodings more often than the reserved ones.
    for name, listed in (("add_source", AddSource), ("add_op", AddOp), ("function", FunctionOp),
                         ("mask", MaskKind)):
        if rng.random() < 0.9:
            c[name] = int(rng.integers(len(listed)))
    for stage in ("mul", "add_source", "function", "mask"):
        if rng.random() < 0.3:
            c[stage] = 0
    c["mem"] = int(rng.integers(1 << 40)) if rng.random() < 0.9 else (1 << 40) - 3
    c["layer"] = int(rng.integers(256))
    c["rows"], c["blocks"] = rows, blocks
    c["cols"] = int(rng.integers(0, 65536 if rng.random() < 0.1 else (blocks + 1) * n + 1))
    for name in ("scalar0", "scalar1"):
        c[name] = int(random_rows(rng, 1, 1, special=0.3).view(np.uint32)[0, 0])
    c["a_step"] = int(rng.random() < 0.8)
    c["b_step"] = int(rng.random() < 0.6)
    a_depth = config.tensor_rows if c["a_space"] else config.acc_rows
    c["op0"], c["a_stride"] = _place(rng, a_depth, rows, blocks)
    c["op1"], c["b_stride"] = _place(rng, config.acc_rows, rows, blocks)
    c["op2"], c["d_stride"] = _place(rng, config.acc_rows, rows, blocks)
    c["op3"], c["t_stride"] = _place(rng, config.tensor_rows, padded, blocks)
    c["op4"], c["k_stride"] = _place(rng, config.mask_rows, rows, blocks)
    if rng.random() < 0.3:
        c["op2"], c["d_stride"] = c["op0"], c["a_stride"]
    if rng.random() < 0.1:
        c["op1"], c["b_stride"] = c["op0"], c["a_stride"]
    if c["a_space"] and rng.random() < 0.2:
        c["op3"], c["t_stride"] = c["op0"], c["a_stride"]
    return c


def random_instruction(state, rng, *, max_rows=11, max_blocks=3, **fixed):
    """Fields of a legal instruction that covers the encodings, reserved ones included.

    ``fixed`` fields keep their value.
    """
    while True:
        command = _random_fields(state.config, rng, max_rows, max_blocks) | fixed
        try:
            vector_model.vector(command, state.copy())
        except ValueError:
            continue
        return command
