"""Stores: on-chip rows to memory."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Kind, Opcode
from ..isa_layout import command_layout
from ..regs import Error
from .axi_writer import WriteClient
from .completion import Completion
from .fifo import StreamFifo
from .load import RUNS_QUEUED, Traffic
from .pack import Pack, StoredRow
from .ports import READ_LATENCY, ReadPort, TensorReadPort, fp32_row, mask_row
from .runs import Rows, Run, Runs
from .window import windows_layout


__all__ = ["ROWS_BUFFERED", "Store"]

#: Rows buffered between the on-chip memories and the bus.
ROWS_BUFFERED = 8


class Store(wiring.Component):
    """Executes ``STORE``: reads on-chip rows and writes them to memory in runs.

    One row per cycle as long as banks are free and the bus takes the beats. Up to 16 runs are
    unanswered, also those of the next instructions. After a bus error the runs already
    requested are written to their end before the error is reported.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.STORE)))
        Instructions.
    windows : In(windows_layout(config))
        What they may write.
    near, far : Out(WriteClient(config))
        Memory tiers.
    tensor_read : Out(TensorReadPort(config)); acc_read, mask_read : Out(ReadPort)
        On-chip memories.
    read_ahead : Out
        Instructions that end later than this cycle before the one whose row is asked for.
    done : Out(1)
        Every write of the oldest instruction has been answered, or it failed; for one cycle.
    error : Out(Error)
        With ``done``.
    error_mem : Out(40)
        With ``done`` and an error: first byte of the run or transfer.
    abort : In(1)
        Finish the runs already requested and report nothing more. From the next cycle on
        ``busy`` tells when that is done; then, with ``abort`` low, the unit is as after reset.
    busy : Out(1)
        An instruction is in the unit.
    traffic : Out(Traffic(config))
        Events for counters.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "cmd":         In(stream.Signature(command_layout(Opcode.STORE))),
            "windows":     In(windows_layout(config)),
            "near":        Out(WriteClient(config)),
            "far":         Out(WriteClient(config)),
            "tensor_read": Out(TensorReadPort(config)),
            "acc_read":    Out(ReadPort(fp32_row(config))),
            "mask_read":   Out(ReadPort(mask_row(config))),
            "read_ahead":  Out(range(config.queue_depth + 1)),
            "done":        Out(1),
            "error":       Out(Error),
            "error_mem":   Out(40),
            "abort":       In(1),
            "busy":        Out(1),
            "traffic":     Out(Traffic(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        tiers = (self.near, self.far)
        answer_shape = data.StructLayout({"mem": config.address_bits, "tier": 1, "final": 1})
        m.submodules.runs = runs = Runs(config, Opcode.STORE)
        m.submodules.queue = queue = StreamFifo(Run(config), depth=RUNS_QUEUED, buffered=False)
        m.submodules.rows = rows = Rows(config)
        m.submodules.stored = stored = StreamFifo(
            StoredRow(config), depth=ROWS_BUFFERED, buffered=False)
        m.submodules.pack = pack = Pack(config)
        m.submodules.answers = answers = StreamFifo(
            answer_shape, depth=RUNS_QUEUED, buffered=False)
        m.submodules.completion = completion = Completion(
            address_bits=config.address_bits, bus_error=Error.BUS_WRITE)

        wiring.connect(m, wiring.flipped(self.cmd), runs.cmd)
        wiring.connect(m, queue.o, rows.i)
        wiring.connect(m, stored.o, pack.i)

        # A run goes to its tier, to the list of rows and to that of answers together.
        run = runs.o.p
        room = queue.i.ready & answers.i.ready
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
            answers.i.valid.eq(asked),
            answers.i.p.mem.eq(run.mem),
            answers.i.p.tier.eq(run.tier),
            answers.i.p.final.eq(run.final),
        ]

        # A row is read only when it will find room, whatever is in flight.
        row = rows.o.p
        spoken_for = Signal(range(ROWS_BUFFERED + 1))
        wanted = Signal()
        granted = Signal()
        for kind, port in ((Kind.MASK, self.mask_read), (Kind.BFP, self.tensor_read),
                           (Kind.FP32, self.acc_read)):
            with m.If(row.run.kind == kind):
                m.d.comb += [port.valid.eq(wanted), granted.eq(wanted & port.ready)]
            m.d.comb += port.addr.eq(row.addr)
        m.d.comb += [
            wanted.eq(rows.o.valid & (spoken_for != ROWS_BUFFERED)),
            rows.o.ready.eq(granted),
        ]
        read = Signal(range(config.queue_depth + 1))  # instructions whose rows were all read
        m.d.sync += read.eq(self.read_ahead + (granted & row.last & row.run.final))
        m.d.comb += self.read_ahead.eq(read - (self.done & (read != 0)))
        with m.If(~self.busy):
            m.d.sync += read.eq(0)
        freed = stored.o.valid & stored.o.ready
        m.d.sync += spoken_for.eq(spoken_for + granted - freed)

        # What is known of a row travels beside the read.
        flight = Signal(data.ArrayLayout(
            data.StructLayout({"valid": 1, "kind": range(len(Kind)), "last": 1, "tier": 1}),
            READ_LATENCY))
        arrived = flight[READ_LATENCY - 1]
        m.d.sync += [
            flight[0].valid.eq(granted),
            flight[0].kind.eq(row.run.kind),
            flight[0].last.eq(row.last),
            flight[0].tier.eq(row.run.tier),
            *(flight[k].eq(flight[k - 1]) for k in range(1, READ_LATENCY)),
        ]
        bits = stored.i.p.bits
        m.d.comb += [
            stored.i.valid.eq(arrived.valid),
            stored.i.p.kind.eq(arrived.kind),
            stored.i.p.last.eq(arrived.last),
            stored.i.p.tier.eq(arrived.tier),
            bits.eq(self.acc_read.data),
        ]
        with m.Switch(arrived.kind):
            for kind, port in ((Kind.MASK, self.mask_read), (Kind.BFP, self.tensor_read)):
                with m.Case(kind):
                    m.d.comb += bits[:config.bfp_granules * config.n].eq(port.data.as_value())

        # Beats go to the tier of their run.
        for tier, client in enumerate(tiers):
            with m.If(pack.o.p.tier == tier):
                m.d.comb += client.data.valid.eq(pack.o.valid)
                m.d.comb += pack.o.ready.eq(client.data.ready)
            m.d.comb += client.data.payload.eq(pack.o.p.beat)

        # Answers are taken in the order of the runs.
        answer = answers.o.p
        answered = Signal()
        bad = Signal()
        for tier, client in enumerate(tiers):
            with m.If(answer.tier == tier):
                m.d.comb += [
                    client.done.ready.eq(answers.o.valid),
                    answered.eq(answers.o.valid & client.done.valid),
                    bad.eq(client.done.payload),
                ]
        m.d.comb += [
            answers.o.ready.eq(answered),
            completion.finished.eq(answered & ~bad & answer.final),
            completion.failed.eq(answered & bad),
            completion.failed_mem.eq(answer.mem),
            completion.refused.eq(runs.refused),
            completion.refused_mem.eq(runs.refused_mem),
            completion.drained.eq(~(runs.busy | answers.o.valid)),
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
            self.traffic.moved.eq(granted),
            self.traffic.stall.eq(wanted & ~granted),
        ]
        return m
