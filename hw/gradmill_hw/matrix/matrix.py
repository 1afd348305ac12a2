"""Matrix unit: block-floating-point matrix products into the accumulators."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode
from ..isa_layout import command_layout
from ..memory.ports import READ_LATENCY, ReadPort, TensorReadPort, WritePort, fp32_row
from .accumulate import EXPONENT_BITS, Accumulate, turnaround
from .delay import delay
from .row_issue import RowIssue
from .systolic import SystolicArray
from .weight_fetch import WeightFetch


__all__ = ["MatrixEvents", "MatrixUnit"]

#: Exponent of a row whose elements are NaN.
NAN_EXPONENT = 255
BIAS = 127
#: Instructions accepted that are not done.
_PENDING = range(16)


class MatrixEvents(data.StructLayout):
    """What happened in a cycle, for counters.

    ``row``: a row of A was read; ``macs``: its multiplications without padding; ``stall``: the
    bank of A was taken; ``stall_weights``: a weight tile was not ready; ``nonfinite``: a row with
    an infinity or a NaN was written.
    """

    def __init__(self, config):
        super().__init__({
            "row":           1,
            "macs":          2 * config.lane_bits + 1,
            "stall":         1,
            "stall_weights": 1,
            "nonfinite":     1,
        })


class MatrixUnit(wiring.Component):
    """Executes MATMUL; see :func:`matrix_model.matmul` for the exact arithmetic.

    One row of A per cycle. An instruction of T = ceil(k/n)·ceil(c/n) weight tiles takes
    ``(T - 1)·max(m, n, turnaround) + m + 2n + 11`` cycles from the cycle in which it is accepted
    to `done` if `a` is never refused. The next one is accepted so early that it
    follows without a bubble; with ``accumulate`` it leaves ``turnaround - 1`` cycles free.

    Undefined: ``accumulate`` with overlapping column blocks (``d_stride_c`` smaller than ``m``).

    Parameters
    ----------
    config : Config
        Gives ``n`` and ``mantissa_bits``.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.MATMUL)))
        Instructions.
    done : Out(1)
        An instruction, in order, writes its last row in this cycle.
    a : Out(TensorReadPort(config))
        Rows of A.
    w : Out(TensorReadPort(config))
        Rows of weight tiles; ``ready`` must be 1 at all times.
    a_ahead, w_ahead : Out
        Instructions that end in this cycle or later before the one whose row is asked for.
    acc_read : Out(ReadPort(fp32_row(config)))
        Accumulators; ``ready`` must be 1 at all times.
    acc_write : Out(WritePort(fp32_row(config)))
        Accumulators; ``ready`` must be 1 at all times.
    events : Out(MatrixEvents(config))
        For counters.
    busy : Out(1)
        Instructions were accepted and are not done.
    """

    def __init__(self, config):
        self.config = config
        row = fp32_row(config)
        super().__init__({
            "cmd":       In(stream.Signature(command_layout(Opcode.MATMUL))),
            "done":      Out(1),
            "a":         Out(TensorReadPort(config)),
            "w":         Out(TensorReadPort(config)),
            "a_ahead":   Out(_PENDING),
            "w_ahead":   Out(_PENDING),
            "acc_read":  Out(ReadPort(row)),
            "acc_write": Out(WritePort(row)),
            "events":    Out(MatrixEvents(config)),
            "busy":      Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.weights    = weights    = WeightFetch(config)
        m.submodules.rows       = rows       = RowIssue(config, turnaround=turnaround())
        m.submodules.array      = array      = SystolicArray(config)
        m.submodules.accumulate = accumulate = Accumulate(config)

        wiring.connect(m, wiring.flipped(self.cmd), weights.cmd)
        wiring.connect(m, weights.port, wiring.flipped(self.w))
        wiring.connect(m, weights.tile, rows.tile)
        wiring.connect(m, rows.port, wiring.flipped(self.a))
        m.d.comb += [
            rows.command.eq(weights.command),
            array.a.eq(self.a.data.mantissa),
            array.swap.eq(rows.swap),
            array.w.eq(self.w.data.mantissa),
            array.load.eq(weights.load),
            array.load_row.eq(weights.load_row),
        ]

        # Exponents go the way of the mantissas: shadow, active, product.
        shadow   = Signal(8)
        weight   = Signal(8)
        exponent = Signal(signed(EXPONENT_BITS))
        nan      = Signal()
        with m.If(weights.load & (weights.load_row == 0)):
            m.d.sync += shadow.eq(self.w.data.exponent)
        with m.If(rows.swap):
            m.d.sync += weight.eq(shadow)
        m.d.sync += [
            exponent.eq(self.a.data.exponent + weight - 2 * (BIAS + config.mantissa_bits - 2)),
            nan.eq((self.a.data.exponent == NAN_EXPONENT) | (weight == NAN_EXPONENT)),
        ]

        # A tag leaves one cycle after its grant, exponents one cycle after the data.
        tag_age      = READ_LATENCY + array.latency - 1
        exponent_age = array.latency - 1
        for name in ("valid", "last", "address", "overwrite", "narrow"):
            m.d.comb += accumulate.tag[name].eq(
                delay(m, rows.tag[name], tag_age, reset=name in ("valid", "last"), name=name))
        m.d.comb += [
            accumulate.i.eq(array.o),
            accumulate.exponent.eq(delay(m, exponent, exponent_age, name="exponent")),
            accumulate.nan.eq(delay(m, nan, exponent_age, name="nan")),
            self.done.eq(accumulate.done),
        ]
        wiring.connect(m, accumulate.read, wiring.flipped(self.acc_read))
        wiring.connect(m, accumulate.write, wiring.flipped(self.acc_write))

        m.d.sync += [
            self.events.row.eq(rows.tag.valid),
            self.events.stall.eq(delay(m, self.a.valid & ~self.a.ready, 1, reset=True)),
            self.events.stall_weights.eq(delay(m, weights.busy & ~rows.active, 1, reset=True)),
        ]
        m.d.comb += [
            self.events.macs.eq(rows.macs),
            self.events.nonfinite.eq(accumulate.nonfinite),
        ]

        pending = Signal(_PENDING)
        m.d.sync += pending.eq(pending + (self.cmd.valid & self.cmd.ready) - self.done)
        m.d.comb += [
            self.busy.eq(pending != 0),
            self.w_ahead.eq(pending - 1),
            self.a_ahead.eq(pending - 1 - weights.fresh),
        ]

        return m
