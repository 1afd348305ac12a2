"""What each tile does, in which order; how many activation sets that takes; that it cannot hang.

The operations of tile s on sub-minibatch j and what they wait for besides the tile itself:

========  =======================  =======================================
F(s, j)   forward                  F(s-1, j), whose output rows are its input
B(s, j)   data gradient            B(s+1, j), whose rows are its output gradient; and F(s, j)
W(s, j)   weight gradients         B(s, j): by then the output gradients of all its layers are there
U(s)      optimizer step           W(s, last)
========  =======================  =======================================

F, B and W are each in ascending order of sub-minibatches in every tile: gradients are added up in
the same order as without a pipeline, so the sums have the same bits.
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple


__all__ = ["Op", "OpKind", "Schedule", "bound", "delay", "global_order", "validate"]


class OpKind(IntEnum):
    """Kind of operation: forward, data gradient (backward), weight gradient, update."""
    F = 0
    B = 1
    W = 2
    U = 3


class Op(NamedTuple):
    """One operation of a tile.

    Members
    -------
    kind : OpKind
        What is computed.
    sub : int
        Sub-minibatch within its virtual minibatch; 0 for an update.
    virtual : int
        Virtual minibatch.
    version : int
        Version of the weights that it uses, that is the number of updates they have seen: with that
        of its virtual minibatch, or the one before if the schedule does not drain. An update starts
        from the version of its virtual minibatch and makes the next one.
    """

    kind:    OpKind
    sub:     int = 0
    virtual: int = 0
    version: int = 0


@dataclass(frozen=True)
class Schedule:
    """An order for every tile.

    Parameters
    ----------
    name : str
        ``"sequential"``, ``"1f1b"``, ``"zero-bubble"``, ``"no-drain"``, or anything for an order
        made by hand.
    orders : tuple of tuple of Op
        By tile. A schedule that drains covers one virtual minibatch and is repeated for each; one
        that does not covers several, from an empty pipeline to an empty pipeline.
    """

    name:   str
    orders: tuple[tuple[Op, ...], ...]

    @property
    def tiles(self):
        """Tiles of the pipeline."""
        return len(self.orders)

    @cached_property
    def sub_minibatches(self):
        """Sub-minibatches of a virtual minibatch, m."""
        return 1 + max(op.sub for op in self.orders[0])

    @cached_property
    def virtual(self):
        """Virtual minibatches that the orders cover."""
        return 1 + max(op.virtual for op in self.orders[0])

    @cached_property
    def _sets(self):
        return tuple(_most_alive(order) for order in self.orders)

    def sets(self, tile):
        """Most activation sets that ``tile`` holds at a time: one is alive from the start of its
        F to the end of its W."""
        return self._sets[tile]


def _most_alive(order):
    alive = most = 0
    for op in order:
        if op.kind is OpKind.F:
            alive += 1
            most = max(most, alive)
        elif op.kind is OpKind.W:
            alive -= 1
    return most


_BOUNDS = {
    "sequential":  lambda tile, tiles: 1,
    "1f1b":        lambda tile, tiles: tiles - tile,
    "zero-bubble": lambda tile, tiles: 2 * tiles - 1,
    "no-drain":    lambda tile, tiles: 2 * (tiles - tile),
}


def bound(name, tile, tiles):
    """Activation sets that tile number ``tile`` of ``tiles`` may hold under schedule ``name``,
    however many sub-minibatches there are."""
    if name not in _BOUNDS:
        raise ValueError(f"unknown schedule {name!r}; use one of {', '.join(_BOUNDS)}")
    return _BOUNDS[name](tile, tiles)


def delay(name):
    """Updates that the weights of a virtual minibatch are behind those of minibatch SGD."""
    return int(name == "no-drain")


def global_order(schedule):
    """One order of all operations, as a list of ``(tile, Op)``.

    Every operation comes after everything it waits for, and every tile's operations are in its own
    order. The list depends on nothing but the schedule.

    Programs written along this list cannot hang on the links, even if a transfer needs its sender
    and its receiver at the same time and the links hold nothing. Place the send and the receive of
    the rows of an operation next to each other, just before that operation, each in the program of
    its tile. Take the first entry of the list that has not finished. What it waits for lies ahead
    of it and has finished; so has everything ahead of it in the queues of its tile, in-order
    queues, and if it is half of a transfer, ahead of the other half in the queue of the neighbour.
    So it can go on, and with it the whole list.

    Raises :class:`ValueError`, naming what each stuck tile waits for, if there is no such order.
    """
    orders = schedule.orders
    tiles = len(orders)
    position, forward, backward = [0] * tiles, [0] * tiles, [0] * tiles
    found, ready, queued = [], deque(range(tiles)), [True] * tiles
    while ready:
        s = ready.popleft()
        queued[s] = False
        order, at = orders[s], position[s]
        while at < len(order):
            op = order[at]
            if op.kind is OpKind.F:
                if s and forward[s - 1] <= forward[s]:
                    break
                forward[s] += 1
            elif op.kind is OpKind.B:
                if forward[s] <= backward[s] or (s + 1 < tiles and backward[s + 1] <= backward[s]):
                    break
                backward[s] += 1
            found.append((s, op))
            at += 1
        if at > position[s]:
            position[s] = at
            for other in (s - 1, s + 1):
                if 0 <= other < tiles and not queued[other]:
                    queued[other] = True
                    ready.append(other)
    stuck = [f"tile {s} at {_name(orders[s][position[s]])}"
             for s in range(tiles) if position[s] < len(orders[s])]
    if stuck:
        raise ValueError(f"schedule {schedule.name!r} cannot go on: {', '.join(stuck)}")
    return found


def _name(op):
    return f"{op.kind.name}({op.sub}) of virtual minibatch {op.virtual}"


def validate(schedule):
    """Raise :class:`ValueError` unless the schedule is complete, in order and free of deadlock.

    In every tile each virtual minibatch has one F, B and W of each sub-minibatch and one U; each
    kind is in ascending order; F follows the update that makes its version of the weights, B its F,
    W its B, and U all W of its virtual minibatch. :func:`global_order` finds an order.
    """
    m, virtual = schedule.sub_minibatches, schedule.virtual
    subs = [(v, j) for v in range(virtual) for j in range(m)]
    expected = {OpKind.F: subs, OpKind.B: subs, OpKind.W: subs,
                OpKind.U: [(v, 0) for v in range(virtual)]}
    for s, order in enumerate(schedule.orders):
        for kind, wanted in expected.items():
            if [(op.virtual, op.sub) for op in order if op.kind is kind] != wanted:
                raise ValueError(f"tile {s}: the {kind.name} must be of every sub-minibatch 0 to "
                                 f"{m - 1} of virtual minibatches 0 to {virtual - 1}, in order")
        _validate_tile(s, order, m, delay(schedule.name))
    global_order(schedule)


def _validate_tile(tile, order, m, behind):
    done = [0] * len(OpKind)
    for op in order:
        version = op.virtual if op.kind is OpKind.U else max(0, op.virtual - behind)
        if op.kind is OpKind.F:
            early = done[OpKind.U] < version
        elif op.kind is OpKind.U:
            early = done[OpKind.W] < (op.virtual + 1) * m
        else:
            early = done[op.kind] >= done[op.kind - 1]
        if early:
            raise ValueError(f"tile {tile}: {_name(op)} comes before what it needs")
        if op.version != version:
            raise ValueError(f"tile {tile}: {_name(op)} has version {op.version} of the weights, "
                             f"not {version}")
        done[op.kind] += 1
