"""The study of stash formats: it goes on where it stopped, and says what its lines say."""

import json
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from bench import stash, stash_report


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
             _line("gradient", "digits", NARROW, 0, cosine=0.875, error=0.5, mean_error=0.125)]
    for seed in range(3):
        found += [_training("digits", "none", seed, 0.9, 0),
                  _training("digits", NARROW, seed, (0.91, 0.90, 0.89)[seed], 1.125),
                  _training("digits", CONTROL, seed, 0.5, 3.25)]
    return found


def test_intervals_are_student_s():
    mean, half = stash_report.interval([1, 2, 3, 4, 5])
    assert mean == 3 and half == pytest.approx(1.9632, abs=1e-3)  # 2.7764 * 1.5811 / sqrt(5)


def test_page_and_picture_say_what_the_lines_say(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(stash_report, "_PAGE", tmp_path / "study.md")
    monkeypatch.setattr(stash_report, "_PICTURE", tmp_path / "study.svg")
    stash_report.write(lines, stash.ENTRIES)
    page = (tmp_path / "study.md").read_text()
    rows = {row.split(" | ")[0].strip("| "): row for row in page.splitlines()
            if row.startswith("| ")}
    assert "90.00 % (3 seeds)" in rows["none"]
    assert rows[NARROW].split(" | ")[1:] == [
        "1.128", "12.3", "0.875 / 0.50 / 0.12", "+0.00 ± 2.48 |"]
    assert "-40.00 ± 0.00" in rows[CONTROL] and "3.248" in rows[CONTROL]
    assert "mx6/64" not in rows, "never run"
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
        stash.study(Console(quiet=True), lines, {"digits": ("digits", 1, 0.1)}, seeds, labels,
                    None)

    study(["none"], range(2))
    assert len(made) == 2
    study(["none", NARROW], range(2))
    assert made[2:] == [(stash.ENTRIES[NARROW], "digits", seed) for seed in range(2)]
    keys = [(line["kind"], line["label"], line["seed"])
            for line in map(json.loads, lines.read_text().splitlines())]
    assert len(keys) == len(set(keys)) == 8
