"""What a user says about the fast memory."""

from dataclasses import dataclass

from gradmill_hw.config import ConfigError


__all__ = ["FastMemory"]


@dataclass(frozen=True)
class FastMemory:
    """Near memory for the activations that backward needs, and what happens to those beyond.

    >>> gm.FastMemory("20%")
    >>> gm.FastMemory("50%", recompute="optimal")

    Parameters
    ----------
    size : int or str
        Bytes, or a percentage of what the hidden activations of a sub-minibatch take that wait for
        backward: all but the last one, unless that has a stash format.
    high, low : float
        In the first sub-minibatch, which is recorded, activations leave for far memory when more
        than the share ``high`` of the fast memory would be taken, until it is at most ``low``.
        Later exactly as much leaves as is beyond ``high``.
    recompute : "optimal", int or sequence of int, optional
        Keep some activations only, and compute the others again in backward: as few products as
        the fast memory allows, every so many layers, or the inputs of these ``Linear`` layers (the
        second one is 1).
    policy : "offload" or "chosen"
        Whether all that does not fit goes to far memory, or after the first virtual minibatch each
        activation is kept, computed again, stored in the format that ``stash`` has for it, or sent
        to far memory, as it is or in that format, whatever costs least by what was measured.
    poison : bool
        Overwrite memory with NaNs as soon as it is evicted or freed, to find whoever still reads
        it. Costs traffic, of class ``DATA``.
    """

    size:      int | str
    high:      float = 1.0
    low:       float = 0.75
    recompute: object = None
    policy:    str = "offload"
    poison:    bool = False

    def __post_init__(self):
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"fast memory with low={self.low!r} and high={self.high!r}: choose "
                             "0 < low <= high <= 1")
        self._share()
        self._check_recompute()
        if self.policy not in ("offload", "chosen"):
            raise ValueError(f"policy={self.policy!r}: use 'offload' or 'chosen'")
        if self.policy == "chosen" and self.recompute is not None:
            raise ValueError(f"recompute={self.recompute!r} with policy='chosen', which decides "
                             "that itself: leave one of them out")

    @classmethod
    def of(cls, value):
        """``value`` itself, or one of this size; ``None`` of ``None``."""
        return value if value is None or isinstance(value, cls) else cls(value)

    def _share(self):
        """The share of the footprint, or ``None`` for a size in bytes."""
        size = self.size
        if isinstance(size, int) and not isinstance(size, bool) and size > 0:
            return None
        if isinstance(size, str) and size.endswith("%"):
            try:
                share = float(size[:-1]) / 100
            except ValueError:
                share = 0.0
            if 0 < share <= 1:
                return share
        raise ValueError(f"fast_memory={size!r}: give bytes as a positive integer, or a percentage "
                         "of the activations above 0% up to 100%, as in '20%'")

    def _check_recompute(self):
        value = self.recompute
        if value is None or value == "optimal":
            return
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return
        if isinstance(value, list | tuple) and value and all(
                isinstance(s, int) and s > 0 for s in value):
            return
        raise ValueError(f"recompute={value!r}: use 'optimal', a number of layers, or the numbers "
                         "of the Linear layers whose input is kept")

    def places(self, footprint, place):
        """Places of ``place`` bytes that fit, for activations of ``footprint`` bytes."""
        share = self._share()
        nbytes = self.size if share is None else round(share * footprint)
        count = nbytes // place
        if int(count * self.high) < 1:
            need = -(-place * 1000 // round(1000 * self.high))
            raise ConfigError(
                f"fast_memory={self.size!r} is {nbytes} bytes, of which {self.high:.0%} may be "
                f"taken, but what moves at a time needs {place}: give at least {need} bytes "
                f"({-(-100 * need // footprint)}% of the activations)")
        return min(count, footprint // place)
