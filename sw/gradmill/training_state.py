"""What a checkpoint says of a trainer, and a trainer as a checkpoint says."""

import hashlib
from dataclasses import asdict

import numpy as np

from .checkpoint import CheckpointError, kept_schedule
from .data import LOSSES, positive
from .history import History
from .nn import SGD, Sequential
from .stash import describe_policy, policy_from_description


__all__ = ["check_same_data", "identity", "last_epoch", "restore", "settings", "training_state"]


def training_state(trainer):
    """``(arrays, state)``: everything on which the next virtual minibatch depends."""
    parameters = trainer._parameters
    arrays, versions = parameters.state()
    arrays |= trainer.model.state_dict() | {
        f"momentum.{key}": values for key, values in parameters.momentum().items()}
    return arrays, {
        "numbers": _numbers(trainer.device), "model": trainer.model.describe(),
        "loss": type(trainer.loss).__name__, "optimizer": asdict(trainer.optimizer),
        "virtual_minibatch": trainer.virtual_minibatch, "sub_minibatch": trainer.sub_minibatch,
        "level1": trainer.level1, "rounding": trainer.rounding,
        "stash": describe_policy(trainer.stash), "stashing": trainer.stashing.state(),
        "versions": versions, "predict_weights": trainer.predict_weights,
        "seed": trainer.seed, "epoch": trainer.epoch, "step": trainer.step,
        "target": trainer._target, "data": trainer._data, "losses": trainer._losses,
        "history": asdict(trainer.history)}


def settings(path, arrays, state, device, execution):
    """Arguments of a :class:`Trainer` that goes on from the checkpoint at ``path`` on ``device``,
    with the options ``execution``."""
    if state["numbers"] != _numbers(device):
        raise CheckpointError(f"{path} was trained with {state['numbers']}, this device has "
                              f"{_numbers(device)}: the bits would differ; open a device "
                              "with the same sizes")
    model = Sequential.from_description(state["model"])
    model.load_state_dict({key: arrays[key] for key in model.state_dict()})
    same = ("virtual_minibatch", "sub_minibatch", "level1", "rounding", "seed")
    return {"model": model, "loss": LOSSES[state["loss"]](),
            "optimizer": SGD(**state["optimizer"]),
            "stash": policy_from_description(state["stash"]),
            **{name: state[name] for name in same}, **kept_schedule(path, state, execution)}


def restore(trainer, arrays, state):
    """Put momentum, versions of the weights, position and history into a new ``trainer``."""
    if trainer.optimizer.momentum:
        trainer._parameters.upload({key.removeprefix("momentum."): values
                                    for key, values in arrays.items()
                                    if key.startswith("momentum.")})
    trainer._parameters.restore(arrays, state.get("versions"))
    trainer.epoch, trainer.step = state["epoch"], state["step"]
    trainer._target, trainer._data = state["target"], state.get("data")
    trainer._losses = [tuple(entry) for entry in state["losses"]]
    trainer.history = History(**state["history"])
    trainer.stashing.restore(state["stashing"])


def identity(x, y, shuffle):
    """What tells the samples of one run from those of another."""
    digest = hashlib.sha256(np.ascontiguousarray(x).data)
    labels = y if y.dtype == np.float32 else y.astype(np.int64)
    digest.update(np.ascontiguousarray(labels).data)
    return {"samples": len(x), "shuffle": bool(shuffle), "digest": digest.hexdigest()}


def check_same_data(expected, found):
    """Refuse to go on with other samples than a run began with: the bits would differ."""
    for name, what in (("samples", "{} samples"), ("shuffle", "shuffle={}"),
                       ("digest", "samples or labels of SHA-256 {:.12}...")):
        if expected and found[name] != expected[name]:
            raise CheckpointError(f"the checkpoint is of a run with {what.format(expected[name])}, "
                                  f"these are {what.format(found[name])}: resume with the data it "
                                  "began with, or call fit to train on with others")


def last_epoch(target, epochs):
    """Epoch at which a run that was to end at ``target`` ends if ``epochs`` are asked for."""
    if epochs is None:
        return target
    if positive("epochs", epochs) < target:
        raise ValueError(f"epochs={epochs}: the checkpoint is of a run of {target} epochs; give "
                         f"{target} or more, or none")
    return int(epochs)


def _numbers(device):
    """The sizes on which the bits of a result depend."""
    return {"n": device.config.n, "mantissa_bits": device.config.mantissa_bits}
