"""Ports of the on-chip memories and the row formats that travel through them."""

from amaranth import signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out, Signature


__all__ = [
    "READ_LATENCY", "ROW_ADDRESS_BITS", "BfpRow", "ReadPort", "TensorReadPort", "WritePort",
    "fp32_row", "mask_row",
]

#: Row addresses are this wide in every instruction; a memory reports what lies beyond its depth.
ROW_ADDRESS_BITS = 16

#: Cycles from the grant of a read to its data, for all three memories.
READ_LATENCY = 2


class BfpRow(data.StructLayout):
    """``n`` signed mantissas and their shared exponent."""

    def __init__(self, config):
        super().__init__({
            "mantissa": data.ArrayLayout(signed(config.mantissa_bits), config.n),
            "exponent": 8,
        })


def fp32_row(config):
    """Layout of ``n`` binary32 values."""
    return data.ArrayLayout(32, config.n)


def mask_row(config):
    """Layout of ``n`` bits."""
    return data.ArrayLayout(1, config.n)


class ReadPort(Signature):
    """Read port, seen from the client.

    A read is granted in a cycle with ``valid & ready``; its data stands on ``data`` exactly
    :data:`READ_LATENCY` cycles later, for one cycle. Reads may be granted every cycle.

    Members
    -------
    valid : Out(1)
        A row is wanted; held with a stable ``addr`` until granted.
    addr : Out(16)
        Row address.
    ready : In(1)
        Granted in this cycle; may depend on ``valid`` of this and other clients.
    data : In(shape)
        Row granted ``READ_LATENCY`` cycles ago.
    """

    def __init__(self, shape, extra=None):
        super().__init__({
            "valid": Out(1),
            "addr":  Out(ROW_ADDRESS_BITS),
            **(extra or {}),
            "ready": In(1),
            "data":  In(shape),
        })


class TensorReadPort(ReadPort):
    """Read port of the tensor memory.

    With ``transpose``, address ``t·n + c`` gives column ``c`` of the tile at rows ``t·n`` to
    ``t·n + n-1``, with the exponent stored at the tile's first row; otherwise it gives the row.
    """

    def __init__(self, config):
        super().__init__(BfpRow(config), {"transpose": Out(1)})


class WritePort(Signature):
    """Write port, seen from the client. The row is written in the cycle with ``valid & ready``
    and seen by reads granted in later cycles.

    Members
    -------
    valid : Out(1)
        A row is offered; held with stable ``addr`` and ``data`` until taken.
    addr : Out(16)
        Row address.
    data : Out(shape)
        Row.
    ready : In(1)
        Taken in this cycle.
    """

    def __init__(self, shape):
        super().__init__({
            "valid": Out(1),
            "addr":  Out(ROW_ADDRESS_BITS),
            "data":  Out(shape),
            "ready": In(1),
        })
