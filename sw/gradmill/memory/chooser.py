"""Keep, compress, recompute or offload: for each activation of a chain what costs least in all.

A sub-minibatch takes

    max(F, f + o) + max(B + R, b + o)

cycles: forward F, of which the first stage f; backward B, of which the last stage b; o cycles in
which what does not fit crosses to far memory, and again as many in which it comes back; R cycles of
stages that are computed again. An activation is computed again from the nearest earlier one that is
stored as it is, or from the samples. Of what is stored as it is, the oldest leave: they are needed
last, and how many bytes leave does not depend on which. Where some leave, coded ones let a whole
activation have room on its way.
"""

from dataclasses import dataclass
from enum import StrEnum


__all__ = ["EXACT", "Choice", "Costs", "Decision", "alternatives", "choose", "evaluate",
           "exact", "greedy", "lower_bound"]

#: Activations up to which the choice is exact.
EXACT = 8
_WAYS = ("store", "compress", "recompute")


class Decision(StrEnum):
    """What happens to an activation between forward and backward."""

    keep      = "keep"
    compress  = "compress"
    recompute = "recompute"
    offload   = "offload"


@dataclass(frozen=True)
class Costs:
    """What was measured of a chain of stages.

    Parameters
    ----------
    forward, backward : sequence of float
        Cycles of each stage.
    sizes : dict
        Activation, by the stage whose input it is -> bytes; those that wait for backward.
    coded : dict
        Activation -> bytes in its stash format, of those that have one.
    cycles_per_byte : float
        Of a copy to far memory, or from there.
    least : int
        Bytes that move at a time.
    """

    forward:         tuple
    backward:        tuple
    sizes:           dict
    coded:           dict
    cycles_per_byte: float
    least:           int

    def cycles(self, leaving, again):
        """Of a sub-minibatch in which ``leaving`` bytes cross each way, and ``again`` cycles are
        computed again."""
        over = leaving * self.cycles_per_byte
        return (max(sum(self.forward), self.forward[0] + over)
                + max(sum(self.backward) + again, self.backward[-1] + over))


@dataclass(frozen=True)
class Choice:
    """What happens to each activation, and what that costs.

    Members
    -------
    decisions : dict
        Activation -> :class:`Decision`.
    leaving : dict
        Activation -> bytes of it that leave for far memory.
    again : float
        Cycles that are computed again.
    cycles : float
        Of a sub-minibatch.
    bound : float
        No choice takes fewer.
    """

    decisions: dict
    leaving:   dict
    again:     float
    cycles:    float
    bound:     float


def choose(costs, fast):
    """The :class:`Choice` for ``fast`` bytes of fast memory: the best for up to ``EXACT``
    activations, otherwise a good one with its distance to the best at most that to ``bound``."""
    return (exact if len(costs.sizes) <= EXACT else greedy)(costs, fast)


def evaluate(costs, fast, ways):
    """The :class:`Choice` in which activations are stored as they are, coded or computed again:
    ``ways`` are ``"store"``, ``"compress"`` or ``"recompute"`` by activation. ``None`` if that
    cannot be."""
    anchor, usable, again, coded = 0, True, 0.0, 0
    raw, need = [], 0
    for s, way in ways.items():
        if way == "recompute":
            if not usable:
                return None  # a coded activation has lost bits
            again += sum(costs.forward[anchor:s])
            need = max(need, costs.sizes.get(anchor, 0))
        elif way == "compress":
            if s not in costs.coded:
                return None
            coded, usable = coded + costs.coded[s], False
        else:
            anchor, usable = s, True
            raw.append(s)
    room = fast - coded
    if room < (max(need, costs.least) if raw else 0):
        return None
    excess = max(0, sum(costs.sizes[s] for s in raw) - room)
    if excess and coded and room < max(costs.sizes.values()):
        return None
    leaving, left = {}, excess
    for s in raw:
        if left > 0:
            leaving[s] = min(left, costs.sizes[s])
            left -= leaving[s]
    decisions = {s: Decision(way) if way != "store" else
                 Decision.offload if s in leaving else Decision.keep for s, way in ways.items()}
    return Choice(decisions, leaving, again, costs.cycles(excess, again), 0.0)


