"""Interrupted training ends in the bits of training that was never interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradmill as gm
from gradmill.checkpoint import read_checkpoint, write_checkpoint
from gradmill_hw.config import TILE


EPOCHS, SIZE, COUNT = 3, 8, 30  # 4 virtual minibatches an epoch, the last one short


class Interrupted(Exception):
    """Raised by a test in the middle of a run."""


def _data():
    rng = np.random.default_rng(21)
    x = rng.normal(size=(COUNT, 6)).astype(np.float32)
    return x, rng.integers(0, 3, COUNT)


def _trainer(device, momentum=0.9, level1="fp32"):
    model = gm.Sequential(gm.Linear(6, 9), gm.ReLU(), gm.Linear(9, 3), seed=4)
    return gm.Trainer(model, device, optimizer=gm.SGD(lr=0.2, momentum=momentum),
                      virtual_minibatch=SIZE, sub_minibatch=3, level1=level1, seed=12)


def _train(path, momentum=0.9, every=2, stop=None):
    """A run with checkpoints; interrupted after virtual minibatch number ``stop``."""
    x, y = _data()
    steps = []

    def on_step(trainer, batch, batches):
        steps.append(batch)
        if len(steps) == stop:
            raise Interrupted

    with gm.open("emulator", TILE) as device:
        trainer = _trainer(device, momentum)
        trainer.fit(x, y, epochs=EPOCHS, validation_data=(x[:9], y[:9]), checkpoint=path,
                    checkpoint_every=every, on_step=on_step)
        return trainer.model.state_dict(), trainer.history


def _resume(path, every=2):
    x, y = _data()
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer.load(path, device)
        trainer.resume(x, y, validation_data=(x[:9], y[:9]), checkpoint=path,
                       checkpoint_every=every)
        return trainer.model.state_dict(), trainer.history


def _assert_same(found, expected):
    assert found[0].keys() == expected[0].keys()
    for name in found[0]:
        assert found[0][name].tobytes() == expected[0][name].tobytes(), name
    assert found[1] == expected[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Result and checkpoint of the run that is never interrupted."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint"
    return _train(path), path


def test_save_and_load(tmp_path):
    x, y = _data()
    with gm.open("emulator", TILE) as device:
        trainer = _trainer(device, level1="bf16")
        trainer.fit(x, y, epochs=1)
        trainer.save(tmp_path / "deep" / "checkpoint")
        expected = trainer.predict(x)
    with gm.open("emulator", TILE) as device:
        loaded = gm.Trainer.load(tmp_path / "deep" / "checkpoint", device)
        assert loaded.predict(x).tobytes() == expected.tobytes()
        for name in ("level1", "seed", "virtual_minibatch", "sub_minibatch", "optimizer", "loss",
                     "epoch", "step", "history"):
            assert getattr(loaded, name) == getattr(trainer, name), name
        assert loaded.model.layers == trainer.model.layers
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("stop", [3, 4, 5, 6, 9, 12])
def test_interrupted_run_resumes_to_the_same_bits(tmp_path, whole, stop):
    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        _train(path, stop=stop)
    _assert_same(_resume(path), whole[0])
    # Momentum and everything else the next step depends on.
    found, expected = read_checkpoint(path), read_checkpoint(whole[1])
    assert found[1] == expected[1]
    assert {k: v.tobytes() for k, v in found[0].items()} \
        == {k: v.tobytes() for k, v in expected[0].items()}
    assert any(np.any(v) for k, v in found[0].items() if k.startswith("momentum."))


def test_run_without_momentum_resumes(tmp_path):
    expected = _train(tmp_path / "whole", momentum=0)
    with pytest.raises(Interrupted):
        _train(tmp_path / "checkpoint", momentum=0, stop=7)
    _assert_same(_resume(tmp_path / "checkpoint"), expected)


def test_finished_run_has_nothing_to_resume(tmp_path, whole):
    write_checkpoint(tmp_path / "checkpoint", *read_checkpoint(whole[1]))
    _assert_same(_resume(tmp_path / "checkpoint"), whole[0])


@pytest.mark.parametrize(("change", "message"), [
    (lambda x, y: (x[:20], y[:20], {}), "run with 30 samples, these are 20 samples"),
    (lambda x, y: (x + 1, y, {}), "resume with the data it began with"),
    (lambda x, y: (x, y[::-1], {}), "resume with the data it began with"),
    (lambda x, y: (x, y, {"shuffle": False}), "shuffle=True, these are shuffle=False"),
])
def test_other_data_is_refused(tmp_path, change, message):
    path, (x, y) = tmp_path / "checkpoint", _data()
    with pytest.raises(Interrupted):
        _train(path, stop=3)
    x, y, options = change(x, y)
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer.load(path, device)
        with pytest.raises(gm.CheckpointError, match=message):
            trainer.resume(x, y, **options)
        trainer.fit(x, y, epochs=1, **options)  # a new fit may


def test_labels_of_another_width_are_the_same_data(tmp_path, whole):
    path, (x, y) = tmp_path / "checkpoint", _data()
    with pytest.raises(Interrupted):
        _train(path, stop=9)
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer.load(path, device)
        trainer.resume(np.asfortranarray(x), y.astype(np.int8), validation_data=(x[:9], y[:9]))
        _assert_same((trainer.model.state_dict(), trainer.history), whole[0])


def test_resume_may_extend_a_run(tmp_path, whole):
    x, y = _data()
    rest = {"validation_data": (x[:9], y[:9]), "checkpoint": tmp_path / "checkpoint"}
    with gm.open("emulator", TILE) as device:
        _trainer(device).fit(x, y, epochs=EPOCHS - 1, **rest)
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer.load(tmp_path / "checkpoint", device)
        with pytest.raises(ValueError, match="epochs=1: the checkpoint is of a run of 2 epochs"):
            trainer.resume(x, y, epochs=1)
        trainer.resume(x, y, epochs=EPOCHS, **rest)
        _assert_same((trainer.model.state_dict(), trainer.history), whole[0])
    assert read_checkpoint(tmp_path / "checkpoint")[1] == read_checkpoint(whole[1])[1]


# Damage -----------------------------------------------------------------------------------------

def _flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    file.write_bytes(raw)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
@pytest.mark.parametrize("name", ["0.weight.npy", "momentum.2.bias.npy", "state.json",
                                  "manifest.json"])
def test_damage_falls_back_to_the_checkpoint_before(tmp_path, name, damage):
    path = tmp_path / "checkpoint"
    arrays = {"0.weight": np.arange(6, dtype=np.float32),
              "momentum.2.bias": np.ones(3, np.float32)}
    for step in (1, 2):
        write_checkpoint(path, {k: v + step for k, v in arrays.items()}, {"step": step})
    assert read_checkpoint(path)[1] == {"step": 2}
    damage(path / name)
    found, state = read_checkpoint(path)
    assert state == {"step": 1}
    assert all((found[k] == v + 1).all() for k, v in arrays.items())
    damage(tmp_path / "checkpoint.previous" / name)
    with pytest.raises(gm.CheckpointError, match=f"{path}.*{path}.previous"):
        read_checkpoint(path)


def test_damaged_run_resumes_from_the_checkpoint_before(tmp_path, whole):
    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        _train(path, stop=7)
    _flip(path / "2.weight.npy")
    _assert_same(_resume(path), whole[0])


@pytest.mark.parametrize("name", ["mine", "mine.previous"])
@pytest.mark.parametrize("entries", [("thesis.txt",), ("values.npy",), ("folder",),
                                     ("manifest.json", "state.json", "thesis.txt"), ()])
def test_what_is_no_checkpoint_is_never_replaced(tmp_path, name, entries):
    place = tmp_path / name
    write_checkpoint(tmp_path / "mine", {"a": np.zeros(3)}, {"step": 0})
    if name == "mine":
        (tmp_path / "mine").rename(tmp_path / "mine.previous")
    if entries:
        place.mkdir()
        for entry in entries:
            (place / entry).mkdir() if entry == "folder" else (place / entry).write_text("mine")
    else:
        place.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(gm.CheckpointError, match=f"{place} is not a checkpoint.*another path"):
        write_checkpoint(tmp_path / "mine", {"a": np.ones(3)}, {"step": 1})
    assert sorted(tmp_path.rglob("*")) == before
    with gm.open("emulator", TILE) as device, \
            pytest.raises(gm.CheckpointError, match="another path"):
        trainer = _trainer(device)
        trainer.fit(*_data(), epochs=1, checkpoint=tmp_path / "mine", on_step=pytest.fail)


def test_an_empty_folder_becomes_a_checkpoint(tmp_path):
    (tmp_path / "mine").mkdir()
    for step in range(3):
        write_checkpoint(tmp_path / "mine", {}, {"step": step})
    assert read_checkpoint(tmp_path / "mine")[1] == {"step": 2}


def test_there_is_no_checkpoint(tmp_path):
    with gm.open("emulator", TILE) as device, \
            pytest.raises(gm.CheckpointError, match="nothing does not exist: give"):
        gm.Trainer.load(tmp_path / "nothing", device)


@pytest.mark.parametrize("module", ["os.fsync", "pathlib.Path.rename"])
def test_a_stop_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, module):
    path, stops = tmp_path / "checkpoint", 0
    write_checkpoint(path, {"a": np.zeros(3)}, {"step": 0})
    for last in range(20):
        calls = []
        real = os.fsync if module == "os.fsync" else Path.rename

        def stop(*arguments, calls=calls, last=last, real=real):
            calls.append(arguments)
            if len(calls) > last:
                raise Interrupted
            return real(*arguments)

        before = read_checkpoint(path)[1]["step"]
        with monkeypatch.context() as patch:
            patch.setattr(module, stop)
            try:
                write_checkpoint(path, {"a": np.full(3, last + 1.0)}, {"step": last + 1})
            except Interrupted:
                stops += 1
        arrays, state = read_checkpoint(path)
        assert state["step"] in (before, last + 1)
        assert (arrays["a"] == state["step"]).all()
    assert stops >= 2
    assert state["step"] == 20


_CHILD = """
import sys
from tests.test_checkpoint import _data, _trainer, EPOCHS, TILE, gm
x, y = _data()
def on_step(trainer, batch, batches):
    print(flush=True)
    if trainer.epoch * batches + batch == 9:
        sys.stdin.read()  # until killed
with gm.open("emulator", TILE) as device:
    trainer = _trainer(device)
    trainer.fit(x, y, epochs=EPOCHS, validation_data=(x[:9], y[:9]), checkpoint=sys.argv[1],
                checkpoint_every=1, on_step=on_step)
"""


def test_killed_process_resumes_to_the_same_bits(tmp_path, whole):
    path = tmp_path / "checkpoint"
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(
        str(root / folder) for folder in ("hw", "sw", "."))}
    with subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], env=environment,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        for _ in range(6):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    state = read_checkpoint(path)[1]
    assert 0 < state["epoch"] * 4 + state["step"] < EPOCHS * 4
    _assert_same(_resume(path), whole[0])


def test_state_is_plain_json(whole):
    state = json.loads((whole[1] / "state.json").read_text())
    assert state["epoch"] == EPOCHS and state["target"] == EPOCHS
    assert len(state["history"]["train_loss"]) == len(state["history"]["validation"]) == EPOCHS
