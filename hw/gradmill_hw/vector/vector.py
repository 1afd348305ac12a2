"""Row operations between the on-chip memories."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import COMPARISONS, AddSource, FunctionOp, MulSource, Opcode, Space
from ..isa_layout import command_layout
from ..memory.ports import (
    READ_LATENCY, BfpRow, ReadPort, TensorReadPort, WritePort, fp32_row, mask_row,
)
from .control import SCALARS, Control, Decoder
from .credit_fifo import CreditFifo
from .dequantiser import RowDequantiser
from .pipeline import RowPipeline
from .row_source import RowSource
from .row_walk import RowWalk
from .tensor_result import TensorResult


__all__ = ["Events", "VectorUnit"]


class Events(data.Struct):
    """What happened in this cycle."""
    row:       1  # a row entered the pipeline
    stall:     1  # none did, or the last could not leave: a bank was taken
    nonfinite: 1  # a computed NaN or infinity went to the accumulators or the tensor memory
    saturate:  1  # a mantissa of the tensor result saturated


def _has_function(command):
    return FunctionOp.NONE < command["function"] <= max(FunctionOp)


class VectorUnit(wiring.Component):
    """Executes VECTOR instructions, one at a time; see :func:`vector_model.vector`.

    Rows are fetched ahead by each source on its own into FIFOs, and enter a pipeline that cannot
    be stopped as soon as all sources have one and a place in the FIFO of the accumulator writes
    is free. So neither a refused read nor a refused write loses a row, and sources that share a
    bank take turns.

    One row per cycle, plus padding rows up to the next multiple of ``n`` in each column block of
    a tensor result; if a function is applied, a row every :meth:`interval` cycles. From the cycle
    in which a command is taken to ``done``, an instruction takes :meth:`overhead` cycles more than
    that, if no port is refused. The next command is taken in the cycle of ``done``.

    Writes of masks and tensor rows must not be refused: ``ready`` of these ports is not looked at.

    Parameters
    ----------
    config : Config
        ``n``, ``mantissa_bits``, ``lanes_per_function``.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.VECTOR)))
        Instructions with final addresses.
    done : Out(1)
        Every write of an instruction has landed; one cycle for each.
    busy : Out(1)
        An instruction is being executed.
    acc_a, acc_b : Out(ReadPort(fp32_row(config)))
        Accumulators.
    tensor_read : Out(TensorReadPort(config))
        Tensor memory; never transposed.
    mask_read : Out(ReadPort(mask_row(config)))
        Mask memory.
    acc_write : Out(WritePort(fp32_row(config)))
        Accumulators.
    tensor_write : Out(WritePort(BfpRow(config)))
        Tensor memory.
    mask_write : Out(WritePort(mask_row(config)))
        Mask memory.
    scalars : In(data.ArrayLayout(32, SCALARS))
        Scalar registers, binary32; looked at when a command is taken.
    seed, step : In(32)
        Key of random numbers; constant while busy.
    events : Out(Events)
        For counters and sticky flags.
    """

    def __init__(self, config):
        self.config = config
        self._pipeline = RowPipeline(config)
        self._dequantiser = RowDequantiser(config)
        self._tensor = TensorResult(config, notice=self._pipeline.notice)
        super().__init__({
            "cmd":          In(stream.Signature(command_layout(Opcode.VECTOR))),
            "done":         Out(1),
            "busy":         Out(1),
            "acc_a":        Out(ReadPort(fp32_row(config))),
            "acc_b":        Out(ReadPort(fp32_row(config))),
            "tensor_read":  Out(TensorReadPort(config)),
            "mask_read":    Out(ReadPort(mask_row(config))),
            "acc_write":    Out(WritePort(fp32_row(config))),
            "tensor_write": Out(WritePort(BfpRow(config))),
            "mask_write":   Out(WritePort(mask_row(config))),
            "scalars":      In(data.ArrayLayout(32, SCALARS)),
            "seed":         In(32),
            "step":         In(32),
            "events":       Out(Events),
        })

    def _fill(self, space):
        """Cycles from the command to its first row entering the pipeline."""
        return 2 + READ_LATENCY + (space == Space.TENSOR) * self._dequantiser.latency

    def interval(self, command):
        """Cycles from a row to the next, given the fields of the instruction."""
        return self.config.lanes_per_function if _has_function(command) else 1

    def overhead(self, command):
        """Cycles of an instruction before its first row and after its last, given its fields."""
        if command["write_tensor"]:
            leave = self._tensor.latency
        elif command["write_acc"]:
            leave = 1
        elif command["write_mask"]:
            leave = 0
        else:
            return self._fill(command["a_space"])
        sums = (AddSource.NONE < command["add_source"] <= max(AddSource)
                and command["add_op"] not in COMPARISONS)
        multiply = command["mul"] != MulSource.NONE
        return (self._fill(command["a_space"])
                + self._pipeline.latency(multiply, sums, _has_function(command)) + leave)

    def elaborate(self, platform):
        m = Module()
        n = self.config.n

        # Command.
        cmd = self.cmd.payload
        accept = self.cmd.valid & self.cmd.ready
        m.submodules.decoder = decoder = Decoder(self.config)
        m.d.comb += [
            decoder.cmd.eq(cmd),
            decoder.scalars.eq(self.scalars),
        ]
        held = Signal(cmd.shape())
        control = Signal(Control)
        read_b = Signal()
        read_mask = Signal()
        with m.If(accept):
            m.d.sync += [
                held.eq(cmd),
                control.eq(decoder.control),
                read_b.eq(decoder.read_b),
                read_mask.eq(decoder.read_mask),
            ]
        padded_rows = Signal(17)
        m.d.comb += padded_rows.eq((cmd.rows + (n - 1)) & -n)

        def walk(name, used, base, stride, step=1, *, rows=cmd.rows, component=RowWalk):
            m.submodules[name] = walk = component()
            m.d.comb += [
                walk.start.eq(accept & used),
                walk.base.eq(base),
                walk.stride.eq(stride),
                walk.step.eq(step),
                walk.rows.eq(rows),
                walk.blocks.eq(cmd.blocks),
            ]
            return walk

        # Sources.
        m.submodules.dequantiser = dequantiser = self._dequantiser
        a = walk("a", 1, cmd.op0, cmd.a_stride, cmd.a_step, component=lambda: RowSource(
            fp32_row(self.config), extra_latency=dequantiser.latency))
        b = walk("b", decoder.read_b, cmd.op1, cmd.b_stride, cmd.b_step,
                 component=lambda: RowSource(fp32_row(self.config)))
        k = walk("k", decoder.read_mask, cmd.op4, cmd.k_stride,
                 component=lambda: RowSource(mask_row(self.config)))
        from_tensor = held.a_space == Space.TENSOR
        m.d.comb += [
            self.acc_a.valid.eq(a.valid & ~from_tensor),
            self.acc_a.addr.eq(a.addr),
            self.tensor_read.valid.eq(a.valid & from_tensor),
            self.tensor_read.addr.eq(a.addr),
            dequantiser.i.eq(self.tensor_read.data),
            a.ready.eq(Mux(from_tensor, self.tensor_read.ready, self.acc_a.ready)),
            a.late.eq(from_tensor),
            a.data.eq(Mux(from_tensor, dequantiser.o, self.acc_a.data)),
        ]
        for source, port in ((b, self.acc_b), (k, self.mask_read)):
            m.d.comb += [
                port.valid.eq(source.valid),
                port.addr.eq(source.addr),
                source.ready.eq(port.ready),
                source.data.eq(port.data),
            ]

        # Issue: a row of every source in use and a place for the result, or a padding row.
        issue = walk("issue", 1, 0, 0, rows=Mux(cmd.write_tensor, padded_rows, cmd.rows))
        m.submodules.results = results = CreditFifo(fp32_row(self.config), depth=self._places)
        padding = issue.addr >= held.rows
        ready = (a.o.valid & (b.o.valid | ~read_b) & (k.o.valid | ~read_mask)
                 & (results.room | ~held.write_acc))
        fire = Signal()
        row = Signal()
        pause = Signal(range(self.config.lanes_per_function))
        with m.If(accept):
            m.d.sync += pause.eq(0)
        with m.Elif(fire & control.use_function):
            m.d.sync += pause.eq(self.config.lanes_per_function - 1)
        with m.Elif(pause != 0):
            m.d.sync += pause.eq(pause - 1)
        m.d.comb += [
            fire.eq(issue.active & (pause == 0) & (padding | ready)),
            row.eq(fire & ~padding),
            issue.next.eq(fire),
            a.o.ready.eq(row),
            b.o.ready.eq(row & read_b),
            k.o.ready.eq(row & read_mask),
            results.reserve.eq(row & held.write_acc),
        ]

        m.submodules.pipeline = pipeline = self._pipeline
        m.d.comb += [
            pipeline.start.eq(accept),
            pipeline.control.eq(control),
            pipeline.select.rows.eq(held.rows),
            pipeline.select.cols.eq(held.cols),
            pipeline.select.padded.eq(held.write_tensor),
            pipeline.select.kind.eq(held.mask),
            pipeline.select.alternative.eq(held.alternative),
            pipeline.select.pad.eq(held.pad),
            pipeline.select.scalar.eq(control.scalar1),
            pipeline.i_valid.eq(fire & (held.write_acc | held.write_tensor | held.write_mask)),
            pipeline.i_a.eq(a.o.payload),
            pipeline.i_b.eq(b.o.payload),
            pipeline.i_k.eq(k.o.payload),
        ]
        result = pipeline.o_valid & ~pipeline.o_padding

        # Accumulator and mask results.
        to_acc = walk("to_acc", cmd.write_acc, cmd.op2, cmd.d_stride)
        to_mask = walk("to_mask", cmd.write_mask, cmd.op4, cmd.k_stride)
        m.d.comb += [
            results.valid.eq(result & held.write_acc),
            results.entry.eq(pipeline.o_row),
            results.o.ready.eq(self.acc_write.ready),
            self.acc_write.valid.eq(results.o.valid),
            self.acc_write.addr.eq(to_acc.addr),
            self.acc_write.data.eq(results.o.payload),
            to_acc.next.eq(self.acc_write.valid & self.acc_write.ready),

            self.mask_write.valid.eq(result & held.write_mask),
            self.mask_write.addr.eq(to_mask.addr),
            self.mask_write.data.eq(pipeline.o_keep),
            to_mask.next.eq(self.mask_write.valid),
        ]

        # Tensor result.
        m.submodules.tensor = tensor = self._tensor
        m.d.comb += [
            tensor.start.eq(accept & cmd.write_tensor),
            tensor.base.eq(cmd.op3),
            tensor.stride.eq(cmd.t_stride),
            tensor.rows.eq(padded_rows),
            tensor.blocks.eq(cmd.blocks),
            tensor.element.eq(cmd.mem),
            tensor.layer.eq(held.layer),
            tensor.seed.eq(self.seed),
            tensor.step.eq(self.step),
            tensor.stochastic.eq(held.stochastic),
            tensor.coming.eq(pipeline.coming),
            tensor.valid.eq(pipeline.o_valid & held.write_tensor),
            tensor.row.eq(pipeline.o_row),
            tensor.last.eq(pipeline.o_last),
        ]
        wiring.connect(m, tensor.write, wiring.flipped(self.tensor_write))

        # Completion: a walk is active until its last row is issued or written.
        active = issue.active | to_acc.active | to_mask.active | tensor.active
        m.d.comb += [
            self.done.eq(self.busy & ~active),
            self.cmd.ready.eq(~self.busy | self.done),
        ]
        with m.If(accept):
            m.d.sync += self.busy.eq(1)
        with m.Elif(self.done):
            m.d.sync += self.busy.eq(0)

        filling = Signal(range(self._fill(Space.TENSOR)))
        with m.If(accept):
            m.d.sync += filling.eq(Mux(cmd.a_space == Space.TENSOR, self._fill(Space.TENSOR),
                                       self._fill(Space.ACC)) - 1)
        with m.Elif(filling != 0):
            m.d.sync += filling.eq(filling - 1)
        refused = self.acc_write.valid & ~self.acc_write.ready
        m.d.comb += [
            self.events.row.eq(row),
            self.events.stall.eq(Mux(issue.active, ~fire & (filling == 0) & (pause == 0),
                                     refused)),
            self.events.nonfinite.eq(pipeline.o_valid & pipeline.o_nonfinite
                                     & (held.write_acc | held.write_tensor)),
            self.events.saturate.eq(tensor.saturate),
        ]
        return m

    @property
    def _places(self):
        """Places for results: as many as rows are between issue and write at one a cycle."""
        return 1 << (self._pipeline.latency(True, True, True) + 2).bit_length()
