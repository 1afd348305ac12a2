"""Random work for the matrix unit and the memories beside it, for every simulator."""

import numpy as np

from gradmill_hw.memory.ports import READ_LATENCY

__all__ = ["EXPONENTS", "Memories", "pack", "random_command", "random_memories", "traffic"]

#: Shared exponents: everyday, at both ends of binary32, and anything with NaN.
EXPONENTS = {
    "usual": range(120, 134),
    "small": range(50, 80),
    "large": range(185, 200),
    "any": (0, 1, 60, 127, 128, 190, 254, 255),
}

INFINITY, NAN = 0x7F800000, 0x7FC00000
SPECIAL = (0, 0x80000000, 1, 0x807FFFFF, 0x00800000, INFINITY, 0xFF800000, NAN, 0x7F7FFFFF)


def random_memories(rng, config, exponents, *, special=0.1):
    """Mantissas, exponents and accumulators with random contents, as the model takes them.

    One tile in ten is zero.
    ``special`` is the share of zeros, subnormals, infinities and NaN in the accumulators.
    """
    n, rows = config.n, config.tensor_rows
    seed = rng.getrandbits(32)
    draw = np.random.default_rng(seed)
    limit = (1 << config.mantissa_bits - 1) - 1
    mantissa = draw.integers(-limit, limit + 1, (rows, n), np.int16)
    exponent = draw.choice(np.array(exponents, np.uint8), rows // n).repeat(n)
    zero = draw.random(rows // n).repeat(n) < 0.1
    mantissa[zero], exponent[zero] = 0, 0
    shape = (config.acc_rows, n)
    acc = (
        draw.integers(0, 2, shape, np.uint32) << 31
        | draw.integers(100, 150, shape, np.uint32) << 23
        | draw.integers(0, 1 << 23, shape, np.uint32)
    )
    odd = draw.random(shape) < special
    acc[odd] = draw.choice(np.array(SPECIAL, np.uint32), np.count_nonzero(odd))
    return mantissa, exponent, acc


def random_command(rng, config, *, largest=20, **fixed):
    """Fields of a MATMUL within the memories, its sizes up to ``largest``; ``fixed`` are given."""
    n = config.n
    fields = {name: rng.randint(1, largest) for name in ("m", "k", "c")}
    fields |= {
        flag: rng.getrandbits(1) for flag in ("a_transpose", "w_transpose", "accumulate", "narrow")
    }
    fields |= fixed
    tiles = {name: -(-fields[name] // n) for name in ("m", "k", "c")}

    def place(first, second):
        """Strides that keep the tiles of a matrix apart, and the rows that it takes."""
        gap = rng.choice([0, n])
        if rng.getrandbits(1):
            outer = tiles[first] * n + gap
            return n, outer, tiles[second] * outer
        outer = tiles[second] * n + gap
        return outer, n, tiles[first] * outer

    fields["a_stride_m"], fields["a_stride_k"], a_rows = place("m", "k")
    fields["w_stride_k"], fields["w_stride_c"], w_rows = place("k", "c")
    fields["d_stride_c"] = fields["m"] + rng.choice([0, 3])
    fields["op0"] = rng.randrange(0, config.tensor_rows - a_rows + 1, n)
    fields["op1"] = rng.randrange(0, config.tensor_rows - w_rows + 1, n)
    fields["op2"] = rng.randint(0, config.acc_rows - tiles["c"] * fields["d_stride_c"])
    return fields | fixed


def pack(lanes, bits):
    """Lanes of ``bits`` bits, lane 0 lowest, as one number."""
    word = 0
    for lane in reversed(lanes):
        word = word << bits | lane & (1 << bits) - 1
    return word


def traffic(commands, config):
    """What :attr:`Memories.traffic` shows when nothing is read or written in vain."""
    totals = [0, 0, 0, 0]
    for command in commands:
        m, k, c = (command[name] for name in ("m", "k", "c"))
        tiles = -(-k // config.n) * -(-c // config.n) if m else 0
        stored = 0 if command["accumulate"] or not k else m * -(-c // config.n)
        rows = m * tiles, tiles * config.n, m * tiles - stored, m * tiles
        totals = [total + count for total, count in zip(totals, rows, strict=True)]
    return totals


class Memories:
    """Tensor memory and accumulators as the unit sees them; a row is a number."""

    def __init__(self, config, mantissa, exponent, acc, rng):
        self.config, self.rng = config, rng
        self.mantissa, self.exponent, self.acc = mantissa, exponent, acc
        self.widths = (config.mantissa_bits * config.n + 8,) * 2 + (32 * config.n,)
        self.pipes = [[None] * (READ_LATENCY - 1) for _ in self.widths]
        #: Rows read for A, for W and from the accumulators, and rows written.
        self.traffic = [0, 0, 0, 0]

    def _tensor_row(self, address, transpose):
        n, bits = self.config.n, self.config.mantissa_bits
        tile, row = address // n * n, address % n
        lanes = self.mantissa[tile : tile + n, row] if transpose else self.mantissa[address]
        exponent = int(self.exponent[tile if transpose else address])
        return pack(lanes.tolist(), bits) | exponent << bits * n

    def cycle(self, a, w, read, write):
        """One cycle: rows of A, of W and of the accumulators for the next one.

        Granted requests are ``(address, transpose)`` for ``a`` and ``w``, the address for ``read``,
        ``(address, row)`` for ``write``, or None. Where nothing was read there is noise.
        """
        for at, request in enumerate((a, w, read, write)):
            self.traffic[at] += request is not None
        granted = (
            None if a is None else self._tensor_row(*a),
            None if w is None else self._tensor_row(*w),
            None if read is None else pack(self.acc[read].tolist(), 32),
        )
        if write is not None:
            address, row = write
            self.acc[address] = [row >> 32 * j & 0xFFFFFFFF for j in range(self.config.n)]
        rows = []
        for pipe, width, row in zip(self.pipes, self.widths, granted, strict=True):
            pipe.append(row)
            row = pipe.pop(0)
            rows.append(self.rng.getrandbits(width) if row is None else row)
        return rows
