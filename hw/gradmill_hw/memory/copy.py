"""Copies between the memory tiers that touch no on-chip memory."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode
from ..isa_layout import command_layout
from ..regs import Error
from .axi_reader import ReadClient
from .axi_writer import WriteClient
from .bursts import Burst, Bursts, Request, beats_bits
from .fifo import StreamFifo
from .load import Traffic
from .window import WindowCheck, windows_layout


__all__ = ["Copy", "RunBursts"]

#: Requests to write whose report is still to come.
UNANSWERED = 16


class RunBursts(wiring.Component):
    """Bursts of runs that lie ``stride`` apart.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    start : In(1)
        Begin with the runs of the other inputs, which stay until the last burst was taken.
    addr, stride : In
        First byte of the first run; bytes from a run to the next.
    beats, runs : In
        Length of a run; number of runs.
    stop : In(1)
        No further bursts.
    o : Out(stream.Signature(Burst(config)))
        Bursts in order; one that was not taken is withdrawn by ``stop``.
    active : Out(1)
        Bursts are to come.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "start":  In(1),
            "addr":   In(config.address_bits),
            "stride": In(32),
            "beats":  In(beats_bits(config)),
            "runs":   In(16),
            "stop":   In(1),
            "o":      Out(stream.Signature(Burst(config))),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        low = config.beat_bytes.bit_length() - 1
        m.submodules.bursts = bursts = ResetInserter(self.stop)(Bursts(config))

        place = Signal(config.address_bits - low)
        left  = Signal(16)
        run   = Signal(Request(config))
        taken = Signal()
        m.d.comb += [
            run.addr.eq(Cat(C(0, low), place)),
            run.beats.eq(self.beats),
            bursts.i.valid.eq(left != 0),
            bursts.i.payload.eq(run),
            taken.eq(bursts.i.valid & bursts.i.ready),
            self.o.valid.eq(bursts.o.valid),
            self.o.payload.eq(bursts.o.payload),
            bursts.o.ready.eq(self.o.ready),
            self.active.eq((left != 0) | bursts.o.valid),
        ]
        with m.If(self.stop):
            m.d.sync += left.eq(0)
        with m.Elif(self.start):
            m.d.sync += [place.eq(self.addr[low:]), left.eq(self.runs)]
        with m.Elif(taken):
            m.d.sync += [place.eq(place + self.stride[low:]), left.eq(left - 1)]
        return m


