"""How many sets of activations and gradients an order of operations keeps in each tile."""

from collections import deque


__all__ = ["early", "held", "paced", "received"]


def held(order, tiles):
    """Activation sets that each tile holds at most, from F to W."""
    alive, most = [0] * tiles, [1] * tiles
    for t, operation, _ in order:
        alive[t] += (operation == "F") - (operation == "W")
        most[t] = max(most[t], alive[t])
    return most


def received(order, tiles):
    """Sets of inputs and of gradients of each tile: the most that are alive at a time, from the
    operation that sends them."""
    alive, most = [[0, 0] for _ in range(tiles)], [[1, 1] for _ in range(tiles)]

    def change(tile, kind, amount):
        alive[tile][kind] += amount
        most[tile][kind] = max(most[tile][kind], alive[tile][kind])

    for t, operation, _ in order:
        if operation == "F":
            if t == 0:
                change(t, 0, 1)
            if t == tiles - 1:
                change(t, 1, 1)
            else:
                change(t + 1, 0, 1)
        elif operation == "B" and t > 0:
            change(t - 1, 1, 1)
        elif operation == "W":
            change(t, 0, -1)
            change(t, 1, -1)
    return [tuple(pair) for pair in most]


def early(order, limits):
    """``order`` with each forward of the last tile, unless it would keep too many sets, before the
    data gradient that it follows: the loss of one sub-minibatch is computed beside products of
    another."""
    last, alive, found = len(limits) - 1, 0, []
    for step in order:
        t, operation, _ = step
        if t != last:
            continue
        alive += (operation == "F") - (operation == "W")
        if operation == "F" and found and found[-1][1] == "B" and alive <= limits[last]:
            found.insert(-1, step)
        else:
            found.append(step)
    steps = iter(found)
    return [next(steps) if step[0] == last else step for step in order]


def paced(order, limits):
    """``order`` with the operations of every tile as they are, but none that would make a neighbour
    keep more than its limit of sets; ``order`` itself if that cannot be."""
    tiles = len(limits)
    queues = [deque() for _ in range(tiles)]  # of each tile: place in the order, step
    for place, step in enumerate(order):
        queues[step[0]].append((place, step))
    done = [dict.fromkeys("FBW", 0) for _ in range(tiles)]

    def possible(t, operation, j):
        if operation == "F":
            return ((t == 0 or done[t - 1]["F"] > j)
                    and (t == tiles - 1 or j < done[t + 1]["W"] + limits[t + 1]))
        if operation == "B":
            return ((t == tiles - 1 or done[t + 1]["B"] > j)
                    and (t == 0 or j < done[t - 1]["W"] + limits[t - 1]))
        return True

    found = []
    while any(queues):
        heads = [queue[0] for queue in queues if queue and possible(*queue[0][1])]
        if not heads:
            return tuple(order)
        _, step = min(heads)
        queues[step[0]].popleft()
        done[step[0]][step[1]] += 1
        found.append(step)
    return tuple(found)
