"""A first sub-minibatch, run piece by piece to see what it does and how long it takes."""

from fractions import Fraction

from ..cycle_model import predict
from ..unit_times import Memory
from .interleave import interleave_one
from .programs import assemble


__all__ = ["Recorder"]

#: Beats per cycle of the slowest far memory that is told from slower ones, and up to which ratio
#: two are the same.
_SLOWEST, _EXACT = 1e-4, 1.0001
#: A memory rather has a ratio with no larger denominator than another one that explains as well
#: what was measured.
_SIMPLE = 64


class Recorder:
    """Runs instructions at once, and tells the manager what came of it.

    Parameters
    ----------
    lowering : Lowering
        Of one tile, with its ``activations``.
    execute : callable
        ``execute(program)`` runs a program and returns its cycles.
    """

    def __init__(self, lowering, execute):
        self._lowering, self._execute = lowering, execute
        self._cycles = 0   # of the stage at hand
        self._copies = []  # programs that only copy, and the cycles that each took

    @property
    def _activations(self):
        return self._lowering.activations

    def run(self, code):
        """Run ``code``, which belongs to the stage at hand, and empty it."""
        if code:
            self._cycles += self._now(code)

    def stage(self, code, s, times):
        """The rest of a pass through stage ``s``; ``times``: ``"forward"`` or ``"backward"``."""
        self.run(code)
        getattr(self._activations.manager, times)[s] = self._cycles
        self._cycles = 0

    def run_copies(self, code, count):
        """Copies of ``count`` buffers and nothing else."""
        program = self._program(code)
        cycles = self._execute(program)
        self._activations.manager.timed_copy(count, cycles)
        self._copies.append((program, cycles))

    def learn(self):
        """A pass is complete."""
        self._activations.manager.learn()
        if self._copies:
            self._activations.far = self._far()

    def _far(self):
        """The far memory with which the cycle model expects the cycles that copies took; one
        without limit if they were no slower than that."""
        took = sum(cycles for _, cycles in self._copies)

        def expected(beats):
            return sum(predict([program], self._lowering.config, far=Memory(beats=beats)).cycles
                       for program, _ in self._copies)

        low, high = _SLOWEST, 1.0
        if expected(high) >= took:
            return Memory()
        while high / low > _EXACT:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if expected(middle) <= took else (middle, high)
        simple = float(Fraction(high).limit_denominator(_SIMPLE))
        return Memory(beats=simple if simple and expected(simple) == expected(high) else high)

    def _now(self, code):
        """Cycles that ``code`` took."""
        return self._execute(self._program(code))

    def _program(self, code):
        """``code`` in the order in which it can start; it is emptied."""
        ordered = interleave_one(self._lowering.buffers[0], list(code))
        code.clear()
        return assemble(self._lowering.config, [ordered])
