"""Stash policies as words: what ``--stash`` of the command line means."""

import re

from .fixed import Stash
from .adaptive import AdaptiveStash
from .auto import AutoStash


__all__ = ["HELP", "parse_stash"]

HELP = (
    "Keep hidden activations in near memory in a stash format; tiles then have the codec. FORMAT: "
    "all in one, as in ubfp(1)/128 or mx6. LAYER=FORMAT: the input of that Linear (the second one "
    "is 1), none keeps it on chip; repeat the option for several. adaptive: begin narrow, widen "
    "when the loss stalls. auto: choose for each layer from gradients measured on the device. "
    "adaptive=F,F,... and auto=F,F,... with formats of your own, narrow to wide.")

_POLICIES = {"adaptive": AdaptiveStash, "auto": AutoStash}


def parse_stash(words, *, rounding=None, interval=None):
    """The policy that ``words``, the values of all ``--stash``, describe; ``None`` of none.

    ``rounding`` and ``interval`` replace the policy's own.
    """
    if not words:
        return None
    options = {} if rounding is None else {"rounding": rounding}
    name, _, formats = words[0].partition("=")
    if interval is not None:
        if name != "adaptive":
            raise ValueError(f"--stash-interval beside --stash {words[0]}: only adaptive judges")
        options["interval"] = interval
    if name in _POLICIES:
        if len(words) > 1:
            raise ValueError(f"--stash {words[1]} beside --stash {words[0]}: give it alone; lists "
                             f"for each layer are for gm.{_POLICIES[name].__name__}(layers=...)")
        return _POLICIES[name](_list(words[0], formats), **options)
    layers, every = {}, None
    for word in words:
        layer = re.fullmatch(r"(\d+)=(.+)", word)
        if layer:
            layers[int(layer[1])] = None if layer[2] == "none" else layer[2]
        elif "=" in word:
            raise ValueError(f"--stash {word}: write FORMAT, LAYER=FORMAT with the number of a "
                             "layer, adaptive or auto")
        elif every is not None:
            raise ValueError(f"--stash {every} and --stash {word}: one format is for all layers; "
                             "for others write LAYER=FORMAT")
        else:
            every = word
    return Stash(every, layers=layers, **options)


def _list(word, text):
    """Formats between commas, those in brackets aside; ``None`` if there are none."""
    if "=" not in word:
        return None
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]
