"""The ``gradmill`` command: what it writes, what it refuses."""

import json
import re
import time
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
from typer.testing import CliRunner

import gradmill as gm
from gradmill.checkpoint import read_checkpoint
from gradmill.cli.beside import beside
from gradmill.cli import app, hardware
from gradmill.datasets import TASKS, Task
from gradmill_hw.config import CONFIGS
from gradmill_hw.emit import parse_config
from gradmill_hw.isa import Class
from gradmill_hw.regs import COUNTERS, Tier


FIELDS = {
    "task", "device", "config", "seed", "settings", "epochs", "train_loss", "test_loss",
    "test_accuracy", "validation", "cycles", "macs", "utilisation", "bytes", "host_bytes",
    "counters", "pipeline", "build_seconds", "wall_seconds", "cycles_per_second",
    "bit_exact_to_emulator",
}


def _run(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(
        app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return " ".join(result.output.split())


def _train(out, *arguments, task="tiny", code=0):
    return _run("train", task, "--device", "emulator", "--out", out, *arguments, code=code)


def _tiny(seed, hidden=None, tiles=1):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(32, 5)).astype(np.float32), rng.integers(0, 3, 32)
    settings = {"lr": 0.1, "momentum": 0.9, "virtual_minibatch": 8, "sub_minibatch": 4,
                "epochs": 2}
    return Task(x[:24], y[:24], x[24:], y[24:], gm.Sequential(gm.Linear(5, 3), seed=seed),
                settings)


@pytest.fixture(autouse=True)
def _with_tiny_task(monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", _tiny)


def test_train_with_a_small_fast_memory(tmp_path):
    hidden = ("--hidden", "16,16,16,16,16", "--epochs", 1)
    folders = [tmp_path / name for name in ("kept", "far", "again")]
    _train(folders[0], *hidden, "--tiles", 1, task="digits")
    assert "bytes in fast memory" in _train(folders[1], *hidden, "--fast-memory", "35%",
                                            task="digits")
    _train(folders[2], *hidden, "--fast-memory", "2000", "--recompute", "optimal", task="digits")
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    assert reports[0]["train_loss"] == reports[1]["train_loss"] == reports[2]["train_loss"]
    assert reports[0]["pipeline"]["fast_memory"] is None
    far, again = (report["pipeline"]["fast_memory"] for report in reports[1:])
    assert far["far_bytes_each_way"] == far["footprint_bytes"] - far["fast_bytes"] > 0
    assert set(far["forward_cycles"]) == set(far["backward_cycles"]) == set("012345")
    assert reports[1]["bytes"]["far"]["stash"]["write"] > 40 * far["far_bytes_each_way"]
    assert not again["far_bytes_each_way"] and again["fast_bytes"] <= 2000
    assert reports[2]["macs"] > reports[0]["macs"]
    text = _train(tmp_path / "x", "--recompute", "2", code=2, task="digits")
    assert "--fast-memory 20%" in text
    for wrong in ("20", "0%", "x"):
        assert "fast_memory" in _train(tmp_path / "x", "--fast-memory", wrong, code=2,
                                       task="digits")


def test_train_writes_report_plot_and_checkpoint(tmp_path):
    text = _train(tmp_path / "run", "--config", "tile", "--epochs", 1, task="digits")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report.keys() >= FIELDS
    assert report["device"] == "emulator" and report["config"]["name"] == "tile"
    assert report["epochs"] == len(report["train_loss"]) == len(report["validation"]) == 1
    assert report["test_accuracy"] > 0.7 and f"{report['test_accuracy']:.2%}" in text
    assert report["bit_exact_to_emulator"] is None and report["utilisation"] is None
    assert set(report["bytes"]) == {tier.name.lower() for tier in Tier}
    assert set(report["bytes"]["near"]) == {cls.name.lower() for cls in Class}
    assert report["bytes"]["near"]["gradient"] == {"read": 0, "write": 0}
    assert report["bytes"]["near"]["data"]["read"] > 0
    assert report["macs"] == report["counters"]["macs"] > 0
    assert set(report["counters"]) == {counter.name for counter in COUNTERS}
    assert (tmp_path / "run" / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert read_checkpoint(tmp_path / "run" / "checkpoint")[1]["epoch"] == 1
    assert "sequential, 1 of 1 tiles" in text
    for name in ("speed-up", "utilisation", "cycles per second", "bit-exact"):
        assert name not in text, "nothing to say of one tile without a clock"
    assert "report.html" in text and (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "timeline.json").exists(), "the emulator has no clock"


def test_options_reach_the_trainer(tmp_path):
    _train(tmp_path, "--n", 4, "-B", 6, "-M", 2, "--lr", 0.25, "--momentum", 0, "--seed", 7,
           "--decay", 0.5, "--level1", "bf16", "--epochs", 3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config"]["n"] == 4
    assert report["seed"] == 7 and report["epochs"] == 3
    assert report["settings"] == {"lr": 0.25, "momentum": 0.0, "decay": 0.5,
                                  "virtual_minibatch": 6, "sub_minibatch": 2, "epochs": 3}
    arrays, state = read_checkpoint(tmp_path / "checkpoint")
    assert state["level1"] == "bf16" and state["seed"] == 7
    assert not [name for name in arrays if name.startswith("momentum.")]

    job = _tiny(7)
    with gm.open("emulator", gm.get_config("sim").replace(n=4, bus_bits=128)) as device:
        gm.Trainer(job.model, device, optimizer=gm.SGD(lr=0.25, decay=0.5), virtual_minibatch=6,
                   sub_minibatch=2, level1="bf16", seed=7).fit(job.x, job.y, epochs=3)
    for name, values in job.model.state_dict().items():
        assert arrays[name].tobytes() == values.tobytes()


def test_layer_to_layer_ends_with_the_same_weights(tmp_path):
    _train(tmp_path / "resident", "--tiles", 1, "--epochs", 1, task="digits")
    text = _train(tmp_path / "layers", "--epochs", 1, "--layer-to-layer", "--boundaries", "far",
                  task="digits")
    assert "in far memory" in text
    (expected, _), (found, _) = (read_checkpoint(tmp_path / name / "checkpoint")
                                 for name in ("resident", "layers"))
    for name, values in expected.items():
        assert found[name].tobytes() == values.tobytes(), name
    assert json.loads((tmp_path / "resident" / "report.json").read_text())["layer_to_layer"] is None
    report = json.loads((tmp_path / "layers" / "report.json").read_text())
    assert report["layer_to_layer"].items() >= {"boundaries": "far", "layers": 2}.items()
    assert report["bytes"]["far"]["optimizer"]["read"] > 0
    assert report["pipeline"]["cycles_per_virtual_minibatch"]["predicted"] > 0
    text = _train(tmp_path / "bad", "--layer-to-layer", "--boundaries", "disk", code=2)
    assert "use near or far" in text


def _fit(folder, config="sim", epochs=2, on_step=None):
    """What ``gradmill train tiny`` trains, without its report."""
    job = _tiny(0)
    with gm.open("emulator", config) as device:
        gm.Trainer(job.model, device, optimizer=gm.SGD(lr=0.1, momentum=0.9), virtual_minibatch=8,
                   sub_minibatch=4).fit(job.x, job.y, epochs=epochs, on_step=on_step,
                                        validation_data=(job.x_test, job.y_test),
                                        checkpoint=folder / "checkpoint", checkpoint_every=1)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Folder of a run of two epochs that ended after five of its six virtual minibatches."""
    folder, steps = tmp_path_factory.mktemp("interrupted"), []

    def on_step(*_):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(folder, on_step=on_step)
    return folder


@pytest.fixture
def cut(tmp_path, interrupted):
    """A copy of it."""
    return copytree(interrupted, tmp_path / "cut")


def _same_checkpoints(found, expected):
    (found, state), (expected, expected_state) = (read_checkpoint(folder / "checkpoint")
                                                  for folder in (found, expected))
    assert state == expected_state
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_resume_continues_an_interrupted_run(tmp_path, cut):
    _train(tmp_path / "whole")
    text = _train(cut, "--resume", "--lr", 0.1, "-B", 8, "--epochs", 2, "--stall", 0)
    assert "after 1 epochs and 1 virtual minibatches" in text
    _same_checkpoints(cut, tmp_path / "whole")
    whole, resumed = (json.loads((folder / "report.json").read_text())
                      for folder in (tmp_path / "whole", cut))
    assert all(whole[name] == resumed[name] for name in ("epochs", "train_loss", "validation",
                                                         "settings", "seed"))
    assert whole["resumed_at"] is None
    assert resumed["resumed_at"] == {"epoch": 1, "virtual_minibatch": 1}
    assert resumed["macs"] < whole["macs"]
    page = (cut / "report.html").read_text()
    assert "resumed after 1 epochs and 1 virtual minibatches" in page
    assert "since the run was resumed" in page
    assert "resumed" not in (tmp_path / "whole" / "report.html").read_text()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--lr", 0.5], "--lr: the checkpoint has 0.1, you gave 0.5"),
    (["-B", 6], "--virtual-minibatch: the checkpoint has 8, you gave 6"),
    (["--seed", 1], "--seed: the checkpoint has 0, you gave 1"),
    (["--level1", "bf16"], "--level1: the checkpoint has fp32, you gave bf16"),
    (["--n", 4], "--n: the checkpoint has 8, you gave 4"),
    (["--hidden", 7], "network: the checkpoint has 5-3, you gave 5-7-3"),
    (["--stash", "mx6"], "--stash: the checkpoint has None, you gave .*mx6"),
    (["--epochs", 1], "epochs=1: the checkpoint is of a run of 2 epochs; give 2 or more"),
])
def test_options_that_contradict_the_checkpoint_are_refused(tmp_path, monkeypatch, cut, arguments,
                                                            words):
    def wide(seed, hidden=None, tiles=1):
        job = _tiny(seed)
        layers = (gm.Linear(5, 7), gm.ReLU(), gm.Linear(7, 3)) if hidden else job.model.layers
        return replace(job, model=gm.Sequential(*layers, seed=seed))

    monkeypatch.setitem(TASKS, "tiny", wide)
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    text = _train(cut, "--resume", *arguments, code=2)
    assert re.search(words, text), text
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


def test_another_task_is_not_resumed(cut):
    text = _train(cut, "--resume", task="digits", code=2)
    assert "the checkpoint has 5-3, you gave 64-10" in text


def test_a_finished_run_is_left_alone_or_goes_on(tmp_path):
    _train(tmp_path / "run", "--n", 4)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for arguments in ((), ("--epochs", 2), ("--device", "verilator")):
        text = _train(tmp_path / "run", "--resume", *arguments)
        assert "already finished: 2 of 2 epochs" in text
    assert before == {path: path.read_bytes() for path in before}
    _train(tmp_path / "run", "--resume", "--epochs", 3)
    small = gm.get_config("sim").replace(n=4, bus_bits=128)
    _same_checkpoints(tmp_path / "run", _fit(tmp_path / "whole", small, epochs=3))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["settings"]["epochs"] == report["epochs"] == 3


@pytest.mark.parametrize(("arguments", "words"), [
    (["--config", "huge"], "unknown configuration 'huge': choose one of nano"),
    (["--n", 5], "n=5 is not built: choose 4, 8, 16 or 32"),
    (["--n", 0], "n=0 is not built"),
    (["-B", 0], "virtual_minibatch=0"),
    (["-M", 0], "sub_minibatch=0; give an integer of at least 1"),
    (["-B", 25], "virtual_minibatch=25: the task has 24 samples to train; use at most 24"),
    (["-M", 9, "-B", 8], "sub_minibatch=9 is larger than virtual_minibatch=8"),
    (["--tiles", 2], "tiles=2, but the network has only 1 Linear layers.* use tiles=1"),
    (["--schedule", "gpipe"], "schedule='gpipe'; use one of sequential, 1f1b, zero-bubble"),
    (["--level1", "fp8"], "level1='fp8'; use one of fp32, bf16"),
    (["--lr", -1], "lr=-1.0; give a positive finite number"),
    (["--momentum", 1], "momentum=1.0"),
    (["--epochs", 0], "epochs"),
    (["--stall", 0.95], "stall"),
    (["--device", "gpu"], "device"),
    (["--resume"], "CheckpointError: .* does not exist: give"),
    (["--nonsense"], "No such option"),
])
def test_bad_options_are_refused_in_words(tmp_path, arguments, words):
    text = _train(tmp_path, *arguments, code=2)
    assert re.search(words, text), text
    assert "Traceback" not in text
    assert not (tmp_path / "report.json").exists()


def test_what_does_not_fit_names_what_does(tmp_path):
    text = _train(tmp_path, "--tiles", 1, "-M", 1437, "-B", 1437, task="digits", code=2)
    assert re.search(r"memory has .* What fits: tiles=1, sub_minibatch=\d+ \(", text), text


def test_unknown_tasks_are_refused(tmp_path):
    text = _train(tmp_path, task="chess", code=2)
    assert "no task 'chess': choose one of digits" in text


@pytest.mark.parametrize("command", ["verilog", "bench gemm"])
def test_unknown_configurations_are_refused(command):
    assert "unknown configuration 'huge'" in _run(*command.split(), "--config", "huge", code=2)


def test_info_lists_what_there_is():
    text = _run("info")
    assert all(name in text for name in (*CONFIGS, "digits", "emulator", "verilator"))
    assert "MACs per cycle" in text and "lanes_per_function" in text


def test_info_of_ones_own_configuration(tmp_path):
    (tmp_path / "board.toml").write_text('base = "card"\ntiles = 2\n')
    text = _run("info", "--config", tmp_path / "board.toml", "--set", "banks=8", "--mhz", 200)
    row = dict(re.findall(r"\u2502 ([^\u2502]+?) \u2502 (\S+) \u2502", text))
    assert "board with banks=8" in text and row["tiles"] == "2" and row["banks"] == "8"
    assert row["stash"] == "true" and row["vector lanes"] == "16" and row["exp/log units"] == "4"
    assert row["MACs per cycle"] == "512" and row["peak GOPS, 200 MHz"] == "204.8"
    assert row["of all tiles, KiB"] == "1,136.0"
    assert "--config nano|edge" in _run("info", "--n", 4, code=2)


@pytest.mark.parametrize("command", [
    ["train", "tiny", "--device", "emulator", "--epochs", 1], ["plan", "tiny"]])
def test_ones_own_configuration(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "board.toml").write_text('base = "nano"\nmask_rows = 512\n')
    _run(*command, "--config", "board.toml", "--set", "tensor_rows=2048", "--out", "run")
    if command[0] == "train":
        config = json.loads((tmp_path / "run" / "report.json").read_text())["config"]
        assert config["name"] == "board with tensor_rows=2048"
        assert (config["mask_rows"], config["tensor_rows"]) == (512, 2048)
    text = _run(*command, "--config", "board.toml", "--set", "tensor_rows=2000", "--out", "x",
                code=2)
    assert "tensor_rows=2000: choose a power of two" in text
    for wrong in ("tensor_rows", "stash=True", "n="):
        assert f"--set {wrong}: write a field" in _run(*command, "--set", wrong, code=2)


def test_verilog_of_ones_own_configuration(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(hardware.subprocess, "run", lambda command, check: called.append(command))
    text = _run("verilog", "--config", "edge", "--n", 4, "--set", "stash=true", "--out", tmp_path)
    target = str(tmp_path / "gradmill_edge_with_stash_True_n_4.v")
    assert f"wrote {target}" in text and called[0][-1] == target
    made = parse_config(called[0][called[0].index("--config") + 1])
    assert (made.n, made.bus_bits, made.stash, made.tensor_rows) == (4, 32, True, 4096)


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ("train", "plan", "report", "bench", "verilog", "info")),
    (["plan"], ("--tiles", "--schedule", "--virtual-minibatch", "--out")),
    (["train"], ("--device", "--virtual-minibatch", "--resume", "--level1")),
    (["bench"], ("gemm",)),
])
def test_help(arguments, words):
    text = _run(*arguments, "--help")
    assert all(word in text for word in words)


def test_work_beside_is_waited_for():
    with beside(lambda go_on: 6 * 7) as result:
        assert result() == 42
    with pytest.raises(ZeroDivisionError), beside(lambda go_on: 1 / 0) as result:
        result()


def test_work_beside_ends_when_nobody_waits_any_more():
    steps = []

    def work(go_on):
        for step in range(1000):
            go_on(step)
            steps.append(step)
            time.sleep(0.002)

    with pytest.raises(KeyboardInterrupt), beside(work):
        raise KeyboardInterrupt
    assert len(steps) < 1000
