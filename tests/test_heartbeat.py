"""Work that takes long says so, also where there is no terminal."""

import time

import pytest

import gradmill as gm
from gradmill import heartbeat
from gradmill.cli.common import working
from gradmill.datasets import TASKS
from gradmill.verilator import build
from tests.test_cli import _tiny, _train


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(heartbeat, "PERIOD", 0.02)


def test_signs_come_until_the_work_ends():
    said = []
    with pytest.raises(ZeroDivisionError), heartbeat.heartbeat(said.append):
        while len(said) < 3:
            time.sleep(0.005)
        raise ZeroDivisionError
    count = len(said)
    time.sleep(0.1)
    assert said == sorted(said) and len(said) == count


def test_a_build_says_that_it_goes_on(tmp_path, capsys):
    def make(folder):
        time.sleep(0.1)
        (folder / "out").write_text("product")
        return folder / "out"

    build._produce(tmp_path / "product.so", make, "building it", True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "gradmill: building it (once) ..."
    assert "gradmill: building it: 0 s so far" in lines[1:-1]
    assert lines[-1] == "gradmill: building it took 0 s"
    build._produce(tmp_path / "other.so", make, "building it", False)
    assert not capsys.readouterr().err


def test_work_without_a_terminal_says_that_it_goes_on(capsys):
    with working("planning"):
        time.sleep(0.1)
    assert "planning: 0 s so far" in capsys.readouterr().err


def test_training_without_a_terminal_says_where_it_is(tmp_path, monkeypatch):
    run_batches = gm.Trainer.run_batches

    def slow(*arguments):
        time.sleep(0.1)
        return run_batches(*arguments)

    monkeypatch.setitem(TASKS, "tiny", _tiny)
    monkeypatch.setattr(gm.Trainer, "run_batches", slow)
    text = _train(tmp_path, "--epochs", 3)
    assert "tiny on emulator: epoch 1 of 3 done, loss " in text
    assert "tiny on emulator: epoch 3 of 3 done, loss " in text
    assert "tiny on emulator: epoch 1 of 3, virtual minibatch 3 of 3, 0 s so far" in text
