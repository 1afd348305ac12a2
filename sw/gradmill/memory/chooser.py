"""Keep, compress, recompute or offload: for each activation of a chain what costs least in all.

A sub-minibatch takes

    max(F, f + o) + max(B + R, b + o)

cycles: forward F, of which f up to the first activation that leaves; backward B, of which the last
stage b; o cycles in which what does not fit crosses to far memory, and again as many in which it
comes back; R cycles of stages that are computed again. An activation is computed again from the
nearest earlier one that is stored as it is, or from the samples.

What is stored as it is and what is coded lie in two pools. Where coded ones all stay, they have the
places that they need, and where some of the others leave, these have room for a whole activation on
its way. Otherwise the others have just that room, coded ones share places of the size of the
largest, and leave in their format. Of each pool the oldest leave, which are needed last.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product

from ..lowering.layout import blocks


__all__ = ["EXACT", "Choice", "Costs", "Decision", "alternatives", "choose", "evaluate",
           "exact", "greedy", "lower_bound"]

#: Activations up to which the choice is exact.
EXACT = 8
_WAYS = ("store", "compress", "recompute")


class Decision(StrEnum):
    """How an activation waits for backward: as it is in fast memory, in its stash format, not at
    all, or as it is in far memory. Coded ones leave too where :attr:`Choice.leaving` says so."""

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

    def cycles(self, leaving, again, first=1):
        """Of a sub-minibatch in which ``leaving`` bytes cross each way, of activation ``first`` and
        later ones, and ``again`` cycles are computed again."""
        over = leaving * self.cycles_per_byte
        return (max(sum(self.forward), sum(self.forward[:first]) + over)
                + max(sum(self.backward) + again, self.backward[-1] + over))


@dataclass(frozen=True)
class Choice:
    """What happens to each activation, and what that costs.

    Members
    -------
    decisions : dict
        Activation -> :class:`Decision`.
    leaving : dict
        Activation -> bytes of it that leave for far memory, as it is or in its stash format.
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

    def coded_bytes(self, coded):
        """Bytes of fast memory for those in a stash format, of which activation s takes
        ``coded[s]``."""
        own = [s for s, decision in self.decisions.items() if decision is Decision.compress]
        staying = [s for s in own if s not in self.leaving]
        if staying == own:
            return sum(coded[s] for s in own)
        return len(staying) * max(coded[s] for s in own)


def choose(costs, fast):
    """The :class:`Choice` for ``fast`` bytes of fast memory: the best for up to ``EXACT``
    activations, otherwise a good one with its distance to the best at most that to ``bound``."""
    return (exact if len(costs.sizes) <= EXACT else greedy)(costs, fast)


def evaluate(costs, fast, ways):
    """The :class:`Choice` in which activations are stored as they are, coded or computed again:
    ``ways`` are ``"store"``, ``"compress"`` or ``"recompute"`` by activation. ``None`` if that
    cannot be."""
    anchor, usable, again, need = 0, True, 0.0, 0
    raw, coded = [], []
    for s, way in ways.items():
        if way == "recompute":
            if not usable:
                return None  # a coded activation has lost bits
            again += sum(costs.forward[anchor:s])
            need = max(need, costs.sizes.get(anchor, 0))
        elif way == "compress":
            if s not in costs.coded:
                return None
            coded.append(s)
            usable = False
        else:
            anchor, usable = s, True
            raw.append(s)
    options = [_choice(costs, ways, leaving, again)
               for leaving in (_raw_leaves(costs, fast, raw, coded, need),
                               _coded_leaves(costs, fast, raw, coded)) if leaving is not None]
    return min(options, key=lambda option: option.cycles, default=None)


def _choice(costs, ways, leaving, again):
    decisions = {s: Decision(way) if way != "store" else
                 Decision.offload if s in leaving else Decision.keep for s, way in ways.items()}
    return Choice(decisions, leaving, again,
                  costs.cycles(sum(leaving.values()), again, min(leaving, default=1)), 0.0)


def _raw_leaves(costs, fast, raw, coded, need):
    """Activation -> bytes that leave if all of ``coded`` stay; ``None`` if they cannot."""
    room = fast - sum(costs.coded[s] for s in coded)
    room -= room % costs.least if coded else 0
    excess = max(0, sum(costs.sizes[s] for s in raw) - room)
    least = max(need, costs.least) if raw else 0
    if excess and coded:
        least = max(costs.sizes.values())
    return _oldest(costs, raw, excess) if room >= least else None


def _coded_leaves(costs, fast, raw, coded):
    """The same if as many of ``raw`` stay as must, and some of ``coded`` leave."""
    place = max((costs.coded[s] for s in coded), default=1)
    stored = sum(costs.sizes[s] for s in raw)
    least = blocks(min(stored, max(costs.sizes.values())), costs.least) * costs.least
    places = (fast - least) // place
    if not 0 < places < len(coded):
        return None
    room = fast - places * place
    return {**_oldest(costs, raw, stored - (room - room % costs.least)),
            **{s: costs.coded[s] for s in coded[:len(coded) - places]}}


def _oldest(costs, raw, excess):
    leaving = {}
    for s in raw:
        if excess > 0:
            leaving[s] = min(excess, costs.sizes[s])
            excess -= leaving[s]
    return leaving


def alternatives(costs, fast, choice):
    """Activation -> way -> cycles of a sub-minibatch if only that activation were stored as it is,
    coded or computed again; ``None`` where that cannot be."""
    ways = {s: str(own) if own in (Decision.compress, Decision.recompute) else "store"
            for s, own in choice.decisions.items()}
    found = {s: {way: evaluate(costs, fast, {**ways, s: way}) for way in _WAYS} for s in ways}
    return {s: {way: other and other.cycles for way, other in own.items()}
            for s, own in found.items()}


def exact(costs, fast):
    """The best choice, of all."""
    choices = [choice for ways in product(_WAYS, repeat=len(costs.sizes))
               if (choice := evaluate(costs, fast, dict(zip(costs.sizes, ways, strict=True))))]
    best = min(choices, key=lambda choice: (  # bits are lost for cycles only
        choice.cycles, list(choice.decisions.values()).count(Decision.compress), choice.again,
        sum(choice.leaving.values())))
    return replace(best, bound=best.cycles)


def greedy(costs, fast):
    """The best of what is found from everything stored, coded, or computed again, by always the
    change of one activation that saves most cycles."""
    found = []
    for way in _WAYS:
        ways = {s: "store" if way == "compress" and s not in costs.coded else way
                for s in costs.sizes}
        if (first := evaluate(costs, fast, ways)) is not None:
            found.append(_improved(costs, fast, first, ways))
    best = min(found, key=lambda choice: choice.cycles)
    return replace(best, bound=lower_bound(costs, fast))


def _improved(costs, fast, best, ways):
    while True:
        options = [(choice, {**ways, s: way}) for s in ways
                   for way in _WAYS if way != ways[s]
                   if (choice := evaluate(costs, fast, {**ways, s: way})) is not None]
        found, changed = min(options, key=lambda option: option[0].cycles, default=(best, ways))
        if found.cycles >= best.cycles:
            return best
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
