"""Exact model of the load and store units, on storage bits.

A command is a mapping with the fields of a ``LOAD`` or ``STORE`` instruction. State is any object
with arrays ``acc`` (float32 or uint32, rows x n), ``mantissa`` (int16, rows x n), ``exponent``
(uint8, rows) and ``mask`` (bool, rows x n), for codecs also ``seed``, ``step`` and ``tables``
(slot -> ``Table`` or ``HeldTable``). Memory is one uint8 array per tier; index = address. Without
a codec bits are moved as they are: NaN payloads and
subnormals survive.
"""

from typing import NamedTuple

import numpy as np

from ..isa import Kind
from ..regs import Error
from ..stash.codec_model import CodecError, decode_run, encode_rows
from ..stash.elements_model import to_rows
from ..stash.formats import READ_BEATS, ROW_NUMBERS, from_tag, piece_granules


__all__ = ["Stored", "TransferError", "check", "first_number", "load", "pack_rows",
           "store", "unpack_rows"]

_DIMENSIONS = (0, 1, 2)
_KINDS = {int(kind): kind.name.lower() for kind in Kind}


class TransferError(Exception):
    """A transfer that is refused, or meets a stash block that no encoder writes; ``error`` says why
    and ``mem`` is its address, or that of the run."""

    def __init__(self, error, mem):
        super().__init__(f"transfer at {mem:#x}: {error.name}, {error.doc}")
        self.error = error
        self.mem = mem


class Stored(NamedTuple):
    """What a ``STORE`` did: ``bytes`` on the bus in whole beats, ``rows`` that were encoded,
    ``saturated`` outliers among them that found no room."""
    bytes:     int
    rows:      int = 0
    saturated: int = 0


def first_number(command):
    """Number of the first row of a command with a codec, for random bits."""
    op1, op2, op3 = (int(command.get(f"op{k}", 0)) for k in (1, 2, 3))
    return (op1 | (op3 & 0xff) << 16 | op2 << 24) % ROW_NUMBERS


def check(config, command, windows, *, write):
    """The :class:`Error` of a command; ``windows[tier]`` holds (base, limit, read, write)."""
    strides = [int(command[f"mem_stride{d}"]) for d in _DIMENSIONS]
    counts = [int(command[f"count{d}"]) for d in _DIMENSIONS]
    mem, run, kind = int(command["mem"]), int(command["run"]), int(command["kind"])
    codec = int(command["codec"])
    if kind not in _KINDS:
        return Error.KIND
    if codec and (not config.stash or kind != Kind.BFP or from_tag(codec) is None):
        return Error.CODEC
    if run == 0 or 0 in counts:
        return Error.COUNT
    if any(value % config.beat_bytes for value in (mem, *strides)):
        return Error.ALIGNMENT
    end = mem + sum((count - 1) * stride for count, stride in zip(counts, strides, strict=True))
    end += config.run_bytes(_KINDS[kind], run, codec)
    for base, limit, may_read, may_write in windows[int(command["tier"])]:
        permitted = may_write if write else may_read
        if permitted and base <= mem and end <= limit <= 1 << config.address_bits:
            return Error.NONE
    return Error.WINDOW


def load(config, command, memory, state, windows=None):
    """Execute a ``LOAD``; return the bytes read on the bus.

    ``memory[tier]`` is the uint8 array of a tier. With ``windows`` the command is checked first,
    and :class:`TransferError` raised where the circuit refuses. Where rows coincide, the last
    run stays.
    """
    kind, starts, rows, size = _begin(config, command, windows, state, write=False)
    source = memory[int(command["tier"])]
    if command["codec"]:
        return _load_coded(config, command, source, state, starts, rows, size)
    if len(starts) == 1:
        raw = source[starts[0]:starts[0] + size]
    else:
        raw = source[starts[:, None] + np.arange(size)]
    values = unpack_rows(config, kind, raw, int(command["run"]))
    if kind == "fp32":
        state.acc.view(np.uint32)[rows] = values.reshape(-1, config.n)
    elif kind == "bfp":
        state.mantissa[rows] = values[0].reshape(-1, config.n)
        state.exponent[rows] = values[1].reshape(-1)
    else:
        state.mask[rows] = values.reshape(-1, config.n)
    return len(starts) * size


def store(config, command, memory, state, windows=None):
    """Execute a ``STORE``; return what it did as :class:`Stored`.

    Arguments as for :func:`load`. Bytes behind the last row of a run keep their value.
    """
    kind, starts, rows, size = _begin(config, command, windows, state, write=True)
    shape = (len(starts), int(command["run"]))
    if command["codec"]:
        target = memory[int(command["tier"])]
        return _store_coded(config, command, target, state, starts, rows)
    if kind == "fp32":
        values = state.acc.view(np.uint32)[rows].reshape(*shape, config.n)
    elif kind == "bfp":
        values = (state.mantissa[rows].reshape(*shape, config.n),
                  state.exponent[rows].reshape(shape))
    else:
        values = state.mask[rows].reshape(*shape, config.n)
    raw = pack_rows(config, kind, values)
    target = memory[int(command["tier"])]
    if len(starts) == 1:
        target[starts[0]:starts[0] + raw.shape[-1]] = raw[0]
    else:
        target[starts[:, None] + np.arange(raw.shape[-1])] = raw
    return Stored(len(starts) * size)


def _coded_runs(command, state, starts, rows):
    """For each run its start in memory, its rows, and the options of the codec model."""
    run, number = int(command["run"]), first_number(command)
    rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    for start, index in zip(starts.tolist(), rows.reshape(-1, run), strict=True):
        options = {"first_row": number, "tables": state.tables}
        if command.get("stochastic"):
            options["key"] = state.seed, state.step, int(command["layer"])
        yield start, index, options
        number += run


