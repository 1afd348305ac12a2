"""What every unit of every tile did, cycle by cycle, from the activity that the RTL reports."""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from gradmill_hw.isa import Class, Kind, Opcode, Queue
from gradmill_hw.regs import Tier
from gradmill_hw.sequencer_model import commands


__all__ = ["Span", "Timeline", "Work", "read_trace", "record", "work_of"]


class Work(StrEnum):
    """What an instruction of a training program contributes to; ``WEIGHTS``: the next layer comes
    from far memory."""
    FORWARD         = "forward"
    DATA_GRADIENT   = "data gradient"
    WEIGHT_GRADIENT = "weight gradient"
    UPDATE          = "update"
    WEIGHTS         = "weights"
    OTHER           = "other"


@dataclass(frozen=True)
class Span:
    """One instruction in execution: taken by its unit at ``start``, completed at ``end``; then the
    sets of activations that its tile keeps change by ``sets``. ``sub`` is the sub-minibatch of a
    product of a training program, counted from the start of the record; -1 for others. ``moved``:
    ``(tier, whether written, address, stride, count, bytes)`` of the runs of activations that it
    reads from, or writes to, memory."""

    tile:   int
    queue:  Queue
    opcode: Opcode
    layer:  int
    start:  int
    end:    int
    work:   Work
    sets:   int
    sub:    int = -1
    moved:  tuple = ()


def work_of(opcode, fields):
    """:class:`Work` of an instruction, by what distinguishes the trainer's instructions."""
    if opcode is Opcode.MATMUL:
        if fields["a_transpose"]:
            return Work.WEIGHT_GRADIENT
        return Work.FORWARD if fields["w_transpose"] else Work.DATA_GRADIENT
    if opcode in (Opcode.SEND, Opcode.RECEIVE):
        return Work.DATA_GRADIENT if fields["gradient"] else Work.FORWARD
    if opcode is Opcode.VECTOR:
        return Work.UPDATE if fields["scalar0_reg"] else Work.OTHER
    if opcode in (Opcode.LOAD, Opcode.STORE):
        if fields["cls"] == Class.WEIGHT and opcode is Opcode.LOAD and fields["tier"] == Tier.FAR:
            return Work.WEIGHTS
        update = fields["cls"] in (Class.WEIGHT, Class.OPTIMIZER)
        return Work.UPDATE if update else Work.OTHER
    return Work.OTHER


def _moved(command, config):
    """``moved`` of a :class:`Span`."""
    opcode, fields = command.opcode, command.fields
    if opcode not in (Opcode.LOAD, Opcode.STORE, Opcode.COPY) or fields["cls"] != Class.STASH:
        return ()
    size = config.run_bytes(Kind(fields["kind"]).name.lower(), fields["run"], fields["codec"])
    if opcode is Opcode.COPY:
        ends = ((fields["tier"], command.mem, fields["mem_stride"]),
                (fields["target_tier"], fields["target"], fields["target_stride"]))
        return tuple((int(tier), writes, start, stride, fields["count"], size)
                     for writes, (tier, start, stride) in enumerate(ends))
    return ((int(fields["tier"]), int(opcode is Opcode.STORE), command.mem,
             fields["mem_stride0"], fields["count0"], size),)


class Timeline:
    """Spans of all instructions that ran while :func:`record` was on.

    Members
    -------
    tiles : range
        Tiles of the device.
    spans : list of Span
        In order of completion.
    """

    def __init__(self, tiles, spans=()):
        self.tiles, self.spans = tiles, list(spans)

    @property
    def cycles(self):
        """First and last cycle."""
        return (min(span.start for span in self.spans), max(span.end for span in self.spans))

    def busy(self, queue, bins=400):
        """Share of each of ``bins`` equal stretches of time in which ``queue`` had an instruction
        in execution: array ``(tiles, bins)``."""
        first, last = self.cycles
        edges = np.linspace(first, last, bins + 1)
        shares = np.zeros((len(self.tiles), bins))
        for tile in self.tiles:
            inside = _union([span for span in self.spans
                             if span.tile == tile and span.queue == queue])
            at = np.interp(edges, *_ramp(inside, first, last))
            shares[tile] = np.diff(at) / np.diff(edges)
        return shares

    def together(self, queue, tiles=2):
        """Share of the time in which ``queue`` is busy in at least ``tiles`` tiles at once."""
        first, last = self.cycles
        changes = []
        for tile in self.tiles:
            for start, end in _union([span for span in self.spans
                                      if span.tile == tile and span.queue == queue]):
                changes += [(start, 1), (end, -1)]
        level, since, total = 0, first, 0
        for cycle, change in sorted(changes):
            total += (cycle - since) * (level >= tiles)
            level, since = level + change, cycle
        return total / (last - first)

    def starts(self, sub_minibatches):
        """Cycles in which tile 0 begins the first forward pass of each virtual minibatch, these
        being of ``sub_minibatches`` sub-minibatches."""
        holds = sorted(span.start for span in self.spans if span.tile == 0 and span.sets > 0)
        return holds[::sub_minibatches]

    def period(self, sub_minibatches):
        """Cycles per virtual minibatch in the second half of the record; ``None`` if it holds fewer
        than two."""
        starts = self.starts(sub_minibatches)
        middle = (len(starts) - 1) // 2
        return (starts[-1] - starts[middle]) / (len(starts) - 1 - middle) if starts[1:] else None

    def sets(self, tile):
        """``(cycles, sets)``: sets of activations that ``tile`` keeps from each of these cycles
        on."""
        changes = sorted((span.end, span.sets) for span in self.spans
                         if span.tile == tile and span.sets)
        cycles, steps = np.array(changes, np.int64).reshape(-1, 2).T
        return cycles, np.cumsum(steps)

    def between(self, first, last):
        """The part of the record from cycle ``first`` to ``last``: instructions that run then."""
        return Timeline(self.tiles, [span for span in self.spans
                                     if span.end > first and span.start < last])

    def write_trace(self, path):
        """A trace that Perfetto (ui.perfetto.dev) and chrome://tracing open; one microsecond is one
        cycle. :func:`read_trace` reads it too."""
        events = [{"ph": "M", "pid": tile, "name": "process_name", "args": {"name": f"tile {tile}"}}
                  for tile in self.tiles]
        events += [{"ph": "M", "pid": tile, "tid": int(queue), "name": "thread_name",
                    "args": {"name": queue.name.lower().replace("_", " ")}}
                   for tile, queue in sorted({(span.tile, span.queue) for span in self.spans})]
        events += [{"ph": "X", "pid": span.tile, "tid": int(span.queue), "ts": span.start,
                    "dur": span.end - span.start, "name": f"{span.opcode.name} {span.layer}",
                    "args": {"work": span.work, "sets": span.sets, "sub": span.sub,
                             "moved": span.moved}}
                   for span in self.spans]
        path = Path(path)
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
        return path


