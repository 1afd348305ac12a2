"""Programs in near memory, written there once and replayed."""

import numpy as np

from gradmill_hw.isa import Class
from gradmill_hw.regs import Tier


__all__ = ["ProgramStore"]


class ProgramStore:
    """Programs for the tiles of ``device``, by key; iterates over the keys of those compiled."""

    def __init__(self, device):
        self._device, self._addresses = device, {}

    def __iter__(self):
        return iter(self._addresses)

    def __len__(self):
        return len(self._addresses)

    def run(self, key, compile_programs, **options):
        """Run the programs called ``key``, one for each tile; ``compile_programs()`` gives them at
        their first use. ``options`` are those of :meth:`Device.run`."""
        if key not in self._addresses:
            self._addresses[key] = [
                self._place(program.assemble(), f"{key[0]} program of tile {t}")
                for t, program in enumerate(compile_programs())]
        self._device.run(self._addresses[key], **options)

    def _place(self, code, owner):
        address = self._device.heap.allocate(len(code), owner)
        self._device.write_memory(Tier.NEAR, address, np.frombuffer(code, np.uint8),
                                  cls=Class.COMMAND)
        return address
