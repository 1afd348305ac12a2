"""Instructions of a tile in the order in which their queues start them.

The sequencer hands instructions to the queues in program order and stops at a full queue: whatever
stands behind an instruction that has to wait, waits too, in all queues. So the program is followed
by the cycle model once with the deepest queues there are, and written anew by the cycles in which
instructions started. The order within each queue stays; an instruction starts after those that it
waits for, and so follows them in the new order too.
"""

from ...cycle_model import predict
from ..programs import assemble


__all__ = ["timely"]

#: Deepest queues of a configuration.
_DEEP = 64


def timely(config, code, far=None):
    """``code``, a list of ``(opcode, fields)``, in the order of predicted starts."""
    (spans,) = predict([assemble(config, [code])], config.replace(queue_depth=_DEEP), far=far,
                       spans=True).spans
    starts = {}
    for queue, start, *_ in spans:
        starts.setdefault(queue, []).append(start)
    iterators = {queue: iter(found) for queue, found in starts.items()}
    keyed = [(next(iterators[opcode.queue]), number) for number, (opcode, _) in enumerate(code)]
    return [code[number] for _, number in sorted(keyed)]
