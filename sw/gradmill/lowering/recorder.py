"""A first sub-minibatch, run piece by piece to see what it does and how long it takes."""

from ..cycle_model import predict
from ..unit_times import Memory
from .interleave import interleave_one
from .programs import assemble


__all__ = ["Recorder"]


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
        self._cycles = 0  # of the stage at hand
        self._beats = self._cycles_of_beats = 0  # copied, and cycles in which they were

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
        beats = count * self._activations.manager.place / self._lowering.config.beat_bytes
        cycles, least = self._run_now(code)
        self._activations.manager.timed_copy(count, cycles)
        self._beats += beats
        self._cycles_of_beats += beats + cycles - least

    def learn(self):
        """A pass is complete."""
        self._activations.manager.learn()
        if self._beats:
            rate = self._beats / self._cycles_of_beats
            self._activations.far = Memory(beats=rate) if rate < 1 else Memory()

    def _now(self, code):
        """Cycles that ``code`` took."""
        return self._run_now(code)[0]

    def _run_now(self, code):
        """Cycles that ``code`` took, and those that it would take with memories of a beat a
        cycle."""
        config, buffers = self._lowering.config, self._lowering.buffers[0]
        ordered = interleave_one(buffers, list(code))
        code.clear()
        program = assemble(config, [ordered])
        return self._execute(program), predict([program], config).cycles
