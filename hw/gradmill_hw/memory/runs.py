"""Transfers become runs, and runs become rows: what load and store have in common."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Class, Kind, Opcode
from ..isa_layout import command_layout
from ..regs import Error
from ..stash.formats import ROW_NUMBERS
from .bursts import beats_bits
from .ports import ROW_ADDRESS_BITS
from .window import DIMENSIONS, WindowCheck, windows_layout


__all__ = ["NUMBER_BITS", "RowJob", "Rows", "Run", "Runs"]

#: Bits of a row number, the key of random bits.
NUMBER_BITS = (ROW_NUMBERS - 1).bit_length()


class Run(data.StructLayout):
    """Contiguous rows of a permitted transfer.

    Members
    -------
    mem : address_bits
        First byte in memory.
    beats : beats_bits(config)
        Length in memory; at most, if ``packed``.
    row : 16
        First row on chip.
    rows : 16
        Length in rows.
    kind, tier, cls
        As in the instruction.
    final : 1
        Last run of its instruction.
    codec, packed, stochastic, layer
        Only with the stash codec: as in the instruction; whether the length depends on the values.
    number : 38
        Likewise: number of the first row.
    """

    def __init__(self, config):
        coding = {"codec": 8, "packed": 1, "stochastic": 1, "layer": 8, "number": NUMBER_BITS}
        super().__init__({
            "mem":   config.address_bits,
            "beats": beats_bits(config),
            "row":   ROW_ADDRESS_BITS,
            "rows":  ROW_ADDRESS_BITS,
            "kind":  range(len(Kind)),
            "tier":  1,
            "cls":   range(len(Class)),
            "final": 1,
            **(coding if config.stash else {}),
        })


class Runs(wiring.Component):
    """Checks transfer instructions and walks their three dimensions, a run per cycle.

    The first run of an instruction appears a cycle after the check of its window. The command is
    copied, and only the copy is checked and used.

    Parameters
    ----------
    config : Config
        Sizes.
    opcode : Opcode
        ``LOAD`` or ``STORE``.

    Members
    -------
    cmd : In(stream.Signature(command_layout(opcode)))
        Instructions.
    windows : In(windows_layout(config))
        What they may touch.
    stop : In(1)
        Take no further command, drop the refused one, and end the current one after the run that
        stands on ``o``.
    o : Out(stream.Signature(Run(config)))
        Runs in order.
    refused : Out(Error)
        Not ``NONE`` while an instruction stands refused, until ``stop``.
    refused_mem : Out(40)
        Its memory address.
    busy : Out(1)
        A permitted or unchecked instruction has runs to come.
    """

    def __init__(self, config, opcode):
        self.config = config
        self.opcode = opcode
        super().__init__({
            "cmd":         In(stream.Signature(command_layout(opcode))),
            "windows":     In(windows_layout(config)),
            "stop":        In(1),
            "o":           Out(stream.Signature(Run(config))),
            "refused":     Out(Error),
            "refused_mem": Out(40),
            "busy":        Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        low = config.beat_bytes.bit_length() - 1
        dimensions = range(DIMENSIONS)

        m.submodules.check = check = WindowCheck(config, write=self.opcode == Opcode.STORE)
        m.d.comb += check.windows.eq(self.windows)
        ask = check.i.p

        # The copy of the command lies in the question to the check and in what it does not ask.
        extent = Signal.like(ask)
        cls = Signal(range(len(Class)))
        row_stride = Signal(data.ArrayLayout(ROW_ADDRESS_BITS, DIMENSIONS))
        m.d.comb += ask.eq(extent)

        # Start of the current run, and of the current line and plane of runs.
        mem = [Signal(config.address_bits - low, name=f"mem{d}") for d in dimensions]
        row = [Signal(ROW_ADDRESS_BITS, name=f"row{d}") for d in dimensions]
        number = [Signal(16, init=1, name=f"number{d}") for d in dimensions]
        ends = Signal(DIMENSIONS)
        m.d.comb += ends.eq(Cat(number[d] == extent.count[d] for d in dimensions))

        # One adder: the innermost dimension that has not ended steps from its own start.
        next_mem = Signal.like(mem[0])
        next_row = Signal.like(row[0])
        for d in reversed(dimensions):
            with m.If(~ends[d]):
                m.d.comb += [
                    next_mem.eq(mem[d] + extent.stride[d][low:]),
                    next_row.eq(row[d] + row_stride[d]),
                ]

        out = self.o.p
        m.d.comb += [
            out.mem.eq(Cat(C(0, low), mem[0])),
            out.beats.eq(check.beats),
            out.row.eq(row[0]),
            out.rows.eq(extent.run),
            out.kind.eq(extent.kind),
            out.tier.eq(extent.tier),
            out.cls.eq(cls),
            out.final.eq(ends.all()),
            self.refused_mem.eq(extent.mem),
        ]
        if config.stash:
            begin, step = self._coding(m, extent, check, out)
        else:
            begin = step = []

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(~self.stop)
                cmd = self.cmd.p
                m.d.sync += [
                    *(getattr(extent, name).eq(getattr(cmd, name))
                      for name in ("mem", "tier", "kind", "codec", "run")),
                    *(extent.count[d].eq(getattr(cmd, f"count{d}")) for d in dimensions),
                    *(extent.stride[d].eq(getattr(cmd, f"mem_stride{d}")) for d in dimensions),
                    *(row_stride[d].eq(getattr(cmd, f"row_stride{d}")) for d in dimensions),
                    cls.eq(cmd.cls),
                    *(mem[d].eq(cmd.mem[low:]) for d in dimensions),
                    *(row[d].eq(cmd.op0) for d in dimensions),
                    *(number[d].eq(1) for d in dimensions),
                    *begin,
                ]
                with m.If(self.cmd.valid & ~self.stop):
                    m.next = "CHECK"

            with m.State("CHECK"):
                m.d.comb += [check.i.valid.eq(1), self.busy.eq(1)]
                with m.If(check.i.ready):
                    m.next = "REFUSED"
                    with m.If(check.error == Error.NONE):
                        m.next = "WALK"

            with m.State("REFUSED"):
                m.d.comb += self.refused.eq(check.error)
                with m.If(self.stop):
                    m.next = "IDLE"

            with m.State("WALK"):
                m.d.comb += [self.o.valid.eq(1), self.busy.eq(1)]
                with m.If(self.o.ready):
                    m.d.sync += step
                    # What lies inside the dimension that steps starts anew.
                    for d in dimensions:
                        with m.If(ends[:d].all() if d else 1):
                            m.d.sync += [mem[d].eq(next_mem), row[d].eq(next_row)]
                            m.d.sync += number[d].eq(Mux(ends[d], 1, number[d] + 1))
                    with m.If(out.final | self.stop):
                        m.next = "IDLE"
        return m

    def _coding(self, m, extent, check, out):
        """Fill in what the codec wants to know; what to do for a new command and after a run."""
        cmd = self.cmd.p
        stochastic, layer = Signal(), Signal(8)
        number = Signal(NUMBER_BITS, name="row_number")
        m.d.comb += [
            out.codec.eq(extent.codec), out.packed.eq(check.packed & (extent.codec != 0)),
            out.stochastic.eq(stochastic), out.layer.eq(layer), out.number.eq(number),
        ]
        begin = [stochastic.eq(cmd.stochastic), layer.eq(cmd.layer),
                 number.eq(Cat(cmd.op1, cmd.op3[:8], cmd.op2))]
        return begin, [number.eq(number + extent.run)]


class RowJob(data.StructLayout):
    """One row of a run.

    Members
    -------
    addr : 16
        Row on chip.
    left : 16
        Rows of its run from this one on.
    last : 1
        Last row of its run.
    run : Run(config)
        The run; its ``number`` is that of this row.
    """

    def __init__(self, config):
        super().__init__({"addr": ROW_ADDRESS_BITS, "left": ROW_ADDRESS_BITS, "last": 1,
                          "run": Run(config)})


class Rows(wiring.Component):
    """Counts out the rows of runs, one per cycle, without a bubble between runs.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    i : In(stream.Signature(Run(config)))
        Runs.
    o : Out(stream.Signature(RowJob(config)))
        Rows, the first one the cycle after its run was taken.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(Run(config))),
            "o": Out(stream.Signature(RowJob(config))),
        })

    def elaborate(self, platform):
        m = Module()
        left = self.o.p.left
        m.d.comb += self.o.p.last.eq(left == 1)

        moved = self.o.valid & self.o.ready
        m.d.comb += self.i.ready.eq(~self.o.valid | (self.o.ready & self.o.p.last))
        with m.If(moved):
            m.d.sync += [self.o.p.addr.eq(self.o.p.addr + 1), left.eq(left - 1)]
            if self.config.stash:
                m.d.sync += self.o.p.run.number.eq(self.o.p.run.number + 1)
        with m.If(self.i.ready):
            m.d.sync += [
                self.o.valid.eq(self.i.valid),
                self.o.p.addr.eq(self.i.p.row),
                self.o.p.run.eq(self.i.p),
                left.eq(self.i.p.rows),
            ]
        return m
