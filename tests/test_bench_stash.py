"""The study of stash formats: it goes on where it stopped, and says what its lines say."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from bench import stash, stash_report
from gradmill.datasets import load_task


def _line(kind, task, label, seed, **rest):
    return {"kind": kind, "task": task, "label": label, "seed": seed, "seconds": 36.0, **rest}


def _training(task, label, seed, accuracy, bits, **rest):
    values = 1000
    return _line("training", task, label, seed, epochs=3, accuracy=accuracy, loss=0.1,
                 values=values if bits else 0, bytes=round(bits * values / 8), bits=[],
                 switches=[], **rest)


NARROW, CONTROL = "ubfp(1)/128, stochastic", "bfp(3)/64, nearest (control)"


@pytest.fixture
def lines():
    found = [_line("qsnr", None, NARROW, 0, qsnr=12.34, bits=1.125),
             _line("gradient", "digits", NARROW, 0, cosine=0.875, error=0.5, mean_error=0.25,
                   draws=16)]
    for seed in range(3):
        found += [_training("digits", "none", seed, 0.9, 0),
                  _training("digits", NARROW, seed, (0.91, 0.90, 0.89)[seed], 1.125),
                  _training("digits", CONTROL, seed, 0.5, 3.25)]
    found += [_line("qsnr", None, CONTROL, 0, qsnr=9.0, bits=3.25),
              _line("gradient", "digits", CONTROL, 0, cosine=0.5, error=0.6, mean_error=0.6,
                    draws=1)]
    return found


def test_intervals_are_student_s():
    mean, half = stash_report.interval([1, 2, 3, 4, 5])
    assert mean == 3 and half == pytest.approx(1.9632, abs=1e-3)  # 2.7764 * 1.5811 / sqrt(5)


def test_bias_is_that_of_the_expectation():
    rng = np.random.default_rng(3)
    exact, offset = rng.standard_normal((2, 100_000))
    draws = exact + 0.2 * offset + rng.standard_normal((16, len(exact)))
    error, mean_error = (np.linalg.norm(found - exact) / np.linalg.norm(exact)
                         for found in (draws[0], draws.mean(axis=0)))
    assert mean_error > 0.3
    assert stash_report.bias(error, mean_error, 16) == pytest.approx(0.2, abs=0.01)
    assert stash_report.bias(0.3, 0.3, 1) == 0.3


def test_controls_fail_by_the_bias_of_their_gradient(monkeypatch):
    """Of gradients that the device computed, for a small network."""
    def small(name, seed):
        job = load_task(name, seed, hidden=(32,))
        return replace(job, x=job.x[:256], y=job.y[:256])

    monkeypatch.setattr(stash, "load_task", small)
    good = {"ubfp(1)/128, stochastic", "ubfp(2)/128, stochastic", "ubfp(4)/64, stochastic"}
    found = {}
    for label in (*good, "ubfp(1)/128, nearest (control)", CONTROL):
        policy = stash.ENTRIES[label]
        line = stash._gradient(policy, ("digits", 1, 0.15), 0)
        found[label] = (stash._qsnr(policy, None, 0)["bits"], stash_report.bias(
            line["error"], line["mean_error"], line["draws"]))
    for label, own in found.items():
        others = [found[other] for other in good - {label}]
        assert stash_report.fails(own, others) == (label not in good), label


def test_page_and_picture_say_what_the_lines_say(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(stash_report, "_PAGE", tmp_path / "study.md")
    monkeypatch.setattr(stash_report, "_PICTURE", tmp_path / "study.svg")
    stash_report.write(lines, stash.ENTRIES)
    page = (tmp_path / "study.md").read_text()
    rows = {row.split(" | ")[0].strip("| "): row for row in page.split("\n## ")[0].splitlines()
            if row.startswith("| ")}
    assert "90.00 % (3 seeds)" in rows["none"]
    assert rows[NARROW].split(" | ")[1:] == [
        "1.128", "12.3", "0.875 / 0.50 / 0.22", "+0.00 ± 2.48 |"]
    assert "-40.00 ± 0.00" in rows[CONTROL] and "3.248" in rows[CONTROL]
    assert "mx6/64" not in rows, "never run"
    assert "By accuracy 1 of 1 fail" in page
    assert f"| {CONTROL} | digits | 0.60 | 0.22 | fails" in page
    ET.parse(tmp_path / "study.svg")


def test_the_adaptive_run_is_compared_with_its_final_format(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(stash_report, "_PAGE", tmp_path / "study.md")
    monkeypatch.setattr(stash_report, "_PICTURE", tmp_path / "study.svg")
    for seed in range(2):
        lines.append(_training("digits, long", "ubfp(4)/64, stochastic", seed, 0.95, 4.25))
        entry = _training("digits, long", "adaptive", seed, 0.96, 2.0)
        entry["bits"] = [[4, 500, 70], [8, 500, 250]]
        entry["switches"] = [{"virtual_minibatch": 0, "formats": {"1": "ubfp(1)/128"}},
                             {"virtual_minibatch": 4, "formats": {"1": "ubfp(4)/64"}}]
        lines.append(entry)
    stash_report.write(lines, stash.ENTRIES)
    page = (tmp_path / "study.md").read_text()
    assert "| 1 | 4 (ubfp(4)/64) | 2.000 | 50 % | 47 % |" in page
    assert "| mean |  | 2.000 | 50 % | 47 % |" in page
    assert "+1.00 ± 0.00 points of accuracy over\n2 seeds" in page


def test_runs_that_have_their_line_are_not_repeated(tmp_path, monkeypatch):
    made = []

    def training(policy, task, seed):
        made.append((policy, task[0], seed))
        return {"epochs": 1}

    for name in ("_qsnr", "_gradient"):
        monkeypatch.setattr(stash, name, lambda *_: {})
    monkeypatch.setattr(stash, "_training", training)
    lines = tmp_path / "deep" / "lines.jsonl"

    def study(labels, seeds):
        stash.study(Console(quiet=True), lines, {"digits": ("digits", 1, 0.1)}, seeds, labels)

    study(["none"], range(2))
    assert len(made) == 2
    study(["none", NARROW], range(2))
    assert made[2:] == [(stash.ENTRIES[NARROW], "digits", seed) for seed in range(2)]
    keys = [(line["kind"], line["label"], line["seed"])
            for line in map(json.loads, lines.read_text().splitlines())]
    assert len(keys) == len(set(keys)) == 8


def test_workers_write_the_lines_of_one(tmp_path, monkeypatch):
    for name in ("_gradient", "_training"):
        monkeypatch.setattr(stash, name, lambda policy, task, seed: {"found": [task, seed]})
    found = []
    for workers in (1, 2):
        lines = tmp_path / f"{workers}.jsonl"
        stash.study(Console(quiet=True), lines, {"digits": ("digits", 1, 0.1)}, range(3),
                    ["none", NARROW], workers=workers)
        found.append(sorted([{**line, "seconds": 0} for line in stash.read(lines)], key=str))
    assert found[0] == found[1] and len(found[0]) == 10


def test_no_run_begins_after_the_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr(stash, "_qsnr", lambda *_: pytest.fail("it ran"))
    stash.study(Console(quiet=True), tmp_path / "lines.jsonl", {}, range(1), [NARROW],
                minutes=-1)
    assert stash.read(tmp_path / "lines.jsonl") == []
