"""Programs: an assembler with readable semaphores, and a disassembler."""

import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from gradmill_hw.config import get_config
from gradmill_hw.isa import (
    BASES,
    CHANNELS,
    INSTRUCTIONS,
    INSTRUCTION_BYTES,
    LOOPS,
    EncodingError,
    Opcode,
    Queue,
    decode,
    encode,
    legal_tokens,
    token,
)
from gradmill_hw.regs import ARGUMENTS, SCALARS


from .errors import ProgramError


__all__ = ["Line", "Program", "Scalar", "describe", "disassemble", "token_names"]

#: Fields that are not zero unless they are named.
_DEFAULTS = {
    Opcode.LOAD: {"count0": 1, "count1": 1, "count2": 1},
    Opcode.STORE: {"count0": 1, "count1": 1, "count2": 1},
    Opcode.COPY: {"count": 1},
    Opcode.VECTOR: {"blocks": 1, "a_step": 1, "b_step": 1},
}


@dataclass(frozen=True)
class Scalar:
    """A scalar register, written by the host before the run, in place of an immediate."""

    register: int


class Line(NamedTuple):
    """One instruction of a program."""

    opcode: Opcode
    fields: dict


def _tokens(queue, pairs, queues):
    """Semaphore mask of ``[(Queue.X, channel), ...]``; a bare queue means channel 0."""
    mask = pairs if isinstance(pairs, int) else 0
    for pair in () if isinstance(pairs, int) else pairs:
        other, channel = (pair, 0) if isinstance(pair, int) else pair
        bit = token(Queue(other), channel)
        if mask & bit:
            raise EncodingError(f"{token_names(bit)} is named twice")
        mask |= bit
    refused = mask & ~legal_tokens(queue, queues)
    if refused and queue is None:
        raise EncodingError("the sequencer's own instructions have no semaphores")
    if refused:
        raise EncodingError(f"the {queue.name.lower()} queue has no semaphore "
                            f"{token_names(refused)}: choose among "
                            f"{token_names(legal_tokens(queue, queues))}")
    return mask


def _scalar(name, value):
    """Fields of an immediate or of a scalar register."""
    if isinstance(value, Scalar):
        if not 0 <= value.register < SCALARS:
            raise EncodingError(f"scalar register {value.register}: choose 0 to {SCALARS - 1}")
        return {name: value.register, f"{name}_reg": 1}
    if isinstance(value, int):
        raise EncodingError(f"{name} = {value!r}: give a float, or gradmill.Scalar(register)")
    return {name: struct.unpack("<I", struct.pack("<f", value))[0]}