def alternatives(costs, fast, choice):
    """Activation -> way -> cycles of a sub-minibatch if only that activation were stored as it is,
    coded or computed again; ``None`` where that cannot be."""
    ways = {s: str(own) if own in (Decision.compress, Decision.recompute) else "store"
            for s, own in choice.decisions.items()}
    found = {s: {way: evaluate(costs, fast, {**ways, s: way}) for way in _WAYS} for s in ways}
    return {s: {way: other and other.cycles for way, other in own.items()}
            for s, own in found.items()}


def exact(costs, fast):
    """The best choice, by labels that no other one beats in bytes as they are, coded bytes,
    computed cycles and room that is needed; one set for each activation that others can be computed
    from."""
    labels = {0: [((0, 0, 0.0, 0), {})]}  # activation to compute from, None: there is none
    for s, size in costs.sizes.items():
        found = {}
        for anchor, own in labels.items():
            for (raw, coded, again, need), ways in own:
                _add(found, s, (raw + size, coded, again, max(need, costs.least)),
                     {**ways, s: "store"})
                if s in costs.coded:
                    _add(found, None, (raw, coded + costs.coded[s], again, need),
                         {**ways, s: "compress"})
                if anchor is not None:
                    _add(found, anchor, (raw, coded, again + sum(costs.forward[anchor:s]),
                                         max(need, costs.sizes.get(anchor, 0))),
                         {**ways, s: "recompute"})
        labels = found
    choices = [choice for own in labels.values() for _, ways in own
               if (choice := evaluate(costs, fast, ways)) is not None]
    best = min(choices, key=lambda choice: (  # bits are lost for cycles only
        choice.cycles, list(choice.decisions.values()).count(Decision.compress), choice.again,
        sum(choice.leaving.values())))
    return _bounded(best, best.cycles)


def _add(labels, anchor, cost, ways):
    """Add a label unless another is as good in everything; drop those that it beats so."""
    own = labels.setdefault(anchor, [])
    if any(all(a <= b for a, b in zip(other, cost, strict=True)) for other, _ in own):
        return
    own[:] = [(other, way) for other, way in own
              if not all(a <= b for a, b in zip(cost, other, strict=True))]
    own.append((cost, ways))


def greedy(costs, fast):
    """From everything stored, or else computed again, always the change of one activation that
    saves most cycles."""
    for way in ("store", "recompute"):
        ways = dict.fromkeys(costs.sizes, way)
        if (best := evaluate(costs, fast, ways)) is not None:
            break
    while True:
        options = [(choice, {**ways, s: way}) for s in ways
                   for way in _WAYS if way != ways[s]
                   if (choice := evaluate(costs, fast, {**ways, s: way})) is not None]
        found, changed = min(options, key=lambda option: option[0].cycles, default=(best, ways))
        if found.cycles >= best.cycles:
            return _bounded(best, lower_bound(costs, fast))
        best, ways = found, changed


def lower_bound(costs, fast):
    """Cycles that no choice undercuts: as if any part of an activation could be computed again from
    the one before, or coded."""
    missing = sum(costs.sizes.values()) - fast
    offers = sorted([(0.0, size - costs.coded.get(s, size)) for s, size in costs.sizes.items()]
                    + [(costs.forward[s - 1] / costs.sizes[s],
                        min(costs.coded.get(s, size), size)) for s, size in costs.sizes.items()])
    found, again = [costs.cycles(max(0, missing), 0.0)], 0.0
    for price, nbytes in offers:
        if missing <= 0:
            break
        part = min(nbytes, missing)
        missing, again = missing - part, again + price * part
        found += [costs.cycles(missing, again), *_between(costs, missing, again, price, part)]
    return min(found)


def _between(costs, missing, again, price, part):
    """Cycles where forward or backward begins to wait for copies, if that is within this offer."""
    rate = costs.cycles_per_byte
    forward = (sum(costs.forward) - costs.forward[0]) / rate if rate else 0.0
    # backward: B + again - price·d = b + (missing + d)·rate, d bytes before the end of the offer
    slack = sum(costs.backward) + again - costs.backward[-1] - missing * rate
    for more in (forward - missing, slack / (rate + price) if rate + price else 0.0):
        if 0 < more < part:
            yield costs.cycles(missing + more, again - price * more)


def _bounded(choice, bound):
    return Choice(choice.decisions, choice.leaving, choice.again, choice.cycles, bound)