def _store_coded(config, command, target, state, starts, rows):
    entry = from_tag(int(command["codec"]))
    moved = saturated = 0
    for start, index, options in _coded_runs(command, state, starts, rows):
        coded = encode_rows(config, entry, state.mantissa[index],
                                        state.exponent[index], **options)
        target[start:start + len(coded.raw)] = coded.raw
        moved += -(-len(coded.raw) // config.beat_bytes) * config.beat_bytes
        saturated += coded.dropped
    return Stored(moved, len(starts) * int(command["run"]), saturated)


def _load_coded(config, command, source, state, starts, rows, size):
    """Of a run of a format that packs as many pieces are read as its last row, if it were the
    longest there is, would need."""
    packed = from_tag(int(command["codec"])).packed
    moved = 0
    for start, index, options in _coded_runs(command, state, starts, rows):
        try:
            values, last = decode_run(source[start:start + size], len(index), config.n,
                                      **options)
        except CodecError:
            raise TransferError(Error.STASH, start) from None
        state.mantissa[index], state.exponent[index] = to_rows(values, config.mantissa_bits)
        if packed:
            pieces = -(-(last + piece_granules(config.n)) // (READ_BEATS * config.beat_granules))
            moved += min(size, pieces * READ_BEATS * config.beat_bytes)
        else:
            moved += size
    return moved


def unpack_rows(config, kind, raw, count):
    """Values of the first ``count`` rows in ``raw`` (uint8, ..., bytes).

    ``"fp32"``: uint32 (..., count, n); ``"bfp"``: int16 mantissas (..., count, n) and uint8
    exponents (..., count); ``"mask"``: bool (..., count, n).
    """
    n = config.n
    if kind == "fp32":
        raw = np.ascontiguousarray(raw[..., :4 * n * count])
        return raw.view("<u4").reshape(*raw.shape[:-1], count, n)
    if kind == "mask":
        bits = np.unpackbits(raw, axis=-1, bitorder="little", count=n * count)
        return bits.reshape(*raw.shape[:-1], count, n).view(bool)

    # Rows in whole bytes; a field is then within two neighbouring bytes.
    width = config.mantissa_bits
    row_bits = n * config.bfp_granules
    if row_bits % 8:
        raw = np.unpackbits(raw, axis=-1, bitorder="little", count=row_bits * count)
        raw = np.packbits(raw.reshape(*raw.shape[:-1], count, row_bits), axis=-1,
                          bitorder="little")
    else:
        raw = raw[..., :row_bits // 8 * count]
        raw = raw.reshape(*raw.shape[:-1], count, row_bits // 8)
    first = width * np.arange(n + 1)  # the last field is the exponent
    low = first >> 3
    high = np.minimum(low + 1, raw.shape[-1] - 1)
    raw = raw.astype(np.uint16)
    fields = (raw[..., low] | raw[..., high] << 8) >> (first & 7).astype(np.uint16)
    sign = np.int16(1 << width - 1)
    mantissa = (fields[..., :n] & np.uint16((1 << width) - 1)).astype(np.int16)
    return (mantissa ^ sign) - sign, fields[..., n].astype(np.uint8)


def pack_rows(config, kind, values):
    """Bytes (uint8, ..., bytes) of rows; the inverse of :func:`unpack_rows`.

    Bits of the last byte behind the last row are zero.
    """
    if kind == "fp32":
        values = np.ascontiguousarray(values, dtype="<u4")
        return values.reshape(*values.shape[:-2], -1).view(np.uint8)
    if kind == "mask":
        bits = values.reshape(*values.shape[:-2], -1)
        return np.packbits(bits, axis=-1, bitorder="little")
    mantissa, exponent = values
    n, width = config.n, config.mantissa_bits
    bits = np.zeros((*exponent.shape, n * config.bfp_granules), np.uint8)
    fields = mantissa[..., None].astype(np.int16) >> np.arange(width, dtype=np.int16) & 1
    bits[..., :n * width] = fields.reshape(*exponent.shape, n * width)
    bits[..., n * width:n * width + 8] = exponent[..., None] >> np.arange(8, dtype=np.uint8) & 1
    bits = bits.reshape(*exponent.shape[:-1], -1)
    return np.packbits(bits, axis=-1, bitorder="little")


def _begin(config, command, windows, state, *, write):
    """Kind, start of each run in memory, index of all rows, bytes of a run on the bus."""
    if windows is not None:
        error = check(config, command, windows, write=write)
        if error:
            raise TransferError(error, int(command["mem"]))
    kind = _KINDS[int(command["kind"])]
    run = int(command["run"])
    depth = len({"fp32": state.acc, "bfp": state.mantissa, "mask": state.mask}[kind])
    starts = np.array([int(command["mem"])])
    rows = np.array([int(command["op0"])])
    for d in _DIMENSIONS:
        count = int(command[f"count{d}"])
        if count > 1:  # an inner dimension varies fastest
            steps = np.arange(count)[:, None]
            starts = (starts + steps * int(command[f"mem_stride{d}"])).reshape(-1)
            rows = (rows + steps * int(command[f"row_stride{d}"])).reshape(-1)
    rows &= 0xffff
    if rows.max() + run > depth:
        raise IndexError(f"row {rows.max() + run - 1} of {depth} {kind} rows: "
                         f"a transfer must stay inside the memory")
    if len(rows) == 1:
        index = slice(int(rows[0]), int(rows[0]) + run)
    else:
        index = (rows[:, None] + np.arange(run)).reshape(-1)
    return kind, starts, index, config.run_bytes(kind, run, int(command["codec"]))
