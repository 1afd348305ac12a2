"""Training with a progress bar, while the first cycles are recorded."""

from contextlib import ExitStack

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..heartbeat import heartbeat
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


def _result(trainer):
    """Of the last epoch, in words."""
    history = trainer.history
    if not history.validation:
        return ""
    return f"loss {history.train_loss[-1]:.3f}  test {history.validation[-1]['accuracy']:.1%}"


class _Lines(ExitStack):
    """A line for every epoch, and every 20 s where training is, if there is no terminal."""

    def __init__(self, title, trainer, epochs):
        super().__init__()
        self.used = not console.is_terminal
        self._title, self._trainer, self._epochs = title, trainer, epochs
        self._told, self._state = trainer.epoch, "begins"
        if self.used:
            self.enter_context(heartbeat(lambda seconds: self._say(
                f"{self._state}, {seconds:.0f} s so far")))

    def stepped(self, batch, batches):
        """A virtual minibatch has ended."""
        self.ended()
        done = batch + 1
        self._state = (f"epoch {self._trainer.epoch + 1} of {self._epochs}, virtual minibatch "
                       f"{done} of {batches}")

    def ended(self):
        """Tell the result of an epoch that has ended since the last call."""
        if self.used and self._told < self._trainer.epoch:
            self._told = self._trainer.epoch
            self._say(f"epoch {self._told} of {self._epochs} done, {_result(self._trainer)}")

    def _say(self, text):
        console.print(f"{self._title}: {text}", soft_wrap=True, highlight=False)


def fit(trainer, job, *, epochs, folder, resume, title):
    """Train up to ``epochs``, or on from the checkpoint in ``folder``; returns the recorded
    :class:`Timeline`, ``None`` of a device without a clock."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
    with _Recording(trainer) as recording, _Lines(title, trainer, epochs) as lines, \
            Progress(*columns, console=console, disable=lines.used) as progress:
        bar = progress.add_task(title, total=None, state="")

        def on_step(running, batch, batches):
            recording.stepped()
            lines.stepped(batch, batches)
            progress.update(bar, total=epochs * batches,
                            completed=running.epoch * batches + batch + 1,
                            state=f"epoch {running.epoch + 1}/{epochs}  {_result(running)}")

        rest = {"validation_data": (job.x_test, job.y_test), "on_step": on_step,
                "checkpoint": folder / "checkpoint"}
        if resume:
            trainer.resume(job.x, job.y, epochs=epochs, **rest)
        else:
            trainer.fit(job.x, job.y, epochs=epochs, **rest)
        lines.ended()
        progress.update(bar, state=_result(trainer))
    return recording.timeline
