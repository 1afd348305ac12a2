"""Banked memory: several clients, one read and one write per bank and cycle."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .ports import ROW_ADDRESS_BITS, ReadPort, WritePort


__all__ = ["BankRequests", "BankedMemory", "block_ram", "share_last"]


def block_ram(m, *, shape, depth):
    """Add a block RAM to ``m``; returns its write port and its read port.

    A read in the cycle of a write to the same row gives the old row.
    """
    memory = Memory(shape=shape, depth=depth, init=[], attrs={"ram_style": "block"})
    m.submodules += memory
    return memory.write_port(), memory.read_port()


def share_last(m, ports, paths):
    """At most ``paths`` ports for all of ``ports``: the last path serves what is left.

    Of the ports that share it, the first one that asks has the path for the cycle.
    """
    own, sharing = list(ports)[:paths - 1], list(ports)[paths - 1:]
    if len(sharing) < 2:
        return [*own, *sharing]
    path = sharing[0].signature.create(path=("shared",))
    inputs = [name for name, member in path.signature.members.items()
              if member.flow == In and name != "valid"]
    m.d.comb += path.valid.eq(Cat(port.valid for port in sharing).any())
    m.d.comb += [getattr(path, name).eq(getattr(sharing[-1], name)) for name in inputs]
    for number, port in reversed(list(enumerate(sharing))):
        with m.If(port.valid):
            m.d.comb += [getattr(path, name).eq(getattr(port, name)) for name in inputs]
        m.d.comb += port.ready.eq(
            path.ready & ~Cat(earlier.valid for earlier in sharing[:number]).any())
        if "data" not in inputs:
            m.d.comb += port.data.eq(path.data)
    return [*own, path]


class BankRequests:
    """Fixed-priority arbitration of ``ports`` over the banks, built into ``m``.

    A request is granted when no earlier port asks for the same bank. Grants use neither clock nor
    state, so a client sees ``ready`` in the cycle it asks.

    Attributes
    ----------
    row, bank : list of Value
        Address within the bank and number of the bank, of each port.
    fault : Value
        A granted request lies beyond the depth.
    """

    def __init__(self, m, ports, *, depth, banks):
        row_bits, bank_bits = exact_log2(depth // banks), exact_log2(banks)
        self._ports  = ports
        self.row     = [port.addr[:row_bits] for port in ports]
        self.bank    = [port.addr[row_bits:row_bits + bank_bits] for port in ports]
        self._inside = [~port.addr[row_bits + bank_bits:].any() for port in ports]

        # All pairs are compared directly: no port waits for the grant of another to ripple down.
        for number, port in enumerate(ports):
            m.d.comb += port.ready.eq(~reduce(or_, (
                ports[earlier].valid & (self.bank[earlier] == self.bank[number])
                for earlier in range(number)), C(0)))
        self.fault = reduce(or_, (port.valid & port.ready & ~inside
                                  for port, inside in zip(ports, self._inside, strict=True)))

        # Each bank follows its first requester, or the last port when there is none.
        self._winner  = [Signal(range(len(ports)), name=f"winner{bank}") for bank in range(banks)]
        for bank, winner in enumerate(self._winner):
            m.d.comb += winner.eq(len(ports) - 1)
            for number in reversed(range(len(ports) - 1)):
                with m.If(ports[number].valid & (self.bank[number] == bank)):
                    m.d.comb += winner.eq(number)

    def pick(self, bank, values):
        """The one of ``values``, one for each port, whose port has ``bank``."""
        return Array(values)[self._winner[bank]]

    def accepted(self, bank):
        """``bank`` has a request within the depth."""
        return self.pick(bank, [
            port.valid & (wanted == bank) & inside
            for port, wanted, inside in zip(self._ports, self.bank, self._inside, strict=True)])


class BankedMemory(wiring.Component):
    """Memory of rows in banks of block RAM.

    The bank is the top bits of the address. In each cycle each bank serves one read and one write;
    of several clients that ask for a bank, the one with the lowest index is granted. Data follows a
    granted read by :data:`READ_LATENCY` cycles. A write is seen by reads granted in later cycles; a
    read granted in the same cycle gives the old row.

    A granted request beyond the depth raises ``fault``: a read then gives an undefined row, a
    write changes nothing. Rows are zero at power-up and keep their contents in a reset.

    Parameters
    ----------
    shape : ShapeLike
        Row.
    depth, banks : int
        Rows, and banks among which they are divided; powers of two.
    readers, writers : int
        Clients.
    read_paths, write_paths : int
        Clients served in a cycle, by default all. The last path, a multiplexer of the banks, is
        shared by the clients that are left: one of them is served in a cycle, the first that asks.

    Members
    -------
    read : In(ReadPort(shape)).array(readers)
        Reads, in order of priority.
    write : In(WritePort(shape)).array(writers)
        Writes, in order of priority.
    fault : Out(1)
        A request granted in the previous cycle was beyond the depth.
    """

    def __init__(self, shape, *, depth, banks, readers, writers, read_paths=None,
                 write_paths=None):
        limits = {"depth": (depth, 1 << ROW_ADDRESS_BITS), "banks": (banks, depth)}
        for name, (value, limit) in limits.items():
            if not isinstance(value, int) or not 1 <= value <= limit or value & (value - 1):
                raise ValueError(f"{name}={value!r}: choose a power of two from 1 to {limit}")
        if readers < 1 or writers < 1:
            raise ValueError(f"readers={readers} and writers={writers} must be positive")
        self.shape = shape
        self.depth = depth
        self.banks = banks
        self.read_paths = read_paths or readers
        self.write_paths = write_paths or writers
        super().__init__({
            "read":  In(ReadPort(shape)).array(readers),
            "write": In(WritePort(shape)).array(writers),
            "fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()

        read   = share_last(m, self.read, self.read_paths)
        write  = share_last(m, self.write, self.write_paths)
        reads  = BankRequests(m, read, depth=self.depth, banks=self.banks)
        writes = BankRequests(m, write, depth=self.depth, banks=self.banks)
        m.d.sync += self.fault.eq(reads.fault | writes.fault)

        width = Shape.cast(self.shape).width
        rows  = []
        for bank in range(self.banks):
            w_port, r_port = block_ram(m, shape=width, depth=self.depth // self.banks)
            m.d.comb += [
                w_port.en.eq(writes.accepted(bank)),
                w_port.addr.eq(writes.pick(bank, writes.row)),
                w_port.data.eq(writes.pick(bank, [Value.cast(port.data) for port in write])),
                r_port.addr.eq(reads.pick(bank, reads.row)),
            ]
            rows.append(r_port.data)

        for port, bank in zip(read, reads.bank, strict=True):
            bank_1 = Signal.like(bank, reset_less=True)
            row_2  = Signal(width, reset_less=True)
            m.d.sync += [
                bank_1.eq(bank),
                row_2.eq(Array(rows)[bank_1]),
            ]
            m.d.comb += Value.cast(port.data).eq(row_2)

        return m
