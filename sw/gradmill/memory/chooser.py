"""Keep, compress, recompute or offload: for each activation of a chain what costs least in all.

A sub-minibatch takes

    max(F, f + o) + max(B + R, b + o)

cycles: forward F, of which f up to the first activation that leaves; backward B, of which the last
stage b; o cycles in which what does not fit crosses to far memory, and again as many in which it
comes back; R cycles of stages that are computed again. An activation is computed again from the
nearest earlier one that is stored as it is, or from the samples.

What is stored as it is and what is coded lie in two pools. Coded ones have places of their own size
if all stay, otherwise places of the size of the largest, and those beyond leave in their format.
Where others leave beside coded ones, they have room for a whole activation on its way. Of each pool
the oldest leave, which are needed last.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import accumulate, product
from operator import itemgetter


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
        return (max(self.until[-1], self.until[first] + over)
                + max(self._backward + again, self.backward[-1] + over))

    @cached_property
    def until(self):
        """Cycles of forward before each stage, and of all."""
        return list(accumulate(self.forward, initial=0))

    @cached_property
    def _backward(self):
        return sum(self.backward)

    @cached_property
    def largest(self):
        """Bytes of the largest activation."""
        return max(self.sizes.values())


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

    @property
    def words(self):
        """Activation -> its decision, ``"compress + offload"`` if it leaves in its stash format."""
        both = f"{Decision.compress} + {Decision.offload}"
        return {s: both if decision is Decision.compress and s in self.leaving else str(decision)
                for s, decision in self.decisions.items()}

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
    found = _fewest(costs, fast, ways)
    if found is None:
        return None
    cycles, again, excess, coded = found
    leaving = {s: costs.coded[s] for s in coded}
    for s in (s for s, way in ways.items() if way == "store" and excess > 0):
        leaving[s] = min(excess, costs.sizes[s])
        excess -= leaving[s]
    leaving = dict(sorted(leaving.items()))
    decisions = {s: Decision(way) if way != "store" else
                 Decision.offload if s in leaving else Decision.keep for s, way in ways.items()}
    return Choice(decisions, leaving, again, cycles, 0.0)


def _fewest(costs, fast, ways):
    """``(cycles, cycles computed again, bytes that leave as they are, activations that leave
    coded)`` with as many of those as is best; ``None`` if the ways cannot be."""
    sorted_out = _sort_out(costs, ways)
    if sorted_out is None:
        return None
    raw, coded, again, need = sorted_out
    stored, best, crossing = sum(costs.sizes[s] for s in raw), None, 0
    own = [costs.coded[s] for s in coded]
    taken, place = sum(own), max(own, default=0)
    for away in range(max(1, len(coded))):
        if away:
            taken, crossing = (len(coded) - away) * place, crossing + own[away - 1]
        room = fast - taken
        room -= room % costs.least if coded else 0
        excess = max(0, stored - room)
        least = max(need, costs.least) if raw else 0
        if room < (costs.largest if coded and excess else least):
            continue
        first = min([*coded[:away][:1], *(raw[:1] if excess else [])], default=1)
        cycles = costs.cycles(excess + crossing, again, first)
        if best is None or cycles < best[0]:
            best = cycles, again, excess, coded[:away]
        if not excess:
            break  # only more would leave
    return best


def _sort_out(costs, ways):
    """``(stored as they are, coded, cycles computed again, bytes of the largest activation that
    others are computed from)``; ``None`` if one cannot be coded or computed."""
    anchor, usable, again, need = 0, True, 0.0, 0
    raw, coded = [], []
    for s, way in ways.items():
        if way == "recompute":
            if not usable:
                return None  # a coded activation has lost bits
            again += costs.until[s] - costs.until[anchor]
            need = max(need, costs.sizes.get(anchor, 0))
        elif way == "compress":
            if s not in costs.coded:
                return None
            coded.append(s)
            usable = False
        else:
            anchor, usable = s, True
            raw.append(s)
    return raw, coded, again, need


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
    found = []
    for ways in product(_WAYS, repeat=len(costs.sizes)):
        ways = dict(zip(costs.sizes, ways, strict=True))
        if (fewest := _fewest(costs, fast, ways)) is not None:
            cycles, again, excess, coded = fewest
            crossing = excess + sum(costs.coded[s] for s in coded)
            # Bits are lost for cycles only.
            found.append((cycles, list(ways.values()).count("compress"), again, crossing, ways))
    best = evaluate(costs, fast, min(found, key=itemgetter(0, 1, 2, 3))[-1])
    return replace(best, bound=best.cycles)


def greedy(costs, fast):
    """The best of what is found from everything stored, coded, or computed again, by always the
    change of one activation that saves most cycles."""
    found = []
    for way in _WAYS:
        ways = {s: "store" if way == "compress" and s not in costs.coded else way
                for s in costs.sizes}
        if (first := _fewest(costs, fast, ways)) is not None:
            found.append(_improved(costs, fast, first[0], ways))
    _, ways = min(found, key=itemgetter(0))
    return replace(evaluate(costs, fast, ways), bound=lower_bound(costs, fast))


def _improved(costs, fast, cycles, ways):
    """``(cycles, ways)`` that no change of one activation improves."""
    while True:
        changes = [{**ways, s: way} for s in ways for way in _WAYS if way != ways[s]]
        options = [(found[0], changed) for changed in changes
                   if (found := _fewest(costs, fast, changed)) is not None]
        found, changed = min(options, key=itemgetter(0), default=(cycles, ways))
        if found >= cycles:
            return cycles, ways
        cycles, ways = found, changed


def lower_bound(costs, fast):
    """Cycles that no choice undercuts: as if any part of an activation could be computed again from
    the one before, or coded."""
    missing = sum(costs.sizes.values()) - fast
    rest = {s: min(costs.coded.get(s, size), size) for s, size in costs.sizes.items()}
    offers = sorted([(0.0, size - rest[s]) for s, size in costs.sizes.items()]
                    + [(costs.forward[s - 1] / size, rest[s]) for s, size in costs.sizes.items()])
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
