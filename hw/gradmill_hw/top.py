"""The device: tiles behind two AXI4 memory tiers and an AXI4-Lite register port."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .control.csr import ADDRESS_BITS
from .memory.axi import Axi4, AxiLite
from .memory.axi_reader import AxiReader
from .memory.axi_writer import AxiWriter
from .tile import Tile


__all__ = ["Gradmill"]


class Gradmill(wiring.Component):
    """One tile with its memory ports.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    s_axil : In(AxiLite(12))
        Registers, for the host.
    m_axi_near, m_axi_far : Out(Axi4(address_bits, bus_bits))
        Memory tiers.
    irq : Out(1)
        Level, high while an enabled event is pending.
    """

    def __init__(self, config):
        self.config = config
        axi = Axi4(config.address_bits, config.bus_bits)
        super().__init__({
            "s_axil":     In(AxiLite(ADDRESS_BITS)),
            "m_axi_near": Out(axi),
            "m_axi_far":  Out(axi),
            "irq":        Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.tile = tile = Tile(config)
        connect(m, flipped(self.s_axil), tile.bus)
        m.d.comb += self.irq.eq(tile.irq)

        busy = []
        for tier, reads in (("near", [tile.fetch, tile.near_read]), ("far", [tile.far_read])):
            axi = getattr(self, f"m_axi_{tier}")
            m.submodules[f"{tier}_reader"] = reader = AxiReader(config, clients=len(reads))
            m.submodules[f"{tier}_writer"] = writer = AxiWriter(config)
            for read, client in zip(reads, reader.clients, strict=True):
                connect(m, read, client)
            connect(m, getattr(tile, f"{tier}_write"), writer.client)
            for half in (reader.axi, writer.axi):
                for name, member in half.signature.members.items():
                    ours, theirs = getattr(axi, name), getattr(half, name)
                    m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)
            busy += [reader.busy, writer.busy]
        m.d.comb += tile.bus_busy.eq(Cat(busy).any())
        return m
