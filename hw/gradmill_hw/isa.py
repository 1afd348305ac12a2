"""The instruction set: the only place where an encoding is written.

Every instruction is 512 bits: a header, up to five row operands and one memory operand at the same
place in every instruction, so that base registers are added without knowing the opcode, and a body
that belongs to the opcode. Fields are listed from bit 0 up. Reserved bits must be zero.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property


__all__ = [
    "BASES", "CHAIN_QUEUES", "CHANNELS", "COMMON", "COMPARISONS", "INSTRUCTIONS",
    "INSTRUCTION_BYTES", "LOOPS", "OPERANDS", "QUEUES", "TILE_QUEUES", "AddOp", "AddSource",
    "Alternative", "Class", "EncodingError", "Field", "FunctionOp", "Instruction", "Kind",
    "MaskKind", "MulSource", "Opcode", "Peer", "Queue", "Space", "decode", "encode",
    "legal_tokens", "numbers", "token",
]

INSTRUCTION_BYTES = 64
#: Row operands of an instruction.
OPERANDS = 5
#: Base registers; number 0 always reads zero.
BASES = 16
#: Depth of nested loops.
LOOPS = 4


class Queue(IntEnum):
    """In-order queues of a tile. The numbers are bits of the semaphore masks."""
    LOAD     = 0
    MATRIX   = 1
    VECTOR   = 2
    STORE    = 3
    LINK_IN  = 4
    LINK_OUT = 5
    COPY     = 6


#: Queues of a tile that stands alone, and of one in a chain.
TILE_QUEUES  = (Queue.LOAD, Queue.MATRIX, Queue.VECTOR, Queue.STORE)
CHAIN_QUEUES = (*TILE_QUEUES, Queue.LINK_IN, Queue.LINK_OUT)
#: Queue slots that the wait and post masks have room for.
QUEUES = 8
#: Independent semaphores for each ordered pair of queues.
CHANNELS = 2


class Opcode(IntEnum):
    """High nibble 0: executed by the sequencer; otherwise 1 + the queue that executes it."""
    HALT    = 0x01
    LOOP    = 0x02
    NEXT    = 0x03
    BASE    = 0x04
    FENCE   = 0x05
    LOAD    = 0x10
    MATMUL  = 0x20
    VECTOR  = 0x30
    STORE   = 0x40
    RECEIVE = 0x50
    SEND    = 0x60
    COPY    = 0x70

    @cached_property
    def queue(self):
        """Queue that executes the instruction, ``None`` for the sequencer's own."""
        return Queue((self >> 4) - 1) if self >> 4 else None


class Peer(IntEnum):
    """Neighbour at the other end of a link."""
    PREVIOUS = 0
    NEXT     = 1


class Kind(IntEnum):
    """Row formats in memory, each with its on-chip home."""
    MASK = 0  # n bits              <-> mask memory
    BFP  = 1  # mantissas, exponent <-> tensor memory
    FP32 = 2  # n binary32          <-> accumulators


class Class(IntEnum):
    """Traffic classes that bytes are counted by."""
    DATA      = 0
    WEIGHT    = 1
    STASH     = 2
    GRADIENT  = 3
    OPTIMIZER = 4
    MASK      = 5
    COMMAND   = 6
    RESULT    = 7


class Space(IntEnum):
    """Where the first source of a vector instruction lives."""
    ACC    = 0
    TENSOR = 1


class MulSource(IntEnum):
    """``p = a * x``."""
    NONE   = 0  # p = a
    SCALAR = 1  # x = scalar0
    ROW    = 2  # x = b
    SELF   = 3  # x = a


class AddSource(IntEnum):
    """Second operand ``c`` of the add stage."""
    NONE      = 0  # q = p, the add operation is not applied
    SCALAR    = 1  # scalar1
    ROW       = 2  # b
    BUTTERFLY = 3  # p of lane (lane xor 2**butterfly)
    MASKED    = 4  # mask bit ? scalar1 : +0


class AddOp(IntEnum):
    ADD  = 0  # p + c
    SUB  = 1  # p - c
    RSUB = 2  # c - p
    MAX  = 3
    MIN  = 4


