"""A bus small enough for a solver, and the shadow state that bus proofs share."""

from dataclasses import dataclass

from amaranth import *
from gradmill_hw.memory.axi import PAGE_BYTES


__all__ = ["NarrowBus", "burst_rules", "held"]


@dataclass(frozen=True)
class NarrowBus:
    """Stands in for a ``Config``: two pages, 2-byte beats, requests of up to 7 beats."""

    address_bits: int = PAGE_BYTES.bit_length()
    bus_bits: int = 16
    burst_beats: int = 4
    reads_in_flight: int = 2

    @property
    def beat_bytes(self):
        return self.bus_bits // 8

    def run_bytes(self, kind, rows):
        """Bytes of the longest request."""
        return 7 * self.beat_bytes


def held(m, valid, ready, payload):
    """A signal that is 0 where an offer of the last cycle has changed before it was taken."""
    payload = Value.cast(payload)
    waits = Signal()
    before = Signal(len(payload))
    ok = Signal()
    m.d.sync += [waits.eq(valid & ~ready), before.eq(payload)]
    m.d.comb += ok.eq(~waits | (valid & (payload == before)))
    return ok


def burst_rules(config, addr, length, size, burst):
    """Whether an address channel shows a legal burst."""
    last = addr + length * config.beat_bytes
    page = PAGE_BYTES.bit_length() - 1
    return ((size == config.beat_bytes.bit_length() - 1) & (burst == 1)
            & (length < config.burst_beats)
            & (addr[:config.beat_bytes.bit_length() - 1] == 0)
            & (last[:config.address_bits][page:] == addr[page:]))
