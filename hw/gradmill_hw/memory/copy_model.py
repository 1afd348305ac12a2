"""Exact model of the copy unit."""

from ..isa import Kind
from ..regs import Error
from .transfer_model import TransferError, check


__all__ = ["copy"]


def copy(config, command, memory, windows=None):
    """Execute a ``COPY``; return the bytes read, which are also the bytes written.

    Arguments as for :func:`.transfer_model.load`. Runs are copied in order: where a source lies
    in an earlier target its bytes are undefined.
    """
    source = _side(command, command["mem"], command["tier"], command["mem_stride"])
    target = _side(command, command["target"], command["target_tier"], command["target_stride"])
    if windows is not None:
        for side, write in ((source, False), (target, True)):
            error = check(config, side, windows, write=write)
            if error is not Error.NONE:
                raise TransferError(error, int(side["mem"]))
    size = config.run_bytes(Kind(int(command["kind"])).name.lower(), int(command["run"]),
                            int(command["codec"]))
    for k in range(int(command["count"])):
        start, end = (int(side["mem"]) + k * int(side["mem_stride0"]) for side in (source, target))
        memory[int(target["tier"])][end:end + size] = \
            memory[int(source["tier"])][start:start + size]
    return int(command["count"]) * size


def _side(command, mem, tier, stride):
    """A side of the copy as a transfer."""
    return {"mem": mem, "tier": tier, "kind": command["kind"], "codec": command["codec"],
            "run": command["run"], "count0": command["count"], "mem_stride0": stride,
            "count1": 1, "count2": 1, "mem_stride1": 0, "mem_stride2": 0}