#: Add operations that choose one operand and so have no sum to round: the add stage is short.
COMPARISONS = (AddOp.MAX, AddOp.MIN)


class FunctionOp(IntEnum):
    NONE  = 0
    EXP   = 1
    RECIP = 2
    RSQRT = 3
    LOG   = 4


class MaskKind(IntEnum):
    """Which lanes keep their value; the others take the alternative."""
    NONE     = 0  # every lane keeps
    MEMORY   = 1  # bit from mask memory
    POSITIVE = 2  # value > 0, or NaN


class Alternative(IntEnum):
    """Value of a lane whose mask bit is 0."""
    ZERO         = 0
    NEG_INFINITY = 1
    SCALAR       = 2  # scalar1


@dataclass(frozen=True)
class Field:
    """``width`` bits of an instruction; ``doc`` gives meaning and unit."""
    name:  str
    width: int
    doc:   str = ""
    enum:  type | None = None


def _operands():
    for k in range(OPERANDS):
        yield Field(f"op{k}", 16, f"row address of operand {k}")
        yield Field(f"op{k}_base", 4, f"base register added to `op{k}`")


#: Bits 0 to 255 of every instruction.
COMMON = (
    Field("opcode", 8, "what to do", Opcode),
    Field("wait", QUEUES * CHANNELS, "semaphores taken before the start: bit 2·producer + channel"),
    Field("post", QUEUES * CHANNELS, "semaphores posted at completion: bit 2·consumer + channel"),
    Field("layer", 8, "layer number: key of random numbers, tag in traces"),
    Field("hold", 1, "at completion one more set of activations is kept"),
    Field("release", 1, "at completion one set less is kept"),
    Field("reserved0", 14),
    *_operands(),
    Field("mem", 40, "byte address in a memory tier; VECTOR: element number of the random stream"),
    Field("mem_base", 4, "base register added to `mem`"),
    Field("reserved1", 48),
)

_TRANSFER = (
    Field("tier", 1, "0 near, 1 far"),
    Field("kind", 3, "row format", Kind),
    Field("codec", 8, "stash format of BFP rows, the tag of its blocks; 0 moves rows as they are"),
    Field("cls", 3, "traffic class", Class),
    Field("run", 16, "rows of one contiguous run, in memory and on chip"),
    *(Field(f"count{d}", 16, f"runs along dimension {d}") for d in range(3)),
    *(Field(f"mem_stride{d}", 32, f"bytes between runs along dimension {d}") for d in range(3)),
    *(Field(f"row_stride{d}", 16, f"rows between runs along dimension {d}") for d in range(3)),
    Field("stochastic", 1, "codec: STORE rounds, LOAD draws values with random bits of rows from "
          "`op1` + 2^16·(`op3` modulo 2^8) + 2^24·`op2` on"),
)

#: Tag of a block of rows on a link; the receiver expects the same.
_TAG = (
    Field("sub",          16, "sub-minibatch within the virtual minibatch"),
    Field("last_sub",      1, "last sub-minibatch of the virtual minibatch"),
    Field("gradient",      1, "0 activations, 1 gradients"),
    Field("version",       8, "weight version that the rows were computed with"),
)

_LINK = (
    Field("peer", 1, "0 previous tile, 1 next tile", Peer),
    Field("rows", 16, "rows of a column block"),
    Field("blocks", 12, "column blocks"),
    Field("t_stride", 16, "tensor rows between column blocks"),
    Field("k_stride", 16, "mask rows between column blocks"),
    Field("masked", 1, "mask rows travel with the tensor rows"),
    *_TAG,
)

