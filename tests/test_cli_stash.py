"""``--stash`` of the command line: what its words mean, and what a run shows of it."""

import json
import re

import pytest
from typer.testing import CliRunner

import gradmill as gm
from gradmill.cli import app
from gradmill.stash.text import parse_stash
from tests.test_report import _task


FIXED = [
    (["mx6"], gm.Stash("mx6")),
    (["mask+bfp(3)/64", "2=mx9", "3=none"],
     gm.Stash("mask+bfp(3)/64", layers={2: "mx9", 3: None})),
    (["1=outlier(2, 4)/128"], gm.Stash(layers={1: "outlier(2, 4)/128"})),
    (["adaptive"], gm.AdaptiveStash()),
    (["adaptive=ubfp(1)/128,outlier(2, 4)/128, mx9"],
     gm.AdaptiveStash(["ubfp(1)/128", "outlier(2, 4)/128", "mx9"])),
    (["auto"], gm.AutoStash()),
    (["auto=mx4,mx9"], gm.AutoStash(["mx4", "mx9"])),
    ([], None),
]


@pytest.mark.parametrize(("words", "policy"), FIXED)
def test_words_make_policies(words, policy):
    assert parse_stash(words) == policy


def test_rounding_replaces_that_of_the_policy():
    assert parse_stash(["mx6"], rounding="stochastic") == gm.Stash("mx6", rounding="stochastic")
    assert parse_stash(["auto"], rounding="nearest") == gm.AutoStash(rounding="nearest")
    assert parse_stash(["adaptive"], interval=4) == gm.AdaptiveStash(interval=4)
    with pytest.raises(ValueError, match="only adaptive judges"):
        parse_stash(["auto"], interval=4)


@pytest.mark.parametrize(("words", "message"), [
    (["mx7"], "unknown stash format 'mx7'"),
    (["x=mx6"], "write FORMAT, LAYER=FORMAT"),
    (["mx6", "mx9"], "one format is for all layers"),
    (["adaptive", "1=mx9"], r"gm.AdaptiveStash\(layers="),
    (["adaptive="], "give a list, from narrow to wide"),
    (["auto="], "give a list of candidates"),
    (["1=mx9(3)"], "mx9: bits=3"),
])
def test_other_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_stash(words)


def _run(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, list(map(str,
                                                                                    arguments)))
    assert result.exit_code == code, result.output + repr(result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize("words", ["adaptive=ubfp(1)/128,mx6", "auto=ubfp(2)/64,mx6", "mx4"])
def test_a_run_shows_bits_over_time(tmp_path, monkeypatch, words):
    monkeypatch.setitem(gm.datasets.TASKS, "tiny", _task)
    monkeypatch.setattr("gradmill.stash.adaptive.AdaptiveStash.judge",
                        lambda self, state, metric, rungs: state.rung == 0
                        and bool(setattr(state, "rung", 1) or True))
    text = _run("train", "tiny", "--device", "emulator", "--stash", words, "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["stashing"]
    name = words.split("=")[0].replace("mx4", "fixed")
    assert found["policy"]["policy"] == name
    assert sum(values for _, values, _ in found["bits"]) > 0
    if name != "auto":  # whose measurements are stored too
        assert sum(stored for *_, stored in found["bits"]) == report["stash"]["bytes"]
    assert f"{report['stash']['bits_per_value']:.3f} bits each" in text
    page = (tmp_path / "report.html").read_text()
    assert 'id="figure-bits"' in page
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    for switch in found["switches"]:
        assert switch["reason"] in words
        assert all(entry in words for entry in switch["formats"].values())
    if name == "adaptive":
        assert [entry["formats"]["1"] for entry in found["switches"]] == ["ubfp(1)/128", "mx6/64"]
        first, last = found["bits"][0], found["bits"][-1]
        assert 8 * first[2] / first[1] < 6 < 8 * last[2] / last[1]


def test_a_run_without_a_stash_has_no_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(gm.datasets.TASKS, "tiny", _task)
    text = _run("train", "tiny", "--device", "emulator", "--out", tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["stashing"] is None
    assert "on chip" in text
    assert 'id="figure-bits"' not in (tmp_path / "report.html").read_text()


def test_bad_words_end_in_one_line(tmp_path):
    text = _run("train", "digits", "--stash", "mx7", "--out", tmp_path, code=2)
    assert "unknown stash format 'mx7'" in text and "Traceback" not in text


def test_help_teaches_the_words():
    text = _run("train", "--help")
    for word in ("adaptive", "auto", "LAYER=FORMAT", "--stash-rounding", "mnist1d"):
        assert word in text
