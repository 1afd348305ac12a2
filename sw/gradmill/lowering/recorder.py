"""A first sub-minibatch, run piece by piece to see what it does and how long it takes."""

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
        self._activations.manager.timed_copy(count, self._now(code))

    def learn(self):
        """A pass is complete."""
        manager, config = self._activations.manager, self._lowering.config
        manager.learn()
        if manager.copy_cycles:
            beats = manager.place / config.beat_bytes / manager.copy_cycles
            self._activations.far = Memory(beats=min(1.0, beats))

    def _now(self, code):
        """Cycles that ``code`` took."""
        config, buffers = self._lowering.config, self._lowering.buffers[0]
        ordered = interleave_one(buffers, list(code))
        code.clear()
        return self._execute(assemble(config, [ordered]))
