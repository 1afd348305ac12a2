"""Static check of a program: semaphores that are met, operands that lie inside the memories.

Tokens are counted exactly without unrolling: a stretch of program is summed up, for each semaphore,
by the tokens it needs at its start, the most it can hold and its net change, and these sums compose
over sequences and loops. Operand addresses are intervals: every base register is taken at its least
and its greatest value within the loops around the instruction.
"""

from types import SimpleNamespace
from typing import NamedTuple

from gradmill_hw.isa import (
    CHANNELS,
    LOOPS,
    OPERANDS,
    AddSource,
    Kind,
    MaskKind,
    MulSource,
    Opcode,
    Queue,
    Space,
)
from gradmill_hw.regs import SEMAPHORE_MAX
from gradmill_hw.stash.formats import from_tag

from .errors import ProgramError
from .program import describe


__all__ = ["check", "extents"]

_MEMORY = {Kind.MASK: "mask", Kind.BFP: "tensor", Kind.FP32: "accumulator"}


class _Balance(NamedTuple):
    """One semaphore over a stretch of program.

    ``need`` tokens must be there before it, ``peak`` more than at its start may be there in it,
    ``net`` more are there after it; ``where`` is the instruction that needs the most.
    """

    need: int = 0
    where: int | None = None
    peak: int = 0
    net: int = 0

    def then(self, other):
        later = other.need - self.net
        need, where = (later, other.where) if later > self.need else (self.need, self.where)
        return _Balance(need, where, max(self.peak, self.net + other.peak), self.net + other.net)

    def times(self, count):
        further = (count - 1) * self.net
        return _Balance(max(self.need, self.need - further), self.where,
                        max(self.peak, self.peak + further), self.net * count)


_IDLE = _Balance()


