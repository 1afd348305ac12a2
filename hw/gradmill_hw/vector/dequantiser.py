"""Rows of the tensor memory to binary32."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..memory.ports import BfpRow, fp32_row
from ..numeric.int_to_fp32 import IntToFp32


__all__ = ["RowDequantiser"]


class RowDequantiser(wiring.Component):
    """``n`` mantissas and their exponent E to binary32; see :func:`bfp_model.dequantise`.

    Mantissa m becomes ``m · 2^(E - 127 - (mantissa_bits - 2))``; E = 255 gives the canonical NaN.

    One row per cycle, ``latency`` cycles.

    Parameters
    ----------
    config : Config
        ``n`` and ``mantissa_bits``.

    Members
    -------
    i : In(BfpRow(config))
        Row of the tensor memory.
    o : Out(fp32_row(config))
        Binary32 values.
    """

    def __init__(self, config):
        self.config = config
        self._lanes = [IntToFp32(width=config.mantissa_bits) for _ in range(config.n)]
        super().__init__({
            "i": In(BfpRow(config)),
            "o": Out(fp32_row(config)),
        })

    @property
    def latency(self):
        """Cycles from mantissas to values."""
        return self._lanes[0].latency

    def elaborate(self, platform):
        m = Module()
        exponent = Signal(signed(11))
        m.d.comb += exponent.eq(self.i.exponent - (127 + self.config.mantissa_bits - 2))
        for j, lane in enumerate(self._lanes):
            m.submodules[f"lane{j}"] = lane
            m.d.comb += [
                lane.integer.eq(self.i.mantissa[j]),
                lane.exponent.eq(exponent),
                lane.nan.eq(self.i.exponent == 255),
                self.o[j].eq(lane.o),
            ]
        return m
