"""Tensor memory: rows of block floating point, readable by rows and by columns."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .banked import BankRequests, block_ram, share_last
from .ports import BfpRow, TensorReadPort, WritePort


__all__ = ["TensorMemory"]


def _exchange(lanes, number):
    """Lane ``l`` of the result is lane ``l xor number``, modulo the lanes."""
    for bit in range(exact_log2(len(lanes))):
        lanes = [Mux(number[bit], lanes[lane ^ 1 << bit], lanes[lane])
                 for lane in range(len(lanes))]
    return lanes


class TensorMemory(wiring.Component):
    """Memory of BFP rows in banks of lane memories.

    Ports, banks, priorities, latency and ``fault`` are those of :class:`BankedMemory`; a read may
    be ``transpose``.

    Mantissa ``j`` of row ``r`` lies in lane memory ``r xor j`` (modulo the lanes). So the
    mantissas of row ``r`` lie at one address of all lane memories, and those of column ``c`` of a
    tile at row ``l xor c`` of lane memory ``l``: either way each lane memory is read once, and a
    network that exchanges lane ``l`` for ``l xor r`` or ``l xor c`` puts them in order. A power of
    two of lanes needs no adder for the addresses, which a rotation by ``r`` would.

    Parameters
    ----------
    config : Config
        ``tensor_rows`` rows of ``n`` mantissas in ``banks`` banks.
    readers, writers : int
        Clients.

    Members
    -------
    read : In(TensorReadPort(config)).array(readers)
        Reads, in order of priority. ``data`` leaves the exchange network without a register.
    write : In(WritePort(BfpRow(config))).array(writers)
        Writes, in order of priority.
    fault : Out(1)
        A request granted in the previous cycle was beyond the depth.
    """

    #: Clients served in a cycle, as in :class:`BankedMemory`. A path costs an exchange network;
    #: vector unit and store seldom read at the same time, nor do vector unit and load write.
    READ_PATHS = 3
    WRITE_PATHS = 1

    def __init__(self, config, *, readers, writers):
        if readers < 1 or writers < 1:
            raise ValueError(f"readers={readers} and writers={writers} must be positive")
        self.config = config
        super().__init__({
            "read":  In(TensorReadPort(config)).array(readers),
            "write": In(WritePort(BfpRow(config))).array(writers),
            "fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()

        config   = self.config
        lanes    = range(config.n)
        tag_bits = config.lane_bits
        depth    = config.tensor_rows // config.banks
        read     = share_last(m, self.read, self.READ_PATHS)
        write    = share_last(m, self.write, self.WRITE_PATHS)
        reads    = BankRequests(m, read, depth=config.tensor_rows, banks=config.banks)
        writes   = BankRequests(m, write, depth=config.tensor_rows, banks=config.banks)
        m.d.sync += self.fault.eq(reads.fault | writes.fault)

        skewed = [_exchange([port.data.mantissa[lane].as_unsigned() for lane in lanes], port.addr)
                  for port in write]

        rows = []
        for bank in range(config.banks):
            w_row     = writes.pick(bank, writes.row)
            mantissas = [writes.pick(bank, [row[lane] for row in skewed]) for lane in lanes]
            r_row     = reads.pick(bank, reads.row)
            transpose = reads.pick(bank, [port.transpose for port in read])
            r_addrs   = [r_row ^ Mux(transpose, lane, 0) for lane in lanes]
            first_row = Cat(r_row[:tag_bits] & ~transpose.replicate(tag_bits), r_row[tag_bits:])

            row = []
            for width, data, r_addr in [
                *zip([config.mantissa_bits] * config.n, mantissas, r_addrs, strict=True),
                (8, writes.pick(bank, [port.data.exponent for port in write]), first_row),
            ]:
                w_port, r_port = block_ram(m, shape=width, depth=depth)
                m.d.comb += [
                    w_port.en.eq(writes.accepted(bank)),
                    w_port.addr.eq(w_row),
                    w_port.data.eq(data),
                    r_port.addr.eq(r_addr),
                ]
                row.append(r_port.data)
            rows.append(Cat(row))

        for port, bank in zip(read, reads.bank, strict=True):
            bank_1 = Signal.like(bank, reset_less=True)
            tag_1  = Signal(tag_bits, reset_less=True)
            tag_2  = Signal(tag_bits, reset_less=True)
            row_2  = Signal(BfpRow(config), reset_less=True)
            m.d.sync += [
                bank_1.eq(bank),
                tag_1.eq(port.addr[:tag_bits]),
                tag_2.eq(tag_1),
                row_2.as_value().eq(Array(rows)[bank_1]),
            ]
            m.d.comb += [
                Cat(port.data.mantissa[lane] for lane in lanes).eq(
                    Cat(_exchange([row_2.mantissa[lane] for lane in lanes], tag_2))),
                port.data.exponent.eq(row_2.exponent),
            ]

        return m