class Program:
    """Instructions for one tile, in program order.

    Every method appends one instruction; its keywords are the fields of :mod:`gradmill_hw.isa`,
    fields that are not named are zero (run counts, ``blocks``, ``a_step`` and ``b_step``: one).
    ``wait`` and ``post`` are lists of ``(queue, channel)``, or masks of :func:`isa.token`;
    ``scalar0`` and ``scalar1`` are floats or :class:`Scalar`; ``step`` of a base register may be
    negative.

    Example
    -------
    ::

        program = Program("nano")
        program.base(1, mem=0x4000, level=0, step=program.config.run_bytes("fp32", 4))
        with program.loop(10):
            program.load(kind=Kind.FP32, op0=0, mem_base=1, run=4, post=[Queue.VECTOR])
            program.vector(rows=4, cols=4, mul=MulSource.SELF, write_acc=1,
                           wait=[Queue.LOAD], post=[Queue.STORE])
            program.store(kind=Kind.FP32, op0=0, mem=0x8000, run=4, wait=[Queue.VECTOR])
        program.halt()
    """

    def __init__(self, config):
        self.config = get_config(config)
        self.lines = []
        self._raw = bytearray()
        self._open = 0

    def __len__(self):
        return len(self.lines)

    @property
    def level(self):
        """Level of the next loop; 0 is the outermost."""
        return self._open

    def emit(self, opcode, *, wait=(), post=(), **fields):
        """Append any instruction and return its number."""
        index = len(self.lines)
        if opcode.queue is not None and opcode.queue not in self.config.queues:
            raise ProgramError(f"a machine of one tile has no {opcode.name}: use a Config with "
                               "tiles=2 or more", index)
        if self.lines and self.lines[-1].opcode is Opcode.HALT:
            raise ProgramError("nothing can follow the halt", index)
        try:
            fields = {**_DEFAULTS.get(opcode, {}), **fields,
                      "wait": _tokens(opcode.queue, wait, self.config.queues),
                      "post": _tokens(opcode.queue, post, self.config.queues)}
            for name in ("scalar0", "scalar1"):
                if name in fields:
                    fields.update(_scalar(name, fields[name]))
            for field in INSTRUCTIONS[opcode].fields:
                if field.enum is not None and field.name in fields:
                    fields[field.name] = field.enum(fields[field.name])
            raw = encode(opcode, **fields)
        except ValueError as error:
            raise ProgramError(str(error), index) from None
        self._nest(opcode, fields, index)
        self._raw += raw
        self.lines.append(Line(opcode, decode(raw)[1]))
        return index

    def _nest(self, opcode, fields, index):
        """Follow the nesting of loops."""
        if opcode is Opcode.LOOP:
            if self._open == LOOPS:
                raise ProgramError(f"loops nest at most {LOOPS} deep", index)
            if not fields.get("count"):
                raise ProgramError("a loop runs at least once, not 0 times", index)
            self._open += 1
        elif opcode is Opcode.NEXT:
            if not self._open:
                raise ProgramError("there is no loop to end", index)
            self._open -= 1
        elif opcode is Opcode.HALT and self._open:
            raise ProgramError(f"{self._open} loops are still open", index)

    def load(self, **fields):
        """Memory to on-chip rows."""
        return self.emit(Opcode.LOAD, **fields)

    def store(self, **fields):
        """On-chip rows to memory."""
        return self.emit(Opcode.STORE, **fields)

    def copy(self, **fields):
        """Memory to memory."""
        return self.emit(Opcode.COPY, **fields)

    def matmul(self, **fields):
        """Matrix product into the accumulators."""
        return self.emit(Opcode.MATMUL, **fields)

    def vector(self, **fields):
        """Row operations."""
        return self.emit(Opcode.VECTOR, **fields)

    def receive(self, **fields):
        """Rows from a neighbour."""
        return self.emit(Opcode.RECEIVE, **fields)

    def send(self, **fields):
        """Rows to a neighbour."""
        return self.emit(Opcode.SEND, **fields)

    def base(self, register, *, step=0, **fields):
        """Set base register ``register``: it starts at ``mem`` plus ``argument`` and advances by
        ``step`` with each iteration of the loop at ``level``."""
        if not 1 <= register < BASES:
            raise ProgramError(f"base register {register}: choose 1 to {BASES - 1}", len(self))
        if not 0 <= fields.get("argument", 0) <= ARGUMENTS:
            raise ProgramError(f"argument = {fields['argument']}: choose 1 to {ARGUMENTS}, or 0 "
                               "for none", len(self))
        if not -(1 << 39) <= step < 1 << 40:
            raise ProgramError(f"step = {step} does not fit in 40 bits", len(self))
        return self.emit(Opcode.BASE, register=register, step=step % (1 << 40), **fields)

    @contextmanager
    def loop(self, count):
        """Repeat what is added inside the ``with`` block; yields the level of the loop."""
        self.emit(Opcode.LOOP, count=count)
        yield self._open - 1
        self.emit(Opcode.NEXT)

    def fence(self):
        """Wait until every queue is empty."""
        return self.emit(Opcode.FENCE)

    def halt(self):
        """End of the program."""
        return self.emit(Opcode.HALT)

    def __bytes__(self):
        return bytes(self._raw)

    def assemble(self):
        """The checked program as bytes for near memory; raises :class:`ProgramError`."""
        self.check()
        return bytes(self)

    def check(self):
        """See :func:`gradmill.check.check`."""
        from .check import check

        check(self.lines, self.config)

    def __str__(self):
        return self.disassemble(bytes(self))

    @staticmethod
    def disassemble(raw, address=0):
        """See :func:`disassemble`."""
        return disassemble(raw, address)


def token_names(mask):
    """Readable form of a `wait` or `post` mask."""
    return "+".join(f"{Queue(bit // CHANNELS).name.lower()}.{bit % CHANNELS}"
                    for bit in range(mask.bit_length()) if mask >> bit & 1)


def describe(opcode, fields):
    """One instruction as text: its name, then every field that is not at its default."""
    words = [f"{opcode.name:6}"]
    for field in INSTRUCTIONS[opcode].fields:
        value = fields.get(field.name, 0)
        if value == _DEFAULTS.get(opcode, {}).get(field.name, 0):
            continue
        if field.name in ("wait", "post"):
            value = token_names(value)
        elif field.name in ("scalar0", "scalar1"):
            value = (f"r{value}" if fields[f"{field.name}_reg"] else
                     format(struct.unpack("<f", struct.pack("<I", value))[0], "g"))
        elif field.enum is not None:
            value = field.enum(value).name.lower() if value in iter(field.enum) else f"?{value}"
        elif field.name in ("mem", "step") or field.name.startswith("mem_stride"):
            value = hex(value if value < 1 << 39 else value - (1 << 40))
        if not field.name.endswith("_reg") and field.name != "opcode":
            words.append(f"{field.name}={value}")
    return " ".join(words).rstrip()


def disassemble(raw, address=0):
    """Text of the instructions in ``raw``, one a line, loop bodies indented.

    Words that are not instructions are shown as such.
    """
    lines, depth = [], 0
    for offset in range(0, len(raw), INSTRUCTION_BYTES):
        word = bytes(raw[offset:offset + INSTRUCTION_BYTES])
        try:
            opcode, fields = decode(word)
            text = describe(opcode, fields)
        except EncodingError as error:
            opcode, text = None, f"?      {word[:8].hex()}... ({error})"
        depth -= opcode is Opcode.NEXT and depth > 0
        lines.append(f"{address + offset:#010x}  {'  ' * depth}{text}")
        depth += opcode is Opcode.LOOP
    return "\n".join(lines)
