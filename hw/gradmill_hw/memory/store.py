"""Stores: on-chip rows to memory."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Kind, Opcode
from ..isa_layout import command_layout
from ..regs import Error
from ..stash.encoder import Encoder
from ..stash.quantise import EncodeEntry
from .axi_writer import WriteClient
from .completion import Completion
from .fifo import StreamFifo
from .load import RUNS_QUEUED, Traffic
from .pack import Pack, StoredRow, TierBeat
from .ports import READ_LATENCY, BfpRow, ReadPort, TensorReadPort, fp32_row, mask_row
from .runs import NUMBER_BITS, Rows, Run, Runs
from .unpack import longest_granules
from .window import windows_layout
from .write_pieces import RunRequest, WritePieces


__all__ = ["ROWS_BUFFERED", "Store"]

#: Rows buffered between the on-chip memories and the bus.
ROWS_BUFFERED = 8


def _coding(config):
    """What the encoder wants to know of a row, named as in :class:`Run`."""
    names = {"codec": 8, "stochastic": 1, "layer": 8, "number": NUMBER_BITS}
    return names if config.stash else {}


class _ReadRow(data.StructLayout):
    """A row as it was read, and how to encode it."""

    def __init__(self, config):
        super().__init__({"row": StoredRow(config), **_coding(config)})


class Store(wiring.Component):
    """Executes ``STORE``: reads on-chip rows and writes them to memory in runs.

    One row per cycle as long as banks are free and the bus takes the beats. Up to 16 runs are
    unanswered, also those of the next instructions. After a bus error the runs already
    requested are written to their end before the error is reported.

    With the stash codec, rows of runs in a stash format pass through the encoder; the rows behind
    them wait.

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
    seed, step : In(32)
        Key of the random bits of the codec.
    entry_valid : In(1); entry : In(EncodeEntry())
        Write one entry of the codec's tables, while no instruction is in the unit.
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
    encoded : Out(1)
        A row goes into the encoder.
    saturated : Out(range(n + 1))
        Outliers that found no room.
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
            "seed":        In(32),
            "step":        In(32),
            "entry_valid": In(1),
            "entry":       In(EncodeEntry()),
            "done":        Out(1),
            "error":       Out(Error),
            "error_mem":   Out(40),
            "abort":       In(1),
            "busy":        Out(1),
            "traffic":     Out(Traffic(config)),
            "encoded":     Out(1),
            "saturated":   Out(range(config.n + 1)),
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
            _ReadRow(config), depth=ROWS_BUFFERED, buffered=False)
        m.submodules.pack = pack = Pack(config)
        m.submodules.answers = answers = StreamFifo(
            answer_shape, depth=RUNS_QUEUED, buffered=False)
        m.submodules.completion = completion = Completion(address_bits=config.address_bits)

        wiring.connect(m, wiring.flipped(self.cmd), runs.cmd)
        wiring.connect(m, queue.o, rows.i)
        # A run goes to the list of rows; what is asked for to its tier and to the list of answers.
        run = runs.o.p
        request = stream.Signature(RunRequest(config)).create()
        beats = stream.Signature(TierBeat(config)).create()
        ask = request.p
        accepted = Signal()
        asked = Signal()
        drained = Signal()
        for tier, client in enumerate(tiers):
            with m.If(ask.tier == tier):
                m.d.comb += client.request.valid.eq(request.valid & answers.i.ready)
                m.d.comb += asked.eq(client.request.valid & client.request.ready)
            m.d.comb += [client.request.p.addr.eq(ask.addr), client.request.p.beats.eq(ask.beats)]
        m.d.comb += [
            runs.windows.eq(self.windows),
            runs.stop.eq(completion.stop),
            runs.o.ready.eq(accepted),
            queue.i.valid.eq(accepted),
            queue.i.payload.eq(run),
            request.ready.eq(asked),
            answers.i.valid.eq(asked),
            *(answers.i.p[name].eq(ask[name]) for name in ("mem", "tier", "final")),
            drained.eq(~(runs.busy | answers.o.valid)),
        ]
        if config.stash:
            self._encode(m, runs, queue, accepted, stored, pack, request, beats, drained)
        else:
            m.d.comb += [
                request.valid.eq(runs.o.valid & queue.i.ready),
                ask.addr.eq(run.mem),
                *(ask[name].eq(run[name]) for name in ("beats", "mem", "tier", "cls", "final")),
                accepted.eq(asked),
            ]
            wiring.connect(m, pack.o, wiring.flipped(beats))
            m.d.comb += [
                pack.i.valid.eq(stored.o.valid),
                pack.i.payload.eq(stored.o.p.row),
                stored.o.ready.eq(pack.i.ready),
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
        through = Signal(range(config.queue_depth + 1))  # instructions whose rows were all read
        m.d.sync += through.eq(self.read_ahead + (granted & row.last & row.run.final))
        m.d.comb += self.read_ahead.eq(through - (self.done & (through != 0)))
        with m.If(~self.busy):
            m.d.sync += through.eq(0)
        freed = stored.o.valid & stored.o.ready
        m.d.sync += spoken_for.eq(spoken_for + granted - freed)

        # What is known of a row travels beside the read.
        coding = _coding(config)
        flight = Signal(data.ArrayLayout(
            data.StructLayout({"valid": 1, "kind": range(len(Kind)), "last": 1, "tier": 1,
                               **coding}), READ_LATENCY))
        arrived = flight[READ_LATENCY - 1]
        m.d.sync += [
            flight[0].valid.eq(granted),
            flight[0].last.eq(row.last),
            *(flight[0][name].eq(row.run[name]) for name in ("kind", "tier", *coding)),
            *(flight[k].eq(flight[k - 1]) for k in range(1, READ_LATENCY)),
        ]
        read = stored.i.p.row
        m.d.comb += [
            stored.i.valid.eq(arrived.valid),
            read.last.eq(arrived.last),
            read.tier.eq(arrived.tier),
            read.bits.eq(self.acc_read.data),
            *(stored.i.p[name].eq(arrived[name]) for name in coding),
        ]
        if config.stash:
            m.d.comb += read.coded.eq(arrived.codec != 0)
        with m.Switch(arrived.kind):
            for kind, port in zip(Kind, (self.mask_read, self.tensor_read, None), strict=True):
                with m.Case(kind):
                    m.d.comb += read.size.eq(config.row_granules(kind.name.lower()))
                    if port is not None:
                        m.d.comb += read.bits[:longest_granules(config) * config.n].eq(
                            port.data.as_value())

        # Beats go to the tier of their run.
        for tier, client in enumerate(tiers):
            with m.If(beats.p.tier == tier):
                m.d.comb += client.data.valid.eq(beats.valid)
                m.d.comb += beats.ready.eq(client.data.ready)
            m.d.comb += client.data.payload.eq(beats.p.beat)

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
            completion.failed.eq(Mux(answered & bad, Error.BUS_WRITE, Error.NONE)),
            completion.failed_mem.eq(answer.mem),
            completion.refused.eq(runs.refused),
            completion.refused_mem.eq(runs.refused_mem),
            completion.drained.eq(drained),
            completion.abort.eq(self.abort),
            self.done.eq(completion.done),
            self.error.eq(completion.error),
            self.error_mem.eq(completion.error_mem),
            self.busy.eq(completion.busy),
        ]

        low = config.beat_bytes.bit_length() - 1
        m.d.comb += [
            self.traffic.bytes.eq(Mux(asked, ask.beats, 0) << low),
            self.traffic.cls.eq(ask.cls),
            self.traffic.tier.eq(ask.tier),
            self.traffic.moved.eq(granted),
            self.traffic.stall.eq(wanted & ~granted),
        ]
        return m

    def _encode(self, m, runs, queue, accepted, stored, pack, request, beats, drained):
        """Rows in a stash format take their way through the encoder; runs are asked for when they
        are of a known length."""
        config = self.config
        m.submodules.encoder = encoder = Encoder(config)
        m.submodules.pieces = pieces = WritePieces(config, depth=RUNS_QUEUED)
        # Tier of each run of which rows are to be packed, and whether it is encoded.
        m.submodules.order = order = StreamFifo(
            data.StructLayout({"tier": 1, "coded": 1}), depth=RUNS_QUEUED, buffered=False)
        wiring.connect(m, pieces.request, wiring.flipped(request))
        wiring.connect(m, pieces.o, wiring.flipped(beats))
        wiring.connect(m, pack.o, pieces.i)
        run = runs.o.p
        m.d.comb += [
            accepted.eq(runs.o.valid & queue.i.ready & pieces.i_run.ready
                        & order.i.ready),
            pieces.i_run.valid.eq(accepted),
            pieces.i_run.payload.eq(run),
            order.i.valid.eq(accepted),
            order.i.p.tier.eq(run.tier),
            order.i.p.coded.eq(run.codec != 0),
        ]
        with m.If(pieces.busy):
            m.d.comb += drained.eq(0)

        # Into the encoder.
        read, row = stored.o.p, encoder.i.p
        bfp = data.View(BfpRow(config), read.row.bits[:Shape.cast(BfpRow(config)).width])
        coded = read.row.coded
        m.d.comb += [
            encoder.seed.eq(self.seed), encoder.step.eq(self.step),
            encoder.entry_valid.eq(self.entry_valid), encoder.entry.eq(self.entry),
            encoder.i.valid.eq(stored.o.valid & coded),
            row.mantissa.eq(bfp.mantissa), row.exponent.eq(bfp.exponent),
            row.tag.eq(read.codec), row.stochastic.eq(read.stochastic),
            row.layer.eq(read.layer), row.index.eq(read.number), row.last.eq(read.row.last),
            self.encoded.eq(encoder.i.valid & encoder.i.ready),
            self.saturated.eq(encoder.dropped),
        ]

        # Out of the encoder or past it, in the order of the runs.
        piece, out = encoder.o.p, pack.i
        with m.If(order.o.p.coded):
            m.d.comb += [
                out.valid.eq(encoder.o.valid),
                encoder.o.ready.eq(out.ready & order.o.valid),
                out.p.bits.eq(piece.bits), out.p.size.eq(piece.size), out.p.last.eq(piece.last),
            ]
            if config.n % 8:
                # The rest of a byte is zero.
                kept = Cat((piece.size > k).replicate(config.n)
                           for k in range(len(piece.bits) // config.n))
                m.d.comb += out.p.bits.eq(piece.bits & kept)
        with m.Else():
            m.d.comb += [out.valid.eq(stored.o.valid & ~coded), out.payload.eq(read.row)]
        with m.If(~order.o.valid):
            m.d.comb += out.valid.eq(0)
        m.d.comb += [
            out.p.tier.eq(order.o.p.tier),
            out.p.coded.eq(order.o.p.coded),
            stored.o.ready.eq(Mux(coded, encoder.i.ready, out.ready & out.valid
                                  & ~order.o.p.coded)),
            order.o.ready.eq(out.valid & out.ready & out.p.last),
        ]
