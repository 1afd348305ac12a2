"""Semaphores, loops and base registers around the instructions of one tile."""

from dataclasses import dataclass

from gradmill_hw.isa import INSTRUCTION_BYTES, Queue
from gradmill_hw.sequencer_model import Command

from ..program import Program
from .footprint import Fields
from .synchronise import Synchroniser


__all__ = ["Bases", "Loop", "assemble", "bases_at", "iterations", "repeated"]

#: Argument registers: samples, labels or outputs, losses, random numbers, virtual minibatches.
_ARGUMENTS = (1, 2, 3, 4, 5)
#: Base registers at rest, one for each argument, and those that advance with the loop.
_AT_REST, _ADVANCING = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10)
#: Equal iterations beyond this many become a hardware loop: the first differs in its
#: predecessor, the last two in their successor.
_UNROLLED = 4


@dataclass(frozen=True)
class Bases:
    """Where iteration ``first`` and those after it find their memory.

    Parameters
    ----------
    data, labels, losses, random, batches : (int, int)
        Offset of the iteration, and base register that it is added to.
    """

    data:   tuple
    labels: tuple
    losses: tuple
    random: tuple
    batches: tuple


@dataclass(frozen=True)
class Loop:
    """Code that stands for ``count`` iterations, base registers advancing by ``steps``."""
    code:  list
    count: int
    steps: tuple


def bases_at(number, steps):
    """The :class:`Bases` of iteration ``number`` outside of a loop."""
    return Bases(*zip((number * step for step in steps), _AT_REST, strict=True))


def iterations(code, count, steps):
    """Segments of a program that runs ``code(bases)`` ``count`` times, memory advancing by
    ``steps`` bytes (the last two: random numbers, virtual minibatches); a loop where that is
    shorter."""
    looped = range(1, count - 2) if count > _UNROLLED else range(0)
    segments = []
    for v in range(count):
        if v not in looped:
            segments.append(code(bases_at(v, steps)))
        elif v == looped[0]:
            offsets = [v * step for step in steps]
            segments.append(Loop(code(Bases(*zip(offsets, _ADVANCING, strict=True))),
                                 len(looped), tuple(steps)))
    return segments


def assemble(config, segments):
    """A :class:`Program` with semaphores. Within a loop they are those of its first iteration,
    which sees the same neighbours as every other; that is checked on the iteration after it."""
    synchroniser, spans, position = Synchroniser(config), [], 0
    for segment in segments:
        code = segment.code if isinstance(segment, Loop) else segment
        for opcode, fields in code:
            synchroniser.add(opcode, fields)
        spans.append((position, position + len(code)))
        position += len(code)
    waits, posts = synchroniser.waits, synchroniser.posts

    program = Program(config)
    for register, argument in zip(_AT_REST, _ARGUMENTS, strict=True):
        program.base(register, argument=argument, level=3)
    for k, (segment, (start, end)) in enumerate(zip(segments, spans, strict=True)):
        if not isinstance(segment, Loop):
            _emit(program, segment, waits[start:end], posts[start:end])
            continue
        after = slice(*spans[k + 1])
        if waits[start:end] != waits[after] or posts[start:end] != posts[after]:
            raise AssertionError("iterations of a loop differ in their semaphores")
        for register, argument, step in zip(_ADVANCING, _ARGUMENTS, segment.steps, strict=True):
            program.base(register, argument=argument, step=step, level=0)
        with program.loop(segment.count):
            _emit(program, segment.code, waits[start:end], posts[start:end])
    program.halt()
    return program


def repeated(config, code, count):
    """Yield the :class:`Command` of every instruction of ``code``, executed ``count`` times in a
    row, without base registers: what :func:`assemble` would make of it, for the cycle model."""
    synchroniser, size = Synchroniser(config), len(code)
    for opcode, fields in code * 2:
        synchroniser.add(opcode, fields)
    first, others = (
        [Command(0, opcode, tuple(fields.get(name, 0) for name in ("op0", "op1", "op2")),
                 fields.get("mem", 0), Fields(fields, wait=wait, post=post))
         for (opcode, fields), wait, post in zip(code, waits, synchroniser.posts[:size],
                                                 strict=True)]
        for waits in (synchroniser.waits[:size], synchroniser.waits[size:]))
    executed = [*first, *others * (count - 1)]
    for index, command in enumerate(executed):
        yield command._replace(pc=INSTRUCTION_BYTES * index)


def _emit(program, code, waits, posts):
    for (opcode, fields), wait, post in zip(code, waits, posts, strict=True):
        program.emit(opcode, wait=_pairs(wait), post=_pairs(post), **fields)


def _pairs(mask):
    """A semaphore mask of channel 0 as queues."""
    return [queue for queue in Queue if mask >> 2 * queue & 1]
