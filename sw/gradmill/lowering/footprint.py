"""Which rows and bytes an instruction touches, exactly."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from gradmill_hw.isa import AddSource, Kind, MaskKind, MulSource, Opcode, Space


__all__ = ["Fields", "Footprint", "footprint"]

_HOME = {Kind.MASK: "mask", Kind.BFP: "tensor", Kind.FP32: "acc"}


@dataclass
class Footprint:
    """On-chip rows by memory, and byte intervals by tier, read and written. It is shared: do not
    change it.

    Members
    -------
    reads, writes : dict
        ``"tensor"``, ``"acc"`` or ``"mask"`` -> row numbers.
    memory_reads, memory_writes : list of (tier, start, end)
        Byte intervals; addresses that depend on a base register are not listed.
    """

    reads:         dict = field(default_factory=dict)
    writes:        dict = field(default_factory=dict)
    memory_reads:  list = field(default_factory=list)
    memory_writes: list = field(default_factory=list)


def _grid(base, *dims):
    """``base + sum(i_d · stride_d)`` for ``(count, stride)`` pairs."""
    rows = np.array([base])
    for count, stride in dims:
        rows = (rows[:, None] + np.arange(count) * stride).ravel()
    return rows


def _transfer(f, config):
    dims = [(f[f"count{d}"], f[f"row_stride{d}"]) for d in range(3)]
    rows = _grid(f["op0"], (f["run"], 1), *dims)
    start = f["mem"]
    kind = Kind(f["kind"])
    last = sum((f[f"count{d}"] - 1) * f[f"mem_stride{d}"] for d in range(3))
    end = start + last + config.run_bytes(kind.name.lower(), f["run"], f["codec"])
    return _HOME[kind], rows, [] if f["mem_base"] else [(f["tier"], start, end)]


def _copy(f, config):
    size = config.run_bytes(Kind(f["kind"]).name.lower(), f["run"], f["codec"])
    ends = [(f[tier], f[start], f[start] + (f["count"] - 1) * f[f"{start}_stride"] + size)
            for tier, start in (("tier", "mem"), ("target_tier", "target"))]
    return [] if f["mem_base"] else ends[:1], ends[1:]


def footprint(opcode, fields, config):
    """The :class:`Footprint` of one instruction, ``fields`` by name (absent ones are zero)."""
    return _footprint(opcode, tuple(fields.items()), config)


@lru_cache(maxsize=1 << 12)
def _footprint(opcode, fields, config):
    f, n = Fields(fields), config.n
    if opcode is Opcode.LOAD:
        home, rows, memory = _transfer(f, config)
        return Footprint(writes={home: rows}, memory_reads=memory)
    if opcode is Opcode.STORE:
        home, rows, memory = _transfer(f, config)
        return Footprint(reads={home: rows}, memory_writes=memory)
    if opcode is Opcode.COPY:
        source, target = _copy(f, config)
        return Footprint(memory_reads=source, memory_writes=target)
    if opcode is Opcode.MATMUL:
        m_tiles, k_tiles, c_tiles = (-(-f[name] // n) for name in "mkc")
        a = _grid(f["op0"], (m_tiles, f["a_stride_m"]), (k_tiles, f["a_stride_k"]), (n, 1))
        w = _grid(f["op1"], (c_tiles, f["w_stride_c"]), (k_tiles, f["w_stride_k"]), (n, 1))
        d = _grid(f["op2"], (c_tiles, f["d_stride_c"]), (f["m"], 1))
        return Footprint(reads={"tensor": np.concatenate([a, w])}, writes={"acc": d})
    if opcode is Opcode.VECTOR:
        return _vector(f, n)
    if opcode in (Opcode.RECEIVE, Opcode.SEND):
        padded = -(-f["rows"] // n) * n
        rows = {"tensor": _grid(f["op0"], (f["blocks"], f["t_stride"]), (padded, 1))}
        if f["masked"]:
            rows["mask"] = _grid(f["op4"], (f["blocks"], f["k_stride"]), (f["rows"], 1))
        return Footprint(reads=rows) if opcode is Opcode.SEND else Footprint(writes=rows)
    return Footprint()


def _vector(f, n):
    rows, count = f["rows"], f["blocks"]
    reads, writes = {}, {}

    def add(target, home, numbers):
        target[home] = np.concatenate([target[home], numbers]) if home in target else numbers

    a = _grid(f["op0"], (count, f["a_stride"]), (rows, f["a_step"]))
    add(reads, "tensor" if f["a_space"] == Space.TENSOR else "acc", a)
    if f["mul"] == MulSource.ROW or f["add_source"] == AddSource.ROW:
        add(reads, "acc", _grid(f["op1"], (count, f["b_stride"]), (rows, f["b_step"])))
    k = _grid(f["op4"], (count, f["k_stride"]), (rows, 1))
    if f["mask"] == MaskKind.MEMORY or f["add_source"] == AddSource.MASKED:
        add(reads, "mask", k)
    if f["write_mask"]:
        add(writes, "mask", k)
    if f["write_acc"]:
        add(writes, "acc", _grid(f["op2"], (count, f["d_stride"]), (rows, 1)))
    if f["write_tensor"]:
        padded = -(-rows // n) * n
        add(writes, "tensor", _grid(f["op3"], (count, f["t_stride"]), (padded, 1)))
    return Footprint(reads=reads, writes=writes)


class Fields(dict):
    """Fields of an instruction: absent ones are zero, as in the encoding."""

    def __missing__(self, name):
        return 0
