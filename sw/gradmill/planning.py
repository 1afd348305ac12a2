"""From a network and a device to a pipeline: which tile computes what, and in which order."""

from dataclasses import dataclass, replace
from functools import cached_property

from gradmill_hw.config import ConfigError, get_config

from .nn import SGD, CrossEntropy
from .planner.costs import Costs
from .planner.partition import partition
from .planner.patterns import one_f_one_b, sequential
from .planner.profile import Profile
from .planner.schedule import OpKind, Schedule, bound, global_order
from .planner.search import zero_bubble
from .planner.simulate import simulate
from .profiler import profile


__all__ = ["SCHEDULES", "Pipeline", "plan"]

#: Schedules that drain at the end of a virtual minibatch, so that training is exact.
SCHEDULES = {
    "sequential":  lambda costs, m: sequential(costs.tiles, m),
    "1f1b":        lambda costs, m: one_f_one_b(costs.tiles, m),
    "zero-bubble": zero_bubble,
}


@dataclass(frozen=True)
class Pipeline:
    """What a trainer needs to know, and what to expect of it.

    Members
    -------
    spans : tuple of (int, int)
        First and last stage of the network on each tile.
    schedule : Schedule
        Operations of each tile for one virtual minibatch.
    costs : Costs
        Cycles of each tile that the schedule was made for.
    profile : Profile or None
        Cycles of each layer that the spans were made for; one tile needs none.
    """

    spans:    tuple
    schedule: Schedule
    costs:    Costs
    profile:  Profile | None

    @property
    def order(self):
        """``(tile, operation, sub-minibatch)`` in the order in which they are expected to end."""
        simulation = simulate(self.schedule, self.costs)
        operations = [(s, op) for s, op in global_order(self.schedule) if op.kind is not OpKind.U]
        ends = [int(simulation.end[op.kind][op.virtual, s, op.sub]) for s, op in operations]
        ordered = sorted(range(len(operations)), key=ends.__getitem__)
        return [(operations[k][0], operations[k][1].kind.name, operations[k][1].sub)
                for k in ordered]

    @property
    def limits(self):
        """Activation sets that each tile may hold: in schedules that keep several, one more than
        the order needs, so that instructions of different operations can be interleaved."""
        schedule, tiles = self.schedule, len(self.spans)
        if tiles == 1:
            return [2]
        more = schedule.name == "zero-bubble"
        return [min(schedule.sets(s) + more, bound(schedule.name, s, tiles))
                for s in range(tiles)]

    @cached_property
    def cycles(self):
        """Cycles per virtual minibatch, expected in steady state."""
        return simulate(self.schedule, self.costs, virtual=6).period

    @property
    def bubble(self):
        """Share of the tiles' cycles in steady state in which a tile waits for another."""
        work = sum(self.costs.work(self.schedule.sub_minibatches))
        return 1 - work / (len(self.spans) * self.cycles)


def plan(model, config="sim", *, virtual_minibatch, sub_minibatch, tiles=None, schedule=None,
         loss=None, optimizer=None, measured=None):
    """The :class:`Pipeline` for training ``model``.

    Parameters
    ----------
    model : Sequential
        Network.
    config : Config or str
        Sizes of the device.
    virtual_minibatch, sub_minibatch : int
        B and M.
    tiles : int
        Tiles to use; by default all of the device, at most one for each ``Linear``.
    schedule : str
        ``"sequential"``, ``"1f1b"`` or ``"zero-bubble"`` (default with several tiles). The result
        of training is the same, bit for bit.
    measured : Profile
        Costs of the layers; by default those of the cycle model.
    """
    config = get_config(config)
    layers, most = len(model.stages), config.tiles
    tiles = min(layers, most) if tiles is None else tiles
    schedule = schedule or ("zero-bubble" if tiles > 1 else "sequential")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}; use one of {', '.join(SCHEDULES)}")
    if not isinstance(tiles, int) or not 1 <= tiles <= most:
        raise ValueError(f"tiles={tiles!r}: configuration {config.name!r} has {most}; choose 1 to "
                         f"{min(layers, most)}, or a Config with more tiles")
    if tiles > layers:
        raise ConfigError(f"tiles={tiles}, but the network has only {layers} Linear layers, and a "
                          f"tile computes at least one; use tiles={layers} or fewer")
    m = -(-virtual_minibatch // sub_minibatch)
    if tiles == 1 and measured is None:
        costs = Costs(forward=(1,), backward=(0,), weight=(1,))
        return Pipeline(((0, layers - 1),), sequential(1, m), costs, None)
    measured = measured or profile(model, config, sub_minibatch, loss or CrossEntropy(),
                                   optimizer or SGD(lr=0.1, momentum=0.9))
    parts = partition(measured, tiles, sub_minibatches=m)
    costs = _lazy(parts.costs(measured))
    return Pipeline(parts.stages, SCHEDULES[schedule](costs, m), costs, measured)


def _lazy(costs):
    """The first tile computes data gradients along with those of weights: nobody waits for them."""
    return replace(costs, backward=(0, *costs.backward[1:]),
                   weight=(costs.weight[0] + costs.backward[0], *costs.weight[1:]))