_BODY = {
    Opcode.HALT: ("Wait until every queue is empty, then report done.", ()),
    Opcode.LOOP: ("Begin a loop; base registers of its level restart.", (
        Field("count", 32, "iterations, at least 1"),
    )),
    Opcode.NEXT: ("End of a loop body; base registers of its level advance.", ()),
    Opcode.BASE: ("Set a base register to `mem` plus an argument register.", (
        Field("register", 4, "base register 1 to 15"),
        Field("level", 2, "loop level whose iterations advance it; 0 is the outermost"),
        Field("step", 40, "added at each iteration, modulo 2**40"),
        Field("period", 16, "iterations after which it restarts; 0 never"),
        Field("argument", 4, "0 none, k: argument register k-1 is added to the start"),
    )),
    Opcode.FENCE: ("Wait until every queue is empty.", ()),
    Opcode.LOAD: ("Memory at `mem` to on-chip rows at `op0`.", _TRANSFER),
    Opcode.STORE: ("On-chip rows at `op0` to memory at `mem`.", _TRANSFER),
    Opcode.COPY: ("Runs at `mem` of a tier to runs at `target` of a tier, by whole beats.", (
        Field("tier", 1, "tier of the source: 0 near, 1 far"),
        Field("target_tier", 1, "tier of the target"),
        Field("kind", 3, "row format", Kind),
        Field("codec", 8, "stash format in which the rows are stored; 0 none"),
        Field("cls", 3, "traffic class", Class),
        Field("run", 16, "rows of a run, as many as a LOAD or STORE of its bytes would name"),
        Field("count", 16, "runs"),
        Field("mem_stride", 32, "bytes between runs of the source"),
        Field("target_stride", 32, "bytes between runs of the target"),
        Field("target", 40, "byte address of the target"),
    )),
    Opcode.MATMUL: ("acc[op2] (+)= A[op0] · W[op1].", (
        Field("m", 16, "rows of A and of the product"),
        Field("k", 16, "elements of the contraction"),
        Field("c", 16, "columns of the product"),
        Field("a_stride_m", 16, "rows between tiles of A along m"),
        Field("a_stride_k", 16, "rows between tiles of A along k"),
        Field("w_stride_k", 16, "rows between tiles of W along k"),
        Field("w_stride_c", 16, "rows between tiles of W along c"),
        Field("d_stride_c", 16, "accumulator rows between column blocks"),
        Field("a_transpose", 1, "A is stored as k x m"),
        Field("w_transpose", 1, "W is stored as c x k"),
        Field("accumulate", 1, "add to the accumulators instead of overwriting them"),
        Field("narrow", 1, "round every accumulator write to bfloat16"),
    )),
    Opcode.VECTOR: ("Row operations; see the pipeline of the vector unit.", (
        Field("rows", 16, "rows of a column block"),
        Field("blocks", 12, "column blocks"),
        Field("cols", 16, "columns in all; lanes beyond them are padding"),
        Field("a_stride", 16, "rows between column blocks of A (`op0`)"),
        Field("b_stride", 16, "rows between column blocks of B (`op1`)"),
        Field("d_stride", 16, "rows between column blocks of the accumulator result (`op2`)"),
        Field("t_stride", 16, "rows between column blocks of the tensor result (`op3`)"),
        Field("k_stride", 16, "rows between column blocks of the mask (`op4`)"),
        Field("a_step", 1, "rows of A between rows: 0 repeats one row"),
        Field("b_step", 1, "rows of B between rows: 0 repeats one row"),
        Field("a_space", 1, "memory of A", Space),
        Field("mul", 2, "operand of the multiply stage", MulSource),
        Field("add_source", 3, "operand of the add stage", AddSource),
        Field("add_op", 3, "operation of the add stage", AddOp),
        Field("butterfly", 3, "log2 of the lane distance"),
        Field("function", 3, "function of the sum", FunctionOp),
        Field("mask", 4, "mask kind", MaskKind),
        Field("alternative", 2, "value of masked lanes", Alternative),
        Field("pad", 1, "value of padding lanes: 0 zero, 1 minus infinity"),
        Field("write_acc", 1, "write rows to the accumulators"),
        Field("write_tensor", 1, "quantise and write rows to the tensor memory"),
        Field("write_mask", 1, "write the mask bits to the mask memory"),
        Field("stochastic", 1, "round stochastically into the tensor memory"),
        Field("scalar0_reg", 1, "scalar0 is the scalar register numbered by its low bits"),
        Field("scalar1_reg", 1, "scalar1 is the scalar register numbered by its low bits"),
        Field("scalar0", 32, "binary32, factor of the multiply stage"),
        Field("scalar1", 32, "binary32, operand of the add stage or alternative"),
    )),
    Opcode.RECEIVE: ("Whole tiles from a neighbour to tensor rows `op0` and mask rows `op4`.",
                     _LINK),
    Opcode.SEND: ("Tensor rows `op0` and mask rows `op4`, as whole tiles, to a neighbour.", _LINK),
}


