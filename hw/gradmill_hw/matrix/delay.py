"""Shift registers that carry side information along a pipeline."""

from amaranth import *


__all__ = ["delay"]

#: Delays up to this are flip-flops. A LUT comes with two of them, and LUTs are what runs out.
SHORT = 7


def delay(m, signal, cycles, *, reset=False, name="delay"):
    """``signal`` as it was ``cycles`` cycles ago, with its own shape.

    Without ``reset`` the registers of a long delay start undefined after a reset, so that they fit
    into shift register LUTs; what must be quiet after a reset, a valid bit for example, asks for
    ``reset``.
    """
    reset = reset or cycles <= SHORT
    for age in range(1, cycles + 1):
        register = Signal.like(signal, name=f"{name}_{age}", reset_less=not reset)
        m.d.sync += register.eq(signal)
        signal = register
    return signal
