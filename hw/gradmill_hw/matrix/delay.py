"""Shift registers that carry side information along a pipeline."""

from amaranth import *


__all__ = ["delay"]


def delay(m, signal, cycles, *, reset=False, name="delay"):
    """``signal`` as it was ``cycles`` cycles ago, with its own shape.

    Without ``reset`` the registers start undefined after a reset, so that they fit into shift
    register LUTs; what must be quiet after a reset, a valid bit for example, asks for ``reset``.
    """
    for age in range(1, cycles + 1):
        register = Signal.like(signal, name=f"{name}_{age}", reset_less=not reset)
        m.d.sync += register.eq(signal)
        signal = register
    return signal
