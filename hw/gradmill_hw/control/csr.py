"""AXI4-Lite register bank generated from the register map."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out, Signature

from ..memory.axi import AxiLite
from ..regmap import Access
from ..regs import COUNTER_OFFSET, REGS, TILE_BYTES, UNLOCKED


__all__ = ["ADDRESS_BITS", "CounterPort", "RegisterBank", "StoredWrite", "port_name"]

#: Address bits of a tile's registers.
ADDRESS_BITS = TILE_BYTES.bit_length() - 1
#: Word addresses below this have generated registers, behind it are the counters.
_WORDS = COUNTER_OFFSET // 4
#: Address bits of 64 counters.
_COUNTER_BITS = 10
_OKAY, _SLVERR = 0b00, 0b10


def port_name(reg, field):
    """Member of :class:`RegisterBank` for a field."""
    return reg.name if field.name == "value" else f"{reg.name}_{field.name}"


class CounterPort(Signature):
    """Reads of counters, seen from the register bank.

    Members
    -------
    valid : Out(1)
        Held, with a stable ``index`` and ``high``, until ``ready``.
    index : Out(7)
        Counter.
    high : Out(1)
        Bits 63 to 32, as they were when bits 31 to 0 of this counter were read.
    ready : In(1)
        ``data`` is the answer.
    data : In(32)
        Half of the counter.
    """

    def __init__(self):
        super().__init__({"valid": Out(1), "index": Out(7), "high": Out(1),
                          "ready": In(1), "data": In(32)})


class StoredWrite(Signature):
    """Every accepted write to a register that software owns, and their clearing after reset.

    Members
    -------
    valid : Out(1)
        A word is written.
    addr : Out
        Word address.
    data : Out(32)
        Word; bits that no field has are zero.
    """

    def __init__(self):
        super().__init__({"valid": Out(1), "addr": Out(range(_WORDS)), "data": Out(32)})


class RegisterBank(wiring.Component):
    """Registers of :data:`~gradmill_hw.regs.REGS` except the counters.

    Registers that software owns are read back from a memory, so that only those used in parallel
    cost flip-flops. It is cleared after reset, which takes one cycle for each of its words;
    meanwhile the bus waits. A read takes four cycles, a write three. Addresses without a register,
    writes that are not of whole words, and writes that do not take effect (read-only, frozen or
    locked) are answered with SLVERR.

    Parameters
    ----------
    config : Config
        Values of the constant registers.
    taps : callable
        ``taps(register)`` says which of the registers that software owns have a member.

    Members
    -------
    bus : In(AxiLite(12))
        Host.
    busy : In(1)
        Registers that are frozen while the tile is busy cannot be written.
    read_address : Out(8)
        Word address of the register being read; ``RO`` inputs may depend on it.
    stored : Out(StoredWrite())
        Writes, for those who keep a copy.
    counters : Out(CounterPort())
        Reads of counters.
    <register>_<field> : In(width) or Out(width)
        ``RO`` fields are inputs, ``RW1C`` fields are inputs (set strobe) with their value on
        ``<register>_<field>_q``, ``RW`` and ``W1P`` fields are outputs (value, pulse). A field
        called ``value`` is named by its register alone.
    """

    def __init__(self, config, *, taps):
        self.config = config
        members = {
            "bus":          In(AxiLite(ADDRESS_BITS)),
            "busy":         In(1),
            "read_address": Out(range(_WORDS)),
            "stored":       Out(StoredWrite()),
            "counters":     Out(CounterPort()),
        }
        self._registers = [reg for reg in REGS if reg.offset < COUNTER_OFFSET]
        self._tapped = [reg for reg in self._registers if not reg.stored or taps(reg)]
        for reg in self._tapped:
            for field in reg.fields:
                name = port_name(reg, field)
                match field.access:
                    case Access.RO:
                        members[name] = In(field.width)
                    case Access.RW | Access.W1P:
                        members[name] = Out(field.width, init=field.init)
                    case Access.RW1C:
                        members[name] = In(field.width)
                        members[f"{name}_q"] = Out(field.width)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        write_address, write_data, write = self._write_channel(m)
        self._fields(m, write_address, write_data, write)
        self._read_channel(m)
        return m

    def _write_channel(self, m):
        """Take address and data together, then judge, then answer."""
        bus      = self.bus
        address  = Signal(ADDRESS_BITS)
        word     = Signal(32)
        whole    = Signal()
        judge    = Signal()
        accepted = Signal()
        free     = Signal()
        clearing = Signal(init=1)
        index    = Signal(range(_WORDS))

        m.d.comb += [
            free.eq(~clearing & ~judge & ~bus.bvalid & bus.awvalid & bus.wvalid),
            bus.awready.eq(free),
            bus.wready.eq(free),
        ]
        m.d.sync += [judge.eq(free), address.eq(bus.awaddr), word.eq(bus.wdata),
                     whole.eq(bus.wstrb.all())]

        # What may be written now, and the bits that exist.
        locked  = self.window_lock != UNLOCKED
        allowed = Signal()
        stored  = Signal()
        mask    = Signal(32)
        with m.Switch(address[2:]):
            for reg in self._registers:
                if reg.writable:
                    with m.Case(reg.offset // 4):
                        permit = {"always": C(1), "idle": ~self.busy,
                                  "unlocked": ~self.busy & ~locked}[reg.when]
                        m.d.comb += [allowed.eq(permit), stored.eq(reg.stored),
                                     mask.eq((1 << sum(f.width for f in reg.fields)) - 1)]
        m.d.comb += accepted.eq(judge & allowed & whole)
        with m.If(judge):
            m.d.sync += [bus.bvalid.eq(1), bus.bresp.eq(Mux(accepted, _OKAY, _SLVERR))]
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)

        # Copies start with the values that the fields have after reset.
        initial = Signal(32)
        with m.Switch(index):
            for reg in self._registers:
                if reg.stored and reg.reset(self.config):
                    with m.Case(reg.offset // 4):
                        m.d.comb += initial.eq(reg.reset(self.config))
        with m.If(clearing):
            m.d.sync += [index.eq(index + 1), clearing.eq(index != _WORDS - 1)]
        m.d.comb += [
            self.stored.valid.eq(clearing | accepted & stored),
            self.stored.addr.eq(Mux(clearing, index, address[2:])),
            self.stored.data.eq(Mux(clearing, initial, word & mask)),
            self.status_locked.eq(locked),
        ]
        return address[2:], word, accepted

    def _fields(self, m, write_address, write_data, write):
        for reg in self._tapped:
            written = Signal(name=f"write_{reg.name}")
            if reg.writable:
                m.d.comb += written.eq(write & (write_address == reg.offset // 4))
            for lsb, field in reg.items():
                value = write_data[lsb:lsb + field.width]
                name  = port_name(reg, field)
                match field.access:
                    case Access.RW:
                        with m.If(written):
                            m.d.sync += getattr(self, name).eq(value)
                    case Access.RW1C:
                        held = getattr(self, f"{name}_q")
                        kept = held & ~(value & written.replicate(field.width))
                        m.d.sync += held.eq(getattr(self, name) | kept)
                    case Access.W1P:
                        m.d.comb += getattr(self, name).eq(value & written.replicate(field.width))

    def _read_channel(self, m):
        bus     = self.bus
        address = Signal(ADDRESS_BITS)
        word    = Signal(32)
        known   = Signal()
        stored  = Signal()

        m.submodules.copies = copies = memory.Memory(shape=32, depth=_WORDS, init=[])
        write = copies.write_port()
        read  = copies.read_port()
        m.d.comb += [
            write.en.eq(self.stored.valid),
            write.addr.eq(self.stored.addr),
            write.data.eq(self.stored.data),
            read.addr.eq(address[2:]),
            self.read_address.eq(address[2:]),
        ]

        with m.Switch(address[2:]):
            for reg in self._registers:
                with m.Case(reg.offset // 4):
                    m.d.comb += [known.eq(1), stored.eq(reg.stored)]
                    for lsb, field in () if reg.stored else reg.items():
                        target = word[lsb:lsb + field.width]
                        name   = port_name(reg, field)
                        match field.access:
                            case Access.CONST:
                                m.d.comb += target.eq(field.value(self.config))
                            case Access.RW1C:
                                m.d.comb += target.eq(getattr(self, f"{name}_q"))
                            case Access.RO | Access.RW:
                                m.d.comb += target.eq(getattr(self, name))

        m.d.comb += [self.counters.index.eq(address[3:]), self.counters.high.eq(address[2])]
        with m.FSM():
            with m.State("CLEAR"):
                with m.If(self.stored.addr == _WORDS - 1):
                    m.next = "IDLE"
            with m.State("IDLE"):
                m.d.comb += bus.arready.eq(1)
                m.d.sync += address.eq(bus.araddr)
                with m.If(bus.arvalid):
                    m.next = "LOOKUP"
            with m.State("LOOKUP"):
                m.next = "ANSWER"
                with m.If(address[_COUNTER_BITS:] == COUNTER_OFFSET >> _COUNTER_BITS):
                    m.next = "COUNTER"
            with m.State("ANSWER"):
                m.d.sync += [
                    bus.rdata.eq(Mux(stored, read.data, word)),
                    bus.rresp.eq(Mux(known, _OKAY, _SLVERR)),
                    bus.rvalid.eq(1),
                ]
                m.next = "RESPOND"
            with m.State("COUNTER"):
                m.d.comb += self.counters.valid.eq(1)
                with m.If(self.counters.ready):
                    m.d.sync += [
                        bus.rdata.eq(self.counters.data),
                        bus.rresp.eq(_OKAY),
                        bus.rvalid.eq(1),
                    ]
                    m.next = "RESPOND"
            with m.State("RESPOND"):
                with m.If(bus.rready):
                    m.d.sync += bus.rvalid.eq(0)
                    m.next = "IDLE"
