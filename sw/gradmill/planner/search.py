"""Schedules found from costs: zero-bubble and no-drain."""

from functools import partial
from math import ceil, inf
from operator import itemgetter

from ..data import positive
from .costs import period_bound
from .dispatch import Rules, dispatch
from .patterns import from_sequence, lengthen, pattern, staircase
from .refine import refine
from .schedule import bound
from .simulate import simulate


__all__ = ["no_drain", "zero_bubble"]

#: Virtual minibatches after which a run repeats itself well enough to measure its period, and to
#: take the order of a tile from it.
_MEASURED, _SETTLED = 6, 4

#: The search ends at a schedule this close to the bound.
_NEAR = 1.005

#: How far ahead tiles are where a core is lengthened.
_REACHES = ((1, 0), (1, 1), (1.5, 0))

#: Schedules that are refined if none is near.
_REFINED = 3

#: Forwards that a tile without drain is ahead of the next.
_SLOPES = (2, 1.75, 1.5, 1.25, 1)

#: Rules that are tried: forwards ahead, relative to what equal costs need; patience, as a share of
#: what the tile idles at the bound; whether forwards yield.
_RULES = ((2, 1, False), (1.1, 1, False), (1.35, 0, False), (1, 0.75, True), (2, 1.25, False),
          (0.8, 0.25, False), (1.2, 0.75, False), (inf, 0, False))


def zero_bubble(costs, m, limits=None):
    """Data gradients first, weight gradients in what would be bubbles; every virtual minibatch
    drains, so its weights are those of minibatch SGD.

    From 2p sub-minibatches on (p tiles) every tile has the order of its *core*, that for 2p, with
    as many repetitions of one data gradient, one weight gradient and one forward as are missing.
    So neither the activation sets nor the search depend on m, and the middle of the order is a
    loop.

    Several cores are run in steady state, as they are and lengthened: first the one that is right
    for equal costs, then those of :func:`~gradmill.planner.dispatch.dispatch` under several rules.
    The first that is within 0.5 % of :func:`~gradmill.planner.costs.period_bound` is taken, with as
    few sets as it needs for that. If there is none, the best are refined on their critical paths
    (:func:`~gradmill.planner.refine.refine`) and the best of all is taken.

    Parameters
    ----------
    costs : Costs
        Cycles of each tile.
    m : int
        Sub-minibatches of a virtual minibatch.
    limits : sequence of int
        By tile: activation sets that there is memory for. More than 2p - 1 are never used.
    """
    m = positive("m", m)
    limits = _limits("zero-bubble", costs.tiles, limits)
    size = min(m, 2 * costs.tiles)
    target, longer = (max(1, period_bound(costs, n, limits)) for n in (size, 2 * size))

    def judge(core):
        """How far it is above the bound, and the reach with which it is to be lengthened."""
        own = _period(core, costs) / target
        if m < 2 * costs.tiles:
            return own, _REACHES[0]
        found = []
        for reach in _REACHES:
            ratio = _period(lengthen(core, size, reach), costs) / longer
            found.append((max(own, ratio), reach))
            if ratio <= max(own, _NEAR):
                break
        return min(found)

    tried = []
    for number, make in enumerate([partial(_equal, size), *_rule_makers(costs, size, target)]):
        core = make(limits)
        ratio, _ = judge(core)
        tried.append((ratio, number, core))
        if ratio <= _NEAR:
            core = make(_ceiling(make, limits, lambda core, best=ratio: judge(core)[0] <= best))
            return lengthen(core, m - size, judge(core)[1])
    refined = [refine(core, costs, limits, target * _NEAR, judge)
               for _, _, core in sorted(tried)[:_REFINED]]
    (_, reach), core = min(refined, key=itemgetter(0))
    return lengthen(core, m - size, reach)


def no_drain(costs, m, virtual, limits=None):
    """Forwards of the next virtual minibatch enter before the one before has left the pipeline.

    A whole virtual minibatch uses one version of the weights, one behind that of minibatch SGD
    (PipeDream-2BW): its forwards begin after the update before last, and what they use is kept for
    its data gradients. Each tile updates as soon as it has all weight gradients of a virtual
    minibatch, in the place of the version that these used; so two versions are enough.

    It is 1F1B without an end: tile s of p runs up to 2(p-s) forwards ahead, twice as many as are
    needed by tiles of equal costs that compute without latencies; fewer if the period then is
    nearer to its bound, which is so for few sub-minibatches.

    Parameters are those of :func:`zero_bubble`, and ``virtual``, the virtual minibatches covered.
    """
    m, virtual = positive("m", m), positive("virtual", virtual)
    limits = _limits("no-drain", costs.tiles, limits)
    size = min(m, 2 * costs.tiles)
    target = period_bound(costs, size, limits, versions=2)
    tried = []
    for number, slope in enumerate(_SLOPES):
        found = _period(_steps(size, limits, _MEASURED, slope), costs)
        tried.append((found, number))
        if found <= target * _NEAR:
            break
    return _steps(m, limits, virtual, _SLOPES[min(tried)[1]])


def _limits(name, tiles, limits):
    own = [bound(name, s, tiles) for s in range(tiles)]
    if limits is None:
        return own
    if len(limits) != tiles or min(limits) < 1:
        raise ValueError(f"limits={list(limits)}; give {tiles} integers of at least 1")
    return [min(pair) for pair in zip(own, limits, strict=True)]


def _period(schedule, costs):
    """In steady state; infinite if the schedule cannot go on."""
    try:
        return simulate(schedule, costs, virtual=_MEASURED).period
    except ValueError:
        return inf


def _ceiling(make, limits, enough):
    """``limits`` under the lowest ceiling for which what ``make`` makes of them is ``enough``."""
    low, high = 1, max(limits)
    while low < high:
        middle = (low + high) // 2
        if enough(make([min(limit, middle) for limit in limits])):
            high = middle
        else:
            low = middle + 1
    return [min(limit, high) for limit in limits]


def _equal(m, limits):
    """With equal costs tile s of p has time for 2(p-s) - 1 forwards before its first data gradient
    can be there, and, at the end, for the weight gradients that 2s data gradients left behind."""
    tiles = len(limits)
    ahead = staircase([min(m, 2 * (tiles - s) - 1) for s in range(tiles)], limits)
    lag = [min(2 * s, limits[s] - ahead[s]) for s in range(tiles)]
    return pattern("zero-bubble", m, ahead, lag)


def _steps(m, limits, virtual, slope):
    """1F1B with ``slope`` forwards more ahead from tile to tile; up to m + 1 ahead no tile needs a
    third version."""
    tiles = len(limits)
    ahead = [min(m + 1, ceil(slope * (tiles - s))) for s in range(tiles)]
    return pattern("no-drain", m, staircase(ahead, limits), [0] * tiles, virtual=virtual)


def _rule_makers(costs, m, target):
    tiles = costs.tiles
    idle = [max(0, target - work) for work in costs.work(m)]
    for reach, share, yields in _RULES:
        ahead = [max(1, round(min(2 * tiles, reach * (2 * (tiles - s) - 1)))) for s in range(tiles)]
        patience = [int(share * cycles) for cycles in idle]
        yield partial(_dispatched, costs, m, ahead, patience, yields)


def _dispatched(costs, m, ahead, patience, yields, limits):
    """The last of several virtual minibatches, as if it were the first."""
    before = (_SETTLED - 1) * m
    orders = dispatch(costs, m, _SETTLED, Rules(limits, ahead, patience, yields))
    return from_sequence("zero-bubble", m, [
        [(kind, number - before) for kind, number in order if number >= before]
        for order in orders])
