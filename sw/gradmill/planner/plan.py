"""Everything that is decided before a pipelined training: stages, schedule, predicted cycles."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from ..data import minibatch_sizes, positive
from .costs import Costs, period_bound
from .partition import Partition, partition
from .patterns import one_f_one_b, sequential
from .profile import Profile
from .schedule import OpKind, Schedule, bound, delay, global_order
from .search import no_drain, zero_bubble
from .simulate import simulate


__all__ = ["Plan", "make_plan", "make_schedule"]

#: Virtual minibatches that are simulated.
_VIRTUAL = 8


@dataclass(frozen=True)
class Plan:
    """A pipeline for a network: what a trainer needs to know, and what to expect of it.

    Members
    -------
    partition : Partition
        Layers of each tile.
    costs : Costs
        Cycles of each tile that the schedule was made for.
    schedule : Schedule
        Order of each tile.
    virtual_minibatch, sub_minibatch : int
        B and M, samples.
    profile : Profile or None
        Cycles of each layer that the partition was made for; one tile needs none.
    """

    partition:         Partition
    costs:             Costs
    schedule:          Schedule
    virtual_minibatch: int
    sub_minibatch:     int
    profile:           Profile | None

    @property
    def spans(self):
        """First and last layer of each tile."""
        return self.partition.stages

    @property
    def order(self):
        """``(tile, operation, sub-minibatch)`` in the order in which they are expected to end;
        sub-minibatches are numbered through all virtual minibatches that the schedule covers."""
        simulation = simulate(self.schedule, self.costs)
        operations = [(s, op) for s, op in global_order(self.schedule) if op.kind is not OpKind.U]
        ends = [int(simulation.end[op.kind][op.virtual, s, op.sub]) for s, op in operations]
        ordered = sorted(range(len(operations)), key=ends.__getitem__)
        m = self.schedule.sub_minibatches
        return [(s, op.kind.name, op.virtual * m + op.sub)
                for s, op in map(operations.__getitem__, ordered)]

    @property
    def delay(self):
        """Updates that its weights are behind those of minibatch SGD, 0 or 1."""
        return delay(self.schedule.name)

    @property
    def limits(self):
        """Activation sets that each tile may hold: in schedules that keep several, one more than
        the order needs, so that instructions of different operations can be interleaved."""
        name, tiles = self.schedule.name, self.schedule.tiles
        if tiles == 1:
            return [2]
        more = name == "zero-bubble"
        return [min(sets + more, bound(name, s, tiles)) for s, sets in enumerate(self.sets)]

    @cached_property
    def cycles(self):
        """Cycles per virtual minibatch, expected in steady state."""
        virtual = self.schedule.virtual if self.schedule.virtual > 1 else _VIRTUAL
        return max(1, round(simulate(self.schedule, self.costs, virtual=virtual).period))

    @cached_property
    def makespan(self):
        """Expected cycles of the virtual minibatches that the schedule covers (one, if it drains),
        from an empty pipeline to an empty pipeline."""
        return simulate(self.schedule, self.costs).makespan

    @property
    def bound(self):
        """:func:`~gradmill.planner.costs.period_bound` for the sets that the schedule uses."""
        return period_bound(self.costs, self.schedule.sub_minibatches, self.sets,
                            versions=1 + self.delay)

    @property
    def bubble(self):
        """Share of the tiles' cycles in steady state in which a tile waits for another."""
        work = sum(self.costs.work(self.schedule.sub_minibatches))
        return 1 - work / (self.costs.tiles * self.cycles)

    @property
    def sets(self):
        """By tile: activation sets."""
        return tuple(self.schedule.sets(s) for s in range(self.costs.tiles))

    def table(self):
        """One dict per tile: its layers, cycles of a sub-minibatch, busy share, sets."""
        m, costs = self.schedule.sub_minibatches, self.costs
        return [{
            "tile": s, "layers": f"{first}-{last}" if last > first else f"{first}",
            "forward": costs.forward[s], "backward": costs.backward[s],
            "weight": costs.weight[s], "update": costs.update[s],
            "busy": work / self.cycles, "sets": self.sets[s],
        } for s, ((first, last), work) in enumerate(
            zip(self.spans, costs.work(m), strict=True))]

    def as_dict(self):
        """Plain data for a report; the orders are not part of it."""
        return {
            "schedule": self.schedule.name, "tiles": self.schedule.tiles,
            "virtual_minibatch": self.virtual_minibatch, "sub_minibatch": self.sub_minibatch,
            "sub_minibatches": self.schedule.sub_minibatches,
            "stages": [list(stage) for stage in self.spans],
            "cycles": self.cycles, "makespan": self.makespan, "bound": self.bound,
            "bubble": self.bubble, "table": self.table(),
            "bounds": [bound(self.schedule.name, s, self.schedule.tiles)
                       for s in range(self.schedule.tiles)],
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


def make_plan(profile, tiles, schedule="zero-bubble", *, virtual_minibatch, sub_minibatch,
              virtual=_VIRTUAL, fits=None, limits=None):
    """The :class:`Plan` for a network of which the profile is known.

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
    fits : callable
        ``fits(first, last)`` tells whether one tile has the memory for these layers.
    limits : sequence of int
        By tile: activation sets that there is room for; the bounds of the schedule hold anyway.
    """
    size, sub = minibatch_sizes(virtual_minibatch, sub_minibatch)
    if sub != profile.sub_minibatch:
        raise ValueError(f"the profile is of sub-minibatches of {profile.sub_minibatch} samples, "
                         f"not {sub}; profile with sub_minibatch={sub}")
    tiles, m = positive("tiles", tiles), -(-size // sub)
    own = [bound(schedule, s, tiles) for s in range(tiles)]
    limits = own if limits is None else [min(pair) for pair in zip(own, limits, strict=True)]
    stages = partition(profile, tiles, sub_minibatches=m, fits=fits)
    costs = _without_data_gradient(stages.costs(profile, tail=Fraction(size % sub or sub, sub)))
    order = make_schedule(schedule, costs, m, virtual=virtual, limits=limits)
    return Plan(stages, costs, order, size, sub, profile)


def _without_data_gradient(costs):
    """The first tile computes data gradients along with those of weights: nobody waits for them."""
    return replace(costs, backward=(0, *costs.backward[1:]),
                   weight=(costs.weight[0] + costs.backward[0], *costs.weight[1:]))