class EncodingError(ValueError):
    """An instruction that cannot be encoded or decoded."""


@dataclass(frozen=True)
class Instruction:
    """Layout of one opcode: ``fields`` lists every field from bit 0 to bit 511."""
    opcode: Opcode
    doc:    str
    fields: tuple[Field, ...]

    def items(self):
        """Yield ``(lsb, field)`` from bit 0 up."""
        lsb = 0
        for field in self.fields:
            yield lsb, field
            lsb += field.width

    @property
    def body(self):
        """Fields that belong to this opcode alone."""
        return tuple(f for f in self.fields[len(COMMON):] if not f.name.startswith("reserved"))


def _instruction(opcode, doc, body):
    used = sum(f.width for f in (*COMMON, *body))
    pad = 8 * INSTRUCTION_BYTES - used
    if pad < 0:
        raise EncodingError(f"{opcode.name} is {-pad} bits too long")
    tail = (Field("reserved2", pad),) if pad else ()
    return Instruction(opcode, doc, (*COMMON, *body, *tail))


INSTRUCTIONS = {opcode: _instruction(opcode, *body) for opcode, body in _BODY.items()}


def token(queue, channel=0):
    """Mask bit of the semaphore shared with ``queue`` (producer in `wait`, consumer in `post`)."""
    if not 0 <= channel < CHANNELS:
        raise EncodingError(f"channel {channel}: choose 0 to {CHANNELS - 1}")
    return 1 << (CHANNELS * queue + channel)


def numbers(queues):
    """Length of what is indexed by the numbers of ``queues``."""
    return max(queues) + 1


#: Opcode -> ``(lsb, width, name, whether reserved)`` of its fields.
_PLACES = {opcode: tuple((lsb, field.width, field.name, field.name.startswith("reserved"))
                         for lsb, field in layout.items())
           for opcode, layout in INSTRUCTIONS.items()}


@cache
def legal_tokens(queue, queues=TILE_QUEUES):
    """Bits that ``wait`` and ``post`` of an instruction for ``queue`` may have, in a tile with
    ``queues``; none for the sequencer's own (``queue`` is ``None``)."""
    if queue is None:
        return 0
    return sum(token(other, channel) for other in queues if other != queue
               for channel in range(CHANNELS))


def encode(opcode, **values):
    """The 64 bytes of one instruction; fields that are not named are zero."""
    layout = INSTRUCTIONS[Opcode(opcode)]
    values["opcode"] = int(opcode)
    word = 0
    for lsb, width, name, reserved in _PLACES[layout.opcode]:
        value = int(values.pop(name, 0))
        if not 0 <= value < 1 << width:
            raise EncodingError(f"{layout.opcode.name}.{name} = {value} does not fit in "
                                f"{width} bits")
        if value and reserved:
            raise EncodingError(f"{layout.opcode.name}.{name} must be zero")
        word |= value << lsb
    if values:
        raise EncodingError(f"{layout.opcode.name} has no field {', '.join(sorted(values))}")
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(raw):
    """``(opcode, {field: value})`` of 64 bytes. Reserved bits must be zero."""
    word = int.from_bytes(bytes(raw), "little")
    try:
        layout = INSTRUCTIONS[Opcode(word & 0xff)]
    except ValueError:
        raise EncodingError(f"illegal opcode 0x{word & 0xff:02x}") from None
    values = {}
    for lsb, width, name, reserved in _PLACES[layout.opcode]:
        value = word >> lsb & (1 << width) - 1
        if not reserved:
            values[name] = value
        elif value:
            raise EncodingError(f"{layout.opcode.name}.{name} must be zero")
    del values["opcode"]
    return layout.opcode, values
