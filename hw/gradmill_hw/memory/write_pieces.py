"""Runs whose length is known when their beats are there."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Class
from ..stash.formats import WRITE_BEATS
from .bursts import beats_bits
from .fifo import StreamFifo
from .pack import TierBeat
from .runs import Run


__all__ = ["RunRequest", "WritePieces"]


class RunRequest(data.StructLayout):
    """A run, or a part of it, that is asked of the bus.

    Members
    -------
    addr : address_bits; beats : beats_bits(config)
        What is asked for.
    mem : address_bits
        First byte of the run.
    tier, cls
        As in the instruction.
    final : 1
        The last request of its instruction.
    """

    def __init__(self, config):
        super().__init__({
            "addr": config.address_bits, "beats": beats_bits(config), "mem": config.address_bits,
            "tier": 1, "cls": range(len(Class)), "final": 1,
        })


class WritePieces(wiring.Component):
    """Asks for a run at once, or, if it is in a stash format, for 16 beats of it at a time and
    for what is left when the last beat is there.

    Beats wait in a queue, where a piece is complete before it is asked for: a beat appears at the
    output in the cycle after it came. One beat per cycle.

    Parameters
    ----------
    config : Config
        Sizes.
    depth : int
        Runs that may wait.

    Members
    -------
    i_run : In(stream.Signature(Run(config)))
        Runs in order.
    i : In(stream.Signature(TierBeat(config)))
        Their beats.
    request : Out(stream.Signature(RunRequest(config)))
        What to ask the bus for, in the order of the beats.
    o : Out(stream.Signature(TierBeat(config)))
        The beats.
    busy : Out(1)
        A run has not been asked for to its end.
    """

    def __init__(self, config, *, depth):
        self.config, self.depth = config, depth
        super().__init__({
            "i_run": In(stream.Signature(Run(config))),
            "i": In(stream.Signature(TierBeat(config))),
            "request": Out(stream.Signature(RunRequest(config))),
            "o": Out(stream.Signature(TierBeat(config))),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, ask = self.config, self.request.p
        low = config.beat_bytes.bit_length() - 1
        piece_shape = data.StructLayout({"beats": range(WRITE_BEATS + 1), "last": 1})
        m.submodules.runs = runs = StreamFifo(Run(config), depth=self.depth, buffered=False)
        m.submodules.beats = beats = StreamFifo(
            TierBeat(config), depth=2 * WRITE_BEATS, buffered=False)
        m.submodules.pieces = pieces = StreamFifo(piece_shape, depth=8, buffered=False)
        wiring.connect(m, wiring.flipped(self.i_run), runs.i)
        wiring.connect(m, beats.o, wiring.flipped(self.o))

        # Beats of stash formats are counted on their way into the queue.
        count = Signal(range(WRITE_BEATS))
        moved = Signal()
        complete = Signal()
        m.d.comb += [
            moved.eq(self.i.valid & self.i.ready),
            self.i.ready.eq(beats.i.ready & pieces.i.ready),
            beats.i.valid.eq(self.i.valid & pieces.i.ready),
            beats.i.payload.eq(self.i.payload),
            complete.eq((count == WRITE_BEATS - 1) | self.i.p.last),
            pieces.i.valid.eq(moved & self.i.p.coded & complete),
            pieces.i.p.beats.eq(count + 1),
            pieces.i.p.last.eq(self.i.p.last),
        ]
        with m.If(moved & self.i.p.coded):
            m.d.sync += count.eq(Mux(complete, 0, count + 1))

        run, piece = runs.o.p, pieces.o.p
        coded = Signal()
        before = Signal(beats_bits(config))
        asked = Signal()
        m.d.comb += [
            coded.eq(run.codec != 0),
            self.request.valid.eq(runs.o.valid & (~coded | pieces.o.valid)),
            ask.addr.eq(Cat(C(0, low), (run.mem[low:] + before)[:config.address_bits - low])),
            ask.beats.eq(Mux(coded, piece.beats, run.beats)),
            ask.mem.eq(run.mem), ask.tier.eq(run.tier), ask.cls.eq(run.cls),
            ask.final.eq(run.final & (~coded | piece.last)),
            asked.eq(self.request.valid & self.request.ready),
            pieces.o.ready.eq(asked & coded),
            runs.o.ready.eq(asked & (~coded | piece.last)),
            self.busy.eq(runs.o.valid),
        ]
        with m.If(asked):
            m.d.sync += before.eq(Mux(runs.o.ready, 0, before + WRITE_BEATS))
        return m