def read_trace(path):
    """The :class:`Timeline` that :meth:`Timeline.write_trace` wrote."""
    events = json.loads(Path(path).read_text())["traceEvents"]
    spans = []
    for event in events:
        if event["ph"] == "X":
            opcode, layer = event["name"].split()
            spans.append(Span(event["pid"], Queue(event["tid"]), Opcode[opcode], int(layer),
                              event["ts"], event["ts"] + event["dur"],
                              Work(event["args"]["work"]), event["args"]["sets"],
                              event["args"]["sub"],
                              tuple(map(tuple, event["args"].get("moved", ())))))
    return Timeline(range(sum(event["name"] == "process_name" for event in events)), spans)


class _Recorder:
    """Matches what begins and ends on a device with the instructions that it runs."""

    def __init__(self, device):
        self._device, self._expected = device, {}

    def expect(self, programs):
        """The instructions of each queue, in order, of programs that are about to run."""
        device = self._device
        memory = memoryview(device.memories[Tier.NEAR])
        for tile, address in enumerate(programs):
            for command in commands(memory[address:], origin=address,
                                    queues=device.config.queues):
                self._expected.setdefault((tile, command.opcode.queue), []).append(command)

    def spans(self):
        """Yield the :class:`Span` of every instruction that has ended."""
        started, number = {}, {}
        for cycle, tile, queue, begins in self._device.take_activity().tolist():
            key = tile, Queue(queue)
            if begins:
                started.setdefault(key, []).append(cycle)
                continue
            k = number.get(key, 0)
            number[key] = k + 1
            command = self._expected[key][k]
            fields = command.fields
            yield Span(*key, command.opcode, fields["layer"], started[key][k], cycle,
                       work_of(command.opcode, fields), fields["hold"] - fields["release"],
                       moved=_moved(command, self._device.config))


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


def _numbered(spans):
    """``spans`` with the sub-minibatches of products: a forward pass begins with a product that
    holds a set, weight gradients end with one that releases it, and all data gradients of a tile
    have equally many products."""
    held, released, back = Counter(), Counter(), Counter()
    holds = Counter(span.tile for span in spans if span.sets > 0)
    products = Counter(span.tile for span in spans if span.queue is Queue.MATRIX
                       and span.work is Work.DATA_GRADIENT)
    for span in spans:
        tile = span.tile
        if span.queue is not Queue.MATRIX or not holds[tile]:
            yield span
            continue
        if span.work is Work.FORWARD:
            held[tile] += span.sets > 0
            sub = held[tile] - 1
        elif span.work is Work.WEIGHT_GRADIENT:
            sub = released[tile]
            released[tile] += span.sets < 0
        else:
            each, rest = divmod(products[tile], holds[tile])
            sub = -1 if rest else back[tile] // each
            back[tile] += 1
        yield replace(span, sub=sub)


@contextmanager
def record(device):
    """Record a :class:`Timeline` of everything that ``device`` (simulated RTL) runs inside the
    ``with`` block; it is complete after the block."""
    if not hasattr(device, "record_activity"):
        raise ValueError("the emulator has no clock: record a timeline with the verilator device")
    timeline, recorder = Timeline(device.tiles), _Recorder(device)
    device.take_activity()
    device.record_activity()
    device.on_run = recorder.expect
    try:
        yield timeline
    finally:
        device.record_activity(False)
        device.on_run = None
        timeline.spans.extend(_numbered(list(recorder.spans())))
