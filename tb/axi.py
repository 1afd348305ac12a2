"""Memories behind AXI4 ports: cocotbext-axi's model, pausing at random, with canaries."""

import itertools
import random

import numpy as np
from cocotbext.axi import AxiBus, AxiRam
from gradmill_hw.memory.window import windows_layout
from gradmill_hw.regs import Tier
from tb.stream import pack


__all__ = ["Canaries", "check_written", "memory", "set_windows", "tiers"]


def _pauses(rng, chance):
    return (rng.random() < chance for _ in itertools.count())


def memory(dut, prefix, size, *, pause=0.0, seed=0):
    """An :class:`AxiRam` of ``size`` bytes whose five channels pause with probability ``pause``.

    ``prefix`` is the name of the port with its underscores, for example ``"near__"``.
    """
    ram = AxiRam(AxiBus.from_prefix(dut, prefix.removesuffix("_")), dut.clk, dut.rst, size=size)
    write, read = ram.write_if, ram.read_if
    channels = (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)
    for k, channel in enumerate(channels):
        channel.set_pause_generator(_pauses(random.Random(f"{prefix} {k} {seed}"), pause))
    return ram


def set_windows(dut, config, windows):
    """Grant ``windows``: for each tier a list of (base, limit, read, write)."""
    names = ("base", "limit", "read", "write")
    dut.windows.value = pack(
        windows_layout(config),
        [[dict(zip(names, window, strict=True)) for window in row] for row in windows],
    )


def tiers(dut, images, *, pause=0.0):
    """A :func:`memory` for each tier, with the bytes of its image."""
    found = []
    for tier, image in zip(Tier, images, strict=True):
        found.append(memory(dut, f"{tier.name.lower()}__", len(image), pause=pause, seed=tier))
        found[-1].write(0, image.tobytes())
    return found


class Canaries:
    """Remembers a whole memory, to tell which bytes changed.

    Parameters
    ----------
    ram : AxiRam
        Memory.
    size : int
        Its bytes.
    """

    def __init__(self, ram, size):
        self.ram, self.size = ram, size
        self.before = bytes(ram.read(0, size))

    def strangers(self, allowed):
        """Addresses of bytes that changed outside the ``allowed`` ranges."""
        now = bytearray(self.ram.read(0, self.size))
        for span in allowed:
            now[span.start : span.stop] = self.before[span.start : span.stop]
        return [
            at for at, (old, new) in enumerate(zip(self.before, now, strict=True)) if old != new
        ]


def check_written(canaries, images, written):
    """Memories have the bytes of ``images``, and none changed outside of what was ``written``:
    pairs of tier and byte ranges."""
    for tier, found in enumerate(canaries):
        spans = [span for where, ranges in written if where == tier for span in ranges]
        assert not found.strangers(spans)
        got = np.frombuffer(bytes(found.ram.read(0, found.size)), np.uint8)
        assert np.array_equal(got, images[tier])
