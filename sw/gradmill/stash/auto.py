"""Stash formats chosen for each layer from measured gradient error and bytes."""

from dataclasses import dataclass

import numpy as np

from ..gradient_probe import gradients
from .fixed import Stash, as_format, check_rounding


__all__ = ["AutoStash", "Measured"]

#: Default candidates for outputs of a ReLU, and for activations with signs.
_UNSIGNED = ("ubfp(1)/128", "nonuniform-aggressive+zeros/128", "ubfp(2)/128", "mask+bfp(2)/128",
             "ubfp(3)/128", "ubfp(4)/64", "ubfp(6)/64")
_SIGNED = "bfp(2)/128", "bfp(3)/128", "bfp(4)/64", "mx4/64", "mx6/64", "mx9/64"


@dataclass(frozen=True)
class Measured:
    """What one format did to one layer, as the device's gradients and counters say.

    Parameters
    ----------
    layer : int
        Number of the ``Linear`` whose input was stashed.
    format : Format
        How.
    error : float
        |g - g0| / |g0| of the layer's weight gradient g, g0 without a stash.
    cosine : float
        Of the angle between them.
    bits : float
        Bytes written, in bits per value.
    """

    layer:  int
    format: object
    error:  float
    cosine: float
    bits:   float

    def describe(self):
        """For reports."""
        return {"layer": self.layer, "format": str(self.format), "error": self.error,
                "cosine": self.cosine, "bits": self.bits}


@dataclass(frozen=True, init=False)
class AutoStash:
    """For each layer the format of fewest bytes whose gradient error is small enough.

    At the start of an epoch the device computes the gradients of the epoch's first virtual
    minibatch without updating anything, as it is and again for every layer and candidate with that
    one activation stashed. Forward and data gradients do not depend on a stash, so the weight
    gradient of that layer holds all of the error. Of the candidates with an error of at most
    ``error`` the one with the fewest bytes on the bus is taken; if there is none, the one with the
    smallest error.

    >>> gm.AutoStash(error=0.2)
    >>> gm.AutoStash(["mx4", "mx6", "mx9"], every=None)

    Parameters
    ----------
    formats : sequence, optional
        Candidates, as for :class:`Stash`; by default unsigned formats of 1 to 6 bits for outputs
        of a ReLU, signed ones of 2 to 9 bits elsewhere.
    error : float
        Largest relative error of a weight gradient.
    every : int, optional
        Epochs from one choice to the next; ``None``: chosen once, before the first.
    rounding, draw
        As for :class:`Stash`.
    """

    formats:  tuple | None
    error:    float
    every:    int | None
    rounding: str
    draw:     bool

    def __init__(self, formats=None, *, error=0.3, every=5, rounding="stochastic", draw=False):
        if formats is not None and (isinstance(formats, str) or not formats):
            raise ValueError(f"formats={formats!r}; give a list of candidates")
        if not error > 0:
            raise ValueError(f"error={error!r}; give a positive number, as in 0.3")
        if every is not None and (not isinstance(every, int) or every < 1):
            raise ValueError(f"every={every!r}; give a number of epochs, or None")
        check_rounding(rounding)
        for name, value in (("formats", formats and tuple(map(as_format, formats))),
                            ("error", float(error)), ("every", every), ("rounding", rounding),
                            ("draw", bool(draw))):
            object.__setattr__(self, name, value)

    def due(self, epoch):
        """Whether formats are chosen before ``epoch``."""
        return epoch == 0 if self.every is None else epoch % self.every == 0

    def candidates(self, stages):
        """``(layer, format)`` of all that are compared for a network."""
        return [(s, as_format(entry)) for s in range(1, len(stages))
                for entry in (self.formats or (_UNSIGNED if stages[s - 1].relu else _SIGNED))]

    def only(self, layer, entry):
        """The :class:`Stash` of a single layer."""
        return Stash(layers={layer: entry}, rounding=self.rounding, draw=self.draw)

    def measure(self, trainer, x, y):
        """A list of :class:`Measured` on the samples ``x`` with targets ``y``."""
        stages = trainer.model.stages
        exact, _ = gradients(trainer, x, y)
        found = []
        for s, entry in self.candidates(stages):
            stashed, bits = gradients(trainer, x, y, stash=self.only(s, entry))
            name = f"{stages[s].index}.weight"
            g0, g = exact[name].astype(np.float64), stashed[name].astype(np.float64)
            scale, length = np.linalg.norm(g0) or 1.0, np.linalg.norm(g) or 1.0
            found.append(Measured(s, entry, float(np.linalg.norm(g - g0) / scale),
                                  float(np.sum(g * g0) / (scale * length)), bits))
        return found

    def choose(self, measured):
        """The :class:`Stash` that follows from a list of :class:`Measured`."""
        chosen = {}
        for s in {entry.layer for entry in measured}:
            of_layer = [entry for entry in measured if entry.layer == s]
            good = [entry for entry in of_layer if entry.error <= self.error]
            best = (min(good, key=lambda entry: (entry.bits, entry.error)) if good else
                    min(of_layer, key=lambda entry: entry.error))
            chosen[s] = best.format
        return Stash(layers=chosen, rounding=self.rounding, draw=self.draw)

    def describe(self):
        """What :meth:`from_description` makes the same of."""
        return {"formats": self.formats and [str(entry) for entry in self.formats],
                "error": self.error, "every": self.every, "rounding": self.rounding,
                "draw": self.draw}

    @classmethod
    def from_description(cls, state):
        """The policy that ``state`` describes."""
        return cls(**state)
