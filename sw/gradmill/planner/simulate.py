"""When each operation of a schedule runs, cycle by cycle of its costs."""

from dataclasses import dataclass

import numpy as np

from ..data import positive
from .schedule import OpKind, global_order


__all__ = ["Simulation", "simulate"]


@dataclass(frozen=True)
class Simulation:
    """Times of all operations.

    Members
    -------
    start, end : dict
        :class:`OpKind` -> cycles, ``(virtual minibatches, tiles, sub-minibatches)``; for updates
        ``(virtual minibatches, tiles)``.
    makespan : int
        Cycles from the first start to the last end.
    busy : numpy.ndarray
        By tile: cycles in which it computes.
    waiting : numpy.ndarray
        By tile: cycles before its last end in which it waits for another tile.
    period : float
        Cycles per virtual minibatch in the second half of the run, by the tile that needs most.
    """

    start:    dict
    end:      dict
    makespan: int
    busy:     np.ndarray
    waiting:  np.ndarray
    period:   float


def simulate(schedule, costs, *, virtual=None):
    """Run ``schedule`` on tiles of the given :class:`Costs`; each operation starts as soon as its
    tile is free and what it waits for is there.

    Rows travel while tiles compute; a link carries one transfer at a time in each direction, in
    order, and has room for what has arrived. No barrier separates virtual minibatches: each tile
    goes on after its own update. Time and memory are linear in the number of operations.

    Parameters
    ----------
    schedule : Schedule
        What to run.
    costs : Costs
        Of as many tiles.
    virtual : int
        Virtual minibatches: 1 if not given. A schedule that covers several fixes it.
    """
    if costs.tiles != schedule.tiles:
        raise ValueError(f"costs are of {costs.tiles} tiles; the schedule has {schedule.tiles}")
    virtual = schedule.virtual if virtual is None else positive("virtual", virtual)
    if schedule.virtual > 1 and virtual != schedule.virtual:
        raise ValueError(f"virtual={virtual}; schedule {schedule.name!r} is of {schedule.virtual} "
                         "virtual minibatches")
    order = global_order(schedule)
    program = compile_program(schedule, order, costs)
    starts = run(program, costs, virtual // schedule.virtual)
    return _tabulate(schedule, order, program, starts)


def compile_program(schedule, order, costs):
    """The operations of ``order`` as tuples of integers: tile, cycles, number of the operation
    whose rows it waits for (one past the last for none), link that carries its own rows (-1 for
    none) and cycles that they occupy it."""
    tiles, m, none = schedule.tiles, schedule.sub_minibatches, len(order)
    total = m * schedule.virtual
    shapes = [(c.durations(), c.transfer) for c in (costs, costs.last)]
    forward, backward = [none] * (tiles * total), [none] * (tiles * total)
    program = []
    for index, (s, (kind, sub, v, _)) in enumerate(order):
        durations, transfers = shapes[sub == m - 1 and kind is not OpKind.U]
        needs, link, row = none, -1, s * total + v * m + sub
        if kind is OpKind.F:
            forward[row] = index
            if s:
                needs = forward[row - total]
            if s + 1 < tiles:
                link = s
        elif kind is OpKind.B:
            backward[row] = index
            if s + 1 < tiles:
                needs = backward[row + total]
            if s:
                link = tiles + s - 1
        transfer = transfers[link % tiles] if link >= 0 else 0
        program.append((s, durations[kind][s], needs, link, transfer))
    return program


def run(program, costs, repeat):
    """Start of every operation, ``repeat`` times through ``program``."""
    latency, free, wire = costs.latency, [0] * costs.tiles, [0] * (2 * costs.tiles)
    starts = []
    for _ in range(repeat):
        arrival = [0] * (len(program) + 1)
        for index, (s, cycles, needs, link, transfer) in enumerate(program):
            start = free[s]
            if arrival[needs] > start:
                start = arrival[needs]
            starts.append(start)
            free[s] = end = start + cycles
            if link >= 0:
                sent = wire[link]
                if end > sent:
                    sent = end
                wire[link] = sent = sent + transfer
                arrival[index] = sent + latency
    return starts


def _tabulate(schedule, order, program, starts):
    tiles, m, v = schedule.tiles, schedule.sub_minibatches, schedule.virtual
    cycles = np.array([entry[1] for entry in program])
    starts = np.array(starts).reshape(-1, len(order))
    ends = starts + cycles
    where = {kind: np.empty((v, tiles, m), int) for kind in OpKind}
    for index, (s, op) in enumerate(order):
        where[op.kind][op.virtual, s, op.sub] = index
    where[OpKind.U] = where[OpKind.U][:, :, 0]
    start, end = ({kind: times[:, index].reshape(-1, *index.shape[1:])
                   for kind, index in where.items()} for times in (starts, ends))
    busy = np.bincount([entry[0] for entry in program], cycles, tiles).astype(int) * len(starts)
    makespan = int(ends.max())
    return Simulation(start, end, makespan, busy, end[OpKind.U][-1] - busy,
                      _period(start[OpKind.F][:, :, 0], makespan))


def _period(begins, makespan):
    """Cycles per virtual minibatch from the starts ``(virtual minibatches, tiles)``."""
    last = len(begins) - 1
    middle = last // 2
    if not last:
        return float(makespan)
    return float((begins[last] - begins[middle]).max() / (last - middle))
