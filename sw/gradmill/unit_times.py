"""How long the units of a tile take for each instruction: the formulas of their documentation.

Both who predicts programs (:mod:`.cycle_model`) and who puts instructions in order
(:mod:`.lowering.interleave`) follow :class:`Units`, instruction by instruction.
"""

from collections import Counter
from dataclasses import dataclass

from gradmill_hw.isa import (
    COMPARISONS,
    AddSource,
    FunctionOp,
    Kind,
    MaskKind,
    MulSource,
    Opcode,
    Queue,
    Space,
)
from gradmill_hw.stash.formats import GROUP, from_tag

from .banks import Access, Banks, Passage, Transfer


__all__ = ["UNITS", "Bus", "Memory", "TransferTimes", "Units", "encoder_cycles", "link_rows",
           "product_cycles", "quantiser_cycles", "vector_cycles"]

#: Cycles that an instruction on gradients may be put off until products are placed beside which it
#: can run.
_PUT_OFF = 400

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
    fetch_group:   int = 4   # instructions that are asked for at once
    fetch:         int = 12  # from the answer of the memory to the sequencer
    load:          int = 14  # command to request, and last beat to the on-chip memory
    store:         int = 18  # command to the first beat on the bus, and response to the end
    rows_ahead:    int = 8   # rows of stores between the on-chip memory and the bus
    buffered:      int = 16  # beats of loads between the bus and the on-chip memory
    encode:        int = 48  # of the stash codec, beside what :func:`encoder_cycles` says
    decode:        int = 15  # of the stash codec, beyond a tile of rows
    check:         int = 14  # of a transfer, of one side of a copy
    link:          int = 9   # from the sender's memory to the receiver's
    asked:         int = 16  # runs that a load or store asks for ahead
    listed:        int = 16  # stores of a memory tier on their way
    credits:       int = 16  # rows that a sender is ahead of the receiver


UNITS = _Latencies()


@dataclass(frozen=True)
class Memory:
    """A memory tier: cycles to the first beat; beats per cycle in both directions together, of
    which one direction has at most one."""
    latency: int = 16
    beats:   float = 2.0


class Bus:
    """One direction of a memory tier: transfers follow each other.

    Members
    -------
    rate : float
        Beats per cycle.
    free : float
        When the last one has passed.
    """

    def __init__(self, memory):
        self.memory, self.free = memory, 0
        self.rate = min(1, memory.beats)

    def transfer(self, start, beats, after=0):
        """Cycle in which the last beat of a transfer asked for at ``start`` has passed; whom they
        are for takes beats from ``after`` on, one a cycle."""
        begin = max(start + self.memory.latency, self.free, after)
        self.free = begin + beats / self.rate
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


@dataclass(eq=False)
class TransferTimes:
    """What a ``LOAD`` or ``STORE`` moves: ``runs`` of ``rows`` in ``beats`` each over ``bus``.

    Parameters
    ----------
    queue : Queue
        Of the unit.
    bus : Bus
        Of the memory tier.
    runs, rows, beats : int
        Runs, rows and beats of each.
    needs, pace
        As of :class:`.banks.Passage`.
    ahead : int
        Rows that have left the on-chip memory before the first beat.
    buffered : float
        Cycles that the bus is free before the last row has passed.
    more : int
        Rows for which the last one passes later.
    after : int
        Cycles from the last row to the end.
    """

    queue: Queue
    bus:   Bus
    runs:  int
    rows:  int
    beats: int
    needs: dict
    pace:  float
    ahead: int = 0
    buffered: float = 0
    more:  int = 0
    after: int = 0


