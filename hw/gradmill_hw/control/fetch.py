"""Instruction fetch: from near memory, ahead of the sequencer."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out, Signature

from ..isa import INSTRUCTION_BYTES
from ..memory.axi_reader import ReadClient
from ..memory.window import WINDOWS, Window
from .store import PC_BITS


__all__ = ["Fetch", "Fetched", "Jump"]

#: Instructions of a request; requests do not cross multiples of it.
GROUP = 4


class Fetched(data.StructLayout):
    """``word``: an instruction; ``error``: it could not be read, ``word`` is undefined."""

    def __init__(self):
        super().__init__({"word": 8 * INSTRUCTION_BYTES, "error": 1})


class Jump(Signature):
    """Where to go on, seen from the sequencer.

    Members
    -------
    valid : Out(1)
        Forget what was fetched and continue at ``target``.
    target : Out(34)
        Address, in instructions.
    first : Out(1)
        The program begins: look for its window. Later targets lie in the same one.
    """

    def __init__(self):
        super().__init__({"valid": Out(1), "target": Out(PC_BITS), "first": Out(1)})


class Fetch(wiring.Component):
    """Reads instructions in sequence, ``config.fetch_ahead`` of them ahead, in requests of four.

    A program lies in one near window with permission to read; of several the first is taken. An
    instruction beyond it, or with a bus error, is handed on with ``error`` when its turn comes:
    what is only fetched ahead does no harm. After a jump the first instruction comes after the
    latency of the memory and four cycles, at the start of a program after four more.

    Parameters
    ----------
    config : Config
        ``bus_bits``, ``address_bits``, ``fetch_ahead``.

    Members
    -------
    jump : In(Jump())
        New place.
    o : Out(stream.Signature(Fetched()))
        Instructions.
    windows : In(data.ArrayLayout(Window(config), 4))
        Near windows.
    client : Out(ReadClient(config))
        Near memory.
    abort : In(1)
        Forget what was fetched and request nothing until the next jump.
    idle : Out(1)
        Every beat requested has come back.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "jump":    In(Jump()),
            "o":       Out(stream.Signature(Fetched())),
            "windows": In(data.ArrayLayout(Window(config), WINDOWS)),
            "client":  Out(ReadClient(config)),
            "abort":   In(1),
            "idle":    Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        request, beat = self.client.request, self.client.data
        # An instruction is several beats, or a beat several instructions.
        beats = max(1, INSTRUCTION_BYTES // config.beat_bytes)
        parts = max(1, config.beat_bytes // INSTRUCTION_BYTES)
        depth = config.fetch_ahead * beats // parts
        shift = INSTRUCTION_BYTES.bit_length() - 1

        def beat_start(instruction):
            low_bits = parts.bit_length() - 1
            return Cat(C(0, low_bits), instruction[low_bits:])

        # Window: looked for once, one candidate a cycle.
        block     = Signal(PC_BITS)  # next instruction to request
        end       = Signal(PC_BITS)  # first one behind the window
        candidate = Signal(range(WINDOWS))
        searching = Signal()
        within    = Signal()         # a window was found
        behind    = Signal()         # all of it was requested
        window    = Signal(Window(config))
        first     = beat_start(block)
        beyond    = Cat(C(0, shift), block)[config.address_bits:]
        m.d.comb += window.eq(self.windows[candidate])
        inside = (window.read & (Cat(C(0, shift), first) >= window.base)
                  & (Cat(C(0, shift), first + parts) <= window.limit) & ~beyond.any())
        with m.If(searching):
            m.d.sync += [
                candidate.eq(candidate + 1),
                end.eq(window.limit[shift:]),
                within.eq(inside),
                searching.eq(~inside & (candidate != WINDOWS - 1)),
            ]

        # Requests: to the end of a group, or of the window.
        active      = Signal()                              # since a jump
        reserved    = Signal(range(config.fetch_ahead + 1))  # requested, not handed on
        outstanding = Signal(range(2 * depth + 2))          # beats
        stale       = Signal.like(outstanding)              # of these, from before a jump
        low         = block[:2]
        final       = block[2:] == end[2:]
        stop        = Signal(3)
        size        = Signal(3)
        room        = Signal()
        issue       = Signal()
        m.d.comb += [
            stop.eq(Mux(final, beat_start(end[:2]), GROUP)),
            size.eq(stop - low),
            room.eq(reserved <= config.fetch_ahead - GROUP),
            issue.eq(active & within & ~behind & ~searching & room & ~self.abort
                     & ~self.jump.valid & (~request.valid | request.ready)
                     & (outstanding <= depth)),
        ]
        request_beats = Signal(range(GROUP * beats + 1))
        sent = Signal()
        m.d.comb += [
            request_beats.eq((stop - beat_start(low)) * beats // parts),
            sent.eq(issue & (size != 0)),
        ]
        with m.If(~request.valid | request.ready):
            m.d.sync += [
                request.valid.eq(sent),
                request.p.addr.eq(Cat(C(0, shift), first)),
                request.p.beats.eq(request_beats),
            ]
        with m.If(issue):
            m.d.sync += [block.eq(Cat(C(0, 2), block[2:] + 1)), behind.eq(final)]

        # Beats: those from before a jump are dropped.
        came = Signal()
        kept = Signal()
        m.d.comb += [
            beat.ready.eq(1),
            came.eq(beat.valid & beat.ready),
            kept.eq(came & (stale == 0) & ~self.jump.valid),
            self.idle.eq((outstanding == 0) & ~request.valid),
        ]
        left_over = Signal.like(outstanding)
        m.d.comb += left_over.eq(outstanding - came)
        m.d.sync += outstanding.eq(left_over + Mux(sent, request_beats, 0))
        with m.If(came & (stale != 0)):
            m.d.sync += stale.eq(stale - 1)

        m.submodules.buffer = buffer = memory.Memory(
            shape=data.StructLayout({"data": config.bus_bits, "error": 1}), depth=depth, init=[])
        write, read = buffer.write_port(), buffer.read_port(domain="comb")
        level  = Signal(range(depth + 1))
        popped = Signal()
        m.d.comb += [
            write.en.eq(kept),
            write.data.data.eq(beat.p.data),
            write.data.error.eq(beat.p.error),
        ]
        m.d.sync += level.eq(level + kept - popped)
        with m.If(kept):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(popped):
            m.d.sync += read.addr.eq(read.addr + 1)

        # Assembly of an instruction from its beats, or choice of one from its beat.
        word    = self.o.p.word
        part    = Signal(range(max(2, beats, parts)))
        missing = Signal()
        move    = Signal()
        m.d.comb += [
            missing.eq(~self.o.valid | self.o.ready),
            move.eq(missing & (level != 0)),
            popped.eq(move if parts == 1 else move & (part == parts - 1)),
        ]
        last = move if beats == 1 else move & (part == beats - 1)
        with m.If(move):
            if beats * parts > 1:
                m.d.sync += part.eq(part + 1)
            if beats == 1:
                m.d.sync += word.eq(read.data.data.word_select(part, len(word)))
                m.d.sync += self.o.p.error.eq(read.data.error)
            else:
                m.d.sync += word.word_select(part, config.bus_bits).eq(read.data.data)
                m.d.sync += self.o.p.error.eq(read.data.error | (self.o.p.error & (part != 0)))
        with m.If(missing):
            m.d.sync += self.o.valid.eq(last)
        m.d.sync += reserved.eq(reserved + Mux(sent, size, 0) - last)

        # Nothing more can come: the next instruction is an error.
        over = ~searching & (behind | ~within) & (reserved == 0)
        with m.If(missing & over & active & ~move):
            m.d.sync += [self.o.valid.eq(1), self.o.p.error.eq(1)]

        with m.If(self.jump.valid | self.abort):
            m.d.sync += [
                self.o.valid.eq(0),
                part.eq(self.jump.target[:1] if parts > 1 else 0),
                block.eq(self.jump.target),
                behind.eq(0),
                reserved.eq(0),
                level.eq(0),
                read.addr.eq(0),
                write.addr.eq(0),
                stale.eq(left_over),
                active.eq(self.jump.valid),
            ]
        with m.If(self.jump.valid & self.jump.first):
            m.d.sync += [searching.eq(1), candidate.eq(0), within.eq(0)]
        return m
