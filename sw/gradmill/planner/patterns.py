"""Orders that two numbers per tile describe."""

from itertools import accumulate

from ..data import positive
from .schedule import Op, OpKind, Schedule, delay


__all__ = ["from_sequence", "lengthen", "one_f_one_b", "pattern", "sequential", "staircase"]


def sequential(tiles, m):
    """One sub-minibatch at a time through all tiles: one activation set, a pipeline of one."""
    tiles, m = positive("tiles", tiles), positive("m", m)
    return pattern("sequential", m, [1] * tiles, [0] * tiles)


def one_f_one_b(tiles, m, limits=None):
    """1F1B: tile s of p runs p - s forwards ahead, then alternates backward (B and at once W) and
    forward; at most p - s activation sets (PipeDream, US12056604B2), or ``limits[s]`` if fewer."""
    tiles, m = positive("tiles", tiles), positive("m", m)
    ahead = staircase([tiles - s for s in range(tiles)], limits or [m] * tiles)
    return pattern("1f1b", m, ahead, [0] * tiles)


def staircase(ahead, limits):
    """``ahead``, nowhere above ``limits`` and not growing from tile to tile."""
    return list(accumulate(map(min, ahead, limits), min))


def pattern(name, m, ahead, lag, *, virtual=1):
    """Schedule of ``virtual`` virtual minibatches of ``m`` sub-minibatches without a gap.

    Tile s starts with ``ahead[s]`` forwards; then each step is a data gradient, the weight gradient
    that is ``lag[s]`` behind it and, while there are any, the next forward; then come the weight
    gradients that are left. So it holds at most ``ahead[s] + lag[s]`` activation sets. An update
    follows the last weight gradient of its virtual minibatch.

    For freedom from deadlock ``ahead`` must not grow from tile to tile: F(s, j) needs F(s-1, j),
    which follows B(s-1, j-ahead[s-1]), which needs B(s, j-ahead[s-1]); and that comes before
    F(s, j) in tile s as ``ahead[s] <= ahead[s-1]``.
    """
    total = m * virtual
    orders = []
    for first, behind in zip(ahead, lag, strict=True):
        order, done = [(OpKind.F, g) for g in range(min(first, total))], 0
        for g in range(total):
            order.append((OpKind.B, g))
            until = total if g == total - 1 else g + 1 - behind
            for w in range(done, until):
                order.append((OpKind.W, w))
                if w % m == m - 1:
                    order.append((OpKind.U, w))
            done = max(done, until)
            if g + first < total:
                order.append((OpKind.F, g + first))
        orders.append(order)
    return from_sequence(name, m, orders)


def lengthen(schedule, extra, reach=(1, 0)):
    """``schedule``, of one virtual minibatch, for ``extra`` more sub-minibatches.

    Tile s of p repeats one data gradient, one weight gradient and one forward as often; it does so
    after the last forward that brings it factor (p - s) + more ahead, ``reach`` being ``(factor,
    more)``, or after its last. It holds as many activation sets as before.
    """
    m, tiles, orders = schedule.sub_minibatches + extra, schedule.tiles, []
    factor, more = reach
    for s, order in enumerate(schedule.orders):
        kinds = [op.kind for op in order]
        count, last, at = [0] * len(OpKind), 0, 0
        for index, kind in enumerate(kinds, 1):
            count[kind] += 1
            if kind is OpKind.F:
                last = index
                if count[OpKind.F] - count[OpKind.B] >= factor * (tiles - s) + more:
                    at = index
        at = at or last
        kinds[at:at] = [OpKind.B, OpKind.W, OpKind.F] * extra
        count, longer = [0] * len(OpKind), []
        for kind in kinds:
            longer.append((kind, m - 1 if kind is OpKind.U else count[kind]))
            count[kind] += 1
        orders.append(longer)
    return from_sequence(schedule.name, m, orders)


def from_sequence(name, m, orders):
    """A :class:`Schedule` from ``(kind, number)`` pairs by tile, sub-minibatches being numbered
    through all virtual minibatches (an update has the number of the last of its own); adds the
    versions of the weights."""
    known, schedule, behind = {}, [], delay(name)
    for order in orders:
        ops = []
        for kind, number in order:
            if (kind, number) not in known:
                virtual, sub = divmod(number, m)
                known[kind, number] = (
                    Op(OpKind.U, 0, virtual, virtual) if kind == OpKind.U else
                    Op(OpKind(kind), sub, virtual, max(0, virtual - behind)))
            ops.append(known[kind, number])
        schedule.append(tuple(ops))
    return Schedule(name, tuple(schedule))
