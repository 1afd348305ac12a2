"""``gradmill plan``: what it shows, what it refuses."""

import re
from itertools import pairwise

import pytest
from typer.testing import CliRunner

import gradmill as gm
from gradmill.cli import app
from gradmill.datasets import load_task
from gradmill.forecast import forecast, one_tile_cycles
from gradmill.report.plan_figure import plan_lanes
from gradmill_hw.config import TILE


def _plan(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "120", "TERM": "dumb"}).invoke(
        app, ["plan", "digits", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result.output


def test_the_table_is_that_of_the_plan(tmp_path):
    text = _plan("--tiles", 3, "--hidden", "24,16", "-B", 32, "-M", 8, "--out", tmp_path)
    job, config = load_task("digits", hidden=(24, 16), tiles=3), TILE.replace(tiles=3)
    loss, optimizer = gm.nn.CrossEntropy(), gm.SGD(lr=0.1, momentum=0.9)
    made = gm.plan(job.model, config, virtual_minibatch=32, sub_minibatch=8)
    expected = forecast(made, job.model, config, loss, optimizer)
    alone = one_tile_cycles(job.model, config, loss, optimizer, virtual_minibatch=32,
                            sub_minibatch=8)
    for row, memory in zip(made.table(), expected.memory, strict=True):
        columns = [row[name] for name in ("tile", "forward", "backward", "weight", "update")]
        assert re.search("".join(f"│ +{value:,} " for value in columns), text), columns
        assert f"{memory['tensor'][0]:,} │" in text
    assert all(f" {size} " in text for size in ("1,560", "400", "170")), "parameters"
    assert f"{made.cycles:,}; with these sets at least {made.bound:,}" in text
    assert f"{expected.cycles:,.0f}, by the cycle model" in text
    assert f"{alone / expected.cycles:.2f} over one tile, predicted" in text
    lanes = [line for line in text.splitlines() if re.match(r"tile \d", line)]
    assert len(lanes) == 3 and all("█" in lane for lane in lanes)
    picture = (tmp_path / "plan.svg").read_text()
    assert "zero-bubble as planned" in picture and picture.count(">tile ") == 3


def test_one_tile_needs_no_pipeline():
    text = _plan("--tiles", 1, "--hidden", 16, "-B", 16, "-M", 16)
    assert "sequential" in text and "bubble" in text and "over one tile" not in text


def test_the_order_is_that_of_the_schedule():
    job = load_task("digits", hidden=(24, 16))
    made = gm.plan(job.model, TILE.replace(tiles=3), virtual_minibatch=32, sub_minibatch=8)
    lanes = plan_lanes(gm.planner.simulate(made.schedule, made.costs))
    for tile, lane in enumerate(lanes):
        ordered = sorted(lane, key=lambda entry: entry[2])
        kinds = {"forward": "F", "data gradient": "B", "weight gradient": "W", "update": "U"}
        expected = [(op.kind.name, op.sub) for op in made.schedule.orders[tile]
                    if made.costs.durations()[op.kind][tile]]
        assert [(kinds[work], max(sub, 0)) for work, sub, _, _ in ordered] == expected
        assert all(before[3] <= after[2] for before, after in pairwise(ordered))


@pytest.mark.parametrize(("arguments", "words"), [
    (["--tiles", 4, "--hidden", 16], "tiles=4, but .* only 2 Linear layers.*; use tiles=2"),
    (["-B", 8, "-M", 16], "sub_minibatch=16 is larger than virtual_minibatch=8; use 1 <= "),
    (["--schedule", "gpipe"], "schedule='gpipe'; use one of sequential, 1f1b, zero-bubble"),
    (["--tiles", 0], "tiles=0"),
    (["--hidden", "a"], "hidden='a': write positive sizes"),
    (["--config", "huge"], "unknown configuration 'huge': choose one of nano"),
    (["--tiles", 1, "--hidden", 16, "-B", 512, "-M", 512],
     r"memory has .* What fits: tiles=1, sub_minibatch=\d+ \("),
])
def test_what_is_refused_names_what_is_allowed(arguments, words, tmp_path):
    text = " ".join(_plan(*arguments, "--out", tmp_path / "out", code=2).split())
    assert re.search(words, text), text
    assert not (tmp_path / "out").exists()


def test_what_is_said_to_fit_fits():
    network = "--tiles", 1, "--hidden", 16, "-B", 512, "-M"
    text = " ".join(_plan(*network, 512, code=2).split())
    fits = re.search(r"What fits: tiles=1, sub_minibatch=(\d+)", text)[1]
    _plan(*network, fits)


def test_an_unknown_task_is_refused():
    result = CliRunner().invoke(app, ["plan", "chess"])
    assert result.exit_code == 2 and "choose one of digits" in result.output
