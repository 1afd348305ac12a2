"""The device: a chain of tiles behind two AXI4 memory tiers and an AXI4-Lite register port."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .control.ports import Activity
from .control.csr import ADDRESS_BITS
from .memory.axi import Axi4, AxiLite, join
from .memory.axi_lite_route import AxiLiteRoute
from .memory.axi_reader import AxiReader
from .memory.axi_writer import AxiWriter
from .memory.write_share import WriteShare
from .tile import TilePorts


__all__ = ["TILE_MODULE", "DevicePorts", "Gradmill", "TileInstance"]

#: Verilog module of a tile.
TILE_MODULE = "gradmill_tile"


class TileInstance(wiring.Component):
    """A tile by the name of its Verilog module, which is written once for all tiles.

    Members as of :class:`TilePorts`.
    """

    def __init__(self, config):
        super().__init__(TilePorts(config))

    def elaborate(self, platform):
        ports = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for path, member, value in self.signature.flatten(self):
            direction = "o" if member.flow is Out else "i"
            ports[f"{direction}_{'_'.join(map(str, path))}"] = Value.cast(value)
        return Instance(TILE_MODULE, **ports)


class DevicePorts(wiring.Signature):
    """Ports of the device besides clock and reset.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    s_axil : In(AxiLite)
        Registers, for the host: 4096 bytes for each tile.
    m_axi_near, m_axi_far : Out(Axi4(address_bits, bus_bits))
        Memory tiers.
    irq : Out(1)
        Level, high while an enabled event of a tile is pending.
    activity : Out(data.ArrayLayout(Activity(config), tiles))
        What begins and ends in each tile, for a timeline; may stay open.
    """

    def __init__(self, config):
        axi = Axi4(config.address_bits, config.bus_bits)
        super().__init__({
            "s_axil":     In(AxiLite(ADDRESS_BITS + (config.tiles - 1).bit_length())),
            "m_axi_near": Out(axi),
            "m_axi_far":  Out(axi),
            "irq":        Out(1),
            "activity":   Out(data.ArrayLayout(Activity(config), config.tiles)),
        })


class Gradmill(wiring.Component):
    """Tiles with their memory ports.

    Parameters
    ----------
    config : Config
        Sizes.

    Members as of :class:`DevicePorts`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(DevicePorts(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        tiles = [TileInstance(config) for _ in range(config.tiles)]
        for s, tile in enumerate(tiles):
            m.submodules[f"tile{s}"] = tile
            m.d.comb += [tile.tile.eq(s), self.activity[s].eq(tile.activity)]
        m.d.comb += self.irq.eq(Cat(tile.irq for tile in tiles).any())
        self._registers(m, tiles)
        for left, right in pairwise(tiles):
            connect(m, left.to_next, right.from_previous)
            connect(m, right.to_previous, left.from_next)
            m.d.comb += [
                left.next_resetting.eq(right.resetting),
                right.previous_resetting.eq(left.resetting),
            ]

        # Loads of each tile, then copies and instructions, so that turns go round the tiles.
        clients = ["", "copy_"] if config.copy else [""]
        for tier in ("near", "far"):
            reads, writes = ([getattr(tile, f"{client}{tier}_{way}")
                              for client in clients for tile in tiles]
                             for way in ("read", "write"))
            if tier == "near":
                reads += [tile.fetch for tile in tiles]
            self._tier(m, tier, reads, writes)
        return m

    def _registers(self, m, tiles):
        """The address bits above those of a tile choose the tile."""
        if len(tiles) == 1:
            connect(m, flipped(self.s_axil), tiles[0].bus)
            return
        m.submodules.route = route = AxiLiteRoute(ADDRESS_BITS, ports=len(tiles))
        connect(m, flipped(self.s_axil), route.bus)
        for tile, port in zip(tiles, route.ports, strict=True):
            connect(m, port, tile.bus)

    def _tier(self, m, tier, reads, writes):
        """One memory tier, shared in turns."""
        config, axi = self.config, getattr(self, f"m_axi_{tier}")
        m.submodules[f"{tier}_reader"] = reader = AxiReader(config, clients=len(reads))
        m.submodules[f"{tier}_writer"] = writer = AxiWriter(config)
        for read, client in zip(reads, reader.clients, strict=True):
            connect(m, read, client)
        if len(writes) == 1:
            connect(m, writes[0], writer.client)
        else:
            m.submodules[f"{tier}_share"] = share = WriteShare(config, clients=len(writes))
            for write, client in zip(writes, share.clients, strict=True):
                connect(m, write, client)
            connect(m, share.writer, writer.client)
        join(m, axi, reader.axi, writer.axi)
