"""Layers to stages: contiguous, balanced, by dynamic programming."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate
from math import ceil

from gradmill_hw.config import ConfigError

from ..data import positive
from .costs import Costs


__all__ = ["Partition", "partition"]


@dataclass(frozen=True)
class Partition:
    """Which layers run where.

    Members
    -------
    stages : tuple of (int, int)
        First and last layer of each stage.
    replicas : tuple of int
        Tiles that each stage has.
    loads : tuple of int
        Cycles that each stage needs for a virtual minibatch.
    """

    stages:   tuple[tuple[int, int], ...]
    replicas: tuple[int, ...]
    loads:    tuple[int, ...]

    @property
    def tiles(self):
        """Tiles of all stages."""
        return sum(self.replicas)

    def costs(self, profile, *, tail=Fraction(1)):
        """:class:`Costs` of the stages, one tile each; ``tail`` is that of the costs."""
        if any(count > 1 for count in self.replicas):
            raise ValueError(f"replicas={self.replicas}; a schedule needs one tile per stage")
        layers = [profile.layers[first:last + 1] for first, last in self.stages]
        sums = [_stage_costs(stage) for stage in layers]
        transfer = tuple(_transfer(profile, last) for _, last in self.stages[:-1])
        return Costs(*zip(*sums, strict=True), transfer=transfer, latency=profile.link_latency,
                     tail=tail)

    def __str__(self):
        return " | ".join((f"layers {first}-{last}" if last > first else f"layer {first}")
                          + (f" x{count}" if count > 1 else "")
                          for (first, last), count in zip(self.stages, self.replicas, strict=True))


def _stage_costs(layers):
    """F, B, W and U of a stage. If the vector unit needs longer than the matrix unit, F, B and W
    are as much longer."""
    forward, backward, weight, update, vector = (
        sum(getattr(layer, name) for layer in layers)
        for name in ("forward", "backward", "weight", "update", "vector"))
    products = forward + backward + weight
    if vector > products:
        forward, backward = (-(-cycles * vector // products) if products else 0
                             for cycles in (forward, backward))
        weight = vector - forward - backward
    return forward, backward, max(0, weight), update


def _transfer(profile, layer):
    """Cycles for which one sub-minibatch's output of ``layer`` occupies a link."""
    return ceil(profile.layers[layer].output_bytes / profile.link_bytes_per_cycle)


def partition(profile, tiles, *, sub_minibatches=1, replicate=False, fits=None):
    """The :class:`Partition` whose largest stage load is least, then whose second largest is, then
    whose last stage begins first, then the last but one and so on.

    The load of a stage is its cycles for a virtual minibatch of m sub-minibatches, m(F+B+W) + U, or
    of its vector unit, if that needs more.
    Rows travel while tiles compute, so communication is hidden unless a link of the stage is
    occupied for longer; then the load is that.

    With ``replicate`` a stage may have r tiles (PipeDream, US12056604B2), each with every r-th
    sub-minibatch: the load is m(F+B+W)/r + U, and the exchange of its weight gradients in a ring,
    2(r-1)/r times their bytes over a link. Such a partition is for study: schedules are made for
    one tile per stage.

    Parameters
    ----------
    profile : Profile
        Of the network.
    tiles : int
        Tiles; all are used.
    sub_minibatches : int
        m.
    replicate : bool
        Whether stages may have several tiles.
    fits : callable
        ``fits(first, last)`` tells whether one tile has the memory for these layers. Everything
        fits if not given.
    """
    tiles, m = positive("tiles", tiles), positive("sub_minibatches", sub_minibatches)
    count = len(profile.layers)
    if tiles > count and not replicate:
        raise ValueError(f"{tiles} tiles, but only {count} layers; use at most {count} tiles")
    fits = cache(fits or (lambda first, last: True))
    load = _loads(profile, m)
    found = _best(count, tiles, load, replicate, fits)
    if found is None:
        raise ConfigError(_advice(count, tiles, load, replicate, fits))
    return found


def _loads(profile, m):
    """``load(first, last, replicas)``."""
    layers = profile.layers
    compute, vector, update, weights = (
        [0, *accumulate(values)] for values in (
            [layer.forward + layer.backward + layer.weight for layer in layers],
            [layer.vector for layer in layers],
            [layer.update for layer in layers], [layer.weight_bytes for layer in layers]))
    #: by layer: what its input needs, and its output; the ends are not on a link
    links = [0, *(_transfer(profile, layer) for layer in range(len(layers) - 1)), 0]

    def load(first, last, r):
        each = max(total[last + 1] - total[first] for total in (compute, vector))
        busy = -(-m * each // r) + update[last + 1] - update[first]
        if r > 1:
            exchanged = Fraction(2 * (r - 1) * (weights[last + 1] - weights[first]), r)
            busy += ceil(exchanged / Fraction(profile.link_bytes_per_cycle))
        return max(busy, -(-m * max(links[first], links[last + 1]) // r))

    return load


def _best(count, tiles, load, replicate, fits):
    """The best :class:`Partition`, ``None`` if none fits.

    ``best[t][n]`` is for the first n layers on t tiles: largest and second largest load, then the
    first layer and the tiles of its last stage. Adding the same stage to two plans keeps the order
    of their two largest loads, so the best plan of a prefix is part of a best plan.
    """
    best = [{0: (0, 0, None, None)}]
    for t in range(1, tiles + 1):
        row = {}
        for r in range(1, t + 1 if replicate else 2):
            for before, (largest, second, _, _) in best[t - r].items():
                for last in range(before, count):
                    beaten = last + 1 in row and row[last + 1][0] < largest
                    if beaten or not fits(before, last):
                        continue
                    own = load(before, last, r)
                    top = max(own, largest)
                    plan = top, max(second, min(own, largest)), before, r
                    if last + 1 not in row or plan < row[last + 1]:
                        row[last + 1] = plan
        best.append(row)
    stages, t, n = [], tiles, count
    while n:
        if n not in best[t]:
            return None
        _, _, first, r = best[t][n]
        stages.append(((first, n - 1), r, load(first, n - 1, r)))
        t, n = t - r, first
    return Partition(*zip(*reversed(stages), strict=True))


def _advice(count, tiles, load, replicate, fits):
    """Why nothing fits, and the nearest number of tiles for which something does."""
    alone = [layer for layer in range(count) if not fits(layer, layer)]
    if alone:
        return (f"layer {alone[0]} does not fit a tile even alone: use smaller sub-minibatches, "
                "or a configuration with larger memories")
    for other in sorted(range(1, count + 1), key=lambda other: (abs(other - tiles), other)):
        found = _best(count, other, load, replicate, fits)
        if found:
            return (f"no partition of {count} layers into {tiles} stages fits; {other} tiles do: "
                    f"{found}")
    raise AssertionError("one layer a tile fits")
