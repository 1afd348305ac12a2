"""Golden model of the stash codec: runs of rows to bits and back. NumPy only, bit-exact.

A run is a sequence of blocks; only its last one may have fewer rows. Bits are joined lowest first
to bytes, as everywhere in memory; what follows the last block is zero.
"""

from dataclasses import dataclass

import numpy as np

from . import bfp_model, mask_model, mx_model, nonuniform_model, outlier_model
from .elements_model import Values, decode_random, encode_random, from_rows, to_rows
from .formats import from_tag
from .layout_model import deserialise, serialise
from .tables import PRESETS


__all__ = ["MODELS", "CodecError", "Encoded", "decode", "decode_rows", "decode_run", "encode",
           "encode_rows"]

#: Model of each line of the table of formats.
MODELS = {
    "bfp": bfp_model, "ubfp": bfp_model, "mask": mask_model, "mask+bfp": mask_model,
    "mx4": mx_model, "mx6": mx_model, "mx9": mx_model,
    "outlier": outlier_model, "nonuniform": nonuniform_model,
}


class CodecError(ValueError):
    """Bits that no encoder writes; ``block`` is the number of the block in its run."""

    def __init__(self, block, message):
        self.block = block
        super().__init__(f"block {block}: {message}")


@dataclass
class Encoded:
    """A run as it lies in memory.

    ``raw`` uint8; ``bits`` is the size without the rest of the last byte; ``dropped`` counts the
    outliers that found no room.
    """
    raw:     np.ndarray
    bits:    int
    dropped: int


def encode(entry, elements, *, key=None, first_row=0, tables=PRESETS):
    """:class:`Encoded` of elements (rows, n); with ``key`` = (seed, step, layer) stochastically."""
    rows, n = elements.mag.shape
    size = entry.rows(n)
    full = rows // size
    random = None
    if key is not None:
        random = encode_random(key, first_row + np.arange(rows), n)
    model = MODELS[entry.name]
    streams, dropped = [np.zeros(0, np.uint8)], 0
    for first, last, shape in ((0, full * size, (full, size)),
                               (full * size, rows, (1, rows - full * size))):
        if last == first:
            continue
        part = None if random is None else random[first:last].reshape(*shape, n)
        coded = model.encode(entry, elements[first:last].reshape(*shape), part, tables)
        streams.append(serialise(entry, coded))
        dropped += coded.dropped
    bits = np.concatenate(streams)
    return Encoded(np.packbits(bits, bitorder="little"), len(bits), dropped)


def decode(raw, rows, n, **options):
    """:class:`Values` of a run; see :func:`decode_run`."""
    return decode_run(raw, rows, n, **options)[0]


def decode_run(raw, rows, n, *, key=None, first_row=0, tables=PRESETS):
    """:class:`Values` of a run of ``rows`` rows, and the granule where its last row begins; with
    ``key`` randomly where a table says so.

    Raises
    ------
    CodecError
        A tag that does not exist, or fewer bits than the blocks need.
    """
    bits = np.unpackbits(np.asarray(raw, np.uint8), bitorder="little")
    bits = np.concatenate([bits, np.zeros(-len(bits) % n, np.uint8)])
    granules = bits.reshape(-1, n)
    parts, row, block, at, last = [], 0, 0, 0, 0
    while row < rows:
        entry = from_tag(_tag(granules, at, block))
        if entry is None:
            raise CodecError(block, f"tag {_tag(granules, at, block):#04x} is no stash format")
        size = min(entry.rows(n), rows - row)
        count = 1
        if not entry.packed and size == entry.rows(n):
            count = _alike(entry, granules, at, (rows - row) // size, n)
        found = deserialise(entry, granules, at, count, size, n)
        if found is None:
            raise CodecError(block + count - 1, f"{entry} ends after {len(granules)} granules")
        prefixes, codes, keep, last, at = found
        random = None
        if key is not None:
            random = decode_random(key, first_row + row + np.arange(count * size), n)
            random = random.reshape(codes.shape)
        values = MODELS[entry.name].decode(entry, prefixes, codes, keep, random, tables)
        parts.append([values.mag.reshape(-1, n), values.neg.reshape(-1, n),
                      values.exponent.reshape(-1, n), values.shared.reshape(-1)])
        row += count * size
        block += count
    if not parts:
        return Values(*(np.zeros((0, n), int) for _ in range(3)), np.zeros(0, int)), 0
    return Values(*(np.concatenate(part) for part in zip(*parts, strict=True))), last


def _tag(granules, at, block):
    bits = granules[at:].reshape(-1)[:8]
    if len(bits) < 8:
        raise CodecError(block, f"the run ends after {len(granules)} granules")
    return int(bits @ (1 << np.arange(8)))


def _alike(entry, granules, at, most, n):
    """How many blocks in a row have the tag of ``entry``, all of them present."""
    stride = entry.granules(entry.rows(n), n)[0]
    most = max(1, min(most, (len(granules) - at) // stride))
    starts = at + np.arange(most) * stride
    index = starts[:, None] + np.arange(-(-8 // n))
    index = np.minimum(index, len(granules) - 1)
    tags = granules[index].reshape(most, -1)[:, :8] @ (1 << np.arange(8))
    other = np.flatnonzero(tags != entry.tag)
    return int(other[0]) if len(other) else most


def encode_rows(config, entry, mantissa, exponent, **options):
    """:func:`encode` of rows of block floating point, int16 (rows, n) and uint8 (rows)."""
    return encode(entry, from_rows(mantissa, exponent, config.mantissa_bits), **options)


def decode_rows(config, raw, rows, **options):
    """:func:`decode` to rows of block floating point."""
    return to_rows(decode(raw, rows, config.n, **options), config.mantissa_bits)
