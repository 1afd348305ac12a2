"""Event and traffic counters."""

from functools import reduce
from operator import add

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
#: Addresses of the memory of event counters, and of those of bytes.
_EVENTS_DEPTH, _BYTES_DEPTH = 64, 16
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
    What stands at ``place`` is forgotten if ``fresh``, at ``look`` if ``look_fresh``. If ``late``,
    an addition is written a cycle later; one to the same place may not follow at once.
    """

    def __init__(self, *, depth, amount_bits, late=False):
        self.depth, self.late = depth, late
        super().__init__({
            "place":  In(range(depth)),
            "amount": In(amount_bits),
            "fresh":  In(1),
            "sum":    Out(COUNT_BITS),
            "look":   In(range(depth)),
            "look_fresh": In(1),
            "value":  Out(COUNT_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells = cells = memory.Memory(shape=COUNT_BITS, depth=self.depth, init=[])
        write = cells.write_port()
        read, look = cells.read_port(domain="comb"), cells.read_port(domain="comb")
        m.d.comb += [
            read.addr.eq(self.place),
            look.addr.eq(self.look),
            self.sum.eq(Mux(self.fresh, 0, read.data) + self.amount),
            self.value.eq(Mux(self.look_fresh, 0, look.data)),
            write.en.eq(1),
        ]
        m.d["sync" if self.late else "comb"] += [
            write.addr.eq(self.place),
            write.data.eq(self.sum),
        ]
        return m


class Counters(wiring.Component):
    """Counters of :data:`~gradmill_hw.regs.COUNTERS`, in small memories.

    Events are collected in short counters that take turns in being added to their memory. Bytes
    of each unit and direction have a memory, added to as they come; instruction bytes join those
    of loads in a cycle without a load. What happened up to the cycle before is in the answer of
    a read, with the exception of instruction bytes, which may be late while loads are busy.
    A counter is clear from the next cycle on: what its memory holds is forgotten.

    Parameters
    ----------
    config : Config
        Sizes of the events.

    Members
    -------
    events : In(Events(config))
        Counted as they are.
    read, write : In(Traffic(config)).array
        Bytes moved by loads and stores, then by copies if there is a unit for them.
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
            "read":        In(Traffic(config)).array(1 + config.copy),
            "write":       In(Traffic(config)).array(1 + config.copy),
            "instruction": In(1),
            "clear":       In(1),
            "port":        In(CounterPort()),
        })

    def elaborate(self, platform):
        m = Module()
        turn, event_sum = self._events(m)
        unit, values    = self._traffic(m)

        # An event counter answers when it has its turn, bytes at once.
        answer = Signal(64)
        high   = Signal(32)
        events = len(self.events.shape().members)
        index  = self.port.index
        with m.If((index >= _BYTES) & (index < _BYTES + 2 * _BYTES_DEPTH)):
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

    def _events(self, m):
        """Short counters; each is added to its place when ``turn`` comes round."""
        names = list(self.events.shape().members)
        turn  = Signal(range(_EVENTS_DEPTH))
        m.d.sync += turn.eq(Mux(turn == len(names) - 1, 0, turn + 1))

        # After a clear each counter is fresh until its first turn.
        fresh = Signal(range(len(names) + 1), init=len(names))
        m.d.sync += fresh.eq(Mux(self.clear, len(names), fresh - (fresh != 0)))

        growth = len(names).bit_length()  # of a sum between two turns
        amount = Signal(max(len(self.events[name]) for name in names) + growth)
        for place, name in enumerate(names):
            event = self.events[name]
            short = Signal(len(event) + growth, name=f"few_{name}")
            mine  = turn == place
            m.d.sync += short.eq(Mux(mine | self.clear, 0, short) + event)
            with m.If(mine):
                m.d.comb += amount.eq(short)
        m.submodules.events = cells = _Sums(depth=_EVENTS_DEPTH, amount_bits=len(amount), late=True)
        m.d.comb += [
            cells.place.eq(turn),
            cells.amount.eq(amount),
            cells.fresh.eq(fresh != 0),
        ]
        return turn, cells.sum

    def _traffic(self, m):
        """For each direction and unit a memory, addressed by tier and class."""
        unit = min(self.config.beat_bytes, INSTRUCTION_BYTES)
        values = []
        for direction, units in (("read", self.read), ("write", self.write)):
            found = []
            for number, traffic in enumerate(units):
                beats = traffic.bytes[unit.bit_length() - 1:]
                cells = _Sums(depth=_BYTES_DEPTH, amount_bits=max(len(beats), 18))
                m.submodules[f"{direction}{number}"] = cells
                m.d.comb += [
                    cells.place.eq(Cat(traffic.cls, traffic.tier)),
                    cells.amount.eq(beats),
                    cells.look.eq(Cat(self.port.index[:3], self.port.index[4])),
                ]
                if direction == "read" and number == 0:
                    self._instructions(m, cells, beats)
                known = Signal(_BYTES_DEPTH, name=f"{direction}{number}_known")
                m.d.sync += known.bit_select(cells.place, 1).eq(1)
                with m.If(self.clear):
                    m.d.sync += known.eq(0)
                m.d.comb += [
                    cells.fresh.eq(~known.bit_select(cells.place, 1)),
                    cells.look_fresh.eq(~known.bit_select(cells.look, 1)),
                ]
                found.append(cells.value)
            values.append(reduce(add, found))
        return unit, values

    def _instructions(self, m, cells, beats):
        """Instruction bytes are added in cycles without a load."""
        units = max(1, INSTRUCTION_BYTES // self.config.beat_bytes)
        waiting = Signal(16)
        with m.If(beats == 0):
            m.d.comb += [
                cells.place.eq(Cat(C(Class.COMMAND, 3), C(Tier.NEAR, 1))),
                cells.amount.eq(waiting * units),
            ]
            m.d.sync += waiting.eq(self.instruction)
        with m.Else():
            m.d.sync += waiting.eq(waiting + self.instruction)
        with m.If(self.clear):
            m.d.sync += waiting.eq(0)
