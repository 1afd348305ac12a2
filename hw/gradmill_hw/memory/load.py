"""Loads: memory to on-chip rows."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Class, Kind, Opcode
from ..isa_layout import command_layout
from ..regs import Error
from ..stash.decoder import Decoder
from ..stash.widen import DecodeEntry
from .axi_reader import ReadBeat, ReadClient
from .bursts import beats_bits
from .completion import Completion
from .fifo import StreamFifo
from .ports import BfpRow, WritePort, fp32_row, mask_row
from .read_pieces import ReadPieces, ReadRequest
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

    With the stash codec, rows of runs in a stash format pass through the decoder; the rows behind
    them wait. After a corrupted block no row of it or after it is written; rows before it in the
    same tile are undefined.

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
    seed, step : In(32)
        Key of the random bits of the codec.
    entry_valid : In(1); entry : In(DecodeEntry())
        Write one entry of the codec's tables, while no instruction is in the unit.
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
            "seed":         In(32),
            "step":         In(32),
            "entry_valid":  In(1),
            "entry":        In(DecodeEntry()),
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
        m.submodules.completion = completion = Completion(address_bits=config.address_bits)

        wiring.connect(m, wiring.flipped(self.cmd), runs.cmd)
        wiring.connect(m, queue.o, rows.i)
        wiring.connect(m, beats.o, unpack.i)

        # A run goes to the list of rows; what is asked for to its tier and to the list of tiers.
        run = runs.o.p
        request = stream.Signature(ReadRequest(config)).create()
        ask = request.p
        accepted = Signal()
        asked = Signal()
        drained = Signal()
        for tier, client in enumerate(tiers):
            with m.If(ask.tier == tier):
                m.d.comb += client.request.valid.eq(request.valid & sources.i.ready)
                m.d.comb += asked.eq(client.request.valid & client.request.ready)
            m.d.comb += [client.request.p.addr.eq(ask.addr), client.request.p.beats.eq(ask.beats)]
        m.d.comb += [
            runs.windows.eq(self.windows),
            runs.stop.eq(completion.stop),
            request.ready.eq(asked),
            runs.o.ready.eq(accepted),
            queue.i.valid.eq(accepted),
            queue.i.payload.eq(run),
            sources.i.valid.eq(asked),
            sources.i.payload.eq(ask.tier),
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
        bfp = Signal(self.tensor_write.data.shape())
        ports = {
            Kind.MASK: (self.mask_write, packed.mask),
            Kind.BFP:  (self.tensor_write, bfp),
            Kind.FP32: (self.acc_write, packed.fp32),
        }
        arrived = Signal()
        wanted = Signal()
        granted = Signal()
        moved = Signal()
        failed = Signal(Error)
        m.d.comb += wanted.eq(arrived & ~completion.stop & (failed == Error.NONE))
        for kind, (port, bits) in ports.items():
            with m.If(row.run.kind == kind):
                m.d.comb += [port.valid.eq(wanted), granted.eq(port.ready)]
            m.d.comb += [port.addr.eq(row.addr), port.data.eq(bits)]
        m.d.comb += [
            Value.cast(bfp).eq(packed.bfp),
            moved.eq(arrived & (granted | ~wanted)),
            rows.o.ready.eq(moved),
        ]
        m.d.comb += drained.eq(~(runs.busy | queue.o.valid | rows.o.valid))
        if config.stash:
            self._decode(m, runs, queue, request, accepted, unpack, rows, bfp, arrived, moved,
                         failed, drained)
        else:
            m.d.comb += [
                request.valid.eq(runs.o.valid & queue.i.ready),
                ask.addr.eq(run.mem),
                *(ask[name].eq(run[name]) for name in ("beats", "tier", "cls")),
                accepted.eq(asked),
                unpack.shape.valid.eq(rows.o.valid),
                unpack.shape.p.kind.eq(row.run.kind),
                unpack.shape.p.last.eq(row.last),
                arrived.eq(unpack.o.valid),
                unpack.o.ready.eq(moved),
                failed.eq(Mux(packed.error, Error.BUS_READ, Error.NONE)),
            ]

        m.d.comb += [
            completion.finished.eq(moved & row.last & row.run.final),
            completion.failed.eq(Mux(moved, failed, Error.NONE)),
            completion.failed_mem.eq(row.run.mem),
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
            self.traffic.moved.eq(wanted & granted),
            self.traffic.stall.eq(wanted & ~granted),
        ]
        return m

    def _decode(self, m, runs, queue, request, accepted, unpack, rows, bfp, arrived, moved, failed,
                drained):
        """Rows in a stash format come from the decoder, which wants them ahead of ``rows``; runs
        of unknown length are asked for piece by piece."""
        config = self.config
        m.submodules.pieces = pieces = ReadPieces(config)
        wiring.connect(m, pieces.o, wiring.flipped(request))
        m.d.comb += [
            pieces.i.valid.eq(runs.o.valid & queue.i.ready),
            pieces.i.payload.eq(runs.o.payload),
            accepted.eq(pieces.i.valid & pieces.i.ready),
        ]
        m.submodules.decoder = decoder = Decoder(config)
        m.submodules.ahead_queue = ahead_queue = StreamFifo(
            Run(config), depth=RUNS_QUEUED, buffered=False)
        m.submodules.ahead = ahead = Rows(config)
        wiring.connect(m, ahead_queue.o, ahead.i)
        wiring.connect(m, unpack.coded.view, decoder.i)

        row, want = ahead.o.p, decoder.wanted.p
        coded = Signal()
        m.d.comb += [
            ahead_queue.i.valid.eq(accepted),  # never fuller than `queue`
            ahead_queue.i.payload.eq(queue.i.payload),
            coded.eq(row.run.codec != 0),
            unpack.shape.valid.eq(ahead.o.valid),
            unpack.shape.p.kind.eq(row.run.kind),
            unpack.shape.p.last.eq(row.last),
            unpack.shape.p.coded.eq(coded),
            unpack.shape.p.packed.eq(row.run.packed),
            unpack.shape.p.left.eq(row.left),
            unpack.shape.p.beats.eq(row.run.beats),
            decoder.wanted.valid.eq(ahead.o.valid & coded & ~unpack.coded.busy),
            want.draws.eq(row.run.stochastic), want.layer.eq(row.run.layer),
            want.index.eq(row.run.number), want.last.eq(row.last),
            ahead.o.ready.eq(Mux(coded, decoder.wanted.ready, unpack.shape.ready)),
            unpack.coded.sizes.eq(decoder.sizes), unpack.coded.ends.eq(decoder.ends),
            pieces.more.eq(unpack.coded.more), unpack.coded.granted.eq(pieces.granted),
            unpack.coded.exhausted.eq(pieces.exhausted),
            pieces.ended.eq(decoder.ends & row.run.packed),
            decoder.seed.eq(self.seed), decoder.step.eq(self.step),
            decoder.entry_valid.eq(self.entry_valid), decoder.entry.eq(self.entry),
        ]

        # A row that is stored as it is waits until those before it have left the decoder.
        decoded = decoder.o.p
        with m.If(rows.o.p.run.codec != 0):
            m.d.comb += [
                arrived.eq(decoder.o.valid & rows.o.valid),
                decoder.o.ready.eq(moved),
                bfp.eq(decoded.row),
            ]
            with m.If(decoded.spoiled):
                m.d.comb += failed.eq(Error.BUS_READ)
            with m.Elif(decoded.error):
                m.d.comb += failed.eq(Error.STASH)
        with m.Else():
            m.d.comb += [
                arrived.eq(unpack.o.valid & rows.o.valid),
                unpack.o.ready.eq(moved),
                failed.eq(Mux(unpack.o.p.error, Error.BUS_READ, Error.NONE)),
            ]
        with m.If(pieces.busy | unpack.coded.busy):
            m.d.comb += drained.eq(0)
