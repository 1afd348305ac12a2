"""AXI4 and AXI4-Lite ports, as seen by the manager.

Members carry the standard names without prefix, so that a port called ``m_axi`` becomes
``m_axi__araddr``. Constant sideband signals are members too, because interconnect tools ask for
them. Source: ARM IHI 0022, AMBA AXI and ACE Protocol Specification.
"""

from amaranth.lib.wiring import In, Out, Signature


__all__ = [
    "ID_BITS", "PAGE_BYTES", "SIDEBAND", "Axi4", "AxiLite", "AxiRead", "AxiWrite", "drive_sideband",
    "join",
]

#: Width of the transaction identifiers. All transactions use identifier 0 and so stay in order.
ID_BITS = 1

#: No burst crosses a multiple of this many bytes.
PAGE_BYTES = 4096

#: Address channel members that never change: name, width, value.
SIDEBAND = (
    ("id",    ID_BITS, 0),
    ("burst", 2, 0b01),    # INCR
    ("lock",  1, 0),       # normal
    ("cache", 4, 0b0011),  # normal memory, not cacheable, bufferable
    ("prot",  3, 0b000),   # unprivileged, secure, data
    ("qos",   4, 0),
)


def _address_channel(letter, address_bits):
    return {
        f"a{letter}valid": Out(1),
        f"a{letter}ready": In(1),
        f"a{letter}addr":  Out(address_bits),
        f"a{letter}len":   Out(8),
        f"a{letter}size":  Out(3),
        **{f"a{letter}{name}": Out(width) for name, width, _ in SIDEBAND},
    }


def _read_channels(address_bits, data_bits):
    return {
        **_address_channel("r", address_bits),
        "rvalid": In(1),
        "rready": Out(1),
        "rid":    In(ID_BITS),
        "rdata":  In(data_bits),
        "rresp":  In(2),
        "rlast":  In(1),
    }


def _write_channels(address_bits, data_bits):
    return {
        **_address_channel("w", address_bits),
        "wvalid": Out(1),
        "wready": In(1),
        "wdata":  Out(data_bits),
        "wstrb":  Out(data_bits // 8),
        "wlast":  Out(1),
        "bvalid": In(1),
        "bready": Out(1),
        "bid":    In(ID_BITS),
        "bresp":  In(2),
    }


def drive_sideband(port, letter):
    """Assignments of the constant members of one address channel, ``"r"`` or ``"w"``."""
    size = len(port.rdata if letter == "r" else port.wdata) // 8
    return [
        getattr(port, f"a{letter}size").eq(size.bit_length() - 1),
        *(getattr(port, f"a{letter}{name}").eq(value) for name, _, value in SIDEBAND),
    ]


def join(m, port, *halves):
    """Connect the channels of ``port`` with those of ``halves``, an :class:`AxiRead` and an
    :class:`AxiWrite`."""
    for half in halves:
        for name, member in half.signature.members.items():
            ours, theirs = getattr(port, name), getattr(half, name)
            m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)


class AxiRead(Signature):
    """AR and R channels.

    Parameters
    ----------
    address_bits, data_bits : int
        Widths of ``araddr`` and ``rdata``.
    """

    def __init__(self, address_bits, data_bits):
        super().__init__(_read_channels(address_bits, data_bits))


class AxiWrite(Signature):
    """AW, W and B channels.

    Parameters
    ----------
    address_bits, data_bits : int
        Widths of ``awaddr`` and ``wdata``.
    """

    def __init__(self, address_bits, data_bits):
        super().__init__(_write_channels(address_bits, data_bits))


class Axi4(Signature):
    """All five channels: the members of :class:`AxiRead` and :class:`AxiWrite` under their names.

    Parameters
    ----------
    address_bits, data_bits : int
        Widths of addresses and data.
    """

    def __init__(self, address_bits, data_bits):
        super().__init__({**_read_channels(address_bits, data_bits),
                          **_write_channels(address_bits, data_bits)})


class AxiLite(Signature):
    """AXI4-Lite, all five channels.

    Parameters
    ----------
    address_bits : int
        Width of addresses.
    data_bits : int
        Width of data, 32 or 64.
    """

    def __init__(self, address_bits, data_bits=32):
        super().__init__({
            "awvalid": Out(1),
            "awready": In(1),
            "awaddr":  Out(address_bits),
            "awprot":  Out(3),
            "wvalid":  Out(1),
            "wready":  In(1),
            "wdata":   Out(data_bits),
            "wstrb":   Out(data_bits // 8),
            "bvalid":  In(1),
            "bready":  Out(1),
            "bresp":   In(2),
            "arvalid": Out(1),
            "arready": In(1),
            "araddr":  Out(address_bits),
            "arprot":  Out(3),
            "rvalid":  In(1),
            "rready":  Out(1),
            "rdata":   In(data_bits),
            "rresp":   In(2),
        })