class Copy(wiring.Component):
    """Executes ``COPY``: reads runs of one tier and writes them to a tier.

    A burst is asked for only when there is room for all of it, and is promised to the other tier
    only when all of it has come: so a tier that is slow, or a beat that never comes, keeps nobody
    else from a bus. Reads run ahead by as much as the buffer holds.

    One instruction at a time; both sides are checked before the first beat. After a bus error
    the unit stops for good: a bad beat and what follows it are not written, and what was asked
    for is drained before the error is reported.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.COPY)))
        Instructions.
    windows : In(windows_layout(config))
        What they may touch.
    near_read, far_read : Out(ReadClient(config))
        Tiers to read.
    near_write, far_write : Out(WriteClient(config))
        Tiers to write.
    done : Out(1)
        An instruction has written its last beat, or failed; for one cycle.
    error : Out(Error)
        With ``done``.
    error_mem : Out(40)
        With ``done`` and an error: first byte of the side that failed.
    abort : In(1)
        Drain and report nothing more. From the next cycle on ``busy`` tells when that is done;
        then, with ``abort`` low, the unit is as after reset.
    busy : Out(1)
        An instruction is in the unit.
    read, written : Out(Traffic(config))
        Events for counters; ``moved``: a beat came, or went.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "cmd":        In(stream.Signature(command_layout(Opcode.COPY))),
            "windows":    In(windows_layout(config)),
            "near_read":  Out(ReadClient(config)),
            "far_read":   Out(ReadClient(config)),
            "near_write": Out(WriteClient(config)),
            "far_write":  Out(WriteClient(config)),
            "done":       Out(1),
            "error":      Out(Error),
            "error_mem":  Out(40),
            "abort":      In(1),
            "busy":       Out(1),
            "read":       Out(Traffic(config)),
            "written":    Out(Traffic(config)),
        })

    @property
    def beats_buffered(self):
        """Beats between the tiers."""
        return 4 * self.config.burst_beats

    def elaborate(self, platform):
        m = Module()
        m.submodules.check  = check  = WindowCheck(self.config, write=None)
        m.submodules.source = source = RunBursts(self.config)
        m.submodules.target = target = RunBursts(self.config)
        m.submodules.beats  = beats  = StreamFifo(self.config.bus_bits, depth=self.beats_buffered)

        own  = Signal.like(self.cmd.payload)
        stop = Signal()  # ask for nothing more
        came, bad_read, reading   = self._read(m, own, source, beats, stop)
        bad_write, writing = self._write(m, own, target, beats, came, stop)

        length = Signal(beats_bits(self.config))
        silent = Signal()
        m.d.comb += [
            check.windows.eq(self.windows),
            check.i.p.mem.eq(Mux(check.write, own.target, own.mem)),
            check.i.p.tier.eq(Mux(check.write, own.target_tier, own.tier)),
            check.i.p.kind.eq(own.kind),
            check.i.p.codec.eq(own.codec),
            check.i.p.run.eq(own.run),
            check.i.p.count[0].eq(own.count),
            *(check.i.p.count[d].eq(1) for d in (1, 2)),
            check.i.p.stride[0].eq(Mux(check.write, own.target_stride, own.mem_stride)),
            source.addr.eq(own.mem),
            source.stride.eq(own.mem_stride),
            target.addr.eq(own.target),
            target.stride.eq(own.target_stride),
            *(side.runs.eq(own.count) for side in (source, target)),
            *(side.beats.eq(length) for side in (source, target)),
            *(side.stop.eq(stop) for side in (source, target)),
        ]
        m.d.sync += self.done.eq(0)
        with m.If(self.abort):
            m.d.sync += silent.eq(1)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(~silent & (self.error == Error.NONE))
                m.d.sync += [own.eq(self.cmd.payload), check.write.eq(0)]
                with m.If(silent & ~self.abort):
                    m.d.sync += [silent.eq(0), self.error.eq(Error.NONE)]
                with m.Elif(self.cmd.valid & self.cmd.ready & ~self.abort):
                    m.next = "CHECK"

            with m.State("CHECK"):
                m.d.comb += [self.busy.eq(1), check.i.valid.eq(1)]
                with m.If(check.i.ready):
                    m.d.sync += [
                        check.write.eq(1),
                        length.eq(check.beats),
                        self.error.eq(check.error),
                        self.error_mem.eq(check.i.p.mem),
                    ]
                    with m.If(silent | (check.error != Error.NONE)):
                        m.next = "END"
                    with m.Elif(check.write):
                        m.next = "BEGIN"

            with m.State("BEGIN"):
                m.d.comb += [self.busy.eq(1), source.start.eq(1), target.start.eq(1)]
                m.next = "MOVE"

            with m.State("MOVE"):
                m.d.comb += [
                    self.busy.eq(1),
                    stop.eq(silent | (self.error != Error.NONE)),
                ]
                with m.If(self.error == Error.NONE):
                    with m.If(bad_read):
                        m.d.sync += [self.error.eq(Error.BUS_READ), self.error_mem.eq(own.mem)]
                    with m.If(bad_write):
                        m.d.sync += [self.error.eq(Error.BUS_WRITE), self.error_mem.eq(own.target)]
                with m.If(~(source.active | target.active | reading | writing)):
                    m.next = "END"

            with m.State("END"):
                m.d.comb += self.busy.eq(1)
                m.d.sync += self.done.eq(~silent & ~self.abort)
                m.next = "IDLE"
        return m

    def _offer(self, m, bursts, allowed, *, name):
        """A register between bursts and the tiers: what has been offered stays offered.

        Returns the request, whether it stands, whether it is loaded, and beats of the next one.
        """
        request = Signal(Request(self.config), name=f"{name}_request")
        stands  = Signal(name=f"{name}_stands")
        taken   = Signal(name=f"{name}_taken")
        size    = Signal(range(self.config.burst_beats + 1), name=f"{name}_size")
        m.d.comb += [
            size.eq(bursts.o.p.len + 1),
            bursts.o.ready.eq((~stands | taken) & allowed(size)),
        ]
        load = bursts.o.valid & bursts.o.ready
        with m.If(load):
            m.d.sync += [stands.eq(1), request.addr.eq(bursts.o.p.addr), request.beats.eq(size)]
        with m.Elif(taken):
            m.d.sync += stands.eq(0)
        return request, stands, taken, Mux(load, size, 0)

    def _read(self, m, own, source, beats, stop):
        """Bursts of the source into the buffer.

        Returns whether a beat comes, whether it is bad, and whether beats are to come.
        """
        room = Signal(range(self.beats_buffered + 1), init=self.beats_buffered)
        due  = Signal(range(self.beats_buffered + 1))
        came, bad = Signal(), Signal()
        request, stands, taken, more = self._offer(
            m, source, lambda size: (room >= size) & ~stop, name="read")
        for tier, client in enumerate((self.near_read, self.far_read)):
            m.d.comb += client.request.payload.eq(request)
            with m.If(own.tier == tier):
                m.d.comb += [
                    client.request.valid.eq(stands),
                    taken.eq(stands & client.request.ready),
                    client.data.ready.eq(1),
                    came.eq(client.data.valid),
                    bad.eq(client.data.valid & client.data.p.error),
                    beats.i.payload.eq(client.data.p.data),
                ]
        m.d.comb += beats.i.valid.eq(came)
        m.d.sync += [
            room.eq(room - more + (beats.o.valid & beats.o.ready)),
            due.eq(due + more - came),
        ]
        self._count(m, self.read, own.cls, own.tier, Mux(taken, request.beats, 0), came)
        return came, bad, due != 0

    def _write(self, m, own, target, beats, came, stop):
        """Bursts of the buffer to the target.

        Returns whether one went wrong, and whether beats or answers are to come.
        """
        waiting  = Signal(range(self.beats_buffered + 1))  # in the buffer and not promised
        promised = Signal(range(self.beats_buffered + 1))
        unknown  = Signal(range(UNANSWERED + 1))           # requests without an answer
        went, answered, bad = Signal(), Signal(), Signal()
        request, stands, taken, more = self._offer(
            m, target,
            lambda size: (waiting >= size) & (unknown != UNANSWERED) & ~stop, name="write")
        for tier, client in enumerate((self.near_write, self.far_write)):
            m.d.comb += [
                client.request.payload.eq(request),
                client.data.p.data.eq(beats.o.payload),
                client.data.p.strobe.eq(-1),
            ]
            with m.If(own.target_tier == tier):
                m.d.comb += [
                    client.request.valid.eq(stands),
                    taken.eq(stands & client.request.ready),
                    client.data.valid.eq(beats.o.valid & (promised != 0)),
                    went.eq(client.data.valid & client.data.ready),
                    client.done.ready.eq(1),
                    answered.eq(client.done.valid),
                    bad.eq(client.done.valid & client.done.payload),
                ]
        # What nobody was promised is dropped when nothing more is asked for.
        drop = stop & (promised == 0) & beats.o.valid
        m.d.comb += beats.o.ready.eq(went | drop)
        m.d.sync += [
            waiting.eq(waiting + came - more - drop),
            promised.eq(promised + more - went),
            unknown.eq(unknown + (more != 0) - answered),
        ]
        self._count(m, self.written, own.cls, own.target_tier, Mux(taken, request.beats, 0), went)
        return bad, (waiting != 0) | (promised != 0) | (unknown != 0)

    def _count(self, m, traffic, cls, tier, beats, moved):
        m.d.comb += [
            traffic.bytes.eq(beats << self.config.beat_bytes.bit_length() - 1),
            traffic.cls.eq(cls),
            traffic.tier.eq(tier),
            traffic.moved.eq(moved),
        ]
