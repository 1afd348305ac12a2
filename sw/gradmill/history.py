"""What a training run looked like from epoch to epoch."""

from dataclasses import dataclass, field


__all__ = ["History"]


@dataclass
class History:
    """What happened, epoch by epoch.

    Members
    -------
    train_loss : list of float
        Mean loss over the epoch's virtual minibatches, weighted by their samples, as the device
        computed it while training.
    validation : list of dict
        :meth:`.Trainer.evaluate` after each epoch, if there was validation data.
    """

    train_loss: list = field(default_factory=list)
    validation: list = field(default_factory=list)
