"""Whole programs: start-up, one virtual minibatch, prediction."""

from dataclasses import dataclass

from gradmill_hw.isa import Queue

from ..nn import MSE
from ..program import Program
from .emitter import Emitter
from .synchronise import Synchroniser


__all__ = ["Batch", "assemble", "predict_program", "startup_program", "train_program"]

#: Base registers: data and labels (or results) from the host's arguments 1 and 2, at rest and
#: advancing with the sub-minibatch loop.
_AT_REST, _ADVANCING = (1, 2), (3, 4)

#: Equal iterations beyond this many become a hardware loop: the first differs in its
#: predecessor, the last two in their successor.
_UNROLLED = 4


@dataclass(frozen=True)
class Batch:
    """A virtual minibatch in memory: whole sub-minibatches, then a short one.

    Parameters
    ----------
    size : int
        Samples, B.
    sub : int
        Samples of a sub-minibatch, M.
    data_bytes, label_bytes : int
        Bytes of one whole sub-minibatch of inputs, and of labels or results.
    """

    size:        int
    sub:         int
    data_bytes:  int
    label_bytes: int

    @property
    def rows(self):
        """Samples of each sub-minibatch."""
        whole, rest = divmod(self.size, self.sub)
        return [self.sub] * whole + [rest] * bool(rest)


def startup_program(buffers, regions):
    """Master weights and biases from memory to the forms in which they are used."""
    emitter = Emitter(buffers)
    for s, region in regions.items():
        emitter.load_parameters(s, region)
    return assemble(buffers.config, [emitter.code])


def predict_program(buffers, batch):
    """Outputs of each sub-minibatch; results lie where labels would."""

    def sub_minibatch(j, bases):
        emitter, m = Emitter(buffers), batch.rows[j]
        emitter.load_samples(m, j * batch.data_bytes, bases[0])
        emitter.quantise_samples(m)
        for s in range(len(buffers.stages)):
            emitter.forward(s, m, training=False)
        emitter.store_outputs(m, j * batch.label_bytes, bases[1])
        return emitter.code

    whole = len(batch.rows) - (batch.size % batch.sub > 0)
    return assemble(buffers.config, _iterations(sub_minibatch, batch, range(whole)))


def train_program(buffers, regions, result, batch, loss, optimizer, *, narrow):
    """One virtual minibatch: every sub-minibatch forward and backward with the two-level
    reduction, then the update. The mean loss is stored at ``result``."""
    stages, count = buffers.stages, len(batch.rows)
    mse = isinstance(loss, MSE)

    def sub_minibatch(j, bases):
        emitter, m, first, last = Emitter(buffers, narrow=narrow), batch.rows[j], j == 0, \
            j == count - 1
        if first:
            _load(emitter, batch, 0, bases, loss)
        emitter.quantise_samples(m)
        for s in range(len(stages)):
            emitter.forward(s, m, pad=int(not mse))
        (emitter.mse if mse else emitter.cross_entropy)(m, batch.size)
        for s in reversed(range(len(stages))):
            emitter.bias_gradient(s, m, first=first)
            if s:
                emitter.data_gradient(s, m)
            for start, grad in emitter.weight_gradient(s, m, first=first):
                if last:
                    emitter.update_weight(s, start, grad, regions[s], optimizer.momentum)
            if last:
                emitter.update_bias(s, regions[s], optimizer.momentum)
            if s == len(stages) - 1:
                (emitter.mse_loss if mse else emitter.cross_entropy_loss)(m, first=first)
                if not last:
                    _load(emitter, batch, j + 1, bases, loss)
        if last:
            emitter.store_loss(result, 1 / (batch.size * (buffers.logits.cols if mse else 1)))
        return emitter.code

    #: neither first nor last, and followed by a whole one
    alike = [j for j in range(1, count - 1) if batch.rows[j + 1] == batch.sub]
    return assemble(buffers.config, _iterations(sub_minibatch, batch, alike))


def _load(emitter, batch, j, bases, loss):
    m = batch.rows[j]
    emitter.load_samples(m, j * batch.data_bytes, bases[0])
    emitter.load_labels(m, j * batch.label_bytes, bases[1], loss)


@dataclass(frozen=True)
class _Loop:
    """Code that stands for ``count`` iterations, base registers advancing by ``steps``."""
    code:  list
    count: int
    steps: tuple


def _iterations(sub_minibatch, batch, alike):
    """Segments of a program: the code of each sub-minibatch, all but ``_UNROLLED - 1`` of those
    numbered ``alike`` as one loop."""
    alike, segments = list(alike), []
    looped = alike[1:-2] if len(alike) > _UNROLLED else []
    for j in range(len(batch.rows)):
        if j not in looped:
            segments.append(sub_minibatch(j, _AT_REST))
        elif j == looped[0]:
            segments.append(_Loop(sub_minibatch(j, _ADVANCING), len(looped),
                                  (batch.data_bytes, batch.label_bytes)))
    return segments


def assemble(config, segments):
    """A :class:`Program` with semaphores. Within a loop they are those of its first iteration,
    which sees the same neighbours as every other; that is checked on the iteration after it."""
    synchroniser, spans, position = Synchroniser(config), [], 0
    for segment in segments:
        code = segment.code if isinstance(segment, _Loop) else segment
        for opcode, fields in code:
            synchroniser.add(opcode, fields)
        spans.append((position, position + len(code)))
        position += len(code)
    waits, posts = synchroniser.waits, synchroniser.posts

    program = Program(config)
    for register, argument in zip(_AT_REST, (1, 2), strict=True):
        program.base(register, argument=argument, level=3)
    for k, (segment, (start, end)) in enumerate(zip(segments, spans, strict=True)):
        if not isinstance(segment, _Loop):
            _emit(program, segment, waits[start:end], posts[start:end])
            continue
        after = slice(*spans[k + 1])
        if waits[start:end] != waits[after] or posts[start:end] != posts[after]:
            raise AssertionError("iterations of the sub-minibatch loop differ in their semaphores")
        for register, argument, step in zip(_ADVANCING, (1, 2), segment.steps, strict=True):
            program.base(register, argument=argument, step=step, level=0)
        with program.loop(segment.count):
            _emit(program, segment.code, waits[start:end], posts[start:end])
    program.halt()
    return program


def _emit(program, code, waits, posts):
    for (opcode, fields), wait, post in zip(code, waits, posts, strict=True):
        program.emit(opcode, wait=_pairs(wait), post=_pairs(post), **fields)


def _pairs(mask):
    """A semaphore mask of channel 0 as queues."""
    return [queue for queue in Queue if mask >> 2 * queue & 1]
