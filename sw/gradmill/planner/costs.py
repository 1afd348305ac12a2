"""Cycles of the stages of a pipeline, and the shortest period that they allow."""

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import ceil


__all__ = ["Costs", "period_bound"]


@dataclass(frozen=True)
class Costs:
    """What each tile spends on one sub-minibatch, in cycles.

    Parameters
    ----------
    forward, backward, weight : sequence of int
        By tile: forward pass, data gradient, weight gradient.
    update : sequence of int
        By tile: optimizer step, once a virtual minibatch. Nothing, if not given.
    transfer : sequence of int
        By link (tile s to s+1, and back): cycles that it is occupied. Nothing, if not given.
    latency : int
        Cycles from the end of a transfer to its use.
    tail : Fraction
        Length of the last sub-minibatch of a virtual minibatch relative to the others; all of its
        cycles are in that proportion, rounded up.
    """

    forward:  tuple[int, ...]
    backward: tuple[int, ...]
    weight:   tuple[int, ...]
    update:   tuple[int, ...] = ()
    transfer: tuple[int, ...] = ()
    latency:  int = 0
    tail:     Fraction = Fraction(1)

    def __post_init__(self):
        tiles = len(self.forward)
        lengths = {"forward": tiles, "backward": tiles, "weight": tiles, "update": tiles,
                   "transfer": max(tiles - 1, 0)}
        for name, length in lengths.items():
            values = tuple(getattr(self, name))
            if name in ("update", "transfer"):
                values = values or (0,) * length
            if not tiles or len(values) != length or any(value < 0 for value in values):
                raise ValueError(f"Costs: {name}={values!r}; give {length} integers of at least 0 "
                                 f"for {tiles} tiles")
            object.__setattr__(self, name, values)
        if not 0 < self.tail <= 1:
            raise ValueError(f"Costs: tail={self.tail}; give a fraction above 0, at most 1")

    @property
    def tiles(self):
        """Tiles of the pipeline."""
        return len(self.forward)

    @property
    def last(self):
        """Costs of the last sub-minibatch of a virtual minibatch."""
        return replace(self, tail=Fraction(1), **{
            name: tuple(ceil(value * self.tail) for value in getattr(self, name))
            for name in ("forward", "backward", "weight", "transfer")})

    def durations(self):
        """Cycles by kind, then by tile."""
        return self.forward, self.backward, self.weight, self.update

    def work(self, m):
        """By tile: cycles of a virtual minibatch of ``m`` sub-minibatches."""
        last = self.last
        return [(m - 1) * (self.forward[s] + self.backward[s] + self.weight[s]) + last.forward[s]
                + last.backward[s] + last.weight[s] + self.update[s] for s in range(self.tiles)]


def period_bound(costs, m, limits, *, versions=1):
    """Cycles per virtual minibatch that no schedule can go below.

    ``limits[s]`` is the number of activation sets that tile s may hold, k = min(limits[s], m).
    F, B, W, U are the cycles of tile s, H those of a hop over a link. In a schedule that drains
    (``versions=1``) the forward of a virtual minibatch starts after the tile's own update, hence
    after everything else of the one before, so a tile's period is made of:

    - its work, m(F+B+W) + U;
    - the *way down*: between the start of its first forward and that of its first data gradient
      that sub-minibatch passes every later tile twice, D = F + sum_{q>s} (F_q + B_q + 2H_q), and
      the tile can only do forwards, at most k of them: it idles D - kF, if that is positive;
    - the *way up*: between the end of its last data gradient and its next first forward lie, for
      each earlier tile r, the data gradients of r..s-1, W_r, U_r and the forwards of r..s-1:
      G = max_{r<s} (W_r + U_r + sum_{r<=q<s} (F_q + B_q + 2H_q)). There the tile can only do its
      own U and at most k weight gradients: it idles G - kW - U, if that is positive.

    The bound is the largest such sum, or, where one tile's forwards dominate, G + mF + (D - F) + B:
    the last sub-minibatch turns round after all forwards of the tile. A set lives at least D + B +
    W, so m of them also need m(D+B+W)/k cycles.

    If all tiles cost the same, k = m and W <= F, that is max(m(F+B+W), (m+p-1)(F+B)+W) + U; if
    F = B = W, 2p - 1 sets are enough for it. It leaves out that an operation is never interrupted:
    with unequal costs the shortest period can be some percent above the bound.

    With two versions of the weights (``versions=2``) the forward of a virtual minibatch waits for
    the update before last: idling need not be, but two periods hold G + m(F+B) in every tile.
    """
    last = costs.last
    first = costs if m > 1 else last
    down = [a + t + costs.latency for a, t in zip(first.forward, first.transfer, strict=False)]
    up = [b + t + costs.latency for b, t in zip(last.backward, last.transfer, strict=False)]
    path = [0, *accumulate(x + y for x, y in zip(down, up, strict=True))]
    ends = [w + u - x for w, u, x in zip(last.weight, costs.update, path, strict=True)]
    before = [None, *accumulate(ends[:-1], max)]
    beyond = [0] * costs.tiles
    for s in reversed(range(costs.tiles - 1)):
        beyond[s] = (beyond[s + 1] + last.forward[s + 1] + last.backward[s + 1]
                     + 2 * (last.transfer[s] + costs.latency))
    best = 0
    for s, work in enumerate(costs.work(m)):
        forward, backward, weight = costs.forward[s], costs.backward[s], costs.weight[s]
        k = min(limits[s], m)
        gap = path[s] + before[s] if s else 0
        own = max(gap, last.weight[s] + costs.update[s])
        turn = last.forward[s] + beyond[s]
        both = (m - 1) * (forward + backward) + last.forward[s] + last.backward[s]
        round_trip = (m - 1) * forward + turn + last.backward[s]
        life = -(-(m - 1) * (turn + last.backward[s] + last.weight[s]) // k)
        if versions == 1:
            idle = max(0, turn - k * forward) + max(0, gap - k * weight - costs.update[s])
            best = max(best, work + idle, own + round_trip, life)
        else:
            best = max(best, work, -(-(own + max(both, round_trip)) // 2), life)
    return best
