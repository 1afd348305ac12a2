"""Result rows on their way to the tensor memory."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..memory.ports import ROW_ADDRESS_BITS, BfpRow, WritePort, fp32_row
from ..numeric.counter_rng import CounterRng
from ..numeric.quantiser import TileQuantiser
from .row_walk import RowWalk


__all__ = ["TensorResult"]


class TensorResult(wiring.Component):
    """Quantises rows, tile by tile, and writes them.

    Rows come one per cycle at most. The rows of a tile are written in consecutive cycles, in
    order, the last one :attr:`latency` cycles after it came if its tile came without a gap.
    Random numbers are those of element ``element`` for the first row, and so on upward.

    Parameters
    ----------
    config : Config
        ``n``, ``mantissa_bits``.
    notice : int
        Cycles that ``coming`` is ahead of ``valid``; not more than the random numbers take.

    Members
    -------
    start, base, stride, rows, blocks : In
        Addresses, see :class:`RowWalk`; whole tiles.
    element : In(40)
        Number of the first row in the random stream; looked at with ``start``.
    layer : In(8)
        Key of the random stream. This and all below are constant while rows come.
    seed, step : In(32)
        Key of the random stream.
    stochastic : In(1)
        Round stochastically.
    coming : In(1)
        A row will come in ``notice`` cycles.
    valid : In(1)
        A row is on ``row``.
    row : In(fp32_row(config))
        Values.
    last : In(1)
        It is row ``n - 1`` of its tile.
    write : Out(WritePort(BfpRow(config)))
        Quantised rows; ``ready`` is not looked at.
    active : Out(1)
        Rows are still to be written.
    saturate : Out(1)
        A mantissa of the row on ``write`` saturated.
    """

    def __init__(self, config, *, notice):
        self.config = config
        self._rng = CounterRng(config)
        self._quantiser = TileQuantiser(config, tag_bits=0)
        self._wait = self._rng.latency - notice
        if self._wait < 0:
            raise ValueError(f"notice must be at most {self._rng.latency} cycles, not {notice}")
        super().__init__({
            "start":      In(1),
            "base":       In(ROW_ADDRESS_BITS),
            "stride":     In(ROW_ADDRESS_BITS),
            "rows":       In(17),
            "blocks":     In(12),
            "element":    In(40),
            "layer":      In(8),
            "seed":       In(32),
            "step":       In(32),
            "stochastic": In(1),
            "coming":     In(1),
            "valid":      In(1),
            "row":        In(fp32_row(config)),
            "last":       In(1),
            "write":      Out(WritePort(BfpRow(config))),
            "active":     Out(1),
            "saturate":   Out(1),
        })

    @property
    def latency(self):
        """Cycles from the last row of a tile to its write."""
        return self._wait + self._quantiser.delay + self.config.n - 1

    def elaborate(self, platform):
        m = Module()

        element = Signal(40)
        with m.If(self.coming):
            m.d.sync += element.eq(element + 1)
        with m.If(self.start):
            m.d.sync += element.eq(self.element)
        m.submodules.rng = rng = self._rng
        m.d.comb += [
            rng.seed.eq(self.seed),
            rng.step.eq(self.step),
            rng.layer.eq(self.layer),
            rng.index.eq(element),
        ]

        # A row waits until its random numbers are there.
        valid, last, row = self.valid, self.last, self.row.as_value()
        for age in range(1, self._wait + 1):
            valid_next = Signal(name=f"valid_{age}")
            last_next = Signal(name=f"last_{age}", reset_less=True)
            row_next = Signal.like(row, name=f"row_{age}", reset_less=True)
            m.d.sync += [valid_next.eq(valid), last_next.eq(last), row_next.eq(row)]
            valid, last, row = valid_next, last_next, row_next

        m.submodules.quantiser = quantiser = self._quantiser
        m.submodules.walk = walk = RowWalk()
        m.d.comb += [
            *(getattr(walk, name).eq(getattr(self, name))
              for name in ("start", "base", "stride", "rows", "blocks")),
            walk.step.eq(1),
            walk.next.eq(quantiser.o_valid),
            self.active.eq(walk.active),

            quantiser.i_valid.eq(valid),
            quantiser.i_row.as_value().eq(row),
            quantiser.i_last.eq(last),
            quantiser.i_stochastic.eq(self.stochastic),
            quantiser.i_random.eq(rng.random),
            self.saturate.eq(quantiser.o_saturated),

            self.write.valid.eq(quantiser.o_valid),
            self.write.addr.eq(walk.addr),
            self.write.data.mantissa.eq(quantiser.o_mantissa),
            self.write.data.exponent.eq(quantiser.o_exponent),
        ]
        return m
