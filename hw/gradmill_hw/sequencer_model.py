"""Model of the sequencer: the instructions of a program, in program order, with final addresses.

Rules that the circuit (:mod:`gradmill_hw.control.sequencer`) follows too:

- Every instruction is checked before it has an effect. Illegal are: an unknown opcode, one of a
  queue that the tile does not have, a reserved bit that is set, an unknown value of an enumerated
  ``VECTOR`` field, ``wait`` or ``post`` bits of the instruction's own queue or of a queue that the
  tile does not have, any of these bits in the sequencer's own instructions, ``LOOP`` with count 0,
  ``BASE`` of register 0 or with an argument above 8. Row formats, codecs, counts and addresses are
  the units' to check.
- Base registers are zero when a program starts. The low 16 bits of a register are added to a row
  operand modulo 2**16, all 40 to ``mem`` modulo 2**40; that is so for ``BASE`` too, whose start is
  ``mem`` + register ``mem_base`` + argument.
- ``BASE`` sets value = start, phase = 0. ``LOOP`` at nesting level L sets every register of level L
  so. ``NEXT`` with iterations left: phase + 1; at ``period`` (if not 0) the register restarts,
  otherwise value += step. The last ``NEXT`` of a loop changes no register.
- ``HALT`` ends the program inside a loop as well.
- A program that changes its own instructions is undefined.
"""

from functools import lru_cache
from typing import NamedTuple

from .isa import (
    BASES, INSTRUCTION_BYTES, INSTRUCTIONS, LOOPS, OPERANDS, TILE_QUEUES, EncodingError, Opcode,
    decode, legal_tokens,
)
from .regs import ARGUMENTS, Error


__all__ = ["Command", "SequencerFault", "commands"]

_MEM_MASK = (1 << 40) - 1
_ROW_MASK = (1 << 16) - 1
_RELOCATED = {"mem", "mem_base", *(f"op{k}" for k in range(OPERANDS)),
              *(f"op{k}_base" for k in range(OPERANDS))}


class SequencerFault(Exception):
    """The sequencer refuses the instruction at byte ``pc`` with ``error``."""

    def __init__(self, error, pc):
        super().__init__(f"{error.name} at 0x{pc:x}")
        self.error, self.pc = error, pc


class Command(NamedTuple):
    """An instruction for a queue.

    ``pc`` is its byte address; ``op`` and ``mem`` are relocated; ``fields`` has ``wait``, ``post``,
    ``layer`` and the opcode's own fields. It is shared between iterations: do not change it.
    """
    pc:     int
    opcode: Opcode
    op:     tuple
    mem:    int
    fields: dict


class _Decoded(NamedTuple):
    opcode:   Opcode
    op:       tuple
    op_bases: tuple
    mem:      int
    mem_base: int
    fields:   dict


@lru_cache(maxsize=1 << 14)
def _decode(raw, queues):
    """Decoded instruction, ``None`` if it is illegal. Programs run many times: kept by content."""
    try:
        opcode, fields = decode(raw)
        for field in INSTRUCTIONS[Opcode.VECTOR].body if opcode is Opcode.VECTOR else ():
            if field.enum is not None:
                field.enum(fields[field.name])
    except (EncodingError, ValueError):
        return None
    legal = (opcode.queue is None or opcode.queue in queues) and not (
        (fields["wait"] | fields["post"]) & ~legal_tokens(opcode.queue, queues))
    if opcode is Opcode.LOOP:
        legal = legal and fields["count"]
    elif opcode is Opcode.BASE:
        legal = legal and fields["register"] and fields["argument"] <= ARGUMENTS
    if not legal:
        return None
    return _Decoded(
        opcode,
        tuple(fields[f"op{k}"] for k in range(OPERANDS)),
        tuple(fields[f"op{k}_base"] for k in range(OPERANDS)),
        fields["mem"], fields["mem_base"],
        {name: value for name, value in fields.items() if name not in _RELOCATED})


class _Base:
    """One base register."""

    def __init__(self, start, fields):
        self.start, self.value, self.phase = start, start, 0
        self.level, self.step, self.period = fields["level"], fields["step"], fields["period"]

    def restart(self):
        self.value, self.phase = self.start, 0

    def advance(self):
        self.phase += 1
        if self.phase == self.period:
            self.restart()
        else:
            self.value = self.value + self.step & _MEM_MASK
            self.phase &= _ROW_MASK


def commands(raw, arguments=(0,) * ARGUMENTS, origin=0, queues=TILE_QUEUES):
    """Yield every :class:`Command` of a program until its ``HALT``.

    Parameters
    ----------
    raw : bytes-like
        Memory from the first instruction to the last byte that may be fetched.
    arguments : sequence of int
        Argument registers, 40 bits each.
    origin : int
        Byte address of ``raw[0]``, for ``pc``.
    queues : tuple of Queue
        Queues of the tile.

    Returns
    -------
    int
        Instructions executed, the sequencer's own among them.

    Raises
    ------
    SequencerFault
        At the instruction that the circuit refuses, after all before it were yielded.
    """
    raw      = memoryview(raw)
    cache    = {}
    bases    = {}
    values   = [0] * BASES
    loops    = []  # of [first instruction of the body, iterations left]
    index    = 0
    executed = 0
    while True:
        pc = origin + INSTRUCTION_BYTES * index
        line = cache.get(index)
        if line is None:
            word = raw[INSTRUCTION_BYTES * index:INSTRUCTION_BYTES * (index + 1)]
            if len(word) < INSTRUCTION_BYTES:
                raise SequencerFault(Error.FETCH, pc)
            line = cache[index] = _decode(bytes(word), queues)
            if line is None:
                raise SequencerFault(Error.ILLEGAL_INSTRUCTION, pc)
        opcode, op, op_bases, mem, mem_base, fields = line
        index += 1
        executed += 1
        mem = mem + values[mem_base] & _MEM_MASK

        if opcode.value >> 4:
            if any(op_bases):
                op = tuple([o + values[b] & _ROW_MASK for o, b in zip(op, op_bases, strict=True)])
            yield Command(pc, opcode, op, mem, fields)
        elif opcode is Opcode.LOOP:
            if len(loops) == LOOPS:
                raise SequencerFault(Error.LOOP, pc)
            for register, base in bases.items():
                if base.level == len(loops):
                    base.restart()
                    values[register] = base.value
            loops.append([index, fields["count"]])
        elif opcode is Opcode.NEXT:
            if not loops:
                raise SequencerFault(Error.LOOP, pc)
            loop = loops[-1]
            loop[1] -= 1
            if loop[1]:
                for register, base in bases.items():
                    if base.level == len(loops) - 1:
                        base.advance()
                        values[register] = base.value
                index = loop[0]
            else:
                loops.pop()
        elif opcode is Opcode.BASE:
            if fields["argument"]:
                mem = mem + arguments[fields["argument"] - 1] & _MEM_MASK
            bases[fields["register"]] = _Base(mem, fields)
            values[fields["register"]] = mem
        elif opcode is Opcode.HALT:
            return executed
