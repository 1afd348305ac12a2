"""Data sets that come with installed packages; nothing is downloaded."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .errors import BackendError
from .nn import Linear, ReLU, Sequential


__all__ = ["TASKS", "Task", "load_task"]


@dataclass(frozen=True)
class Task:
    """A data set, split, with the network and the settings that learn it well.

    Members
    -------
    x, y, x_test, y_test : array
        Inputs in [0, 1], float32; integer labels.
    model : Sequential
        Fresh network.
    settings : dict
        Defaults: ``lr``, ``momentum``, ``decay``, ``virtual_minibatch``, ``sub_minibatch``,
        ``epochs``.
    """

    x:        np.ndarray
    y:        np.ndarray
    x_test:   np.ndarray
    y_test:   np.ndarray
    model:    Sequential
    settings: dict


def _digits(seed, hidden, tiles):
    """8 x 8 images of handwritten digits (UCI), 1437 to train and 360 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BackendError("the digits come with scikit-learn: pip install 'gradmill[train]'") \
            from None
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1437], order[1437:]
    settings = {"lr": 0.1, "momentum": 0.9, "decay": 1.0, "virtual_minibatch": 64,
                "sub_minibatch": 32, "epochs": 12}
    if tiles > 1:
        settings |= {"lr": 0.16, "decay": 0.75, "sub_minibatch": 8, "epochs": 8}
    model = _dense((64, *(hidden or _HIDDEN[tiles > 2]), 10), seed)
    return Task(x[train], y[train], x[test], y[test], model, settings)


#: Widths of hidden layers for one or two tiles, and for more.
_HIDDEN = (128,), (64, 48, 64)


def _dense(widths, seed):
    """``Linear`` layers with a ``ReLU`` between each two."""
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [Linear(inputs, outputs), ReLU()]
    return Sequential(*layers[:-1], seed=seed)


TASKS = {"digits": _digits}


def load_task(name, seed=0, hidden=None, *, tiles=1):
    """The :class:`Task` called ``name``.

    Parameters
    ----------
    seed : int
        Key of the initial weights.
    hidden : sequence of int
        Widths of the hidden layers; by default enough layers for ``tiles``.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name](seed, hidden, tiles)
