"""Address windows: which memory a transfer may touch, decided before its first beat."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Kind
from ..regs import WINDOWS, Error, Tier
from ..stash.run_size import RunSize
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
    is computed without wrap, in beats, by one multiplier. Of a stash format that packs the run is
    the longest there is. The answer comes 12 cycles after the question, 14 where the stash codec
    is built; a question is held until answered.

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
        With ``i.ready`` and ``NONE``: beats of one run, at most.
    packed : Out(1)
        Its codec packs: the run may be shorter.
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
            "packed":  Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, widths, ask = self.config, self.widths, self.i.p
        low = config.beat_bytes.bit_length() - 1

        # The size of an encoded run has two terms more.
        late = 2 if config.stash else 0
        step = Signal(range(12 + late))
        with m.If(~self.i.valid | self.i.ready):
            m.d.sync += step.eq(0)
        with m.Else():
            m.d.sync += step.eq(step + 1)
        m.d.comb += self.i.ready.eq(step == 11 + late)

        # From step 0 on factors stand in front of the multiplier: run length, then the dimensions.
        granules = Signal(range(33))
        with m.Switch(ask.kind):
            for kind in Kind:
                with m.Case(kind):
                    m.d.comb += granules.eq(config.row_granules(kind.name.lower()))
        factor = Signal(widths.stride - low)
        times = Signal(widths.count)
        size = Signal(widths.count + 5)
        known = Signal()
        with m.Switch(step):
            with m.Case(0):
                m.d.sync += [factor.eq(granules), times.eq(ask.run)]
            for d in range(DIMENSIONS):
                with m.Case(d + 1 + late):
                    m.d.sync += [factor.eq(ask.stride[d][low:]), times.eq(ask.count[d] - 1)]
        product = Signal(len(factor) + len(times))
        m.d.sync += product.eq(factor * times)
        if config.stash:
            self._coded(m, step, granules, factor, times, product, size, known)
        else:
            m.d.comb += size.eq(product)

        # The next five steps add up, in beats: address, products, run.
        end = Signal(max(widths.mem - low, len(product) + 2) + 1)
        with m.If(step == 2 + late):
            m.d.sync += end.eq(ask.mem[low:])
            m.d.sync += self.beats.eq((size + config.beat_granules - 1)
                                      >> config.beat_granules.bit_length() - 1)
        with m.Elif(step < 7 + late):
            m.d.sync += end.eq(end + Mux(step == 6 + late, self.beats, product))

        # The next four look at one window each.
        window = Signal(Window(config))
        inside = Signal()
        found = Signal()
        choice = Signal(range(WINDOWS))
        m.d.comb += choice.eq(step - 7 - late)
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
        with m.If(step < 7 + late):
            m.d.sync += found.eq(0)
        with m.Elif(inside):
            m.d.sync += found.eq(1)

        zero = (ask.run == 0) | Cat(ask.count[d] == 0 for d in range(DIMENSIONS)).any()
        odd = ask.mem[:low].any() | Cat(ask.stride[d][:low].any() for d in range(DIMENSIONS)).any()
        with m.If(ask.kind > max(Kind)):
            m.d.comb += self.error.eq(Error.KIND)
        with m.Elif((ask.codec != 0) & ~known):
            m.d.comb += self.error.eq(Error.CODEC)
        with m.Elif(zero):
            m.d.comb += self.error.eq(Error.COUNT)
        with m.Elif(odd):
            m.d.comb += self.error.eq(Error.ALIGNMENT)
        with m.Elif(~found):
            m.d.comb += self.error.eq(Error.WINDOW)
        return m

    def _coded(self, m, step, granules, factor, times, product, size, known):
        """An encoded run is of three products, in steps 0 to 2; they are added up by step 4."""
        ask = self.i.p
        m.submodules.run_size = run_size = RunSize(self.config.n, count_bits=self.widths.count)
        m.d.comb += [
            run_size.tag.eq(ask.codec), run_size.rows.eq(ask.run),
            known.eq(run_size.legal & (ask.kind == Kind.BFP)),
            self.packed.eq(run_size.packed),
        ]
        with m.If(ask.codec != 0):
            for k in range(3):
                with m.If(step == k):
                    m.d.sync += [factor.eq(run_size.factors[k]), times.eq(run_size.times[k])]
        with m.Elif((step == 1) | (step == 2)):
            m.d.sync += times.eq(0)
        sum_of_terms = Signal.like(size)
        m.d.comb += size.eq(sum_of_terms + product)
        with m.If(step == 1):
            m.d.sync += sum_of_terms.eq(0)
        with m.Else():
            m.d.sync += sum_of_terms.eq(size)
