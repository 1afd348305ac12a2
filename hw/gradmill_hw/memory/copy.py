"""Copies between the memory tiers that touch no on-chip memory."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode
from ..isa_layout import command_layout
from ..regs import Error, Tier
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

    Three instructions pass through the unit at a time: both sides of one are checked while another
    is read and a third is written. One is read when all beats of its predecessor have come, and
    written when all writes of its predecessor have been answered; if it reads a tier that its
    predecessor writes, it is read only then, too. After a bus error the unit stops for good: a bad
    beat and what follows it are not written, and what was asked for is drained before the error is
    reported.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.COPY)))
        Instructions; each is checked before it is taken.
    windows : In(windows_layout(config))
        What they may touch.
    near_read, far_read : Out(ReadClient(config))
        Tiers to read.
    near_write, far_write : Out(WriteClient(config))
        Tiers to write.
    done : Out(1)
        The oldest instruction has written its last beat, or failed; for one cycle.
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
        m.submodules.beats = beats = StreamFifo(self.config.bus_bits, depth=self.beats_buffered)

        failure     = Signal(Error)  # why the unit has stopped
        failure_mem = Signal(40)
        silent = Signal()  # an abort is not over
        handed = Signal()  # what is read is being written, too
        quiet  = Signal()
        stop_reading, stop_writing = Signal(), Signal()  # ask for nothing more

        checked, length, refusal, refusal_mem = self._check(m, silent, stop_reading)
        writing, target_tier = Signal(), Signal(Tier)
        taken = (checked & ~stop_reading & ~self.abort
                 & ~(writing & (target_tier == self.cmd.p.tier)))
        own, beats_of_run, reading, bad_read, came = self._read(
            m, taken, length, beats, handed, stop_reading)
        offered = reading & ~handed & ~stop_reading
        target, ended, bad_write = self._write(m, offered, own, beats_of_run, beats, came,
                                               writing, target_tier, stop_reading, stop_writing)

        refused = (refusal != Error.NONE) & quiet & ~stop_reading & ~self.abort
        m.d.comb += [
            self.cmd.ready.eq(taken & ~reading | refused),
            stop_reading.eq(silent | (failure != Error.NONE)),
            # What is written may be older than what could not be read.
            stop_writing.eq(silent | (failure != Error.NONE)
                            & (handed | (failure == Error.BUS_WRITE))),
            quiet.eq(~(reading | writing | beats.o.valid)),
            self.busy.eq(~quiet | (failure != self.error) & ~silent),
        ]
        with m.If(self.cmd.ready):
            m.d.sync += handed.eq(0)
        with m.Elif(offered & ~writing):
            m.d.sync += handed.eq(1)

        with m.If(bad_write & ((failure == Error.NONE) | ~handed)):
            m.d.sync += [failure.eq(Error.BUS_WRITE), failure_mem.eq(target)]
        with m.Elif(bad_read & (failure == Error.NONE)):
            m.d.sync += [failure.eq(Error.BUS_READ), failure_mem.eq(own.mem)]
        with m.Elif(refused):
            m.d.sync += [failure.eq(refusal), failure_mem.eq(refusal_mem)]

        m.d.sync += self.done.eq(ended & ~stop_writing & ~self.abort)
        with m.If(self.abort):
            m.d.sync += silent.eq(1)
        with m.Elif(silent & quiet):
            m.d.sync += [silent.eq(0), failure.eq(Error.NONE), self.error.eq(Error.NONE)]
        with m.Elif(quiet & (failure != self.error)):
            m.d.sync += [self.done.eq(1), self.error.eq(failure), self.error_mem.eq(failure_mem)]
        return m

    def _check(self, m, silent, stop):
        """Questions about both sides of the next instruction.

        Returns whether both are permitted, beats of a run, why one is refused, and its first byte.
        """
        m.submodules.check = check = WindowCheck(self.config, write=None)
        ask, after = check.i.p, self.cmd.p
        checked     = Signal()
        length      = Signal(beats_bits(self.config))
        refusal     = Signal(Error)
        refusal_mem = Signal(40)
        m.d.comb += [
            check.windows.eq(self.windows),
            ask.mem.eq(Mux(check.write, after.target, after.mem)),
            ask.tier.eq(Mux(check.write, after.target_tier, after.tier)),
            ask.kind.eq(after.kind),
            ask.codec.eq(after.codec),
            ask.run.eq(after.run),
            ask.count[0].eq(after.count),
            *(ask.count[d].eq(1) for d in (1, 2)),
            ask.stride[0].eq(Mux(check.write, after.target_stride, after.mem_stride)),
            check.i.valid.eq(self.cmd.valid & ~checked & (refusal == Error.NONE) & ~stop),
        ]
        with m.If(self.cmd.ready | silent):
            m.d.sync += [check.write.eq(0), checked.eq(0), refusal.eq(Error.NONE)]
        with m.Elif(check.i.valid & check.i.ready):
            m.d.sync += [
                check.write.eq(1),
                checked.eq(check.write & (check.error == Error.NONE)),
                length.eq(check.beats),
                refusal.eq(check.error),
                refusal_mem.eq(ask.mem),
            ]
        return checked, length, refusal, refusal_mem

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

    def _read(self, m, taken, length, beats, handed, stop):
        """Bursts of the source into the buffer.

        Returns the instruction that is read, beats of its runs, whether there is one, whether a
        beat is bad, and whether one comes.
        """
        m.submodules.source = source = RunBursts(self.config)
        own     = Signal.like(self.cmd.payload, name="read_own")
        reading = Signal()
        room = Signal(range(self.beats_buffered + 1), init=self.beats_buffered)
        due  = Signal(range(self.beats_buffered + 1))
        came, bad = Signal(), Signal()
        request, stands, accepted, more = self._offer(
            m, source, lambda size: (room >= size) & ~stop, name="read")
        m.d.comb += [
            source.addr.eq(own.mem),
            source.stride.eq(own.mem_stride),
            source.runs.eq(own.count),
            source.stop.eq(stop),
        ]
        with m.FSM(name="read") as states:
            m.d.comb += reading.eq(~states.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.sync += [own.eq(self.cmd.payload), source.beats.eq(length)]
                with m.If(taken):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += source.start.eq(1)
                m.next = "READ"
            with m.State("READ"):
                with m.If(~source.active & (due == 0) & (handed | stop)):
                    m.next = "IDLE"

        for tier, client in enumerate((self.near_read, self.far_read)):
            m.d.comb += client.request.payload.eq(request)
            with m.If(own.tier == tier):
                m.d.comb += [
                    client.request.valid.eq(stands),
                    accepted.eq(stands & client.request.ready),
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
        self._count(m, self.read, own.cls, own.tier, Mux(accepted, request.beats, 0), came)
        return own, source.beats, reading, bad, came

    def _write(self, m, offered, after, length, beats, came, writing, tier, stop_reading, stop):
        """Bursts of the buffer to the target; ``writing``: whether there is one, ``tier``: of it.

        Returns where it begins, whether it has ended, and whether a burst went wrong.
        """
        m.submodules.target = target = RunBursts(self.config)
        ended = Signal()
        cls   = Signal.like(after.cls)
        waiting  = Signal(range(self.beats_buffered + 1))  # in the buffer and not promised
        promised = Signal(range(self.beats_buffered + 1))
        unknown  = Signal(range(UNANSWERED + 1))           # requests without an answer
        went, answered, bad = Signal(), Signal(), Signal()
        request, stands, accepted, more = self._offer(
            m, target,
            lambda size: (waiting >= size) & (unknown != UNANSWERED) & ~stop, name="write")
        m.d.comb += target.stop.eq(stop)
        with m.FSM(name="write") as states:
            m.d.comb += writing.eq(~states.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.sync += [
                    target.addr.eq(after.target),
                    target.stride.eq(after.target_stride),
                    target.runs.eq(after.count),
                    target.beats.eq(length),
                    tier.eq(after.target_tier),
                    cls.eq(after.cls),
                ]
                with m.If(offered):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += target.start.eq(1)
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += ended.eq(~target.active & (promised == 0) & (unknown == 0))
                with m.If(ended):
                    m.next = "IDLE"

        for number, client in enumerate((self.near_write, self.far_write)):
            m.d.comb += [
                client.request.payload.eq(request),
                client.data.p.data.eq(beats.o.payload),
                client.data.p.strobe.eq(-1),
            ]
            with m.If(tier == number):
                m.d.comb += [
                    client.request.valid.eq(stands),
                    accepted.eq(stands & client.request.ready),
                    client.data.valid.eq(beats.o.valid & (promised != 0)),
                    went.eq(client.data.valid & client.data.ready),
                    client.done.ready.eq(1),
                    answered.eq(client.done.valid),
                    bad.eq(client.done.valid & client.done.payload),
                ]
        # What nobody was promised is dropped when nothing more is asked for.
        drop = stop_reading & (stop | ~writing) & (promised == 0) & beats.o.valid
        m.d.comb += beats.o.ready.eq(went | drop)
        m.d.sync += [
            waiting.eq(waiting + came - more - drop),
            promised.eq(promised + more - went),
            unknown.eq(unknown + (more != 0) - answered),
        ]
        self._count(m, self.written, cls, tier, Mux(accepted, request.beats, 0), went)
        return target.addr, ended, bad

    def _count(self, m, traffic, cls, tier, beats, moved):
        m.d.comb += [
            traffic.bytes.eq(beats << self.config.beat_bytes.bit_length() - 1),
            traffic.cls.eq(cls),
            traffic.tier.eq(tier),
            traffic.moved.eq(moved),
        ]
