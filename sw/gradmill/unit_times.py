"""How long the units of a tile take for each instruction: the formulas of their documentation.

Both who predicts programs (:mod:`.cycle_model`) and who puts instructions in order
(:mod:`.lowering.interleave`) follow :class:`Units`, instruction by instruction.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from gradmill_hw.isa import (
    COMPARISONS,
    AddSource,
    FunctionOp,
    Kind,
    MulSource,
    Opcode,
    Queue,
    Space,
)
from gradmill_hw.stash.formats import GROUP, from_tag


__all__ = ["UNITS", "Bus", "Memory", "Units", "encoder_cycles", "link_rows", "product_cycles",
           "quantiser_cycles", "vector_cycles"]

#: Cycles that an instruction on gradients may be put off until products are placed beside which it
#: can run.
_PUT_OFF = 400

#: Products whose banks are remembered: more than can run beside one vector instruction.
_REMEMBERED = 64


@dataclass(frozen=True)
class _Latencies:
    """Latencies of the circuits, in cycles."""
    vector_fill:   int = 4   # command to first row in the pipeline
    dequantise:    int = 2   # more for rows of the tensor memory
    vector:        int = 3   # pipeline without stages
    multiply:      int = 3
    add:           int = 4
    function:      int = 9   # beyond one for each lane of a unit
    product:       int = 11  # beyond m + 2n of the last weight tile
    turnaround:    int = 8   # between rows added to the same accumulator
    dispatch:      int = 3   # from the queue to the unit
    between:       int = 2   # starts of a queue
    token:         int = 2   # from the end of an instruction to the start of one that waits for it
    fetch:         int = 12  # from the answer of the memory to the sequencer
    load:          int = 14  # command to request, and last beat to the on-chip memory
    store:         int = 18  # command to the first beat on the bus, and response to the end
    encode:        int = 48  # of the stash codec, beside what :func:`encoder_cycles` says
    decode:        int = 15  # of the stash codec, beyond a tile of rows
    check:         int = 14  # of a transfer, of one side of a copy
    link:          int = 9   # from the sender's memory to the receiver's
    credits:       int = 16  # rows that a sender is ahead of the receiver


UNITS = _Latencies()


@dataclass(frozen=True)
class Memory:
    """A memory tier: cycles to the first beat, beats per cycle in each direction."""
    latency: int = 16
    beats:   float = 1.0


class Bus:
    """One direction of a memory tier: transfers follow each other."""

    def __init__(self, memory):
        self.memory, self.free = memory, 0

    def transfer(self, start, beats, after=0):
        """Cycle in which the last beat of a transfer asked for at ``start`` has passed; whom they
        are for takes beats from ``after`` on, one a cycle."""
        begin = max(start + self.memory.latency, self.free, after)
        self.free = begin + beats / min(1, self.memory.beats)
        return self.free


def quantiser_cycles(n):
    """Cycles from a result row to the tensor memory: a tile of ``n`` rows must be complete."""
    return {4: 13, 8: 18, 16: 27, 32: 44}[n]


def vector_cycles(fields, config):
    """Cycles of a ``VECTOR``: ``(from its first row to its last, before and after)``."""
    n, rows = config.n, fields["rows"] * fields["blocks"]
    latency = UNITS.vector_fill + (fields["a_space"] == Space.TENSOR) * UNITS.dequantise
    if fields["write_tensor"]:
        rows = -(-fields["rows"] // n) * n * fields["blocks"]
        leave = quantiser_cycles(n)
    elif fields["write_acc"]:
        leave = 1
    else:
        leave = 0
    function = fields["function"] != FunctionOp.NONE
    if function:
        rows = (rows - 1) * config.lanes_per_function + 1
    if not (fields["write_tensor"] or fields["write_acc"] or fields["write_mask"]):
        return rows, latency
    sums = (fields["add_source"] != AddSource.NONE
            and fields["add_op"] not in COMPARISONS)
    latency += (UNITS.vector + (fields["mul"] != MulSource.NONE) * UNITS.multiply
                + sums * UNITS.add + function * (UNITS.function + config.lanes_per_function))
    return rows, latency + leave


def product_cycles(fields, n):
    """Cycles for which a ``MATMUL`` keeps the array."""
    tiles = -(-fields["k"] // n) * -(-fields["c"] // n)
    return tiles * max(fields["m"], n, UNITS.turnaround)


def encoder_cycles(fields, n):
    """Cycles by which the stash codec delays a ``STORE``: rows wait in three rings, twice and a
    quarter for all that share an exponent."""
    entry = from_tag(fields["codec"])
    shared = GROUP // n if entry.hierarchical else entry.rows(n)
    return UNITS.encode + 9 * min(shared, fields["run"]) // 4


def link_rows(fields, n):
    """Rows that a ``SEND`` and its ``RECEIVE`` move."""
    return -(-fields["rows"] // n) * n * fields["blocks"]


class _Product(NamedTuple):
    """Where a ``MATMUL`` streams rows from ``begin`` to ``end``: its banks, and the share of cycles
    in which it takes each."""
    begin:    int
    end:      int
    rows:     int     # bank of the tensor memory with A
    weights:  int     # bank of the tensor memory with W
    acc:      int     # bank of the accumulators
    streamed: float   # cycles with a row, which is read and, later, written
    loaded:   float   # cycles with a row of W
    added:    float   # cycles with a read of the accumulators


class Units:
    """The units of one tile as instructions pass through them.

    Parameters
    ----------
    config : Config
        Sizes.
    buses : sequence of Bus
        Read and write direction of near memory, then of far memory.

    Members
    -------
    free : dict
        :class:`Queue` -> cycle from which its unit takes another instruction.
    passed : dict
        Vector unit, store -> cycle until which products may keep its latest instruction waiting.
    """

    def __init__(self, config, buses):
        self.config, self.buses = config, buses
        self.free = dict.fromkeys(Queue, 0)
        self.passed = dict.fromkeys((Queue.VECTOR, Queue.STORE), 0)
        self._streamed = 0  # when the array has had its last row
        self._moved = {Queue.LOAD: 0, Queue.STORE: 0}      # when the last row has passed the unit
        self._passed_on = {Queue.LOAD: 0, Queue.STORE: 0}  # when the last beat has
        self._products = deque(maxlen=_REMEMBERED)
        #: latest COPY: all beats have come, writes begin, are answered, and their tier
        self._copied = 0, 0, 0, None
        self._stored = None  # latest STORE: fields, op, first row, rows, beats, end on the bus

    def execute(self, opcode, fields, op, start):
        """End of an instruction of any queue but those of the links that starts at ``start``;
        ``op`` are its operands."""
        if opcode is Opcode.MATMUL:
            return self._multiply(fields, op, start)
        if opcode is Opcode.VECTOR:
            end = self.free[Queue.VECTOR] = self.passed[Queue.VECTOR] = (
                start + self._rows(fields, op, start))
            return end
        if opcode is Opcode.COPY:
            return self._copy(fields, start)
        return self._transfer(opcode, fields, op, start)

    def kept_waiting(self, fields, op, start):
        """Cycles that a ``VECTOR`` which starts at ``start`` waits for banks, if gradients are
        streamed after the products that are known."""
        cycles = self._rows(fields, op, start)
        nominal = sum(vector_cycles(fields, self.config))
        if fields["a_space"] == Space.TENSOR:
            return cycles - nominal + min(max(0, start + cycles - self._streamed), _PUT_OFF)
        return cycles - nominal

    def _multiply(self, fields, op, start):
        n, m = self.config.n, fields["m"]
        inner, outer = -(-fields["k"] // n), -(-fields["c"] // n)
        step = max(m, n, UNITS.turnaround)
        # Weights are fetched while the rows of the product before still stream.
        begin = max(start + 2 * n, self._streamed)
        self._streamed = begin + product_cycles(fields, n) + (
            fields["accumulate"] * UNITS.turnaround)
        self.free[Queue.MATRIX] = self._streamed - 2 * n
        added = inner - 1 + (fields["accumulate"] != 0)
        self._products.append(_Product(
            begin, self._streamed, self._tensor_bank(op[0]), self._tensor_bank(op[1]),
            self._acc_bank(op[2]), m / step, n / step, m / step * added / max(1, inner)))
        return begin + (inner * outer - 1) * step + m + UNITS.product

    def _rows(self, fields, op, start):
        """Cycles of a ``VECTOR`` from ``start``. The matrix unit comes first in every bank: rows
        pass in the cycles that it leaves."""
        rows, latency = vector_cycles(fields, self.config)
        from_tensor = fields["a_space"] == Space.TENSOR
        reads = [] if from_tensor else [self._acc_bank(op[0])]
        if fields["mul"] == MulSource.ROW or fields["add_source"] == AddSource.ROW:
            reads.append(self._acc_bank(op[1]))
        alone = 1 / 2 if len(reads) == 2 and reads[0] == reads[1] else 1
        tensor = self._tensor_bank(op[0]) if from_tensor else None
        written = self._acc_bank(op[2]) if fields["write_acc"] else None

        def taken(product):
            return max(product.added if product.acc in reads else 0,
                       product.streamed if product.acc == written else 0,
                       product.streamed if product.rows == tensor else 0)

        passed = self._passed(start + UNITS.vector_fill, rows, alone, taken)
        return round(passed) - start - UNITS.vector_fill + latency

    def send(self, fields, op, start):
        """Cycles in which the rows of a ``SEND`` from ``start`` on are read."""
        bank = self._tensor_bank(op[0])

        def taken(product):
            return max(product.streamed if product.rows == bank else 0,
                       product.loaded if product.weights == bank else 0)

        return round(self._passed(start, link_rows(fields, self.config.n), 1, taken)) - start

    def _passed(self, now, rows, alone, taken):
        """Cycle in which ``rows`` have passed from ``now`` on, ``alone`` a cycle beside no product
        and at most the share that is not ``taken(product)`` beside one."""
        for product in self._products:
            if product.end <= now or not rows:
                continue
            if product.begin > now:
                free = min(rows, (product.begin - now) * alone)
                now, rows = now + free / alone, rows - free
            rate = min(alone, 1 - taken(product))
            if rate * (product.end - now) >= rows:
                now, rows = now + (rows / rate if rows else 0), 0
            else:
                now, rows = product.end, rows - rate * (product.end - now)
        return now + rows / alone

    def _transfer(self, opcode, fields, op, start):
        """A unit checks an instruction while rows of earlier ones move. Rows and beats pass it in
        order, each one a cycle, whichever memory they come from or go to."""
        runs = fields["count0"] * fields["count1"] * fields["count2"]
        kind = Kind(fields["kind"]).name.lower()
        beats = runs * (self.config.run_bytes(kind, fields["run"], fields["codec"])
                        // self.config.beat_bytes)
        rows = runs * fields["run"]
        write = opcode is Opcode.STORE
        bus = self.buses[2 * fields["tier"] + write]
        queue, begin = opcode.queue, max(start, self._moved[opcode.queue])
        self.free[queue] = start + UNITS.check + runs
        came = bus.transfer(start + 4, beats, self._passed_on[queue])
        if write:
            self._stored = fields, op, begin, rows, beats, came
            return self.stored()
        self._passed_on[queue] = came
        begin = max(came - beats / min(1, bus.memory.beats), self._moved[queue])
        if fields["codec"]:
            written = begin + rows + self.config.n + UNITS.decode
        else:
            bank = self._acc_bank(op[0]) if kind == "fp32" else None
            written = self._passed(begin, rows, 1, lambda product:
                                   product.streamed if product.acc == bank else 0)
        self._moved[queue] = round(max(came, written))
        return self._moved[queue] + UNITS.load

    def stored(self):
        """End of the latest ``STORE``, if the products that are known are all that it meets. The
        matrix unit comes first in every bank."""
        fields, op, begin, rows, beats, sent = self._stored
        memory, kind = self.buses[2 * fields["tier"] + 1].memory, Kind(fields["kind"])
        bank = (self._tensor_bank if kind is Kind.BFP else self._acc_bank)(op[0])

        def taken(product):
            if kind is Kind.BFP:
                return max(product.streamed if product.rows == bank else 0,
                           product.loaded if product.weights == bank else 0)
            return product.added if kind is Kind.FP32 and product.acc == bank else 0

        self.passed[Queue.STORE] = self._moved[Queue.STORE] = round(
            self._passed(begin, rows, 1, taken))
        paced = self._passed(begin, rows, min(1, memory.beats * rows / max(1, beats)), taken)
        self._passed_on[Queue.STORE] = round(max(sent, paced))
        delay = encoder_cycles(fields, self.config.n) if fields["codec"] else 0
        return self._passed_on[Queue.STORE] + memory.latency + UNITS.store - 4 + delay

    def _copy(self, fields, start):
        """End of a ``COPY``, which is checked, read and written while others are in the two other
        stages; its reads run ahead of its writes."""
        kind = Kind(fields["kind"]).name.lower()
        beats = fields["count"] * (self.config.run_bytes(kind, fields["run"], fields["codec"])
                                   // self.config.beat_bytes)
        source = self.buses[2 * fields["tier"]]
        target = self.buses[2 * fields["target_tier"] + 1]
        came, begun, written, tier = self._copied
        self.free[Queue.COPY] = begin = max(start + 2 * UNITS.check, came, begun,
                                            written if tier == fields["tier"] else 0)
        came = source.transfer(begin, beats)
        # A slow tier takes the first beat at once, and has the last one before it is free again.
        early = 1 / min(1, target.memory.beats) - 1
        begun = max(came - beats / source.memory.beats, written - early)
        end = round(max(target.transfer(begun, beats) - early, came) + target.memory.latency)
        self._copied = came, begun, end, fields["target_tier"]
        return end

    def _acc_bank(self, row):
        return row // (self.config.acc_rows // self.config.banks)

    def _tensor_bank(self, row):
        return row // (self.config.tensor_rows // self.config.banks)
