"""A bus small enough for a solver, and the shadow state that bus proofs share."""

import inspect
import sys
from dataclasses import dataclass

from amaranth import *
from amaranth.asserts import AnySeq
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.memory.axi import PAGE_BYTES
from gradmill_hw.memory.bursts import Burst, Request, beats_bits


__all__ = ["FreeBursts", "NarrowBus", "ShiftQueue", "burst_rules", "held", "mutant"]


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
    return (
        (size == config.beat_bytes.bit_length() - 1)
        & (burst == 1)
        & (length < config.burst_beats)
        & (addr[: config.beat_bytes.bit_length() - 1] == 0)
        & (last[: config.address_bits][page:] == addr[page:])
    )


class ShiftQueue(wiring.Component):
    """Behaves like ``StreamFifo``, whose own proof shows it, with its words in plain sight.

    Attributes
    ----------
    entries : list of Signal
        Words, the oldest first.
    level : Signal
        How many of them are valid.
    """

    def __init__(self, shape, *, depth, buffered):
        if buffered:
            raise ValueError("only the queue without an output register is modelled")
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})
        self.entries = [Signal(shape, name=f"entry{k}") for k in range(depth)]
        self.level = Signal(range(depth + 1))

    def elaborate(self, platform):
        m = Module()
        depth = len(self.entries)
        pushed = self.i.valid & self.i.ready
        popped = self.o.valid & self.o.ready
        m.d.comb += [
            self.i.ready.eq(self.level != depth),
            self.o.valid.eq(self.level != 0),
            self.o.payload.eq(self.entries[0]),
        ]
        m.d.sync += self.level.eq(self.level + pushed - popped)
        for k, entry in enumerate(self.entries):
            with m.If(pushed & (self.level - popped == k)):
                m.d.sync += entry.eq(self.i.payload)
            if k + 1 < depth:
                with m.Elif(popped):
                    m.d.sync += entry.eq(self.entries[k + 1])
        return m


class FreeBursts(wiring.Component):
    """Cuts requests anywhere; the real cutter, whose own proof shows it, is one case of it.

    Attributes
    ----------
    left : Signal
        Beats of the request that have not left; 0 if there is none.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {"i": In(stream.Signature(Request(config))), "o": Out(stream.Signature(Burst(config)))}
        )
        self.left = Signal(beats_bits(config))

    def elaborate(self, platform):
        m = Module()
        cut = Signal(range(self.config.burst_beats))  # where to cut next, taken if it is legal
        m.d.sync += cut.eq(Mux(self.o.valid & ~self.o.ready, cut, AnySeq(len(cut))))
        sent = self.o.valid & self.o.ready
        m.d.comb += [
            self.o.valid.eq(self.left != 0),
            self.o.p.final.eq(self.left <= cut + 1),
            self.o.p.len.eq(Mux(self.o.p.final, self.left - 1, cut)),
            self.i.ready.eq((self.left == 0) | (sent & self.o.p.final)),
        ]
        with m.If(sent):
            m.d.sync += self.left.eq(self.left - self.o.p.len - 1)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += self.left.eq(self.i.p.beats)
        return m


def mutant(component, old, new, **parts):
    """``component`` with one piece of its source replaced; ``parts`` replace names it uses."""
    module = sys.modules[component.__module__]
    source = inspect.getsource(module)
    if source.count(old) != 1:
        raise ValueError(f"{old!r} occurs {source.count(old)} times in {module.__name__}")
    names = {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(source.replace(old, new), module.__file__, "exec"), names)
    names.update(parts)
    return names[component.__name__]
