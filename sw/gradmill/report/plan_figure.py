"""Picture of the order that a plan expects."""

from ..planner import OpKind, simulate
from ..timeline import Work
from .figures import draw_stages, legend
from .style import WORK_COLOURS, drawing


__all__ = ["colours", "plan_lanes", "plot_plan", "shown_lanes"]

_KINDS = {OpKind.F: Work.FORWARD, OpKind.B: Work.DATA_GRADIENT, OpKind.W: Work.WEIGHT_GRADIENT,
          OpKind.U: Work.UPDATE}
#: Virtual minibatches in the picture.
_SHOWN = 2


def colours():
    """:class:`Work` of a plan -> colour."""
    return {work: WORK_COLOURS[work] for work in _KINDS.values()}


def plan_lanes(simulation):
    """By tile: ``(work, sub-minibatch, start, end)`` of each operation."""
    lanes = [[] for _ in range(simulation.start[OpKind.F].shape[1])]
    for kind, work in _KINDS.items():
        starts, ends = simulation.start[kind], simulation.end[kind]
        for v in range(len(starts)):
            for tile, lane in enumerate(lanes):
                pairs = zip(starts[v, tile].reshape(-1), ends[v, tile].reshape(-1), strict=True)
                lane += [(work, -1 if kind is OpKind.U else sub, int(start), int(end))
                         for sub, (start, end) in enumerate(pairs) if end > start]
    return lanes


def shown_lanes(made, count):
    """:func:`plan_lanes` of ``count`` virtual minibatches: the first ones, or the time of as many
    from the middle of a schedule that does not drain."""
    if not made.delay:
        return plan_lanes(simulate(made.schedule, made.costs, virtual=count))
    simulation = simulate(made.schedule, made.costs)
    begin = int(simulation.start[OpKind.F][made.schedule.virtual // 2, 0, 0])
    end = begin + count * made.cycles
    return [[(work, sub, max(first, begin) - begin, min(last, end) - begin)
             for work, sub, first, last in lane if first < end and last > begin]
            for lane in plan_lanes(simulation)]


def plot_plan(made, path, task):
    """Write the picture of two virtual minibatches to ``path`` (.svg or .png); returns it."""
    lanes = shown_lanes(made, _SHOWN)
    last = max(end for lane in lanes for *_, end in lane)
    with drawing(10.5, 1.1 + 0.42 * len(lanes)) as (figure, axes):
        draw_stages(axes, lanes, 0, last, made.schedule.sub_minibatches)
        legend(axes, colours())
        axes.set_xlabel("cycles")
        axes.set_title(f"{task}: {made.schedule.name} as planned, B = {made.virtual_minibatch}, "
                       f"M = {made.sub_minibatch}", pad=6)
        figure.savefig(path, dpi=150, facecolor="white")
    return path
