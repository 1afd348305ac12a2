"""Training with a progress bar, while the first cycles are recorded."""

from contextlib import ExitStack

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..timeline import record
from .common import console


__all__ = ["fit"]


class _Recording(ExitStack):
    """The :class:`Timeline` of one start of a device with a clock: of the first one, or of the
    second if the memory manager learns in the first."""

    def __init__(self, trainer):
        super().__init__()
        self.timeline, self._device = None, trainer.device
        if trainer.memory is None:
            self._begin()

    def _begin(self):
        if hasattr(self._device, "record_activity"):
            self.timeline = self.enter_context(record(self._device))

    def stepped(self):
        """A virtual minibatch has ended; with the first one, so has the start that made it."""
        if self.timeline is None:
            self._begin()
        else:
            self.close()


def fit(trainer, job, *, epochs, folder, resume, title):
    """Train up to ``epochs``, or on from the checkpoint in ``folder``; returns the recorded
    :class:`Timeline`, ``None`` of a device without a clock."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
    with _Recording(trainer) as recording, Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=None, state="")

        def on_step(running, batch, batches):
            recording.stepped()
            history = running.history
            state = f"epoch {running.epoch + 1}/{epochs}"
            if history.validation:
                state += (f"  loss {history.train_loss[-1]:.3f}"
                          f"  test {history.validation[-1]['accuracy']:.1%}")
            progress.update(bar, total=epochs * batches,
                            completed=running.epoch * batches + batch + 1, state=state)

        rest = {"validation_data": (job.x_test, job.y_test), "on_step": on_step,
                "checkpoint": folder / "checkpoint"}
        if resume:
            trainer.resume(job.x, job.y, epochs=epochs, **rest)
        else:
            trainer.fit(job.x, job.y, epochs=epochs, **rest)
    return recording.timeline
