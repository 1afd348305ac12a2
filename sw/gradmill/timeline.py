"""What every unit of every tile did, cycle by cycle, from the activity that the RTL reports."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradmill_hw.isa import Opcode, Queue
from gradmill_hw.regs import Tier
from gradmill_hw.sequencer_model import commands


__all__ = ["Span", "Timeline", "record"]


@dataclass(frozen=True)
class Span:
    """One instruction in execution: taken by its unit at ``start``, completed at ``end``."""

    tile:   int
    queue:  Queue
    opcode: Opcode
    layer:  int
    start:  int
    end:    int


class Timeline:
    """Spans of all instructions that ran while :func:`record` was on.

    Members
    -------
    spans : list of Span
        In order of completion.
    """

    def __init__(self, device):
        self._device, self._expected, self.spans = device, {}, []

    def _expect(self, programs):
        """The instructions of each queue, in order, of programs that are about to run."""
        device = self._device
        memory = memoryview(device.memories[Tier.NEAR])
        for tile, address in enumerate(programs):
            for command in commands(memory[address:], origin=address,
                                    queues=device.config.queues):
                self._expected.setdefault((tile, command.opcode.queue), []).append(command)

    def _collect(self):
        """Match what began and ended with the instructions that were to run."""
        started, number = {}, {}
        for cycle, tile, queue, begins in self._device.take_activity().tolist():
            key = tile, Queue(queue)
            if begins:
                started.setdefault(key, []).append(cycle)
                continue
            k = number.get(key, 0)
            number[key] = k + 1
            command = self._expected[key][k]
            self.spans.append(Span(*key, command.opcode, command.fields["layer"], started[key][k],
                                   cycle))

    @property
    def cycles(self):
        """First and last cycle."""
        return (min(span.start for span in self.spans), max(span.end for span in self.spans))

    def busy(self, queue, bins=400):
        """Share of each of ``bins`` equal stretches of time in which ``queue`` had an instruction
        in execution: array ``(tiles, bins)``."""
        first, last = self.cycles
        edges = np.linspace(first, last, bins + 1)
        shares = np.zeros((len(self._device.tiles), bins))
        for tile in self._device.tiles:
            inside = _union([span for span in self.spans
                             if span.tile == tile and span.queue == queue])
            at = np.interp(edges, *_ramp(inside, first, last))
            shares[tile] = np.diff(at) / np.diff(edges)
        return shares

    def together(self, queue, tiles=2):
        """Share of the time in which ``queue`` is busy in at least ``tiles`` tiles at once."""
        first, last = self.cycles
        changes = []
        for tile in self._device.tiles:
            for start, end in _union([span for span in self.spans
                                      if span.tile == tile and span.queue == queue]):
                changes += [(start, 1), (end, -1)]
        level, since, total = 0, first, 0
        for cycle, change in sorted(changes):
            total += (cycle - since) * (level >= tiles)
            level, since = level + change, cycle
        return total / (last - first)

    def write_trace(self, path):
        """A trace that Perfetto (ui.perfetto.dev) and chrome://tracing open; one microsecond is one
        cycle."""
        events = []
        for tile in self._device.tiles:
            events.append({"ph": "M", "pid": tile, "name": "process_name",
                           "args": {"name": f"tile {tile}"}})
            events += [{"ph": "M", "pid": tile, "tid": int(queue), "name": "thread_name",
                        "args": {"name": queue.name.lower().replace("_", " ")}}
                       for queue in self._device.config.queues]
        events += [{"ph": "X", "pid": span.tile, "tid": int(span.queue), "ts": span.start,
                    "dur": span.end - span.start, "name": f"{span.opcode.name} {span.layer}"}
                   for span in self.spans]
        path = Path(path)
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
        return path


def _union(spans):
    """Disjoint ``(start, end)`` in which at least one span runs."""
    joined = []
    for span in sorted(spans, key=lambda span: span.start):
        if joined and span.start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], span.end)
        else:
            joined.append([span.start, span.end])
    return joined


def _ramp(intervals, first, last):
    """Busy cycles up to each cycle, as points of a piecewise linear function."""
    cycles, total, points = [first], 0, [0]
    for start, end in intervals:
        cycles += [start, end]
        points += [total, total + end - start]
        total += end - start
    return [*cycles, last], [*points, total]


@contextmanager
def record(device):
    """Record a :class:`Timeline` of everything that ``device`` (simulated RTL) runs inside the
    ``with`` block; it is complete after the block."""
    if not hasattr(device, "record_activity"):
        raise ValueError("the emulator has no clock: record a timeline with the verilator device")
    timeline = Timeline(device)
    device.take_activity()
    device.record_activity()
    device.on_run = timeline._expect
    try:
        yield timeline
    finally:
        device.record_activity(False)
        device.on_run = None
        timeline._collect()
