"""What forward stores and what backward computes again.

A chain of stages 0..L-1; activation s is the input of stage s. Activation 0 stays on chip, and so
does the last one from forward to its use, unless it is stored in another format. The others are
stored, or computed again from an earlier one that was: what is computed on the way takes the places
of what was needed before.

The optimal plan is that of A. Griewank and A. Walther, "Algorithm 799: revolve", ACM TOMS 26(1),
2000, for stages of different cost.
"""

from dataclasses import dataclass
from functools import cache

from gradmill_hw.config import ConfigError


__all__ = ["Backward", "Plan", "again", "every", "optimal", "store_all", "stored_at"]


@dataclass(frozen=True)
class Backward:
    """One action of backward.

    Parameters
    ----------
    action : str
        ``"load"``: activation ``stage`` from fast memory. ``"advance"``: forward through
        ``stage``, from its activation on chip to the next one. ``"store"``: the activation on
        chip to fast memory. ``"backward"``: all gradients of ``stage``, whose activation is on
        chip. ``"free"``: activation ``stage`` is not needed again.
    stage : int
    """

    action: str
    stage:  int


@dataclass(frozen=True)
class Plan:
    """What is stored and computed again.

    Members
    -------
    kept : tuple of int
        Activations that forward stores.
    backward : tuple of Backward
        What backward does, in order.
    """

    kept:     tuple
    backward: tuple

    @property
    def advances(self):
        """Stages that are computed again, in order."""
        return [step.stage for step in self.backward if step.action == "advance"]

    @property
    def most(self):
        """Activations that are stored at a time, at most."""
        alive = set(self.kept)
        most = len(alive)
        for step in self.backward:
            if step.action == "store":
                alive.add(step.stage)
                most = max(most, len(alive))
            elif step.action == "free":
                alive.discard(step.stage)
        return most


def store_all(stages, *, last=False):
    """Nothing is computed again; ``last``: the last activation is stored too."""
    kept = range(1, stages - 1 + last)
    steps = []
    for s in reversed(range(stages)):
        if s in kept:
            steps += [Backward("load", s), Backward("free", s)]
        steps.append(Backward("backward", s))
    return Plan(tuple(kept), tuple(steps))


def every(stages, k):
    """Every ``k``-th activation is kept, and those of the last segment."""
    return stored_at(stages, range(k, stages - 1, k))


def stored_at(stages, chosen):
    """The ``chosen`` activations are kept. From each, those up to the next are computed again and
    stored; those behind the last one forward stores too, but the very last."""
    chosen = sorted(set(chosen))
    wrong = [s for s in chosen if not 0 < s < stages]
    if wrong:
        raise ConfigError(f"recompute: there is no activation {wrong[0]} to keep; the network has "
                          f"hidden activations 1 to {stages - 1}")
    starts = [0, *chosen]
    last = range(starts[-1] + 1, stages - 1)
    steps = [] if stages - 1 in starts else [Backward("backward", stages - 1)]
    for start, end in reversed(list(zip(starts, [*chosen, stages], strict=True))):
        inner = range(start + 1, min(end, stages - 1))
        if end < stages and inner:
            steps += _load(start)
            for s in inner:
                steps.append(Backward("advance", s - 1))
                if s != inner[-1]:
                    steps.append(Backward("store", s))
            steps.append(Backward("backward", inner[-1]))
            inner = inner[:-1]
        for s in reversed(inner):
            steps += [*_load(s), Backward("free", s), Backward("backward", s)]
        steps += [*_load(start), *([Backward("free", start)] if start else []),
                  Backward("backward", start)]
    return Plan((*chosen, *last), tuple(steps))


def _load(s):
    return [Backward("load", s)] if s else []


def again(stages, recomputed):
    """The ``recomputed`` activations are computed from the nearest earlier one, each when it is
    needed and without a place."""
    kept = [s for s in range(1, stages - 1) if s not in recomputed]
    steps = []
    for s in reversed(range(stages)):
        if s in kept:
            steps += [Backward("load", s), Backward("free", s)]
        elif s in recomputed:
            start = max((k for k in kept if k < s), default=0)
            steps += [*_load(start), *(Backward("advance", k) for k in range(start, s))]
        steps.append(Backward("backward", s))
    return Plan(tuple(kept), tuple(steps))


def optimal(forward, places):
    """The plan with the fewest recomputed cycles that stores at most ``places`` activations at a
    time.

    Parameters
    ----------
    forward : sequence of int
        Cost of forward through each stage.
    """
    prefix = [0]
    for cost in forward:
        prefix.append(prefix[-1] + cost)

    @cache
    def best(first, last, free, ahead):
        """``(cost, middle)``: backward of stages ``last`` to ``first``, activation ``first`` being
        kept, ``free`` places left; the one kept next. ``ahead``: forward runs anyhow."""
        if first == last:
            return 0, None
        options = []
        for middle in range(first + 1, last + 1):
            if middle < last and not free:
                continue
            way = 0 if ahead else prefix[middle] - prefix[first]
            right = best(middle, last, free - 1, ahead)[0] if middle < last else 0
            options.append((way + right + best(first, middle - 1, free, False)[0], -middle))
        cost, middle = min(options)
        return cost, -middle

    kept, steps = [], []

    def walk(first, last, free, ahead):
        """Steps of ``best``; when they begin, activation ``first`` is on chip, or ``last`` if
        ``ahead``."""
        while first < last:
            _, middle = best(first, last, free, ahead)
            if not ahead:
                steps.extend(Backward("advance", s) for s in range(first, middle))
            if middle == last:
                steps.append(Backward("backward", last))
            else:
                kept.append(middle) if ahead else steps.append(Backward("store", middle))
                walk(middle, last, free - 1, ahead)
                steps.append(Backward("free", middle))
            steps.extend(_load(first))
            last, ahead = middle - 1, False
        steps.append(Backward("backward", first))

    walk(0, len(forward) - 1, places, True)
    return Plan(tuple(kept), tuple(steps))
