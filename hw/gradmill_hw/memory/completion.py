"""How the queue of a transfer unit ends an instruction, well or badly."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..regs import Error


__all__ = ["Completion"]


class Completion(wiring.Component):
    """Reports instructions in order; after the first bad one, stops for good.

    A failure or refusal is reported once, when the unit has drained; nothing is reported after
    it. An abort reports nothing; once it is over and the unit has drained, all is as after reset.

    Parameters
    ----------
    address_bits : int
        Width of ``failed_mem``.

    Members
    -------
    finished : In(1)
        The last run of an instruction went well, for one cycle.
    failed : In(Error)
        A run ended badly, for one cycle.
    failed_mem : In(address_bits)
        Its address, with ``failed``.
    refused, refused_mem : In
        As in :class:`Runs`.
    drained : In(1)
        No run is in the unit.
    abort : In(1)
        Give up.
    busy : Out(1)
        A run is in the unit, or a report is due.
    stop : Out(1)
        Begin nothing new; what still arrives has no effect.
    done : Out(1)
        The oldest instruction has ended, for one cycle.
    error : Out(Error)
        With ``done``: how.
    error_mem : Out(40)
        With ``done`` and an error: first byte of the run that failed, or of the transfer that
        was refused.
    """

    def __init__(self, *, address_bits):
        super().__init__({
            "finished":    In(1),
            "failed":      In(Error),
            "failed_mem":  In(address_bits),
            "refused":     In(Error),
            "refused_mem": In(40),
            "drained":     In(1),
            "abort":       In(1),
            "busy":        Out(1),
            "stop":        Out(1),
            "done":        Out(1),
            "error":       Out(Error),
            "error_mem":   Out(40),
        })

    def elaborate(self, platform):
        m = Module()
        report = Signal()  # an error waits for the unit to drain
        reset = Signal()  # so does the end of an abort

        m.d.comb += self.busy.eq(report | ~self.drained)
        m.d.sync += self.done.eq(0)
        with m.If(~self.stop):
            with m.If(self.failed != Error.NONE):
                m.d.sync += [
                    self.stop.eq(1),
                    report.eq(1),
                    self.error.eq(self.failed),
                    self.error_mem.eq(self.failed_mem),
                ]
            with m.Elif(self.finished):
                m.d.sync += self.done.eq(1)
            with m.Elif((self.refused != Error.NONE) & self.drained):
                m.d.sync += [
                    self.stop.eq(1),
                    report.eq(1),
                    self.error.eq(self.refused),
                    self.error_mem.eq(self.refused_mem),
                ]
        with m.Elif(self.drained):
            m.d.sync += [report.eq(0), self.done.eq(report)]
            with m.If(reset):
                m.d.sync += [self.stop.eq(0), reset.eq(0), self.error.eq(Error.NONE)]

        with m.If(self.abort):
            m.d.sync += [self.stop.eq(1), reset.eq(1), report.eq(0), self.done.eq(0)]
        return m
