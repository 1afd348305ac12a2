"""One tile of the emulator: its registers, its on-chip memories, and how it executes programs."""

from types import SimpleNamespace

import numpy as np

from gradmill_hw.isa import CHANNELS, INSTRUCTION_BYTES, Class, Opcode, Peer, Queue
from gradmill_hw.link import link_model
from gradmill_hw.matrix.matrix_model import matmul
from gradmill_hw.memory import copy_model, transfer_model
from gradmill_hw.regs import (
    ARGUMENTS,
    COUNTER_INDEX,
    COUNTER_OFFSET,
    REGS,
    SCALARS,
    SEMAPHORE_MAX,
    SEQUENCER,
    UNLOCKED,
    WINDOWS,
    Error,
    Tier,
    byte_counter,
)
from gradmill_hw.regmap import Access
from gradmill_hw.sequencer_model import SequencerFault, commands
from gradmill_hw.stash.formats import SLOTS
from gradmill_hw.stash.tables import PRESETS, HeldTable
from gradmill_hw.vector.vector_model import vector

from .check import extents


__all__ = ["EmulatedTile", "RegisterRefused"]

_OFFSETS = {register.offset: register for register in REGS}
_COUNTER_END = COUNTER_OFFSET + 8 * (max(COUNTER_INDEX.values()) + 1)
_QUEUE_COUNTER = {q: COUNTER_INDEX[f"instructions_{q.name.lower()}"] for q in Queue}
_MACS, _ARRAY_ROWS, _VECTOR_ROWS, _IN_ROWS, _OUT_ROWS = (COUNTER_INDEX[name] for name in (
    "macs", "array_rows", "vector_rows", "link_in_rows", "link_out_rows"))
_STASH_ROWS, _SATURATED = (COUNTER_INDEX[name] for name in ("stash_rows", "stash_saturated"))
_COMMAND_BYTES = byte_counter(Tier.NEAR, False, Class.COMMAND)


class RegisterRefused(Exception):
    """An access that the register bank answers with an error."""


class _Stop(Exception):
    """The tile stops with ``error``; ``address`` is what it records."""

    def __init__(self, error, address=0, pc=None, queue=SEQUENCER):
        super().__init__(error.name)
        self.error, self.address, self.pc, self.queue = error, address, pc, queue


