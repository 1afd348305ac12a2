"""Converts dot products to binary32 and adds them to the accumulators."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..memory.ports import READ_LATENCY, ReadPort, WritePort, fp32_row
from ..numeric.fp32_add import Fp32Add
from ..numeric.int_to_fp32 import IntToFp32
from .delay import delay
from .row_issue import RowTag
from .systolic import sum_bits


__all__ = ["EXPONENT_BITS", "Accumulate", "turnaround"]

#: Width of the exponent of a product, signed.
EXPONENT_BITS = 11


def turnaround():
    """Cycles from a row to the first row that may add to the same accumulator row."""
    return READ_LATENCY + Fp32Add.latency + 2


class Accumulate(wiring.Component):
    """Adds one row of dot products to one row of the accumulators, every cycle::

        p = i · 2**exponent, or NaN
        s = p if overwrite else accumulator + p
        accumulator = bfloat16(s) if narrow else s

    in binary32: rounded to nearest even, subnormals flushed to zero. The row is written `latency`
    cycles after it came. Rows that add to the same address must be :func:`turnaround` apart.

    Parameters
    ----------
    config : Config
        Gives ``n`` and ``mantissa_bits``.

    Members
    -------
    tag : In(RowTag())
        Whether there is a row, and what to do with it.
    i : In(ArrayLayout(signed(sum_bits(config)), n))
        Dot products.
    exponent : In(signed(11))
        Power of two of their unit.
    nan : In(1)
        The row is NaN.
    read : Out(ReadPort(fp32_row(config)))
        Accumulators; ``ready`` must be 1 at all times.
    write : Out(WritePort(fp32_row(config)))
        Accumulators; ``ready`` must be 1 at all times.
    done : Out(1)
        The last row of an instruction is being written, or would be if there were one.
    nonfinite : Out(1)
        The row being written has an infinity or a NaN.
    """

    def __init__(self, config):
        self.config = config
        row = fp32_row(config)
        super().__init__({
            "tag":       In(RowTag()),
            "i":         In(data.ArrayLayout(signed(sum_bits(config)), config.n)),
            "exponent":  In(signed(EXPONENT_BITS)),
            "nan":       In(1),
            "read":      Out(ReadPort(row)),
            "write":     Out(WritePort(row)),
            "done":      Out(1),
            "nonfinite": Out(1),
        })

    @property
    def latency(self):
        """Cycles from `tag` and `i` to `write`."""
        return IntToFp32.latency + Fp32Add.latency + 1

    def elaborate(self, platform):
        m = Module()

        def later(name, cycles, *, reset=False):
            return delay(m, self.tag[name], cycles, reset=reset, name=name)

        # The accumulator row arrives together with the converted products.
        lead = IntToFp32.latency - READ_LATENCY
        m.d.comb += [
            self.read.valid.eq(later("valid", lead, reset=True)
                               & ~later("overwrite", lead)),
            self.read.addr.eq(later("address", lead)),
        ]

        overwrite = later("overwrite", IntToFp32.latency)
        narrow    = later("narrow", IntToFp32.latency + Fp32Add.latency)
        for j in range(self.config.n):
            m.submodules[f"convert_{j}"] = convert = IntToFp32(width=sum_bits(self.config))
            m.submodules[f"add_{j}"] = add = Fp32Add()
            m.d.comb += [
                convert.integer.eq(self.i[j]),
                convert.exponent.eq(self.exponent),
                convert.nan.eq(self.nan),
                add.a.eq(self.read.data[j]),
                add.skip_a.eq(overwrite),
                add.b.eq(convert.o),
            ]

            # To bfloat16, nearest even. The sum has no subnormal, and its NaN stays as it is.
            up = narrow & add.o[15] & (add.o[:15].any() | add.o[16])
            m.d.sync += self.write.data[j].eq(
                Cat(Mux(narrow, 0, add.o[:16]), (add.o[16:] + up)[:16]))

        m.d.comb += [
            self.write.valid.eq(later("valid", self.latency, reset=True)),
            self.write.addr.eq(later("address", self.latency)),
            self.done.eq(later("last", self.latency, reset=True)),
            self.nonfinite.eq(self.write.valid & Cat(
                self.write.data[j][23:31].all() for j in range(self.config.n)).any()),
        ]

        return m
