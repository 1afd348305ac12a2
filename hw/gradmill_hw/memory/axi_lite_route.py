"""Registers of several tiles behind one AXI4-Lite port."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .axi import AxiLite


__all__ = ["AxiLiteRoute"]

_DECERR = 0b11


class AxiLiteRoute(wiring.Component):
    """Routes each access by the address bits above those of a port.

    One read and one write at a time, each two cycles longer than on the port itself. An address
    beyond the last port is answered with DECERR.

    Parameters
    ----------
    address_bits : int
        Address bits of a port.
    ports : int
        Ports, at least 2.

    Members
    -------
    bus : In(AxiLite(address_bits + log2(ports)))
        Host.
    ports : Out(AxiLite(address_bits)).array(ports)
        Tiles.
    """

    def __init__(self, address_bits, *, ports):
        if ports < 2:
            raise ValueError(f"ports must be at least 2, not {ports}")
        self.address_bits = address_bits
        super().__init__({
            "bus":   In(AxiLite(address_bits + (ports - 1).bit_length())),
            "ports": Out(AxiLite(address_bits)).array(ports),
        })

    def elaborate(self, platform):
        m = Module()
        self._write(m)
        self._read(m)
        return m

    def _write(self, m):
        """Address and data are taken together, kept until the port has both, then its answer."""
        bus, low = self.bus, self.address_bits
        address, data, strobe = Signal.like(bus.awaddr), Signal(32), Signal(4)
        address_due, data_due, waiting = Signal(), Signal(), Signal()
        free = ~waiting & ~bus.bvalid & bus.awvalid & bus.wvalid
        m.d.comb += [bus.awready.eq(free), bus.wready.eq(free)]
        with m.If(free):
            m.d.sync += [address.eq(bus.awaddr), data.eq(bus.wdata), strobe.eq(bus.wstrb),
                         address_due.eq(1), data_due.eq(1), waiting.eq(1)]
        with m.If(bus.bvalid & bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(waiting & (address[low:] >= len(self.ports))):
            m.d.sync += [waiting.eq(0), address_due.eq(0), data_due.eq(0), bus.bvalid.eq(1),
                         bus.bresp.eq(_DECERR)]
        for k, port in enumerate(self.ports):
            mine = address[low:] == k
            m.d.comb += [
                port.awaddr.eq(address[:low]),
                port.wdata.eq(data),
                port.wstrb.eq(strobe),
                port.awvalid.eq(mine & address_due),
                port.wvalid.eq(mine & data_due),
                port.bready.eq(mine & waiting),
            ]
            with m.If(port.awvalid & port.awready):
                m.d.sync += address_due.eq(0)
            with m.If(port.wvalid & port.wready):
                m.d.sync += data_due.eq(0)
            with m.If(port.bvalid & port.bready):
                m.d.sync += [waiting.eq(0), bus.bvalid.eq(1), bus.bresp.eq(port.bresp)]

    def _read(self, m):
        """The address is kept until the port has it, then its answer."""
        bus, low = self.bus, self.address_bits
        address = Signal.like(bus.araddr)
        due, waiting = Signal(), Signal()
        m.d.comb += bus.arready.eq(~waiting & ~bus.rvalid)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [address.eq(bus.araddr), due.eq(1), waiting.eq(1)]
        with m.If(bus.rvalid & bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(waiting & (address[low:] >= len(self.ports))):
            m.d.sync += [waiting.eq(0), due.eq(0), bus.rvalid.eq(1), bus.rresp.eq(_DECERR)]
        for k, port in enumerate(self.ports):
            mine = address[low:] == k
            m.d.comb += [
                port.araddr.eq(address[:low]),
                port.arvalid.eq(mine & due),
                port.rready.eq(mine & waiting),
            ]
            with m.If(port.arvalid & port.arready):
                m.d.sync += due.eq(0)
            with m.If(port.rvalid & port.rready):
                m.d.sync += [waiting.eq(0), bus.rvalid.eq(1), bus.rdata.eq(port.rdata),
                             bus.rresp.eq(port.rresp)]
