"""Memories behind AXI4 ports: cocotbext-axi's model, pausing at random, with canaries."""

import itertools
import random

from cocotbext.axi import AxiBus, AxiRam


__all__ = ["Canaries", "memory"]


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
