"""Row operations between the on-chip memories."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import AddOp, AddSource, FunctionOp, MulSource, Opcode, Space
from ..isa_layout import command_layout
from ..memory.ports import (
    READ_LATENCY, BfpRow, ReadPort, TensorReadPort, WritePort, fp32_row, mask_row,
)
from ..numeric.counter_rng import CounterRng
from ..numeric.quantiser import TileQuantiser
from .control import SCALARS, Control, Decoder
from .credit_fifo import CreditFifo
from .dequantiser import RowDequantiser
from .lane import Lane
from .mask import MaskUnit
from .row_walk import RowWalk


__all__ = ["Events", "VectorUnit"]


class Events(data.Struct):
    """What happened in this cycle."""
    row:       1  # a row entered the pipeline
    stall:     1  # none did, or the last could not leave: a bank was taken
    nonfinite: 1  # a computed NaN or infinity went to the accumulators or the tensor memory
    saturate:  1  # a mantissa of the tensor result saturated


def _delay_line(m, value, cycles, *, name, clear=0):
    """``value`` delayed by 0 to ``cycles`` cycles; ``clear`` empties the line."""
    line = [value]
    for age in range(1, cycles + 1):
        delayed = Signal.like(value, name=f"{name}_{age}")
        m.d.sync += delayed.eq(Mux(clear, 0, line[-1]))
        line.append(delayed)
    return line


class VectorUnit(wiring.Component):
    """Executes VECTOR instructions, one at a time; see :func:`vector_model.vector`.

    Rows are fetched ahead by each source on its own into FIFOs, and enter a pipeline that cannot
    be stopped as soon as all sources have one and a place in the FIFO of the accumulator writes
    is free. So neither a refused read nor a refused write loses a row, and sources that share a
    bank take turns.

    One row per cycle, plus padding rows up to the next multiple of ``n`` in each column block of
    a tensor result. From the cycle in which a command is taken to ``done``, an instruction takes
    :meth:`overhead` cycles more than it has rows, if no port is refused. The next command is taken
    in the cycle of ``done``.

    Writes of masks and tensor rows must not be refused: ``ready`` of these ports is not looked at.

    Parameters
    ----------
    config : Config
        ``n``, ``mantissa_bits``.

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
        self._lanes = [Lane() for _ in range(config.n)]
        self._dequantiser = RowDequantiser(config)
        self._rng = CounterRng(config)
        self._quantiser = TileQuantiser(config, tag_bits=0)
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

    def _latency(self, multiply, add, function):
        """Cycles that a row is in the lanes."""
        return self._lanes[0].latency(multiply, add, function)

    @property
    def _tensor_wait(self):
        """Cycles that a row of a tensor result waits for its random bits."""
        return max(0, self._rng.latency - (self._latency(False, False, False) + 1))

    def overhead(self, command):
        """Cycles of an instruction beyond one per row and padding row, given its fields."""
        if command["write_tensor"]:
            leave = self._tensor_wait + self._quantiser.delay + self.config.n - 1
        elif command["write_acc"]:
            leave = 1
        elif command["write_mask"]:
            leave = 0
        else:
            return self._fill(command["a_space"])
        sums = (AddSource.NONE < command["add_source"] <= AddSource.MASKED
                and command["add_op"] not in (AddOp.MAX, AddOp.MIN))
        function = FunctionOp.NONE < command["function"] <= FunctionOp.LOG
        pipeline = self._latency(command["mul"] != MulSource.NONE, sums, function) + 1
        return self._fill(command["a_space"]) + pipeline + leave

    def elaborate(self, platform):
        m = Module()
        n = self.config.n

        # Command: fields that outlive the first cycle.
        cmd = self.cmd.payload
        accept = self.cmd.valid & self.cmd.ready
        held = Signal(cmd.shape())
        m.submodules.decoder = decoder = Decoder()
        control = Signal(Control)
        partner = Signal(range(self.config.lane_bits + 1))
        read_b = Signal()
        read_mask = Signal()
        m.d.comb += [
            decoder.cmd.eq(cmd),
            decoder.scalars.eq(self.scalars),
        ]
        with m.If(accept):
            m.d.sync += [
                held.eq(cmd),
                control.eq(decoder.control),
                partner.eq(Mux(cmd.butterfly < self.config.lane_bits, cmd.butterfly,
                               self.config.lane_bits)),
                read_b.eq(decoder.read_b),
                read_mask.eq(decoder.read_mask),
            ]
        padded_rows = Signal(17)
        m.d.comb += padded_rows.eq(((cmd.rows + (n - 1)) >> self.config.lane_bits)
                                   << self.config.lane_bits)

        def walk(name, used, base, stride, step=1, rows=cmd.rows):
            m.submodules[name] = walk = RowWalk()
            m.d.comb += [
                walk.start.eq(accept & used),
                walk.base.eq(base),
                walk.stride.eq(stride),
                walk.step.eq(step),
                walk.rows.eq(rows),
                walk.blocks.eq(cmd.blocks),
            ]
            return walk

        # Sources: each reads ahead as far as its FIFO has room.
        walk_a = walk("walk_a", 1, cmd.op0, cmd.a_stride, cmd.a_step)
        walk_b = walk("walk_b", decoder.read_b, cmd.op1, cmd.b_stride, cmd.b_step)
        walk_k = walk("walk_k", decoder.read_mask, cmd.op4, cmd.k_stride)
        from_tensor = held.a_space == Space.TENSOR
        m.submodules.fifo_a = fifo_a = CreditFifo(fp32_row(self.config), depth=16)
        m.submodules.fifo_b = fifo_b = CreditFifo(fp32_row(self.config), depth=16)
        m.submodules.fifo_k = fifo_k = CreditFifo(mask_row(self.config), depth=16)

        for walk_x, fifo, port, used in (
            (walk_a, fifo_a, self.acc_a, ~from_tensor),
            (walk_a, fifo_a, self.tensor_read, from_tensor),
            (walk_b, fifo_b, self.acc_b, 1),
            (walk_k, fifo_k, self.mask_read, 1),
        ):
            m.d.comb += [
                port.valid.eq(walk_x.active & fifo.room & used),
                port.addr.eq(walk_x.addr),
            ]
            with m.If(port.valid & port.ready):
                m.d.comb += [walk_x.next.eq(1), fifo.reserve.eq(1)]

        arrival = _delay_line(m, walk_a.next, READ_LATENCY + self._dequantiser.latency,
                              name="arrival", clear=accept)
        m.submodules.dequantiser = dequantiser = self._dequantiser
        m.d.comb += [
            dequantiser.i.eq(self.tensor_read.data),
            fifo_a.valid.eq(Mux(from_tensor, arrival[-1], arrival[READ_LATENCY])),
            fifo_a.entry.eq(Mux(from_tensor, dequantiser.o, self.acc_a.data)),
        ]
        for walk_x, fifo, port in ((walk_b, fifo_b, self.acc_b), (walk_k, fifo_k, self.mask_read)):
            m.d.comb += [
                fifo.valid.eq(_delay_line(m, walk_x.next, READ_LATENCY, name="arrival")[-1]),
                fifo.entry.eq(port.data),
            ]

        # Issue: a row of every source in use, and a place for the result.
        issue = walk("issue", 1, 0, 0, rows=Mux(cmd.write_tensor, padded_rows, cmd.rows))
        m.submodules.results = results = CreditFifo(fp32_row(self.config), depth=self._depth)
        sources = (fifo_a.o.valid & (fifo_b.o.valid | ~read_b) & (fifo_k.o.valid | ~read_mask))
        fire = Signal()
        row = Signal()
        m.d.comb += [
            fire.eq(issue.active & ((issue.addr >= held.rows)
                                    | (sources & (results.room | ~held.write_acc)))),
            row.eq(fire & (issue.addr < held.rows)),
            issue.next.eq(fire),
            fifo_a.o.ready.eq(row),
            fifo_b.o.ready.eq(row & read_b),
            fifo_k.o.ready.eq(row & read_mask),
            results.reserve.eq(row & held.write_acc),
        ]

        # Pipeline: what must arrive with a row is taken from a delay line after as many cycles as
        # the stages in use take. It is emptied between instructions, for what has been taken
        # moves on to places where a longer one would take it again.
        sums = control.combine & ~control.extremum
        stages = Cat(control.multiply, sums, control.use_function)
        latencies = [self._latency(i & 1, i >> 1 & 1, i >> 2) for i in range(8)]
        entered = _delay_line(m, fire & (held.write_acc | held.write_tensor | held.write_mask),
                              max(latencies), name="entered", clear=accept)
        bits_line = _delay_line(m, fifo_k.o.payload.as_value(), max(latencies), name="bits")

        def on_time(line, early=0):
            return Array(line[latency - early] for latency in latencies)[stages]

        p_bits = Signal(n)
        m.d.comb += p_bits.eq(Mux(control.multiply, bits_line[self._lanes[0].product_latency],
                                  bits_line[0]))
        products = Array(lane.p for lane in self._lanes)
        for j, lane in enumerate(self._lanes):
            m.submodules[f"lane{j}"] = lane
            m.d.comb += [
                lane.control.eq(control),
                lane.a.eq(fifo_a.o.payload[j]),
                lane.b.eq(fifo_b.o.payload[j]),
                lane.k.eq(p_bits[j]),
            ]
            with m.Switch(partner):
                for distance in range(self.config.lane_bits):
                    with m.Case(distance):
                        m.d.comb += lane.exchanged.eq(products[j ^ 1 << distance])
                with m.Default():
                    m.d.comb += lane.exchanged.eq(products[j])

        m.submodules.mask = mask = MaskUnit(self.config)
        m.d.comb += [
            mask.start.eq(accept),
            mask.rows.eq(held.rows),
            mask.cols.eq(held.cols),
            mask.padded.eq(held.write_tensor),
            mask.kind.eq(held.mask),
            mask.alternative.eq(held.alternative),
            mask.pad.eq(held.pad),
            mask.scalar.eq(control.scalar1),
            mask.i_valid.eq(on_time(entered)),
            mask.i_mask.eq(on_time(bits_line)),
            *(mask.i_row[j].eq(lane.o) for j, lane in enumerate(self._lanes)),
        ]
        real = mask.o_valid & ~mask.o_padding

        # Accumulator result.
        walk_d = walk("walk_d", cmd.write_acc, cmd.op2, cmd.d_stride)
        m.d.comb += [
            results.valid.eq(real & held.write_acc),
            results.entry.eq(mask.o_row),
            results.o.ready.eq(self.acc_write.ready),
            self.acc_write.valid.eq(results.o.valid),
            self.acc_write.addr.eq(walk_d.addr),
            self.acc_write.data.eq(results.o.payload),
            walk_d.next.eq(self.acc_write.valid & self.acc_write.ready),
        ]

        # Mask result.
        walk_m = walk("walk_m", cmd.write_mask, cmd.op4, cmd.k_stride)
        m.d.comb += [
            self.mask_write.valid.eq(real & held.write_mask),
            self.mask_write.addr.eq(walk_m.addr),
            self.mask_write.data.eq(mask.o_keep),
            walk_m.next.eq(self.mask_write.valid),
        ]

        # Tensor result. The random number generator is asked so early that its bits come with
        # their row; the shortest pipelines give a row too soon for that, so all of them wait.
        m.submodules.rng = rng = self._rng
        element = Signal(40)
        with m.If(on_time(entered, early=rng.latency - 1 - self._tensor_wait)):
            m.d.sync += element.eq(element + 1)
        with m.If(accept):
            m.d.sync += element.eq(cmd.mem)
        tensor_valid = _delay_line(m, mask.o_valid & held.write_tensor, self._tensor_wait,
                                   name="tensor_valid")
        tensor_last = _delay_line(m, mask.o_last, self._tensor_wait, name="tensor_last")
        tensor_row = mask.o_row
        for i in range(self._tensor_wait):
            delayed = Signal(fp32_row(self.config), name=f"tensor_row_{i + 1}", reset_less=True)
            m.d.sync += delayed.eq(tensor_row)
            tensor_row = delayed
        m.submodules.quantiser = quantiser = self._quantiser
        walk_t = walk("walk_t", cmd.write_tensor, cmd.op3, cmd.t_stride, rows=padded_rows)
        m.d.comb += [
            rng.seed.eq(self.seed),
            rng.step.eq(self.step),
            rng.layer.eq(held.layer),
            rng.index.eq(element),
            quantiser.i_valid.eq(tensor_valid[-1]),
            quantiser.i_row.eq(tensor_row),
            quantiser.i_last.eq(tensor_last[-1]),
            quantiser.i_stochastic.eq(held.stochastic),
            quantiser.i_random.eq(rng.random),
            self.tensor_write.valid.eq(quantiser.o_valid),
            self.tensor_write.addr.eq(walk_t.addr),
            self.tensor_write.data.mantissa.eq(quantiser.o_mantissa),
            self.tensor_write.data.exponent.eq(quantiser.o_exponent),
            walk_t.next.eq(quantiser.o_valid),
        ]

        # Completion: a walk ends with its last row read or written.
        active = Cat(w.active for w in (issue, walk_d, walk_m, walk_t)).any()
        m.d.comb += [
            self.done.eq(self.busy & ~active),
            self.cmd.ready.eq(~self.busy | self.done),
        ]
        with m.If(accept):
            m.d.sync += self.busy.eq(1)
        with m.Elif(self.done):
            m.d.sync += self.busy.eq(0)

        filling = Signal(range(self._fill(Space.TENSOR)))
        with m.If(filling != 0):
            m.d.sync += filling.eq(filling - 1)
        with m.If(accept):
            m.d.sync += filling.eq(Mux(cmd.a_space == Space.TENSOR, self._fill(Space.TENSOR) - 1,
                                       self._fill(Space.ACC) - 1))
        m.d.comb += [
            self.events.row.eq(row),
            self.events.stall.eq((issue.active & ~fire & (filling == 0))
                                 | (~issue.active & self.acc_write.valid
                                    & ~self.acc_write.ready)),
            self.events.nonfinite.eq(mask.o_valid & mask.o_nonfinite
                                     & (held.write_acc | held.write_tensor)),
            self.events.saturate.eq(quantiser.o_saturated),
        ]
        return m

    @property
    def _depth(self):
        """Places for results: as many as rows are between issue and write at one a cycle."""
        longest = self._latency(True, True, True) + 3
        return 1 << longest.bit_length()
