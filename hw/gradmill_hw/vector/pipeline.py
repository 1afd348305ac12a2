"""All lanes, functions and the mask unit: from operand rows to the result row."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..memory.ports import fp32_row, mask_row
from .control import Control
from .lane import Lane
from .mask import MaskControl, MaskUnit
from .shared_functions import SharedFunctions


__all__ = ["RowPipeline"]


class RowPipeline(wiring.Component):
    """Computes result rows; see :class:`Lane`, :class:`SharedFunctions` and :class:`MaskUnit`.

    One row per cycle, or one per ``config.lanes_per_function`` cycles if the function stage is
    used; :meth:`latency` cycles, in order. Stages that are not used take no time.

    Parameters
    ----------
    config : Config
        ``n``, ``lanes_per_function``.

    Members
    -------
    start : In(1)
        An instruction begins, and nothing is in the pipeline. Its first row comes later.
    control : In(Control)
        What the lanes compute; constant while rows are in the pipeline, like ``select``.
    select : In(MaskControl)
        What the mask unit selects.
    i_valid : In(1)
        A row is on ``i_*``.
    i_a, i_b : In(fp32_row(config))
        Operands.
    i_k : In(mask_row(config))
        Mask bits.
    coming : Out(1)
        A row will be on ``o_*`` in :attr:`notice` cycles.
    o_valid, o_row, o_keep, o_padding, o_last, o_nonfinite : Out
        Results of the mask unit.
    """

    def __init__(self, config):
        self.config = config
        self._lanes = [Lane() for _ in range(config.n)]
        self._functions = SharedFunctions(config)
        super().__init__({
            "start":       In(1),
            "control":     In(Control),
            "select":      In(MaskControl),
            "i_valid":     In(1),
            "i_a":         In(fp32_row(config)),
            "i_b":         In(fp32_row(config)),
            "i_k":         In(mask_row(config)),
            "coming":      Out(1),
            "o_valid":     Out(1),
            "o_row":       Out(fp32_row(config)),
            "o_keep":      Out(mask_row(config)),
            "o_padding":   Out(1),
            "o_last":      Out(1),
            "o_nonfinite": Out(1),
        })

    def latency(self, multiply, add, function):
        """Cycles from operands to result, by the stages used; max and min do not add."""
        return (self._lanes[0].latency(multiply, add) + function * self._functions.latency + 1)

    @property
    def notice(self):
        """Cycles that ``coming`` is ahead of its row: the latency of the shortest pipeline."""
        return self.latency(False, False, False)

    def elaborate(self, platform):
        m = Module()
        n = self.config.n
        control = self.control

        # What goes with a row is taken from a delay line, after as many cycles as the lanes take.
        # What has been taken moves on to where a longer pipeline would take it again: so the line
        # is emptied between instructions.
        latencies = [self.latency(i & 1, i >> 1 & 1, i >> 2) - 1 for i in range(8)]
        stages = Cat(control.multiply, control.combine & ~control.extremum, control.use_function)
        valid = [self.i_valid]
        bits = [self.i_k.as_value()]
        for age in range(1, max(latencies) + 1):
            valid.append(Signal(name=f"valid_{age}"))
            bits.append(Signal(n, name=f"bits_{age}", reset_less=True))
            m.d.sync += [
                valid[age].eq(valid[age - 1] & ~self.start),
                bits[age].eq(bits[age - 1]),
            ]

        def on_time(line, early=0):
            return Array(line[latency - early] for latency in latencies)[stages]

        m.d.comb += self.coming.eq(on_time(valid, early=self.notice - 1))

        product_bits = Mux(control.multiply, bits[self._lanes[0].product_latency], bits[0])
        for j, lane in enumerate(self._lanes):
            m.submodules[f"lane{j}"] = lane
            m.d.comb += [
                lane.control.eq(control),
                lane.a.eq(self.i_a[j]),
                lane.b.eq(self.i_b[j]),
                lane.k.eq(product_bits[j]),
            ]
            with m.Switch(control.butterfly):
                for distance in range(self.config.lane_bits):
                    with m.Case(distance):
                        m.d.comb += lane.exchanged.eq(self._lanes[j ^ 1 << distance].p)
                with m.Default():
                    m.d.comb += lane.exchanged.eq(lane.p)

        m.submodules.functions = functions = self._functions
        results = Array(valid[latency] for latency in latencies[:4])
        m.d.comb += [
            functions.op.eq(control.function),
            functions.load.eq(results[stages[:2]]),
            *(functions.i[j].eq(lane.o) for j, lane in enumerate(self._lanes)),
        ]

        m.submodules.mask = mask = MaskUnit(self.config)
        m.d.comb += [
            mask.start.eq(self.start),
            mask.control.eq(self.select),
            mask.i_valid.eq(on_time(valid)),
            mask.i_mask.eq(on_time(bits)),
            *(mask.i_row[j].eq(Mux(control.use_function, functions.o[j], lane.o))
              for j, lane in enumerate(self._lanes)),
            self.o_valid.eq(mask.o_valid),
            self.o_row.eq(mask.o_row),
            self.o_keep.eq(mask.o_keep),
            self.o_padding.eq(mask.o_padding),
            self.o_last.eq(mask.o_last),
            self.o_nonfinite.eq(mask.o_nonfinite),
        ]
        return m
