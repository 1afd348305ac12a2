"""Runs that are read as far as they turn out to reach."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Class
from ..stash.formats import READ_BEATS
from .bursts import beats_bits
from .runs import Run


__all__ = ["ReadPieces", "ReadRequest"]


class ReadRequest(data.StructLayout):
    """A run, or a part of it, that is asked of the bus.

    Members
    -------
    addr : address_bits; beats : beats_bits(config)
        What is asked for.
    tier, cls
        As in the instruction.
    """

    def __init__(self, config):
        super().__init__({"addr": config.address_bits, "beats": beats_bits(config), "tier": 1,
                          "cls": range(len(Class))})


class ReadPieces(wiring.Component):
    """Asks for a run at once, or, if its length depends on its values, for 4 beats when they are
    wanted, until the run has ended; runs behind it wait.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    i : In(stream.Signature(Run(config)))
        Runs in order.
    o : Out(stream.Signature(ReadRequest(config)))
        What to ask the bus for.
    more : In(1)
        The packed run needs its next beats; held until ``granted``.
    granted : Out(range(5))
        Beats that are asked for in this cycle.
    ended : In(1)
        The packed run needs no more.
    exhausted : Out(1)
        All of the packed run has been asked for.
    busy : Out(1)
        There is a packed run that has not ended.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(Run(config))), "o": Out(stream.Signature(ReadRequest(config))),
            "more": In(1), "granted": Out(range(READ_BEATS + 1)), "ended": In(1),
            "exhausted": Out(1), "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, run, ask = self.config, self.i.p, self.o.p
        low = config.beat_bytes.bit_length() - 1
        at = Signal(config.address_bits - low)
        left = Signal(beats_bits(config))
        tier = Signal()
        cls = Signal.like(run.cls)

        m.d.comb += self.exhausted.eq(left == 0)
        with m.If(self.busy):
            m.d.comb += [
                self.o.valid.eq(self.more & ~self.exhausted),
                ask.addr.eq(Cat(C(0, low), at)),
                ask.beats.eq(Mux(left > READ_BEATS, READ_BEATS, left)),
                ask.tier.eq(tier), ask.cls.eq(cls),
            ]
            with m.If(self.o.valid & self.o.ready):
                m.d.comb += self.granted.eq(ask.beats)
                m.d.sync += [at.eq(at + READ_BEATS), left.eq(left - ask.beats)]
            with m.If(self.ended):
                m.d.sync += self.busy.eq(0)
        with m.Else():
            m.d.comb += [
                self.o.valid.eq(self.i.valid & ~run.packed),
                ask.addr.eq(run.mem), ask.beats.eq(run.beats),
                ask.tier.eq(run.tier), ask.cls.eq(run.cls),
                self.i.ready.eq(self.o.ready | run.packed),
            ]
            with m.If(self.i.valid & run.packed):
                m.d.sync += [
                    self.busy.eq(1), at.eq(run.mem[low:]), left.eq(run.beats),
                    tier.eq(run.tier), cls.eq(run.cls),
                ]
        return m
