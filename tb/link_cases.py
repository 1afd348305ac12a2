"""Random transfers between tiles, and what lies in the memories of their ends."""

from types import SimpleNamespace

import numpy as np
from gradmill_hw.isa import Peer


__all__ = ["TAG", "link_bits", "new_tile", "op_of", "random_receive", "random_send", "row_bits"]

TAG = ("sub", "last_sub", "gradient", "version")


def new_tile(config, rng):
    """Random contents of a tile's tensor and mask memory, any bit patterns."""
    n, width = config.n, config.mantissa_bits
    half = 1 << width - 1
    return SimpleNamespace(
        mantissa=rng.integers(-half, half, (config.tensor_rows, n)).astype(np.int16),
        exponent=rng.integers(0, 256, config.tensor_rows).astype(np.uint8),
        mask=rng.random((config.mask_rows, n)) < 0.5,
    )


def op_of(fields):
    """Operands of a command as the model takes them."""
    return [fields.get(f"op{k}", 0) for k in range(5)]


def random_send(config, rng, *, largest=24, tensor=None, mask=None):
    """Fields of a ``SEND`` whose rows do not overlap.

    ``tensor`` and ``mask`` are the ranges of rows that it may use, all by default. Rows do not
    begin at a multiple of ``n``.
    """
    shape = {
        "peer": Peer(int(rng.integers(2))),
        "rows": int(rng.choice([1, config.n, rng.integers(1, largest + 1)])),
        "blocks": int(rng.choice([1, rng.integers(1, 5)])),
        "masked": int(rng.integers(2)),
        "sub": int(rng.integers(1 << 16)),
        "last_sub": int(rng.integers(2)),
        "gradient": int(rng.integers(2)),
        "version": int(rng.integers(1 << 8)),
    }
    return random_receive(config, rng, shape, tensor=tensor, mask=mask)


def random_receive(config, rng, sent, *, tensor=None, mask=None):
    """``sent`` with other rows and strides; each of them may be negative."""
    fields = dict(sent)
    blocks, padded = sent["blocks"], -(-sent["rows"] // config.n) * config.n
    for operand, stride, space in (
        ("op0", "t_stride", tensor or range(config.tensor_rows)),
        ("op4", "k_stride", mask or range(config.mask_rows)),
    ):
        step = padded + int(rng.integers(0, 6))
        first = int(rng.integers(space.start, space.stop - blocks * step))
        if rng.random() < 0.3:
            first, step = first + (blocks - 1) * step, -step
        fields |= {operand: first, stride: step % (1 << 16)}
    return fields


def row_bits(config, mantissa, exponent):
    """Storage bits of one row of the tensor memory."""
    width = config.mantissa_bits
    bits = int(exponent) << config.n * width
    for k, value in enumerate(mantissa.tolist()):
        bits |= (value & (1 << width) - 1) << k * width
    return bits


def link_bits(config, transfer):
    """Bits of every row of a transfer as they travel: row, mask, tag, last."""
    widths = {"sub": 16, "last_sub": 1, "gradient": 1, "version": 8}
    tag = at = 0
    for name in TAG:
        tag |= transfer.tag[name] << at
        at += widths[name]
    rows = []
    for mantissa, exponent, mask in zip(
        transfer.mantissa, transfer.exponent, transfer.mask, strict=True
    ):
        bits, at = row_bits(config, mantissa, exponent), config.n * config.mantissa_bits + 8
        bits |= sum(int(bit) << k for k, bit in enumerate(mask)) << at
        rows.append(bits | tag << at + config.n)
    rows[-1] |= 1 << at + config.n + 26
    return rows
