"""Requests of any length, and the AXI bursts they become."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .axi import PAGE_BYTES


__all__ = ["ROW_LIMIT", "Burst", "Bursts", "Request", "beats_bits"]

#: Longest run, in rows.
ROW_LIMIT = (1 << 16) - 1


def beats_bits(config):
    """Bits of a request length in beats: the longest run of the longest rows fits."""
    return (config.run_bytes("fp32", ROW_LIMIT) // config.beat_bytes).bit_length()


class Request(data.StructLayout):
    """Contiguous beats.

    Members
    -------
    addr : address_bits
        First byte, a multiple of the bytes of a beat.
    beats : beats_bits(config)
        Length in beats, at least 1.
    """

    def __init__(self, config):
        super().__init__({"addr": config.address_bits, "beats": beats_bits(config)})


class Burst(data.StructLayout):
    """One AXI burst.

    Members
    -------
    addr : address_bits
        First byte.
    len : 8
        Beats minus one, as AXI has it.
    final : 1
        Last burst of its request.
    """

    def __init__(self, config):
        super().__init__({"addr": config.address_bits, "len": 8, "final": 1})


class Bursts(wiring.Component):
    """Cuts requests at multiples of ``burst_beats``, and so never crosses 4096 bytes.

    One burst per cycle, without a bubble between requests; the first burst of a request stands on
    ``o`` the cycle after the request was taken.

    Parameters
    ----------
    config : Config
        Sizes: ``address_bits``, ``bus_bits``, ``burst_beats``.

    Members
    -------
    i : In(stream.Signature(Request(config)))
        Requests.
    o : Out(stream.Signature(Burst(config)))
        Bursts, in order.
    """

    def __init__(self, config):
        if config.burst_beats * config.beat_bytes > PAGE_BYTES:
            raise ValueError(f"{config.burst_beats} beats of {config.beat_bytes} bytes cross "
                             f"{PAGE_BYTES} bytes")
        self.config = config
        super().__init__({
            "i": In(stream.Signature(Request(config))),
            "o": Out(stream.Signature(Burst(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        low = config.beat_bytes.bit_length() - 1
        slot_bits = config.burst_beats.bit_length() - 1

        active = Signal()
        slot = Signal(slot_bits)  # beat within an aligned stretch of `burst_beats`
        page = Signal(config.address_bits - low - slot_bits)
        left = Signal(beats_bits(config))

        # Room to the end of the stretch, 1 to burst_beats.
        room = Signal(slot_bits + 1)
        final = Signal()
        size = Signal(slot_bits + 1)
        m.d.comb += [
            room.eq(config.burst_beats - slot),
            final.eq(left <= room),
            size.eq(Mux(final, left, room)),
            self.o.valid.eq(active),
            self.o.p.addr.eq(Cat(C(0, low), slot, page)),
            self.o.p.len.eq(size - 1),
            self.o.p.final.eq(final),
        ]

        sent = Signal()
        m.d.comb += sent.eq(self.o.valid & self.o.ready)
        m.d.comb += self.i.ready.eq(~active | (sent & final))
        with m.If(sent):
            m.d.sync += [slot.eq(0), page.eq(page + 1), left.eq(left - size)]
        with m.If(self.i.ready):
            m.d.sync += [
                active.eq(self.i.valid),
                Cat(slot, page).eq(self.i.p.addr[low:]),
                left.eq(self.i.p.beats),
            ]
        return m
