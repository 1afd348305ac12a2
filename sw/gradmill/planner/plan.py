"""Everything that is decided before a pipelined training: stages, schedule, predicted cycles."""

from dataclasses import dataclass
from fractions import Fraction

from gradmill_hw.config import ConfigError

from ..data import positive
from .costs import Costs, period_bound
from .partition import Partition, partition
from .patterns import one_f_one_b, sequential
from .schedule import Schedule, bound
from .search import no_drain, zero_bubble
from .simulate import simulate


__all__ = ["Plan", "make_schedule", "plan"]

#: Virtual minibatches that are simulated.
_VIRTUAL = 8


@dataclass(frozen=True)
class Plan:
    """A pipeline for a network.

    Members
    -------
    partition : Partition
        Layers of each tile.
    costs : Costs
        Cycles of each tile.
    schedule : Schedule
        Order of each tile.
    virtual_minibatch, sub_minibatch : int
        B and M, samples.
    cycles : int
        Predicted cycles per virtual minibatch in steady state.
    makespan : int
        Predicted cycles of the virtual minibatches that the schedule covers (one, if it drains),
        from an empty pipeline to an empty pipeline.
    bound : int
        :func:`~gradmill.planner.costs.period_bound` for the sets that the schedule uses.
    bubble : float
        Share of the tiles' cycles in which they wait, in steady state.
    sets : tuple of int
        By tile: activation sets.
    rows : tuple of int
        By tile: rows of memory; ``None`` if not known.
    """

    partition:         Partition
    costs:             Costs
    schedule:          Schedule
    virtual_minibatch: int
    sub_minibatch:     int
    cycles:            int
    makespan:          int
    bound:             int
    bubble:            float
    sets:              tuple[int, ...]
    rows:              tuple[int, ...] | None

    def table(self):
        """One dict per tile: its layers, cycles of a sub-minibatch, busy share, sets, rows."""
        m, costs = self.schedule.sub_minibatches, self.costs
        return [{
            "tile": s, "layers": f"{first}-{last}" if last > first else f"{first}",
            "forward": costs.forward[s], "backward": costs.backward[s],
            "weight": costs.weight[s], "update": costs.update[s],
            "busy": work / self.cycles, "sets": self.sets[s],
            "rows": self.rows[s] if self.rows else None,
        } for s, ((first, last), work) in enumerate(
            zip(self.partition.stages, costs.work(m), strict=True))]

    def as_dict(self):
        """Plain data for a report; the orders are not part of it."""
        return {
            "schedule": self.schedule.name, "tiles": self.schedule.tiles,
            "virtual_minibatch": self.virtual_minibatch, "sub_minibatch": self.sub_minibatch,
            "sub_minibatches": self.schedule.sub_minibatches,
            "stages": [list(stage) for stage in self.partition.stages],
            "loads": list(self.partition.loads), "bottleneck": self.partition.bottleneck,
            "cycles": self.cycles, "makespan": self.makespan, "bound": self.bound,
            "bubble": self.bubble, "sets": list(self.sets),
            "rows": list(self.rows) if self.rows else None,
        }


def make_schedule(name, costs, m, *, virtual=_VIRTUAL, limits=None):
    """The schedule called ``name``: sequential, 1f1b, zero-bubble or no-drain.

    ``limits`` are the activation sets that each tile has room for; ``virtual`` the virtual
    minibatches that a schedule which does not drain covers.
    """
    bound(name, 0, costs.tiles)
    if name == "sequential":
        return sequential(costs.tiles, m)
    if name == "1f1b":
        return one_f_one_b(costs.tiles, m, limits)
    if name == "zero-bubble":
        return zero_bubble(costs, m, limits)
    return no_drain(costs, m, virtual, limits)


def plan(profile, tiles, schedule="zero-bubble", *, virtual_minibatch, sub_minibatch,
         virtual=_VIRTUAL, rows=None, capacity=None):
    """The fastest :class:`Plan` that fits.

    Parameters
    ----------
    profile : Profile
        Of the network, at the same ``sub_minibatch``.
    tiles : int
        Tiles, one for each stage.
    schedule : str
        ``"sequential"``, ``"1f1b"``, ``"zero-bubble"`` or ``"no-drain"``.
    virtual_minibatch, sub_minibatch : int
        B and M, samples; M need not divide B.
    virtual : int
        Virtual minibatches that a schedule which does not drain covers.
    rows : callable
        ``rows(first, last, sets, versions)``: rows of memory that a tile needs for these layers
        with so many activation sets and versions of the weights.
    capacity : int
        Rows that a tile has. Where fewer sets fit than the schedule could use, it has fewer.
    """
    size = positive("virtual_minibatch", virtual_minibatch)
    sub = positive("sub_minibatch", sub_minibatch)
    if sub > size:
        raise ValueError(f"sub_minibatch={sub} is larger than virtual_minibatch={size}; use "
                         "1 <= sub_minibatch <= virtual_minibatch")
    if sub != profile.sub_minibatch:
        raise ValueError(f"the profile is of sub-minibatches of {profile.sub_minibatch} samples, "
                         f"not {sub}; profile with sub_minibatch={sub}")
    tiles, m = positive("tiles", tiles), -(-size // sub)
    tail = Fraction(size % sub or sub, sub)
    versions = 2 if schedule == "no-drain" else 1
    most = bound(schedule, 0, tiles)
    found = []
    while most:
        fits = None if rows is None or capacity is None else (
            lambda first, last, sets=most: rows(first, last, sets, versions) <= capacity)
        try:
            stages = partition(profile, tiles, sub_minibatches=m, fits=fits)
        except ConfigError:
            if most == 1 and not found:
                raise
        else:
            if stages not in [other.partition for other in found]:
                found.append(_complete(profile, stages, schedule, m, tail, virtual, size, sub,
                                       rows, capacity, versions))
        most = most // 2 if fits else 0
    return min(found, key=lambda candidate: candidate.cycles)


def _complete(profile, stages, name, m, tail, virtual, size, sub, rows, capacity, versions):
    """The :class:`Plan` for given stages."""
    costs = stages.costs(profile, tail=tail)
    limits = [bound(name, s, costs.tiles) for s in range(costs.tiles)]
    if rows is not None and capacity is not None:
        limits = [max((k for k in range(1, limit + 1)
                       if rows(first, last, k, versions) <= capacity), default=1)
                  for limit, (first, last) in zip(limits, stages.stages, strict=True)]
    schedule = make_schedule(name, costs, m, virtual=virtual, limits=limits)
    sets = tuple(schedule.sets(s) for s in range(costs.tiles))
    steady = schedule.virtual if schedule.virtual > 1 else _VIRTUAL
    cycles = max(1, round(simulate(schedule, costs, virtual=steady).period))
    return Plan(
        partition=stages, costs=costs, schedule=schedule, virtual_minibatch=size,
        sub_minibatch=sub, cycles=cycles, makespan=simulate(schedule, costs).makespan,
        bound=period_bound(costs, m, sets, versions=versions),
        bubble=1 - sum(costs.work(m)) / (costs.tiles * cycles), sets=sets,
        rows=tuple(rows(first, last, held, versions) for (first, last), held in
                   zip(stages.stages, sets, strict=True)) if rows else None)
