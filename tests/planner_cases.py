"""Pipelines to schedule, and slow, obvious references."""

from itertools import pairwise
from math import ceil

from gradmill.planner import Costs, Op, OpKind, Schedule


def equal(tiles, forward=10, backward=10, weight=10, update=0):
    """Costs that are the same for every tile."""
    return Costs((forward,) * tiles, (backward,) * tiles, (weight,) * tiles, (update,) * tiles)


def unequal(rng, tiles, spread, *, links=True):
    """Every kind on every tile within ``spread`` of 100 cycles, independently."""
    low, high = round(100 * (1 - spread)), round(100 * (1 + spread))
    kinds = [tuple(rng.randint(low, high) for _ in range(tiles)) for _ in range(3)]
    update = tuple(rng.randint(0, 150) for _ in range(tiles))
    transfer = tuple(rng.randint(0, 30) for _ in range(tiles - 1)) if links else ()
    return Costs(*kinds, update, transfer, 5 if links else 0)


def partitioned(rng, tiles):
    """As a good partition leaves them: stages within 10 % of each other, the three products of a
    stage within 5 %, and less to do backward in the first stage."""
    stages = [rng.randint(90, 110) for _ in range(tiles)]
    forward, backward, weight = ([round(cycles * rng.uniform(0.95, 1.05)) for cycles in stages]
                                 for _ in range(3))
    backward[0] = round(backward[0] * rng.random())
    return Costs(tuple(forward), tuple(backward), tuple(weight),
                 tuple(rng.randint(0, 150) for _ in range(tiles)),
                 tuple(rng.randint(0, 30) for _ in range(tiles - 1)), 5)


def by_hand(*orders):
    """A schedule of one virtual minibatch from strings like ``"F0 B0 W0 U"``."""
    return Schedule("by hand", tuple(
        tuple(Op(OpKind[word[0]], int(word[1:] or 0)) for word in order.split())
        for order in orders))


def flush(tiles, m):
    """All forwards, then all backwards."""
    order = [f"F{j}" for j in range(m)] + [f"B{j} W{j}" for j in range(m)] + ["U"]
    return by_hand(*[" ".join(order)] * tiles)


def random_order(rng, tiles, m):
    """A schedule in which tiles take turns at random with whatever they may do."""
    count = [[0] * 4 for _ in range(tiles)]
    orders = [[] for _ in range(tiles)]

    def may(s, kind):
        f, b, w, u = count[s]
        if kind == "F":
            return f < m and (not s or count[s - 1][0] > f)
        if kind == "B":
            return b < f and (s == tiles - 1 or count[s + 1][1] > b)
        return w < b if kind == "W" else w == m and not u

    while choices := [(s, kind) for s in range(tiles) for kind in "FBWU" if may(s, kind)]:
        s, kind = rng.choice(choices)
        number = count[s]["FBWU".index(kind)]
        count[s]["FBWU".index(kind)] += 1
        orders[s].append(f"{kind}{number}")
    return by_hand(*map(" ".join, orders))


def slow_starts(schedule, costs, virtual):
    """Start of every operation, ``(kind, virtual minibatch, tile, sub) -> cycle``, by repeating the
    rules until nothing changes."""
    m, tiles = schedule.sub_minibatches, schedule.tiles
    whole = (costs.forward, costs.backward, costs.weight, costs.update)

    def cut(cycles, sub, kind=None):
        short = sub == m - 1 and kind is not OpKind.U
        return ceil(cycles * costs.tail) if short else cycles

    def cycles(kind, s, sub):
        return cut(whole[kind][s], sub, kind)

    rounds = 1 if schedule.virtual > 1 else virtual
    tile = [[(op.kind, v + op.virtual, s, op.sub) for v in range(rounds) for op in order]
            for s, order in enumerate(schedule.orders)]
    start = {op: 0 for order in tile for op in order}
    before = {b: a for order in tile for a, b in pairwise(order)}

    def end(op):
        kind, _, s, sub = op
        return start[op] + cycles(kind, s, sub)

    def arrival(op):
        """Of the rows of ``op`` at its neighbour; transfers of a link are in order."""
        kind, _, s, _ = op
        link = s if kind is OpKind.F else s - 1
        sent = 0
        for earlier in sorted(o for o in start if o[0] is kind and o[2] == s and o <= op):
            sent = max(sent, end(earlier)) + cut(costs.transfer[link], earlier[3])
        return sent + costs.latency

    changed = True
    while changed:
        changed = False
        for op in start:
            kind, v, s, sub = op
            wanted = end(before[op]) if op in before else 0
            if kind is OpKind.F and s:
                wanted = max(wanted, arrival((kind, v, s - 1, sub)))
            if kind is OpKind.B and s + 1 < tiles:
                wanted = max(wanted, arrival((kind, v, s + 1, sub)))
            if wanted > start[op]:
                start[op], changed = wanted, True
    return start
