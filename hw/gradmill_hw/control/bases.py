"""Base registers: what is added to operands, and how loops move it."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..isa import BASES, INSTRUCTIONS, LOOPS, OPERANDS, Opcode


__all__ = ["BaseRegisters", "BaseSetting"]

_WIDTH = {field.name: field.width for field in INSTRUCTIONS[Opcode.BASE].fields}
_ROW_BITS = _WIDTH["op0"]


class BaseSetting(data.StructLayout):
    """Parameters of a base register, named as in ``BASE``; ``start`` is its first value."""

    def __init__(self):
        super().__init__({"start": _WIDTH["mem"], "level": _WIDTH["level"],
                          "step": _WIDTH["step"], "period": _WIDTH["period"]})


class BaseRegisters(wiring.Component):
    """Fifteen registers and the constant zero; see :mod:`gradmill_hw.sequencer_model`.

    Reading takes no cycle. ``set`` takes one. ``clear``, ``restart`` and ``advance`` sweep over the
    registers: 16 cycles to clear, otherwise two more than the number of the highest register set
    since. While ``busy`` nothing may be read or asked for.

    Members
    -------
    row_index : In(4).array(5)
        Register of each row operand.
    row : Out(16).array(5)
        Its low bits.
    mem_index : In(4)
        Register of the memory operand.
    mem : Out(40)
        Its value.
    set : In(1)
        Register ``index`` becomes as ``setting`` says.
    index : In(4)
        Not zero.
    setting : In(BaseSetting())
        With ``set``.
    clear : In(1)
        Every register becomes zero and stays so.
    restart, advance : In(1)
        The registers of ``level`` restart, or take their next value.
    level : In(2)
        Constant while busy.
    busy : Out(1)
        A sweep is under way.
    """

    def __init__(self):
        super().__init__({
            "row_index": In(range(BASES)).array(OPERANDS),
            "row":       Out(_ROW_BITS).array(OPERANDS),
            "mem_index": In(range(BASES)),
            "mem":       Out(_WIDTH["mem"]),
            "set":       In(1),
            "index":     In(range(BASES)),
            "setting":   In(BaseSetting()),
            "clear":     In(1),
            "restart":   In(1),
            "advance":   In(1),
            "level":     In(range(LOOPS)),
            "busy":      Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        setting_shape = BaseSetting()
        m.submodules.rows     = rows     = memory.Memory(shape=_ROW_BITS, depth=BASES, init=[])
        m.submodules.values   = values   = memory.Memory(shape=_WIDTH["mem"], depth=BASES, init=[])
        m.submodules.lefts    = lefts    = memory.Memory(shape=_WIDTH["period"], depth=BASES,
                                                         init=[])
        m.submodules.settings = settings = memory.Memory(shape=setting_shape, depth=BASES, init=[])

        # Sweep: look at one register, write it back in the next cycle.
        clearing    = Signal()
        restarting  = Signal()
        looking     = Signal()
        place       = Signal(range(BASES))
        highest     = Signal(range(BASES))
        known       = Signal(BASES)  # registers that were set
        writing     = Signal()
        write_place = Signal(range(BASES))
        next_value  = Signal(_WIDTH["mem"])
        next_left   = Signal(_WIDTH["period"])

        value   = values.read_port(domain="comb")
        left    = lefts.read_port(domain="comb")
        setting = settings.read_port(domain="comb")
        m.d.comb += [
            value.addr.eq(Mux(looking, place, self.mem_index)),
            self.mem.eq(value.data),
            left.addr.eq(place),
            setting.addr.eq(place),
            self.busy.eq(looking | writing),
        ]

        with m.If(self.clear | self.restart | self.advance):
            m.d.sync += [
                clearing.eq(self.clear),
                restarting.eq(self.restart),
                looking.eq(self.clear | (highest != 0)),
                place.eq(Mux(self.clear, BASES - 1, highest)),
            ]
        with m.Elif(looking):
            m.d.sync += [place.eq(place - 1), looking.eq(Mux(clearing, place != 0, place != 1))]
        with m.If(self.clear):
            m.d.sync += [highest.eq(0), known.eq(0)]
        with m.Elif(self.set):
            m.d.sync += known.bit_select(self.index, 1).eq(1)
            with m.If(self.index > highest):
                m.d.sync += highest.eq(self.index)

        # A period of 0 leaves nothing to count down.
        again = restarting | (left.data == 1)
        mine  = known.bit_select(place, 1) & (setting.data.level == self.level)
        with m.If(clearing):
            m.d.sync += [next_value.eq(0), next_left.eq(0)]
        with m.Elif(again):
            m.d.sync += [next_value.eq(setting.data.start), next_left.eq(setting.data.period)]
        with m.Else():
            m.d.sync += [
                next_value.eq(value.data + setting.data.step),
                next_left.eq(left.data - (left.data != 0)),
            ]
        m.d.sync += [writing.eq(looking & (clearing | mine)), write_place.eq(place)]

        # What is written: a result of the sweep, or a setting.
        store       = Signal()
        store_place = Signal(range(BASES))
        store_value = Signal(_WIDTH["mem"])
        store_left  = Signal(_WIDTH["period"])
        m.d.comb += [
            store.eq(writing | self.set),
            store_place.eq(Mux(writing, write_place, self.index)),
            store_value.eq(Mux(writing, next_value, self.setting.start)),
            store_left.eq(Mux(writing, next_left, self.setting.period)),
        ]
        for cells, data_in in ((rows, store_value[:_ROW_BITS]), (values, store_value),
                               (lefts, store_left)):
            port = cells.write_port()
            m.d.comb += [port.en.eq(store), port.addr.eq(store_place), port.data.eq(data_in)]
        port = settings.write_port()
        m.d.comb += [
            port.en.eq(self.set),
            port.addr.eq(self.index),
            port.data.eq(self.setting),
        ]

        for k in range(OPERANDS):
            read = rows.read_port(domain="comb")
            m.d.comb += [read.addr.eq(self.row_index[k]), self.row[k].eq(read.data)]
        return m