class Units:
    """The units of one tile as instructions pass through them.

    Parameters
    ----------
    config : Config
        Sizes.
    buses : sequence of Bus
        Read and write direction of near memory, then of far memory.
    others_wait : bool
        See :class:`.banks.Banks`.

    Members
    -------
    free : dict
        :class:`Queue` -> cycle from which its unit takes another instruction.
    banks : Banks
        Rows on their way.
    """

    def __init__(self, config, buses, others_wait=True):
        self.config, self.buses, self.banks = config, buses, Banks(others_wait)
        self.free = dict.fromkeys(Queue, 0)
        self._streamed = 0  # when the array has had its last row
        self._vector = None                                # the latest VECTOR
        self._moving = {}  # queue -> the latest transfer: bus, passage, beats buffered before it
        self._passed_on = {Queue.LOAD: 0, Queue.STORE: 0}  # when the last beat has passed the unit
        #: latest COPY: all beats have come, writes begin, are answered, and their tier
        self._copied = 0, 0, 0, None

    def execute(self, opcode, fields, op, start):
        """The :class:`.banks.Passage` of an instruction of any queue but those of the links that
        starts at ``start``; ``op`` are its operands."""
        if opcode is Opcode.MATMUL:
            passage = self._multiply(fields, op, start)
        elif opcode is Opcode.VECTOR:
            passage = self._vector = self.banks.add(self._rows(fields, op, start))
        elif opcode is Opcode.COPY:
            passage = self._copy(fields, start)
        else:
            passage = self._transfer(opcode, fields, op, start)
        if self._vector:
            self.free[Queue.VECTOR] = self._vector.end
        for bus, moving, buffered in self._moving.values():
            bus.free = max(bus.free, moving.passed - buffered)
        return passage

    def kept_waiting(self, fields, op, start, banks=True):
        """Cycles that a ``VECTOR`` which starts at ``start`` waits for banks, unless ``banks`` do
        not count, if gradients are streamed after the products that are known."""
        passage = self._rows(fields, op, start)
        self.banks.estimate(passage)
        cycles = passage.end - start
        waited = cycles - sum(vector_cycles(fields, self.config)) if banks else 0
        if fields["a_space"] == Space.TENSOR:
            waited += min(max(0, start + cycles - self._streamed), _PUT_OFF)
        return waited

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
        rows, acc = self._tensor_bank(op[0]), self._acc_bank(op[2])
        shares = {Access.TENSOR_READ(self._tensor_bank(op[1])): n / step}
        shares[Access.TENSOR_READ(rows)] = m / step
        shares[Access.ACC_READ(acc)] = m / step * added / max(1, inner)
        shares[Access.ACC_WRITE(acc)] = m / step
        end = begin + (inner * outer - 1) * step + m + UNITS.product
        return self.banks.add(Passage.of_product(begin, self._streamed, shares,
                                                 end - self._streamed))

    def _rows(self, fields, op, start):
        """Rows of a ``VECTOR`` from ``start``."""
        rows, latency = vector_cycles(fields, self.config)
        needs = Counter()
        if fields["a_space"] == Space.TENSOR:
            needs.update((Access.TENSOR_READ(self._tensor_bank(op[0])), Access.TENSOR_PATH))
        else:
            needs[Access.ACC_READ(self._acc_bank(op[0]))] += 1
        if fields["mul"] == MulSource.ROW or fields["add_source"] == AddSource.ROW:
            needs[Access.ACC_READ(self._acc_bank(op[1]))] += 1
        if fields["write_acc"]:
            needs[Access.ACC_WRITE(self._acc_bank(op[2]))] += 1
        if fields["write_tensor"]:
            needs[Access.TENSOR_WRITE] += 1
        if fields["mask"] == MaskKind.MEMORY:
            needs[Access.MASK_READ] += 1
        if fields["write_mask"]:
            needs[Access.MASK_WRITE] += 1
        pace = 1
        if fields["function"] != FunctionOp.NONE:
            # A row needs its banks in one of as many cycles.
            turns = self.config.lanes_per_function
            rows, latency, pace = (rows - 1) // turns + 1, latency - turns + 1, 1 / turns
        return Passage(Queue.VECTOR, start + UNITS.vector_fill, rows, needs, pace=pace,
                       after=latency - UNITS.vector_fill)

    def send(self, fields, op, start):
        """The :class:`.banks.Passage` of a ``SEND`` whose rows are read from ``start`` on."""
        needs = {Access.TENSOR_READ(self._tensor_bank(op[0])): 1, Access.TENSOR_PATH: 1}
        if fields["masked"]:
            needs[Access.MASK_READ] = 1
        return self.banks.add(Passage(Queue.LINK_OUT, start, link_rows(fields, self.config.n),
                                      needs))

    def receive(self, fields, sending):
        """The :class:`.banks.Transfer` of rows that another tile sends in the passage ``sending``,
        written by a ``RECEIVE``."""
        needs = {Access.TENSOR_WRITE: 1, Access.MASK_WRITE: 1}
        if not fields["masked"]:
            del needs[Access.MASK_WRITE]
        receiving = self.banks.add(Passage(Queue.LINK_IN, sending.begin + UNITS.link,
                                           sending.rows, needs))
        return Transfer(sending, receiving, UNITS.link)

    def transfer(self, opcode, fields, op):
        """:class:`TransferTimes` of a ``LOAD`` or ``STORE``."""
        config, kind, codec = self.config, Kind(fields["kind"]), fields["codec"]
        write = opcode is Opcode.STORE
        if kind is Kind.BFP:
            needs = ({Access.TENSOR_READ(self._tensor_bank(op[0])): 1, Access.TENSOR_PATH: 1}
                     if write else {Access.TENSOR_WRITE: 1})
        elif kind is Kind.FP32:
            needs = {(Access.ACC_READ if write else Access.ACC_WRITE)(self._acc_bank(op[0])): 1}
        else:
            needs = {Access.MASK_READ if write else Access.MASK_WRITE: 1}
        beats = (config.run_bytes(kind.name.lower(), fields["run"], codec)
                 // config.beat_bytes)
        bus = self.buses[2 * fields["tier"] + write]
        pace = min(1, bus.rate * fields["run"] / max(1, beats))
        own = TransferTimes(
            opcode.queue, bus, fields["count0"] * fields["count1"] * fields["count2"],
            fields["run"], beats, needs, pace)
        if write:
            own.after = bus.memory.latency + UNITS.store - 4
            own.ahead = UNITS.rows_ahead
            if codec:
                # It is asked for when the beats are there.
                own.after += encoder_cycles(fields, config.n)
                own.buffered = float("inf")
        else:
            own.after = UNITS.load
            own.buffered = UNITS.buffered * max(1, own.rows / max(1, beats))
            if codec:
                own.needs, own.more = {}, config.n + UNITS.decode
        return own

    def _transfer(self, opcode, fields, op, start):
        """A unit checks an instruction while rows of earlier ones move. Rows and beats pass it in
        order, each one a cycle, whichever memory they come from or go to."""
        own = self.transfer(opcode, fields, op)
        beats, bus, queue = own.runs * own.beats, own.bus, own.queue
        self.free[queue] = start + UNITS.check + own.runs
        came = bus.transfer(start + 4, beats, self._passed_on[queue])
        begin = start if queue is Queue.STORE else came - beats / bus.rate
        passage = self.banks.add(Passage(
            queue, begin, own.runs * own.rows + own.more, own.needs, pace=own.pace, at_least=came,
            after=own.after))
        self._passed_on[queue] = came
        self._moving[queue] = bus, passage, own.buffered
        return passage

    def _copy(self, fields, start):
        begin = self.free[Queue.COPY] = self.copy_begins(fields, start)
        beats, source = self.copy_beats(fields)
        return self.copy(fields, source.transfer(begin, beats))

    def copy_begins(self, fields, start):
        """When a ``COPY`` that starts at ``start`` is read. It is checked, read and written while
        others are in the two other stages; its reads run ahead of its writes."""
        came, begun, written, tier = self._copied
        return max(start + 2 * UNITS.check, came, begun, written if tier == fields["tier"] else 0)

    def copy_beats(self, fields):
        """Beats of a ``COPY``, and the bus that reads them."""
        kind = Kind(fields["kind"]).name.lower()
        return (fields["count"] * (self.config.run_bytes(kind, fields["run"], fields["codec"])
                                   // self.config.beat_bytes), self.buses[2 * fields["tier"]])

    def copy(self, fields, came):
        """The passage of a ``COPY`` whose last beat has come at ``came``."""
        beats, source = self.copy_beats(fields)
        target = self.buses[2 * fields["target_tier"] + 1]
        written = self._copied[2]
        # A slow tier takes the first beat at once, and has the last one before it is free again.
        early = 1 / target.rate - 1
        begun = max(came - beats / source.rate, written - early)
        end = round(max(target.transfer(begun, beats) - early, came) + target.memory.latency)
        self._copied = came, begun, end, fields["target_tier"]
        return Passage(Queue.COPY, came, 0, {}, at_least=end)

    def _acc_bank(self, row):
        return row // (self.config.acc_rows // self.config.banks)

    def _tensor_bank(self, row):
        return row // (self.config.tensor_rows // self.config.banks)
