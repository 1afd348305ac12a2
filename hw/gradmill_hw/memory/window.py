"""Address windows: which memory a transfer may touch, decided before its first beat."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Kind
from ..regs import WINDOWS, Error, Tier
from .bursts import beats_bits


__all__ = ["DIMENSIONS", "ISA_WIDTHS", "WINDOWS", "Extent", "Window", "WindowCheck",
           "windows_layout"]

#: Strided dimensions of a transfer.
DIMENSIONS = 3
#: Widths of the fields of an instruction.
ISA_WIDTHS = SimpleNamespace(mem=40, stride=32, count=16)


class Window(data.StructLayout):
    """Bytes ``base`` to ``limit - 1`` of a tier.

    Members
    -------
    base : address_bits
        First byte.
    limit : address_bits + 1
        First byte behind the window; a window that reaches behind the last address permits
        nothing.
    read, write : 1
        What transfers may do there.
    """

    def __init__(self, config):
        super().__init__({"base": config.address_bits, "limit": config.address_bits + 1,
                          "read": 1, "write": 1})


def windows_layout(config):
    """All windows: ``windows[tier][k]``. All zero permits nothing."""
    return data.ArrayLayout(data.ArrayLayout(Window(config), WINDOWS), len(Tier))


class Extent(data.StructLayout):
    """The fields of a transfer that say what memory it touches, named as in the instruction."""

    def __init__(self, widths=ISA_WIDTHS):
        super().__init__({
            "mem":    widths.mem,
            "tier":   1,
            "kind":   3,
            "codec":  8,
            "run":    widths.count,
            "count":  data.ArrayLayout(widths.count, DIMENSIONS),
            "stride": data.ArrayLayout(widths.stride, DIMENSIONS),
        })


class WindowCheck(wiring.Component):
    """Permits a transfer if and only if it is well formed and inside one permitted window.

    Of several reasons to refuse the first in this order is named: ``KIND``, ``CODEC``, ``COUNT``,
    ``ALIGNMENT``, ``WINDOW``.

    ``end = mem + (count0-1)·stride0 + (count1-1)·stride1 + (count2-1)·stride2 + bytes of a run``
    is computed without wrap, in beats, by one multiplier. The answer comes 12 cycles after the
    question; a question is held until answered.

    Parameters
    ----------
    config : Config
        Sizes: ``address_bits``, ``bus_bits``, granules of rows.
    write : bool or None
        Ask for the permission to write instead of that to read; None: member ``write`` says.
    widths : namespace
        Widths of ``mem``, ``stride`` and ``count``.

    Members
    -------
    write : In(1)
        Of a check for both: ask for the permission to write. Belongs to the question.
    i : In(stream.Signature(Extent(widths)))
        Question; ``ready`` is the cycle of the answer.
    windows : In(windows_layout(config))
        Windows, constant while a question stands.
    error : Out(Error)
        With ``i.ready``: the reason of refusal, ``NONE`` to permit.
    beats : Out(beats_bits(config))
        With ``i.ready`` and ``NONE``: beats of one run.
    """

    def __init__(self, config, *, write, widths=ISA_WIDTHS):
        self.config = config
        self._may_write = write
        self.widths = widths
        super().__init__({
            **({"write": In(1)} if write is None else {}),
            "i":       In(stream.Signature(Extent(widths))),
            "windows": In(windows_layout(config)),
            "error":   Out(Error),
            "beats":   Out(beats_bits(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config, widths, ask = self.config, self.widths, self.i.p
        low = config.beat_bytes.bit_length() - 1

        step = Signal(range(12))
        with m.If(~self.i.valid | self.i.ready):
            m.d.sync += step.eq(0)
        with m.Else():
            m.d.sync += step.eq(step + 1)
        m.d.comb += self.i.ready.eq(step == 11)

        # Steps 0 to 3 put factors in front of the multiplier: run length, then the dimensions.
        granules = Signal(range(33))
        with m.Switch(ask.kind):
            for kind in Kind:
                with m.Case(kind):
                    m.d.comb += granules.eq(config.row_granules(kind.name.lower()))
        factor = Signal(widths.stride - low)
        times = Signal(widths.count)
        with m.Switch(step[:2]):
            with m.Case(0):
                m.d.sync += [factor.eq(granules), times.eq(ask.run)]
            for d in range(DIMENSIONS):
                with m.Case(d + 1):
                    m.d.sync += [factor.eq(ask.stride[d][low:]), times.eq(ask.count[d] - 1)]
        product = Signal(len(factor) + len(times))
        m.d.sync += product.eq(factor * times)

        # Steps 2 to 6 add up, in beats: address, products, run.
        end = Signal(max(widths.mem - low, len(product) + 2) + 1)
        with m.If(step == 2):
            m.d.sync += end.eq(ask.mem[low:])
            m.d.sync += self.beats.eq((product[:widths.count + 5] + config.beat_granules - 1)
                                      >> config.beat_granules.bit_length() - 1)
        with m.Elif(step < 7):
            m.d.sync += end.eq(end + Mux(step == 6, self.beats, product))

        # Steps 7 to 10 look at one window each.
        window = Signal(Window(config))
        inside = Signal()
        found = Signal()
        choice = Signal(range(WINDOWS))
        m.d.comb += choice.eq(step - 7)
        with m.Switch(Cat(choice, ask.tier)):
            for tier in Tier:
                for k in range(WINDOWS):
                    with m.Case(tier * WINDOWS + k):
                        m.d.comb += window.eq(self.windows[tier][k])
        m.d.comb += inside.eq(
            Mux(self.write if self._may_write is None else C(self._may_write, 1),
                window.write, window.read)
            & (window.limit <= 1 << config.address_bits)
            & (ask.mem >= window.base) & (Cat(C(0, low), end) <= window.limit))
        with m.If(step < 7):
            m.d.sync += found.eq(0)
        with m.Elif(inside):
            m.d.sync += found.eq(1)

        zero = (ask.run == 0) | Cat(ask.count[d] == 0 for d in range(DIMENSIONS)).any()
        odd = ask.mem[:low].any() | Cat(ask.stride[d][:low].any() for d in range(DIMENSIONS)).any()
        with m.If(ask.kind > max(Kind)):
            m.d.comb += self.error.eq(Error.KIND)
        with m.Elif(ask.codec != 0):
            m.d.comb += self.error.eq(Error.CODEC)
        with m.Elif(zero):
            m.d.comb += self.error.eq(Error.COUNT)
        with m.Elif(odd):
            m.d.comb += self.error.eq(Error.ALIGNMENT)
        with m.Elif(~found):
            m.d.comb += self.error.eq(Error.WINDOW)
        return m
