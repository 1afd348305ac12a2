"""Stash formats that begin narrow and widen when learning stalls."""

from dataclasses import asdict, dataclass

from gradmill_hw.config import ConfigError

from .fixed import Stash, as_format, check_rounding


__all__ = ["AdaptiveStash", "AdaptiveState"]

#: Default formats for outputs of a ReLU, and for activations with signs.
_UNSIGNED = "ubfp(1)/128", "ubfp(2)/128", "ubfp(4)/64"
_SIGNED = "bfp(2)/128", "bfp(3)/128", "bfp(5)/64"
_METRICS = ("loss", "accuracy")


@dataclass
class AdaptiveState:
    """Where an :class:`AdaptiveStash` stands: plain numbers, kept in checkpoints.

    Members
    -------
    rung : int
        Place in the lists of formats.
    best : float or None
        Smallest metric so far.
    stalls : int
        Windows that counted as stalled since the last progress.
    settling : int
        Windows that will not be judged yet.
    """

    rung:     int = 0
    best:     float | None = None
    stalls:   int = 0
    settling: int = 0


@dataclass(frozen=True, init=False)
class AdaptiveStash:
    """Narrow formats first; wider ones, one after the other, when the metric stops falling.

    The metric is measured over *windows*. With p = (best - metric) / best against the smallest
    metric of all earlier windows, a window is progress if p >= ``recover``, which clears the
    count of stalls, and a stall if p < ``stall``; between the two the count stays. When it
    reaches ``patience``, every layer goes on with the next format of its list, the count is
    cleared, and ``settle`` windows only update the best. There is no way back.

    >>> gm.AdaptiveStash()
    >>> gm.AdaptiveStash(["ubfp(1)/128", "mx6"], layers={2: ["bfp(3)/64", "mx9"]}, patience=3)

    Parameters
    ----------
    formats : sequence, optional
        Formats from narrow to wide, as for :class:`Stash`, of every layer that is not in
        ``layers``. By default unsigned formats of 1, 2 and 4 bits for outputs of a ReLU, signed
        ones of 2, 3 and 5 bits elsewhere.
    layers : dict, optional
        Number of a ``Linear`` (the second one is 1) -> formats of its input, ``None`` to keep it on
        chip as it is.
    metric : str
        ``"loss"``: mean training loss of the window, as the device computed it. ``"accuracy"``:
        share of wrong answers on the validation data, after each epoch.
    interval : int, optional
        Virtual minibatches of a window of ``"loss"``, counted anew in each epoch; by default the
        epoch.
    stall, recover : float
        Relative progress below which a window is a stall, and from which it is progress.
    patience : int
        Stalls that lead to the next format.
    settle : int
        Windows after a switch that are not judged.
    rounding, draw
        As for :class:`Stash`; stochastic rounding by default, without which narrow formats are
        biased.
    """

    formats:  tuple | None
    layers:   tuple
    metric:   str
    interval: int | None
    stall:    float
    recover:  float
    patience: int
    settle:   int
    rounding: str
    draw:     bool

    def __init__(self, formats=None, *, layers=None, metric="loss", interval=None, stall=0.01,
                 recover=0.03, patience=2, settle=1, rounding="stochastic", draw=False):
        if metric not in _METRICS:
            raise ValueError(f"metric={metric!r}; use one of {', '.join(_METRICS)}")
        if not 0 <= stall <= recover < 1:
            raise ValueError(f"stall={stall!r}, recover={recover!r}: give 0 <= stall <= recover "
                             "< 1, shares by which the metric falls")
        if interval is not None and metric == "accuracy":
            raise ValueError("interval: accuracy is measured after each epoch, give none")
        for name, value, least in (("interval", 1 if interval is None else interval, 1),
                                   ("patience", patience, 1), ("settle", settle, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}; give an integer of at least {least}")
        check_rounding(rounding)
        ladders = {s: _ladder(entry) for s, entry in (layers or {}).items()}
        for name, value in (("formats", _ladder(formats)), ("metric", metric),
                            ("layers", tuple(sorted(ladders.items()))), ("interval", interval),
                            ("stall", float(stall)), ("recover", float(recover)),
                            ("patience", patience), ("settle", settle), ("rounding", rounding),
                            ("draw", bool(draw))):
            object.__setattr__(self, name, value)

    def rungs(self, stages):
        """The :class:`Stash` of each step for a network, narrow to wide; a layer whose list is
        shorter stays with its last format."""
        own = dict(self.layers)
        ladders = dict.fromkeys(own)
        for s in range(1, len(stages)):
            default = self.formats or _ladder(_UNSIGNED if stages[s - 1].relu else _SIGNED)
            ladders[s] = own.get(s, default)
        longest = max((len(ladder) for ladder in ladders.values() if ladder), default=0)
        if not longest:
            raise ConfigError("an adaptive stash without a hidden activation: use a network with "
                              "more than one Linear, and formats for one of its inputs")
        return [Stash(layers={s: ladder and ladder[min(rung, len(ladder) - 1)]
                              for s, ladder in ladders.items()},
                      rounding=self.rounding, draw=self.draw) for rung in range(longest)]

    def judge(self, state, metric, rungs):
        """Account for a window with ``metric`` in ``state``; whether it goes to the next of
        ``rungs`` formats."""
        best = metric if state.best is None else state.best
        progress = (best - metric) / best if best > 0 else 0.0
        first, state.best = state.best is None, min(best, metric)
        if state.settling:
            state.settling -= 1
        elif first or progress >= self.recover:
            state.stalls = 0
        elif progress < self.stall:
            state.stalls += 1
        if state.stalls < self.patience or state.rung == rungs - 1:
            return False
        state.rung, state.stalls, state.settling = state.rung + 1, 0, self.settle
        return True

    def describe(self):
        """What :meth:`from_description` makes the same of."""
        return {**asdict(self), "formats": _words(self.formats),
                "layers": [[s, _words(ladder)] for s, ladder in self.layers]}

    @classmethod
    def from_description(cls, state):
        """The policy that ``state`` describes."""
        return cls(**{**state, "layers": dict(state["layers"])})


def _ladder(entries):
    if entries is None:
        return None
    if isinstance(entries, str) or not entries:
        raise ValueError(f"formats={entries!r}; give a list, from narrow to wide")
    return tuple(map(as_format, entries))


def _words(ladder):
    return ladder and [str(entry) for entry in ladder]
