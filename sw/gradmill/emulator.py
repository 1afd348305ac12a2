"""Device made of the exact models: it runs the same programs and gives the same bits, fast."""

from collections import deque

import numpy as np

from gradmill_hw.isa import Peer
from gradmill_hw.regs import TILE_BYTES, Tier

from .device import Device
from .emulated_tile import EmulatedTile, RegisterRefused


__all__ = ["Emulator"]


class Emulator(Device):
    """The models of all units behind the registers of the device.

    The instructions of a tile are executed in program order, each at once; tiles take turns when
    they wait for rows of a neighbour. A program whose result depends on the timing of its queues
    is wrong; here it gives one of its results. A wait that no earlier instruction has met, or rows
    that no neighbour sends, on which the hardware would hang, are a ``WATCHDOG`` error. There is
    no clock: timeouts have no effect and counters of cycles stay 0.

    Members
    -------
    chain : list of EmulatedTile
        Tiles.
    memories : list of array
        Near and far memory, uint8.
    """

    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.memories = [np.zeros(self.size(tier), np.uint8) for tier in Tier]
        right, left = ([deque() for _ in range(self.config.tiles + 1)] for _ in range(2))
        self.chain = [EmulatedTile(
            self.config, s, self.memories,
            {Peer.PREVIOUS: right[s], Peer.NEXT: left[s + 1]},
            {Peer.PREVIOUS: left[s], Peer.NEXT: right[s + 1]}) for s in self.tiles]
        self._start_up()

    @property
    def state(self):
        """On-chip memories of tile 0."""
        return self.chain[0].state

    def close(self):
        self.memories = []

    def _read_bytes(self, tier, address, count):
        return self.memories[tier][address:address + count].copy()

    def _write_bytes(self, tier, address, data):
        self.memories[tier][address:address + data.size] = data

    def _read_word(self, offset):
        tile, local = divmod(offset, TILE_BYTES)
        try:
            return self.chain[tile].read_word(local)
        except (RegisterRefused, IndexError):
            raise self._refused("read", offset) from None

    def _write_word(self, offset, value):
        tile, local = divmod(offset, TILE_BYTES)
        try:
            self.chain[tile].write_word(local, value)
        except (RegisterRefused, IndexError):
            raise self._refused("write", offset) from None

    def _wait(self, timeout_cycles):
        while not any(tile.irq for tile in self.chain):
            if not sum(tile.advance() for tile in self.chain):
                for tile in self.chain:
                    tile.starve()
                break
        return any(tile.irq for tile in self.chain)
