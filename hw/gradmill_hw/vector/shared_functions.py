"""Elementary functions of all lanes, by fewer units than there are lanes."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..isa import FunctionOp
from ..memory.ports import fp32_row
from ..numeric.functions import Functions


__all__ = ["SharedFunctions"]


class SharedFunctions(wiring.Component):
    """Applies a function to rows: each unit takes the values of its lanes in turn.

    One row per ``config.lanes_per_function`` cycles, ``latency`` cycles later. Few rows of a
    training step need a function, and a unit is the largest part of a lane.

    Parameters
    ----------
    config : Config
        ``n``, ``lanes_per_function``.

    Members
    -------
    op : In(FunctionOp)
        What to compute; constant while rows are on their way.
    load : In(1)
        A row is on ``i``; the next one comes ``config.lanes_per_function`` cycles later or more.
    i : In(fp32_row(config))
        Operands.
    o : Out(fp32_row(config))
        Results of the row that was loaded ``latency`` cycles ago.
    """

    def __init__(self, config):
        self.config = config
        self._units = [Functions() for _ in range(config.n // config.lanes_per_function)]
        super().__init__({
            "op":   In(FunctionOp),
            "load": In(1),
            "i":    In(fp32_row(config)),
            "o":    Out(fp32_row(config)),
        })

    @property
    def latency(self):
        """Cycles from a row to its results."""
        return Functions.latency + self.config.lanes_per_function

    def elaborate(self, platform):
        m = Module()
        turns = self.config.lanes_per_function
        for number, unit in enumerate(self._units):
            m.submodules[f"unit{number}"] = unit
            lanes = range(number * turns, (number + 1) * turns)

            # Operands move down to lane 0; what follows the last one is not looked at.
            waiting = [Signal(32, name=f"waiting_{j}", reset_less=True) for j in lanes]
            for here, after, j in zip(waiting, [*waiting[1:], None], lanes, strict=True):
                m.d.sync += here.eq(self.i[j] if after is None
                                    else Mux(self.load, self.i[j], after))
            m.d.comb += [unit.op.eq(self.op), unit.i.eq(waiting[0])]

            # Results gather until the last lane's leaves the unit.
            result = unit.o
            for j in reversed(lanes):
                m.d.comb += self.o[j].eq(result)
                gathered = Signal(32, name=f"result_{j}", reset_less=True)
                m.d.sync += gathered.eq(result)
                result = gathered
        return m
