"""How full both memories were and what the array waited for, from what the device did."""

from gradmill_hw.isa import Queue
from gradmill_hw.regs import Tier


__all__ = ["idle", "measured", "occupancy"]

#: Units, by what is said of the array when it has no product and one of these, the first that has,
#: has an instruction.
_CAUSES = {"vector unit works": (Queue.VECTOR,), "near memory moves": (Queue.LOAD, Queue.STORE),
           "far memory moves": (Queue.COPY,)}


def measured(timeline):
    """``measured`` of the fast memory in report.json: most bytes that each tier held at a time, and
    :func:`idle`; ``None`` without a timeline."""
    if timeline is None or not timeline.spans:
        return None
    return {"most_bytes": {tier.name.lower(): int(max(held, default=0))
                           for tier, (_, held) in occupancy(timeline.spans).items()},
            "idle": idle(timeline.spans)}


def occupancy(spans):
    """Tier -> ``(cycles, bytes)``: bytes of activations that it holds from each of these cycles on.

    A place is taken from the beginning of a write to the end of the last read before the next
    write, as these instructions ran on the device.
    """
    touched = {}  # tier, address -> (start, end, whether it writes, bytes)
    for span in spans:
        for tier, writes, address, stride, count, size in span.moved:
            for k in range(count):
                touched.setdefault((tier, address + k * stride), []).append(
                    (span.start, span.end, writes, size))
    first = min((span.start for span in spans), default=0)
    last = max((span.end for span in spans), default=0)
    changes = {tier: [] for tier in Tier}
    for (tier, _), events in touched.items():
        for start, end, size in _lives(sorted(events), first, last):
            changes[Tier(tier)] += [(start, size), (end, -size)]
    return {tier: _steps(sorted(own)) for tier, own in changes.items()}


def _lives(events, first, last):
    """``(start, end, bytes)`` in which one place was taken. What is read first was there before;
    what nobody has read stays."""
    since, until, size = first, None, events[0][3]
    for start, end, writes, nbytes in events:
        if not writes:
            until = end
            continue
        if until is not None:
            yield since, until, size
        since, until, size = start, None, nbytes
    yield since, last if until is None else until, size


def _steps(changes):
    cycles, held, total = [], [], 0
    for cycle, change in changes:
        total += change
        if cycles and cycles[-1] == cycle:
            held[-1] = total
        else:
            cycles.append(cycle)
            held.append(total)
    return cycles, held


def idle(spans):
    """Cause -> share of the cycles in which the array has no product."""
    changes = [(cycle, span.queue, step) for span in spans
               for cycle, step in ((span.start, 1), (span.end, -1))]
    changes.sort(key=lambda change: change[0])
    running, shares = dict.fromkeys(Queue, 0), dict.fromkeys([*_CAUSES, "nothing runs"], 0)
    before = changes[0][0]
    for cycle, queue, step in changes:
        if not running[Queue.MATRIX]:
            cause = next((cause for cause, queues in _CAUSES.items()
                          if any(running[q] for q in queues)), "nothing runs")
            shares[cause] += cycle - before
        running[queue] += step
        before = cycle
    total = changes[-1][0] - changes[0][0]
    return {cause: cycles / total for cause, cycles in shares.items()}
