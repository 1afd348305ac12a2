"""List scheduling: every tile decides what to do next at the moment it becomes free."""

from dataclasses import dataclass
from heapq import heappop, heappush

from .schedule import OpKind


__all__ = ["Rules", "dispatch"]

_NEVER = 1 << 62


@dataclass(frozen=True)
class Rules:
    """How a free tile chooses.

    A data gradient goes first, because other tiles wait for it; then a forward; a weight gradient,
    for which nobody waits, fills what would be a bubble. But one that has begun delays rows that
    arrive meanwhile. So a tile rather waits for rows that are already on their way, as long as
    all its waiting in this virtual minibatch stays below its patience.

    Parameters
    ----------
    limits : sequence of int
        By tile: activation sets that it may hold.
    ahead : sequence of int
        By tile: forwards that it may be ahead of its data gradients.
    patience : sequence of int
        By tile: cycles.
    yields : bool
        Whether a forward, too, waits for a data gradient that is on its way.
    """

    limits:   tuple[int, ...]
    ahead:    tuple[int, ...]
    patience: tuple[int, ...]
    yields:   bool = False


def dispatch(costs, m, virtual, rules):
    """By tile: ``(kind, number)`` of its operations in the order in which it chose them, numbered
    as in :func:`~gradmill.planner.patterns.from_sequence`.

    It is the order of a run, so it is free of deadlock.
    """
    tiles, total = costs.tiles, m * virtual
    shapes = [(c.durations(), c.transfer) for c in (costs, costs.last)]
    # when the rows of each forward and data gradient arrive at each tile
    forward, backward = ([[_NEVER] * (total + 1) for _ in range(tiles)] for _ in range(2))
    forward[0] = [0] * total + [_NEVER]
    backward[tiles - 1] = [0] * total + [_NEVER]
    counts = [[0, 0, 0, 0] for _ in range(tiles)]
    free, waited, wire = [0] * tiles, [0] * tiles, [[0, 0] for _ in range(tiles)]
    orders = [[] for _ in range(tiles)]
    events = [(0, s) for s in range(tiles)]

    def send(arrivals, s, neighbour, direction, number, end):
        """Rows leave tile ``s`` at ``end``."""
        link = wire[min(s, neighbour)]
        transfer = shapes[number % m == m - 1][1][min(s, neighbour)]
        link[direction] = max(link[direction], end) + transfer
        arrivals[neighbour][number] = link[direction] + costs.latency
        heappush(events, (arrivals[neighbour][number], neighbour))

    while events:
        now, s = heappop(events)
        if free[s] > now:
            continue
        count = counts[s]
        begun = count[OpKind.B] < count[OpKind.F]
        rows = forward[s][count[OpKind.F]], backward[s][count[OpKind.B]] if begun else _NEVER
        patience = rules.patience[s] - waited[s] - (now - free[s])
        kind = _choose(s, now, count, rows, patience, costs, m, total, rules)
        if kind is None:
            continue
        number = count[kind] if kind is not OpKind.U else count[OpKind.W] - 1
        if kind is OpKind.U:
            waited[s] = 0
        elif count[OpKind.F] > count[OpKind.U] * m:
            waited[s] += now - free[s]
        orders[s].append((kind, number))
        count[kind] += 1
        last = number % m == m - 1 and kind is not OpKind.U
        free[s] = end = now + shapes[last][0][kind][s]
        if kind is OpKind.F and s + 1 < tiles:
            send(forward, s, s + 1, 0, number, end)
        elif kind is OpKind.B and s:
            send(backward, s, s - 1, 1, number, end)
        heappush(events, (end, s))
    return orders


def _choose(s, now, count, rows, patience, costs, m, total, rules):
    """Kind of the next operation of tile ``s``, ``None`` to wait. ``count`` holds how many of each
    kind it has begun, ``rows`` when those of the next forward and data gradient arrive."""
    (f, b, w, u), (forward, backward) = count, rows
    if w == (u + 1) * m:
        return OpKind.U
    if backward <= now:
        return OpKind.B
    if f >= min(total, (u + 1) * m) or f - w >= rules.limits[s] or f - b >= rules.ahead[s]:
        forward = _NEVER
    soon = backward - now
    if forward <= now and not (rules.yields and soon <= patience and soon < costs.forward[s]):
        return OpKind.F
    soon = min(soon, forward - now)
    if w < b and not (0 < soon <= patience and soon < costs.weight[s]):
        return OpKind.W
    return None
