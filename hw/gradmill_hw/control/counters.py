"""Event and traffic counters."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..isa import INSTRUCTION_BYTES, Class
from ..memory.load import Traffic
from ..regs import COUNTERS, Tier, byte_counter
from .csr import CounterPort


__all__ = ["Counters", "Events"]

#: Bits that a counter has; the remaining ones read zero.
COUNT_BITS = 56
#: Addresses of each counter memory.
_DEPTH = 32
#: Index of the first byte counter.
_BYTES = byte_counter(Tier.NEAR, False, 0)


class Events(data.StructLayout):
    """One member for each counter that does not count bytes: what to add in this cycle."""

    def __init__(self, config):
        super().__init__({
            counter.name: {"macs": 2 * config.lane_bits + 1, "stash_saturated": 5}.get(
                counter.name, 1)
            for counter in COUNTERS if counter.index < _BYTES
        })


class _Sums(wiring.Component):
    """Memory of counters with one addition per cycle, to any of them.

    ``sum`` is the counter at ``place`` with ``amount`` added, ``value`` the counter at ``look``.
    If ``late``, an addition is written a cycle later; one to the same place may not follow at once.
    """

    def __init__(self, *, amount_bits, late=False):
        self.late = late
        super().__init__({
            "place":  In(range(_DEPTH)),
            "amount": In(amount_bits),
            "clear":  In(1),
            "sum":    Out(COUNT_BITS),
            "look":   In(range(_DEPTH)),
            "value":  Out(COUNT_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells = cells = memory.Memory(shape=COUNT_BITS, depth=_DEPTH, init=[])
        write = cells.write_port()
        read, look = cells.read_port(domain="comb"), cells.read_port(domain="comb")
        m.d.comb += [
            read.addr.eq(self.place),
            look.addr.eq(self.look),
            self.sum.eq(read.data + self.amount),
            self.value.eq(look.data),
            write.en.eq(1),
        ]
        m.d["sync" if self.late else "comb"] += [
            write.addr.eq(self.place),
            write.data.eq(Mux(self.clear, 0, self.sum)),
        ]
        return m


class Counters(wiring.Component):
    """Counters of :data:`~gradmill_hw.regs.COUNTERS`, in three small memories.

    Events are collected in short counters that take turns in being added to their memory. Loads
    and stores have a memory each, added to as they come; instruction bytes join those of loads in
    a cycle without a load. What happened up to the cycle before is in the answer of a read, with
    the exception of instruction bytes, which may be late while loads are busy.
    Clearing, also after reset, takes 32 cycles in which nothing is counted.

    Parameters
    ----------
    config : Config
        Sizes of the events.

    Members
    -------
    events : In(Events(config))
        Counted as they are.
    load, store : In(Traffic(config))
        Bytes moved.
    instruction : In(1)
        An instruction of the program was executed.
    clear : In(1)
        Set every counter to zero.
    port : In(CounterPort())
        Reads; indices without a counter read zero.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "events":      In(Events(config)),
            "load":        In(Traffic(config)),
            "store":       In(Traffic(config)),
            "instruction": In(1),
            "clear":       In(1),
            "port":        In(CounterPort()),
        })

    def elaborate(self, platform):
        m = Module()
        clearing = Signal(init=1)
        sweep    = Signal(range(_DEPTH))
        with m.If(self.clear):
            m.d.sync += [clearing.eq(1), sweep.eq(0)]
        with m.Elif(clearing):
            m.d.sync += [sweep.eq(sweep + 1), clearing.eq(sweep != _DEPTH - 1)]

        turn, event_sum = self._events(m, clearing, sweep)
        unit, values    = self._traffic(m, clearing, sweep)

        # An event counter answers when it has its turn, bytes at once.
        answer = Signal(64)
        high   = Signal(32)
        events = len(self.events.shape().members)
        index  = self.port.index
        with m.If(index >= _BYTES):
            write = index[3]
            m.d.comb += [
                self.port.ready.eq(1),
                answer.eq(Mux(write, values[1], values[0]) << unit.bit_length() - 1),
            ]
        with m.Else():
            m.d.comb += self.port.ready.eq((turn == index) | (index >= events) | self.port.high)
            with m.If(index < events):
                m.d.comb += answer.eq(event_sum)
        m.d.comb += self.port.data.eq(Mux(self.port.high, high, answer[:32]))
        with m.If(self.port.valid & self.port.ready & ~self.port.high):
            m.d.sync += high.eq(answer[32:])
        return m

    def _events(self, m, clearing, sweep):
        """Short counters; each is added to its place when ``turn`` comes round."""
        names = list(self.events.shape().members)
        turn  = Signal(range(_DEPTH))
        m.d.sync += turn.eq(Mux(turn == len(names) - 1, 0, turn + 1))

        growth = len(names).bit_length()  # of a sum between two turns
        amount = Signal(max(len(self.events[name]) for name in names) + growth)
        for place, name in enumerate(names):
            event = self.events[name]
            short = Signal(len(event) + growth, name=f"few_{name}")
            mine  = turn == place
            m.d.sync += short.eq(Mux(mine | clearing, 0, short) + event)
            with m.If(mine):
                m.d.comb += amount.eq(short)
        m.submodules.events = cells = _Sums(amount_bits=len(amount), late=True)
        m.d.comb += [
            cells.place.eq(Mux(clearing, sweep, turn)),
            cells.amount.eq(amount),
            cells.clear.eq(clearing),
        ]
        return turn, cells.sum

    def _traffic(self, m, clearing, sweep):
        """One memory for reads and one for writes, addressed by tier and class."""
        unit  = min(self.config.beat_bytes, INSTRUCTION_BYTES)
        low   = unit.bit_length() - 1
        fetch = INSTRUCTION_BYTES // unit
        values = []
        for name, traffic in (("load", self.load), ("store", self.store)):
            beats = traffic.bytes[low:]
            cells = _Sums(amount_bits=max(len(beats), 16 + fetch.bit_length()))
            m.submodules[name] = cells
            m.d.comb += [
                cells.place.eq(Cat(traffic.cls, traffic.tier)),
                cells.amount.eq(beats),
                cells.clear.eq(clearing),
                cells.look.eq(Cat(self.port.index[:3], self.port.index[4])),
            ]
            if name == "load":
                waiting = Signal(16)
                with m.If(beats == 0):
                    m.d.comb += [
                        cells.place.eq(Cat(C(Class.COMMAND, 3), C(Tier.NEAR, 1))),
                        cells.amount.eq(waiting * fetch),
                    ]
                    m.d.sync += waiting.eq(self.instruction)
                with m.Else():
                    m.d.sync += waiting.eq(waiting + self.instruction)
                with m.If(clearing):
                    m.d.sync += waiting.eq(0)
            with m.If(clearing):
                m.d.comb += cells.place.eq(sweep)
            values.append(cells.value)
        return unit, values