def _events(index, opcode, fields):
    """``((producer, consumer, channel), balance)`` of one instruction."""
    for bit in range(fields["wait"].bit_length()):
        if fields["wait"] >> bit & 1:
            key = (bit // CHANNELS, opcode.queue, bit % CHANNELS)
            yield key, _Balance(need=1, where=index, net=-1)
    for bit in range(fields["post"].bit_length()):
        if fields["post"] >> bit & 1:
            yield (opcode.queue, bit // CHANNELS, bit % CHANNELS), _Balance(peak=1, net=1)


def _name(key):
    producer, consumer, channel = key
    return f"{Queue(producer).name.lower()} to {Queue(consumer).name.lower()}, channel {channel}"


def _check_tokens(lines, limit):
    stack = [({}, 1)]
    for index, (opcode, fields) in enumerate(lines):
        if opcode is Opcode.LOOP:
            stack.append(({}, fields["count"]))
        elif opcode is Opcode.NEXT:
            body, count = stack.pop()
            outer = stack[-1][0]
            for key, balance in body.items():
                outer[key] = outer.get(key, _IDLE).then(balance.times(count))
        elif opcode.queue is not None:
            sums = stack[-1][0]
            for key, balance in _events(index, opcode, fields):
                sums[key] = sums.get(key, _IDLE).then(balance)
    totals = stack[0][0]
    for key, total in totals.items():
        if total.need:
            opcode, fields = lines[total.where]
            raise ProgramError(f"waits for {total.need} tokens more than were posted before it "
                               f"({_name(key)}): {describe(opcode, fields)}", total.where)
    for key, total in totals.items():
        if total.net:
            raise ProgramError(f"{total.net} tokens are left at the end ({_name(key)})")
        if total.peak > limit:
            raise ProgramError(f"up to {total.peak} tokens may be pending ({_name(key)}), more "
                               f"than the {limit} that the device can hold; let the producer wait "
                               "for its consumer")


def _blocks(count, n):
    return -(-count // n)


def _span(*dims):
    """Lowest and highest sum of ``i * stride``, i < count, over ``(count, stride)`` pairs.

    Row addresses are modulo 2**16, so that a stride of 2**15 and more is a negative one.
    """
    ends = [(count - 1) * (stride - (1 << 16) if stride >> 15 else stride)
            for count, stride in dims]
    return sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)


def _transfer(f, n):
    dims = [(f[f"count{d}"], f[f"row_stride{d}"]) for d in range(3)]
    yield _MEMORY[f["kind"]], 0, _span((f["run"], 1), *dims)


def _matmul(f, n):
    m, k, c = (_blocks(f[name], n) for name in "mkc")
    kb = (k, f["a_stride_k"])
    if f["a_transpose"] or f["m"] % n == 0:
        yield "tensor", 0, _span((n, 1), (m, f["a_stride_m"]), kb)
    else:
        low, high = _span((f["m"] % n, 1), kb)
        last = _span((2, (m - 1) * f["a_stride_m"] % (1 << 16)))
        yield "tensor", 0, (low + last[0], high + last[1])
        if m > 1:
            yield "tensor", 0, _span((n, 1), (m - 1, f["a_stride_m"]), kb)
    yield "tensor", 1, _span((n, 1), (k, f["w_stride_k"]), (c, f["w_stride_c"]))
    yield "accumulator", 2, _span((f["m"], 1), (c, f["d_stride_c"]))


def _vector(f, n):
    rows, blocks = f["rows"], f["blocks"]
    space = "tensor" if f["a_space"] == Space.TENSOR else "accumulator"
    yield space, 0, _span((rows, f["a_step"]), (blocks, f["a_stride"]))
    if f["mul"] == MulSource.ROW or f["add_source"] == AddSource.ROW:
        yield "accumulator", 1, _span((rows, f["b_step"]), (blocks, f["b_stride"]))
    if f["write_acc"]:
        yield "accumulator", 2, _span((rows, 1), (blocks, f["d_stride"]))
    if f["write_tensor"]:
        yield "tensor", 3, _span((_blocks(rows, n) * n, 1), (blocks, f["t_stride"]))
    reads = f["mask"] == MaskKind.MEMORY or f["add_source"] == AddSource.MASKED
    if reads or f["write_mask"]:
        yield "mask", 4, _span((rows, 1), (blocks, f["k_stride"]))


def _link(f, n):
    yield "tensor", 0, _span((_blocks(f["rows"], n) * n, 1), (f["blocks"], f["t_stride"]))
    if f["masked"]:
        yield "mask", 4, _span((f["rows"], 1), (f["blocks"], f["k_stride"]))


_EXTENTS = {Opcode.LOAD: _transfer, Opcode.STORE: _transfer, Opcode.MATMUL: _matmul,
            Opcode.VECTOR: _vector, Opcode.SEND: _link, Opcode.RECEIVE: _link}
#: Fields that must not be zero.
_COUNTS = {Opcode.LOAD: ("run", "count0", "count1", "count2"),
           Opcode.STORE: ("run", "count0", "count1", "count2"),
           Opcode.MATMUL: ("m", "k", "c"), Opcode.VECTOR: ("rows", "blocks"),
           Opcode.SEND: ("rows", "blocks"), Opcode.RECEIVE: ("rows", "blocks")}


def extents(opcode, fields, n):
    """Yield ``(memory, operand, (low, high))``: rows from operand + low to operand + high."""
    if opcode in _EXTENTS and all(fields[name] for name in _COUNTS[opcode]):
        yield from _EXTENTS[opcode](fields, n)


def _signed(value):
    return value - (1 << 40) if value >> 39 else value


class _Base:
    """Values that one base register takes, as an interval; unknown if the host adds to it."""

    def __init__(self, fields, origin):
        start = _signed(fields["mem"])
        self.first = (start + origin.low, start + origin.high)
        self.step, self.period = _signed(fields["step"]), fields["period"]
        self.level = fields["level"]
        self.known = origin.known and not fields["argument"]
        self.low, self.high = self.first

    def loop(self, count):
        """Take the values of ``count`` iterations."""
        last = self.step * (min(count, self.period or count) - 1)
        self.low, self.high = self.first[0] + min(0, last), self.first[1] + max(0, last)


#: Register 0.
_ZERO = _Base({"mem": 0, "step": 0, "period": 0, "level": LOOPS, "argument": 0},
              SimpleNamespace(low=0, high=0, known=True))


def _check_operands(index, opcode, fields, bases, config):
    rows = {"tensor": config.tensor_rows, "accumulator": config.acc_rows,
            "mask": config.mask_rows}
    for name in ("mem_base", *(f"op{k}_base" for k in range(OPERANDS))):
        if fields[name] not in bases:
            raise ProgramError(f"{name} is base register {fields[name]}, which is not set", index)
    for memory, operand, (low, high) in extents(opcode, fields, config.n):
        base, start = bases[fields[f"op{operand}_base"]], fields[f"op{operand}"]
        first, last = start + base.low + low, start + base.high + high
        if base.known and first % (1 << 16) + last - first >= rows[memory]:
            raise ProgramError(f"op{operand} touches rows {first} to {last} of the {memory} "
                               f"memory, which has {rows[memory]}: {describe(opcode, fields)}",
                               index)
    if opcode in _ADDRESSES:
        _check_alignment(index, opcode, fields, bases[fields["mem_base"]], config.beat_bytes)
        _check_codec(index, opcode, fields, config)


def _check_codec(index, opcode, fields, config):
    codec = fields["codec"]
    if codec and from_tag(codec) is None:
        raise ProgramError(f"codec {codec:#04x} is the tag of no stash format: take that of a "
                           f"gradmill.codec.Format: {describe(opcode, fields)}", index)
    if codec and not config.stash:
        raise ProgramError(f"configuration {config.name!r} has no stash codec: use codec 0, or a "
                           f"Config with stash=True: {describe(opcode, fields)}", index)
    if codec and fields["kind"] != Kind.BFP:
        raise ProgramError("rows in a stash format are of kind BFP, not "
                           f"{Kind(fields['kind']).name}: {describe(opcode, fields)}", index)


#: Fields that are whole beats.
_ADDRESSES = {Opcode.LOAD: ("mem", "mem_stride0", "mem_stride1", "mem_stride2"),
              Opcode.STORE: ("mem", "mem_stride0", "mem_stride1", "mem_stride2"),
              Opcode.COPY: ("mem", "mem_stride", "target", "target_stride")}


def _check_alignment(index, opcode, fields, base, beat):
    for name in _ADDRESSES[opcode]:
        if fields[name] % beat:
            raise ProgramError(f"{name} = {fields[name]:#x} is not a multiple of the {beat}-byte "
                               f"beat: {describe(opcode, fields)}", index)
    if base.known and (base.low % beat or base.step % beat):
        raise ProgramError(f"base register {fields['mem_base']} takes values that are not "
                           f"multiples of the {beat}-byte beat: {describe(opcode, fields)}", index)


def check(lines, config):
    """Raise :class:`ProgramError` if the program could hang or touch rows that do not exist."""
    if not lines or lines[-1].opcode is not Opcode.HALT:
        raise ProgramError("the program does not end with a halt")
    bases, open_loops = {0: _ZERO}, []
    for index, (opcode, fields) in enumerate(lines):
        for name in _COUNTS.get(opcode, ()):
            if not fields[name]:
                raise ProgramError(f"{name} must not be zero: {describe(opcode, fields)}", index)
        _check_operands(index, opcode, fields, bases, config)
        if opcode is Opcode.BASE:
            bases[fields["register"]] = _Base(fields, bases[fields["mem_base"]])
        elif opcode is Opcode.LOOP:
            for base in bases.values():
                if base.level == len(open_loops):
                    base.loop(fields["count"])
            open_loops.append(index)
        elif opcode is Opcode.NEXT:
            open_loops.pop()
    # A consumer's queue may hold instructions that have not taken their token yet.
    _check_tokens(lines, SEMAPHORE_MAX - config.queue_depth - 1)
