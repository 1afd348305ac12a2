"""Shortens the period of a schedule by exchanging operations on its critical path."""

from operator import itemgetter
from random import Random

from .schedule import OpKind, Schedule, global_order
from .simulate import compile_program, run


__all__ = ["refine"]

#: Virtual minibatches of a run, and operations that all runs together may have.
_REPEAT, _EFFORT = 4, 2_000_000


def refine(schedule, costs, limits, target, distance):
    """From ``schedule``, which covers one virtual minibatch, to ones with a shorter period.

    Neighbours in the order of a tile are exchanged where one waits for the other on the critical
    path, for nothing else can shorten the period; an exchange stays if the period does not grow.
    No tile gets more activation sets than its limit. Ends at ``target`` cycles, or when a fixed
    effort is spent. Of the schedules on this way, each shorter than those before, that with the
    least ``distance(schedule)`` is returned, as ``(distance, schedule)``. Equal arguments give
    equal results.
    """
    orders = [list(order) for order in schedule.orders]
    tries = _EFFORT // (_REPEAT * sum(map(len, orders)))
    random = Random(0)
    current, critical = _measure(orders, costs)
    best, result = current, (distance(schedule), schedule)
    done = set()
    while tries > 0 and best > target:
        pairs = [(s, at) for s, at in sorted(critical)
                 if (s, *orders[s][at - 1:at + 1]) not in done and _legal(orders[s], at, limits[s])]
        if not pairs:
            break
        random.shuffle(pairs)
        for s, at in pairs[:tries]:
            order = orders[s]
            done.add((s, *order[at - 1:at + 1]))
            order[at - 1:at + 1] = order[at], order[at - 1]
            tries -= 1
            period, path = _measure(orders, costs)
            if period <= current:
                break
            order[at - 1:at + 1] = order[at], order[at - 1]
        else:
            continue
        if period < best:
            best = period
            found = Schedule(schedule.name, tuple(map(tuple, orders)))
            result = min(result, (distance(found), found), key=itemgetter(0))
            done.clear()
        current, critical = period, path
    return result


def _legal(order, at, limit):
    """Whether the operations at ``at - 1`` and ``at`` may change places."""
    first, second = order[at - 1:at + 1]
    if first.kind is second.kind or OpKind.U in (first.kind, second.kind):
        return False
    if first.sub == second.sub and second.kind == first.kind + 1:
        return False
    if first.kind is OpKind.W and second.kind is OpKind.F:
        kinds = [op.kind for op in order[:at - 1]]
        return kinds.count(OpKind.F) - kinds.count(OpKind.W) < limit
    return True


def _measure(orders, costs):
    """The period, and where the critical path goes from an operation to the next in the order of
    the same tile: pairs of tile and position of the latter."""
    schedule = Schedule("", orders)
    try:
        program = compile_program(schedule, global_order(schedule), costs)
    except ValueError:
        return float("inf"), set()
    starts, size = run(program, costs, _REPEAT), len(program)
    before, position = [], []
    first, last, count = [0] * costs.tiles, [-1] * costs.tiles, [0] * costs.tiles
    for index, (s, *_) in enumerate(program):
        if not count[s]:
            first[s] = index
        before.append(last[s])
        position.append(count[s])
        last[s], count[s] = index, count[s] + 1
    v, middle = _REPEAT - 1, (_REPEAT - 1) // 2
    growth, index = max((starts[v * size + index] - starts[middle * size + index], index)
                        for index in first)
    path = set()
    while v >= middle:
        s, _, needs, _, _ = program[index]
        previous, earlier = (last[s], v - 1) if before[index] < 0 else (before[index], v)
        if starts[v * size + index] > starts[earlier * size + previous] + program[previous][1]:
            index = needs
            continue
        if earlier == v:
            path.add((s, position[index]))
        index, v = previous, earlier
    return growth / (_REPEAT - 1 - middle), path
