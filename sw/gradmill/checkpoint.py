"""Checkpoints that survive a kill at any moment: written beside, synced, then renamed."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np


__all__ = ["CheckpointError", "check_place", "kept_schedule", "read_checkpoint", "write_checkpoint"]

_MANIFEST = "manifest.json"
_STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or changed."""


def write_checkpoint(path, arrays, state):
    """Replace the checkpoint at ``path`` in one step; the one before stays as ``<path>.previous``.

    Parameters
    ----------
    path : path-like
        Directory of the checkpoint.
    arrays : dict
        Name -> array, each stored as ``<name>.npy``.
    state : dict
        Plain data, stored as JSON.
    """
    path = Path(path)
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f".{path.name}.*.new"):
        shutil.rmtree(abandoned, ignore_errors=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.mkdir()
    try:
        for name, array in arrays.items():
            with (fresh / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                _sync(file)
        with (fresh / _STATE).open("w") as file:
            json.dump(state, file, indent=1)
            _sync(file)
        digests = {file.name: _digest(file) for file in sorted(fresh.iterdir())}
        with (fresh / _MANIFEST).open("w") as file:
            json.dump(digests, file, indent=1)
            _sync(file)
        _sync_directory(fresh)
        _replace(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_place(path):
    """Refuse a place for a checkpoint where something else would be replaced."""
    path = Path(path)
    for place in (path, _previous(path)):
        if not _replaceable(place):
            raise CheckpointError(f"{place} is not a checkpoint, or holds other files too; they "
                                  "would be lost: choose another path")


def _replaceable(path):
    """Whether there is nothing at ``path`` but a checkpoint, even a damaged one."""
    if not path.is_dir():
        return not path.exists()
    names = {entry.name for entry in path.iterdir()}
    foreign = {name for name in names - {_MANIFEST, _STATE} if not name.endswith(".npy")}
    return not foreign and (not names or bool(names & {_MANIFEST, _STATE}))


def _previous(path):
    """Where the checkpoint before the one at ``path`` stays."""
    return path.with_name(f"{path.name}.previous")


def kept_schedule(path, state, options):
    """``options`` of a trainer that goes on from ``state``: a run with late gradients keeps its
    schedule, and no other takes it up."""
    late, wanted = bool(state.get("versions")), options.get("schedule")
    if late and wanted not in (None, "no-drain"):
        raise CheckpointError(f"{path} was trained with schedule='no-drain', whose gradients are "
                              f"one update late; schedule={wanted!r} would go on with other bits: "
                              "leave the schedule out")
    if not late and wanted == "no-drain":
        raise CheckpointError(f"{path} was trained with a schedule that drains; 'no-drain' would "
                              "go on with other bits: use a schedule that drains")
    if not late:
        return options
    return options | {"schedule": "no-drain", "predict_weights": state["predict_weights"]}


def _replace(fresh, path):
    """At every moment a whole checkpoint stands at ``path`` or at ``<path>.previous``."""
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    fresh.rename(path)
    _sync_directory(path.parent)


def read_checkpoint(path):
    """``(arrays, state)`` of the newest whole checkpoint at ``path`` or beside it."""
    path = Path(path)
    candidates = [place for place in (path, _previous(path)) if place.exists()]
    if not candidates:
        raise CheckpointError(f"{path} does not exist: give the path of Trainer.save(path) or "
                              "Trainer.fit(..., checkpoint=path)")
    problems = []
    for candidate in candidates:
        try:
            return _read(candidate)
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError("; ".join(problems))


def _read(path):
    if not (path / _MANIFEST).is_file():
        raise CheckpointError(f"{path} is not a checkpoint (no {_MANIFEST})")
    try:
        digests = json.loads((path / _MANIFEST).read_bytes())
    except ValueError:
        raise CheckpointError(f"{path / _MANIFEST} is damaged") from None
    for name, digest in digests.items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise CheckpointError(f"{path / name} is missing or differs from its manifest")
    arrays = {name.removesuffix(".npy"): np.load(path / name, allow_pickle=False)
              for name in digests if name.endswith(".npy")}
    return arrays, json.loads((path / _STATE).read_text())


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(file):
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
