"""Loads: memory to on-chip rows."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Class, Kind, Opcode
from ..isa_layout import command_layout
from ..regs import Error
from .axi_reader import ReadBeat, ReadClient
from .bursts import beats_bits
from .completion import Completion
from .fifo import StreamFifo
from .ports import BfpRow, WritePort, fp32_row, mask_row
from .runs import Rows, Run, Runs
from .unpack import Unpack
from .window import windows_layout


__all__ = ["BEATS_BUFFERED", "RUNS_QUEUED", "Load", "Traffic"]

#: Runs that may be requested ahead of the row that is moving.
RUNS_QUEUED = 16
#: Beats buffered between the bus and the rows.
BEATS_BUFFERED = 16


class Traffic(data.StructLayout):
    """What a transfer unit does in this cycle, for counters.

    Members
    -------
    bytes : unsigned
        Bytes of the run that is handed to the bus, whole beats; 0 in other cycles.
    cls, tier
        Traffic class and memory tier of these bytes.
    moved : 1
        A row goes between the unit and an on-chip memory.
    stall : 1
        A row is ready to go but the memory is taken.
    """

    def __init__(self, config):
        low = config.beat_bytes.bit_length() - 1
        super().__init__({
            "bytes": beats_bits(config) + low,
            "cls":   range(len(Class)),
            "tier":  1,
            "moved": 1,
            "stall": 1,
        })


class Load(wiring.Component):
    """Executes ``LOAD``: reads runs from memory and writes their rows on chip.

    One row per cycle as long as beats come and banks are free. Up to 16 runs are requested ahead,
    also those of the next instructions. After a bus error no row with bits of the bad beat or
    after it is written; the runs already requested are drained before the error is reported.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.LOAD)))
        Instructions.
    windows : In(windows_layout(config))
        What they may read.
    near, far : Out(ReadClient(config))
        Memory tiers.
    tensor_write, acc_write, mask_write : Out(WritePort)
        On-chip memories.
    done : Out(1)
        The oldest instruction has written its last row, or failed; for one cycle.
    error : Out(Error)
        With ``done``.
    error_mem : Out(40)
        With ``done`` and an error: first byte of the run or transfer.
    abort : In(1)
        Drain, write nothing more and report nothing more. From the next cycle on
        ``busy`` tells when that is done; then, with ``abort`` low, the unit is as after reset.
    busy : Out(1)
        An instruction is in the unit.
    traffic : Out(Traffic(config))
        Events for counters.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "cmd":          In(stream.Signature(command_layout(Opcode.LOAD))),
            "windows":      In(windows_layout(config)),
            "near":         Out(ReadClient(config)),
            "far":          Out(ReadClient(config)),
            "tensor_write": Out(WritePort(BfpRow(config))),
            "acc_write":    Out(WritePort(fp32_row(config))),
            "mask_write":   Out(WritePort(mask_row(config))),
            "done":         Out(1),
            "error":        Out(Error),
            "error_mem":    Out(40),
            "abort":        In(1),
            "busy":         Out(1),
            "traffic":      Out(Traffic(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        tiers = (self.near, self.far)
        m.submodules.runs = runs = Runs(config, Opcode.LOAD)
        m.submodules.queue = queue = StreamFifo(Run(config), depth=RUNS_QUEUED, buffered=False)
        m.submodules.rows = rows = Rows(config)
        # Tier of each run whose beats have not all come.
        m.submodules.sources = sources = StreamFifo(1, depth=RUNS_QUEUED, buffered=False)
        m.submodules.beats = beats = StreamFifo(
            ReadBeat(config), depth=BEATS_BUFFERED, buffered=False)
        m.submodules.unpack = unpack = Unpack(config)
        m.submodules.completion = completion = Completion(
            address_bits=config.address_bits, bus_error=Error.BUS_READ)

        wiring.connect(m, wiring.flipped(self.cmd), runs.cmd)
        wiring.connect(m, queue.o, rows.i)
        wiring.connect(m, beats.o, unpack.i)

        # A run goes to its tier, to the list of rows and to that of tiers together.
        run = runs.o.p
        room = queue.i.ready & sources.i.ready
        asked = Signal()
        for tier, client in enumerate(tiers):
            with m.If(run.tier == tier):
                m.d.comb += client.request.valid.eq(runs.o.valid & room)
                m.d.comb += asked.eq(client.request.valid & client.request.ready)
            m.d.comb += [client.request.p.addr.eq(run.mem), client.request.p.beats.eq(run.beats)]
        m.d.comb += [
            runs.windows.eq(self.windows),
            runs.stop.eq(completion.stop),
            runs.o.ready.eq(asked),
            queue.i.valid.eq(asked),
            queue.i.payload.eq(run),
            sources.i.valid.eq(asked),
            sources.i.payload.eq(run.tier),
        ]

        # Beats come in the order of the runs, whichever tier they come from.
        for tier, client in enumerate(tiers):
            with m.If(sources.o.payload == tier):
                m.d.comb += [
                    beats.i.valid.eq(client.data.valid & sources.o.valid),
                    beats.i.payload.eq(client.data.payload),
                    client.data.ready.eq(beats.i.ready & sources.o.valid),
                ]
        m.d.comb += sources.o.ready.eq(beats.i.valid & beats.i.ready & beats.i.p.last)

        # A row moves when there is its address, its bits and a place for it. Once the unit is
        # stopped it moves to nowhere.
        row, packed = rows.o.p, unpack.o.p
        ports = {
            Kind.MASK: (self.mask_write, packed.mask),
            Kind.BFP:  (self.tensor_write, packed.bfp[:len(self.tensor_write.data.as_value())]),
            Kind.FP32: (self.acc_write, packed.fp32),
        }
        wanted = Signal()
        granted = Signal()
        moved = Signal()
        m.d.comb += wanted.eq(unpack.o.valid & ~completion.stop & ~packed.error)
        for kind, (port, bits) in ports.items():
            with m.If(row.run.kind == kind):
                m.d.comb += [port.valid.eq(wanted), granted.eq(port.ready)]
            m.d.comb += [port.addr.eq(row.addr), port.data.eq(bits)]
        m.d.comb += [
            unpack.shape.valid.eq(rows.o.valid),
            unpack.shape.p.kind.eq(row.run.kind),
            unpack.shape.p.last.eq(row.last),
            unpack.o.ready.eq(granted | ~wanted),
            rows.o.ready.eq(unpack.shape.ready),
            moved.eq(unpack.o.valid & unpack.o.ready),
        ]

        m.d.comb += [
            completion.finished.eq(moved & row.last & row.run.final),
            completion.failed.eq(moved & packed.error),
            completion.failed_mem.eq(row.run.mem),
            completion.refused.eq(runs.refused),
            completion.refused_mem.eq(runs.refused_mem),
            completion.drained.eq(~(runs.busy | queue.o.valid | rows.o.valid)),
            completion.abort.eq(self.abort),
            self.done.eq(completion.done),
            self.error.eq(completion.error),
            self.error_mem.eq(completion.error_mem),
            self.busy.eq(completion.busy),
        ]

        low = config.beat_bytes.bit_length() - 1
        m.d.comb += [
            self.traffic.bytes.eq(Mux(asked, run.beats, 0) << low),
            self.traffic.cls.eq(run.cls),
            self.traffic.tier.eq(run.tier),
            self.traffic.moved.eq(wanted & granted),
            self.traffic.stall.eq(wanted & ~granted),
        ]
        return m