class EmulatedTile:
    """Models of the units behind the registers of a tile.

    Parameters
    ----------
    config : Config
        Sizes.
    number : int
        Place in the chain.
    memories : list of array
        Near and far memory, uint8, shared with the other tiles.
    inbox, outbox : dict
        :class:`Peer` -> ``deque`` of transfers from and to that neighbour.

    Members
    -------
    state : namespace
        On-chip memories: ``acc`` float32 [rows, n], ``tensor_mantissa`` int16 [rows, n],
        ``tensor_exponent`` uint8 [rows], ``mask`` bool [rows, n].
    """

    def __init__(self, config, number, memories, inbox, outbox):
        self.config, self.number, self.memories = config, number, memories
        self.inbox, self.outbox = inbox, outbox
        mantissa = np.zeros((config.tensor_rows, config.n), np.int16)
        exponent = np.zeros(config.tensor_rows, np.uint8)
        self.state = SimpleNamespace(
            config=config, acc=np.zeros((config.acc_rows, config.n), np.float32),
            tensor_mantissa=mantissa, tensor_exponent=exponent, mantissa=mantissa,
            exponent=exponent, mask=np.zeros((config.mask_rows, config.n), bool),
            scalars=np.zeros(SCALARS, np.uint32), seed=0, step=0,
            tables={slot: HeldTable.of(table) for slot, table in PRESETS.items()})
        self._depths = {"tensor": config.tensor_rows, "accumulator": config.acc_rows,
                        "mask": config.mask_rows}
        self._words = {register.name: register.reset(config) for register in REGS}
        self._words["tile"] = number
        self._counters = np.zeros(max(COUNTER_INDEX.values()) + 1, np.uint64)
        self._high = 0
        self._tokens, self._windows, self._spans = {}, {}, {}
        self._program = None

    @property
    def irq(self):
        """An event is pending."""
        return bool(self._words["irq_status"])

    # registers --------------------------------------------------------------------------------

    def read_word(self, offset):
        if COUNTER_OFFSET <= offset < _COUNTER_END:
            index, high = divmod(offset - COUNTER_OFFSET, 8)
            if high:
                return self._high
            value = int(self._counters[index])
            self._high = value >> 32
            return value & 0xffff_ffff
        if offset not in _OFFSETS:
            raise RegisterRefused
        return self._words[_OFFSETS[offset].name]

    def write_word(self, offset, value):
        register = _OFFSETS.get(offset)
        locked = self._words["window_lock"] != UNLOCKED
        frozen = register is None or (register.when == "unlocked" and locked)
        if frozen or not register.writable:
            raise RegisterRefused
        old, new = register.unpack(self._words[register.name]), register.unpack(value)
        for field in register.fields:
            if field.access is Access.RW:
                old[field.name] = new[field.name]
            elif field.access is Access.RW1C:
                old[field.name] &= ~new[field.name]
        self._words[register.name] = register.pack(**old)
        if register.name == "window_lock":
            self._set("status", locked=int(new["value"] != UNLOCKED))
        elif register.name == "ctrl":
            self._control(**new)
        elif register.name == "stash_encode" and new["write"]:
            for slot, table in self.state.tables.items():
                table.codes[new["step"]] = new[slot]
        elif register.name == "stash_decode" and new["write"] and new["slot"] < len(SLOTS):
            table = self.state.tables[list(SLOTS)[new["slot"]]]
            table.low[new["code"]], table.spread[new["code"]] = new["low"], new["spread"]

    def _set(self, name, **fields):
        self._words[name] = REGS[name].pack(**{**REGS[name].unpack(self._words[name]), **fields})

    def _set_pair(self, name, value):
        self._set(f"{name}_lo", value=value & 0xffff_ffff)
        self._set(f"{name}_hi", value=value >> 32)

    def _get_pair(self, name):
        return self._words[f"{name}_lo"] | self._words[f"{name}_hi"] << 32

    def _control(self, start, soft_reset, clear_counters):
        if clear_counters:
            self._counters[:] = 0
            self._set("stash", highest=REGS["stash"].unpack(self._words["stash"])["sets"])
        if soft_reset:
            self._soft_reset()
        elif start and not REGS["status"].unpack(self._words["status"])["error"]:
            self._set("status", busy=1)
            self._program = self._run()

    def _soft_reset(self):
        self._tokens.clear()
        self._program = None
        for box in (*self.inbox.values(), *self.outbox.values()):
            box.clear()
        for name, register in ((r.name, r) for r in REGS if r.offset < COUNTER_OFFSET):
            if not register.writable:
                self._words[name] = register.reset(self.config)
        self._words["tile"] = self.number
        for name in ("status", "irq_status", "flags"):
            self._words[name] = 0
        self._set("status", locked=int(self._words["window_lock"] != UNLOCKED))

    # execution --------------------------------------------------------------------------------

    def advance(self):
        """Execute until the program ends, fails or waits for rows of a neighbour; whether
        anything was executed."""
        if self._program is None:
            return False
        try:
            return next(self._program)
        except StopIteration:
            self._end()
        except _Stop as stop:
            self._end(stop)
        return True

    def starve(self):
        """What the hardware's watchdog does when nothing comes from the neighbour."""
        if self._program is not None:
            try:
                self._program.throw(_Stop(Error.WATCHDOG))
            except _Stop as stop:
                self._end(stop)

    def _end(self, stop=None):
        self._program = None
        if stop is not None:
            event = {"error": 1}
            self._set("status", busy=0, **event)
            self._set("error", code=stop.error, queue=stop.queue)
            self._set_pair("error_pc", stop.pc)
            self._set_pair("error_address", stop.address)
        else:
            event = {"done": 1}
            self._set("status", busy=0, **event)
        self._set("irq_status", **event)

    def _run(self):
        """Execute the program; yields whether anything was executed when it has to wait."""
        state = self.state
        state.seed, state.step = self._words["seed"], self._words["step"]
        state.scalars[:] = [self._words[f"scalar{k}"] for k in range(SCALARS)]
        self._windows = self._granted()
        execute = {Opcode.LOAD: self._load, Opcode.STORE: self._store,
                   Opcode.MATMUL: self._matmul, Opcode.VECTOR: self._vector,
                   Opcode.SEND: self._send, Opcode.RECEIVE: self._receive,
                   Opcode.COPY: self._copy}
        moved = True
        try:
            for command in self._fetch():
                fields, queue = command.fields, command.opcode.queue
                if fields["wait"]:
                    self._take(queue, fields["wait"], command)
                try:
                    if command.opcode is Opcode.RECEIVE:
                        while not self.inbox[Peer(fields["peer"])]:
                            yield moved
                            moved = False
                    moved = True
                    execute[command.opcode](command, {
                        **fields, "op0": command.op[0], "op1": command.op[1],
                        "op2": command.op[2], "op3": command.op[3], "op4": command.op[4],
                        "mem": command.mem})
                except _Stop as stop:
                    raise _Stop(stop.error, stop.address, command.pc, queue) from None
                if fields["hold"] | fields["release"]:
                    self._keep(fields["hold"] - fields["release"])
                if fields["post"]:
                    self._post(queue, fields["post"], command)
                self._counters[_QUEUE_COUNTER[queue]] += 1
        except SequencerFault as fault:
            raise _Stop(fault.error, pc=fault.pc) from None

    def _fetch(self):
        """Commands of the program, which lies in one window."""
        start = self._get_pair("program") & -INSTRUCTION_BYTES
        end = next((limit for base, limit, may_read, _ in self._windows[Tier.NEAR]
                    if may_read and base <= start and start + INSTRUCTION_BYTES <= limit), start)
        arguments = [self._get_pair(f"argument{k}") for k in range(ARGUMENTS)]
        memory = memoryview(self.memories[Tier.NEAR])[start:end]
        executed = yield from commands(memory, arguments, start, self.config.queues)
        self._counters[_COMMAND_BYTES] += INSTRUCTION_BYTES * executed

    def _granted(self):
        """Windows as ``[(base, end, may read, may write), ...]`` by tier."""
        windows = {}
        for tier in Tier:
            windows[tier] = []
            for k in range(WINDOWS):
                name = f"{tier.name.lower()}_window{k}"
                control = REGS[f"{name}_control"].unpack(self._words[f"{name}_control"])
                base, limit = (self._get_pair(f"{name}_{end}") for end in ("base", "limit"))
                exists = limit <= 1 << self.config.address_bits
                windows[tier].append((base, limit, control["read"] and exists,
                                      control["write"] and exists))
        return windows

    def _take(self, queue, mask, command):
        for bit in range(mask.bit_length()):
            if mask >> bit & 1:
                key = bit // CHANNELS, queue, bit % CHANNELS
                if not self._tokens.get(key, 0):
                    name = queue.name.lower()
                    self._set(f"waiting_{name}", missing=1 << bit, valid=1)
                    self._set_pair(f"waiting_{name}_pc", command.pc)
                    raise _Stop(Error.WATCHDOG, 0, command.pc, queue)
                self._tokens[key] -= 1

    def _post(self, queue, mask, command):
        for bit in range(mask.bit_length()):
            if mask >> bit & 1:
                key = queue, bit // CHANNELS, bit % CHANNELS
                self._tokens[key] = self._tokens.get(key, 0) + 1
                if self._tokens[key] > SEMAPHORE_MAX:
                    raise _Stop(Error.SEMAPHORE_OVERFLOW, 0, command.pc, queue)

    def _check_rows(self, command):
        """Refuse rows beyond a memory. What depends on the fields alone is computed once."""
        fields, spans = self._spans.get(command.pc, (None, None))
        if fields is not command.fields:
            spans = [(self._depths[memory], operand, low, high - low)
                     for memory, operand, (low, high)
                     in extents(command.opcode, command.fields, self.config.n)]
            self._spans[command.pc] = command.fields, spans
        for depth, operand, low, size in spans:
            first = command.op[operand] + low & 0xffff
            if first + size >= depth:
                raise _Stop(Error.RANGE, first + size)

    def _transfer(self, command, fields, move, *, write):
        error = transfer_model.check(self.config, fields, self._windows, write=write)
        if error:
            raise _Stop(error, command.mem)
        self._check_rows(command)
        try:
            return move(self.config, fields, self.memories, self.state)
        except transfer_model.TransferError as failure:
            raise _Stop(failure.error, failure.mem) from None

    def _copy(self, command, fields):
        try:
            moved = copy_model.copy(self.config, fields, self.memories, self._windows)
        except copy_model.TransferError as refusal:
            raise _Stop(refusal.error, refusal.mem) from None
        for tier, write in ((fields["tier"], False), (fields["target_tier"], True)):
            self._counters[byte_counter(tier, write, fields["cls"])] += moved

    def _load(self, command, fields):
        moved = self._transfer(command, fields, transfer_model.load, write=False)
        self._counters[byte_counter(fields["tier"], False, fields["cls"])] += moved

    def _store(self, command, fields):
        stored = self._transfer(command, fields, transfer_model.store, write=True)
        self._counters[byte_counter(fields["tier"], True, fields["cls"])] += stored.bytes
        self._counters[_STASH_ROWS] += stored.rows
        self._counters[_SATURATED] += stored.saturated

    def _matmul(self, command, fields):
        self._check_rows(command)
        state = self.state
        events = matmul(fields, state.tensor_mantissa, state.tensor_exponent, state.acc,
                        self.config)
        self._counters[_MACS] += events["macs"]
        self._counters[_ARRAY_ROWS] += events["rows"]
        if events["nonfinite"]:
            self._set("flags", matrix_nonfinite=1)

    def _vector(self, command, fields):
        self._check_rows(command)
        events = vector(fields, self.state)
        self._counters[_VECTOR_ROWS] += events.rows
        if events.nonfinite:
            self._set("flags", vector_nonfinite=1)
        if events.saturate:
            self._set("flags", saturated=1)

    def _keep(self, change):
        """One set of activations more or less."""
        stash = REGS["stash"].unpack(self._words["stash"])
        sets = stash["sets"] + change & 0xffff
        self._set("stash", sets=sets, highest=max(stash["highest"], sets))

    def _send(self, command, fields):
        self._check_rows(command)
        state = self.state
        try:
            rows = link_model.send(fields, command.op, state.tensor_mantissa,
                                   state.tensor_exponent, state.mask, self.config)
        except link_model.LinkFault as fault:
            raise _Stop(fault.error) from None
        self.outbox[Peer(fields["peer"])].append(rows)
        self._counters[_OUT_ROWS] += len(rows.exponent)

    def _receive(self, command, fields):
        self._check_rows(command)
        state = self.state
        rows = self.inbox[Peer(fields["peer"])].popleft()
        try:
            self._counters[_IN_ROWS] += link_model.receive(
                fields, command.op, rows, state.tensor_mantissa, state.tensor_exponent, state.mask,
                self.config)
        except link_model.LinkFault as fault:
            self._counters[_IN_ROWS] += fault.rows
            raise _Stop(fault.error) from None
