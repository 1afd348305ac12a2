"""Records what a device is asked to do and what its memories hold before and after."""

import json

import numpy as np

from gradmill.emulator import Emulator
from gradmill_hw.regs import COUNTERS, REGS, Tier


__all__ = ["Recorder"]


class Recorder(Emulator):
    """An emulator whose memories begin with random bytes and whose runs are kept."""

    def __init__(self, config, **options):
        self.runs, self._writes = [], []
        super().__init__(config, **options)
        rng = np.random.default_rng(11)
        for memory in self.memories:
            memory[:] = rng.integers(0, 256, memory.size, dtype=np.uint8)

    def _write_word(self, offset, value):
        super()._write_word(offset, value)
        self._writes.append((offset, value))

    def run(self, *arguments, **options):
        before = [memory.copy() for memory in self.memories]
        super().run(*arguments, **options)
        self.runs.append({"before": before, "after": [m.copy() for m in self.memories],
                          "writes": self._writes, "status": self._word("status"),
                          "counters": self.counters()})
        self._writes = []

    def _word(self, name):
        return REGS[name].pack(**self.read_register(name))

    def save(self, folder):
        """Write ``runs.json`` and an image file for each run."""
        for number, run in enumerate(self.runs):
            np.savez(folder / f"run{number}.npz", **{
                f"{tier.name.lower()}_{when}": run[when][tier]
                for tier in Tier for when in ("before", "after")})
        counters = {c.name: (REGS[f"counter_{c.name}_lo"].offset, self.runs[-1]["counters"][c.name])
                    for c in COUNTERS if not c.timing}
        (folder / "runs.json").write_text(json.dumps([
            {"writes": run["writes"], "status": REGS["status"].offset,
             "status_value": run["status"], "counters": counters} for run in self.runs]))
