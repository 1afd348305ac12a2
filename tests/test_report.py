"""report.html and the ``pipeline`` of report.json: what they say, and how a browser shows it."""

import json
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

import gradmill as gm
from gradmill.cli import app
from gradmill.datasets import TASKS, Task
from gradmill.forecast import forecast, one_tile_cycles
from gradmill.report import page, write_page
from gradmill.report.data import speedup
from gradmill.timeline import read_trace
from gradmill_hw.config import CONFIGS, TILE
from tests.browser import lay_out
from tests.test_pipeline import CHAIN, network


WIDTHS = (12, 16, 12, 5)
FIGURES = ("learning", "stages", "units", "array", "stash", "traffic")


def _task(seed, hidden=None, tiles=1):
    rng = np.random.default_rng(3)
    x, y = rng.random((90, WIDTHS[0]), np.float32), rng.integers(0, WIDTHS[-1], 90)
    settings = {"lr": 0.1, "momentum": 0.9, "virtual_minibatch": 24, "sub_minibatch": 4,
                "epochs": 3}
    return Task(x[:72], y[:72], x[72:], y[72:], network(WIDTHS, seed), settings)


def _run(*arguments, code=0):
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def _train(folder, device, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "tiny", _task)
        patch.setitem(CONFIGS, "chain", CHAIN)
        _run("train", "tiny", "--device", device, "--config", "chain", "--out", folder, *arguments)
    return folder, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return _train(tmp_path_factory.mktemp("emulated"), "emulator")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return _train(tmp_path_factory.mktemp("simulated"), "verilator")


def _words(folder):
    """The page without its markup."""
    text = re.sub("<style.*?</style>", "", (folder / "report.html").read_text(), flags=re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", text).split())


# report.json --------------------------------------------------------------------------------------

def test_the_pipeline_is_in_the_report(emulated):
    pipeline = emulated[1]["pipeline"]
    job = _task(0)
    made = gm.plan(job.model, CHAIN, virtual_minibatch=24, sub_minibatch=4)
    assert pipeline["schedule"] == "zero-bubble" and pipeline["sub_minibatches"] == 6
    assert [tuple(tile["stages"]) for tile in pipeline["tiles"]] == list(made.spans)
    assert all(0 < tile["sets"] <= most
               for tile, most in zip(pipeline["tiles"], made.limits, strict=True))
    assert [tile["parameters"] for tile in pipeline["tiles"]] == [208, 204, 65]
    assert pipeline["cycles_per_virtual_minibatch"]["measured"] is None
    assert pipeline["speedup"]["measured_over_one_tile_predicted"] is None
    assert pipeline["tiles"][0]["utilisation"] is None
    forward = sum(a * b for a, b in pairwise(WIDTHS))
    virtual_minibatches, evaluated = 3 * 72 // 24, 3 * 18
    assert pipeline["training"]["utilisation"] is None
    assert emulated[1]["macs"] == (virtual_minibatches * pipeline["training"]["macs"]
                                   + evaluated * forward)


def test_predictions_are_those_of_the_programs_that_run():
    job, loss, optimizer = _task(0), gm.CrossEntropy(), gm.SGD(lr=0.1, momentum=0.9)
    sizes = {"virtual_minibatch": 24, "sub_minibatch": 4}
    for tiles in (1, 3):
        config = CHAIN.replace(tiles=tiles)
        with gm.open("emulator", config) as device:
            trainer = gm.Trainer(job.model, device, loss=loss, optimizer=optimizer, **sizes)
            strides = [6 * size for size in (trainer._lowering.batch("train", 24).data_bytes,
                                             trainer._lowering.batch("train", 24).label_bytes)]
            few, many = (gm.cycle_model.predict(trainer._lowering.train(
                24, count, strides, trainer._regions, trainer._losses_at), config).cycles
                for count in (2, 6))
        expected = forecast(trainer.plan, job.model, config, loss, optimizer)
        assert expected.cycles == (many - few) / 4
        for memory, buffers in zip(expected.memory, trainer._lowering.buffers, strict=True):
            matrices = [buffers.weight, *buffers.x, *buffers.dy]
            rows = sum(matrix.extent for each in matrices for matrix in each.values())
            rows += sum(matrix.extent for matrix in (*buffers.sent, *buffers.returned))
            assert memory["tensor"] == (rows, config.tensor_rows)
            assert memory["acc"][1] == config.acc_rows and memory["mask"][1] == config.mask_rows
        assert len(expected.busy) == tiles and 0 < expected.busy[0]["matrix"] < 1
        if tiles == 1:
            assert one_tile_cycles(job.model, CHAIN, loss, optimizer, **sizes) == expected.cycles


def test_a_network_too_large_for_one_tile_has_no_speedup():
    model = network((64, 60, 60, 60))
    config = TILE.replace(tiles=3, tensor_rows=1024, acc_rows=1024)
    assert one_tile_cycles(model, config, gm.CrossEntropy(), gm.SGD(lr=0.1),
                           virtual_minibatch=16, sub_minibatch=4) is None
    assert set(speedup(None, 100, 90).values()) == {None}
    assert speedup(300, 100, 150) == {
        "one_tile_cycles_predicted": 300, "measured_over_one_tile_predicted": 2,
        "predicted_over_one_tile_predicted": 3}


@pytest.mark.rtl
def test_a_run_on_the_rtl_is_measured(simulated):
    folder, report = simulated
    pipeline = report["pipeline"]
    cycles, gain = pipeline["cycles_per_virtual_minibatch"], pipeline["speedup"]
    timeline = read_trace(folder / "timeline.json")
    starts = timeline.starts(6)
    assert len(starts) == 3, "the virtual minibatches of the first start of the device"
    assert cycles["measured"] == timeline.period(6) == (starts[2] - starts[1])
    assert abs(cycles["predicted"] / cycles["measured"] - 1) < 0.05, "as in test_cycle_model.py"
    assert gain["measured_over_one_tile_predicted"] == pytest.approx(
        gain["one_tile_cycles_predicted"] / cycles["measured"])
    assert report["bit_exact_to_emulator"] is True
    training, peak = pipeline["training"], CHAIN.n ** 2 * CHAIN.tiles * cycles["measured"]
    assert 0 < training["utilisation"] == training["macs"] / peak < 1
    for tile, entry in enumerate(pipeline["tiles"]):
        assert 0 < entry["utilisation"] <= entry["array"]["array_rows"] < 1
        assert entry["array"]["matrix_stall_weights"] <= entry["array"]["matrix_stall"]
        assert all(0 < unit["busy"] < 1 for unit in entry["units"].values())
        assert timeline.sets(tile)[1].max() == entry["sets"] <= pipeline["bounds"][tile]


# report.html --------------------------------------------------------------------------------------

def test_a_page_stands_alone(emulated):
    text = (emulated[0] / "report.html").read_text()
    assert "<script" not in text and "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert not [name for name in FIGURES if f'id="figure-{name}"' in text
                and name not in ("learning", "traffic")], "what needs a clock is left out"
    assert "The emulator has no clock: train with" in _words(emulated[0])


def test_what_comes_from_outside_is_escaped(emulated, tmp_path):
    report = emulated[1] | {"task": "<b>&</b>"}
    (tmp_path / "report.json").write_text(json.dumps(report))
    text = write_page(tmp_path).read_text()
    assert "<b>&</b>" not in text and "&lt;b&gt;&amp;&lt;/b&gt;" in text


def test_numbers_of_the_report_are_on_the_page(emulated):
    folder, report = emulated
    words, pipeline = _words(folder), report["pipeline"]
    cycles = pipeline["cycles_per_virtual_minibatch"]["predicted"]
    gain = pipeline["speedup"]["predicted_over_one_tile_predicted"]
    assert f"{report['test_accuracy']:.1%} accuracy on test samples" in words
    assert f"{cycles:,.0f} cycles per virtual minibatch, predicted" in words
    assert f"{gain:.2f}\N{MULTIPLICATION SIGN} as fast as one tile" in words
    assert "0 bytes of gradients moved to or from memory: they are summed on chip" in words
    assert f"near data {report['bytes']['near']['data']['read']:,} 0" in words


def test_gradients_that_moved_are_not_denied(emulated, tmp_path):
    report = json.loads(json.dumps(emulated[1]))
    report["bytes"]["far"]["gradient"]["write"] = 4096
    report["pipeline"]["tiles"][1]["sets"] = 77
    (tmp_path / "report.json").write_text(json.dumps(report))
    write_page(tmp_path)
    assert "4,096 bytes of gradients moved to or from memory" in _words(tmp_path)
    assert "summed on chip" not in _words(tmp_path) and "never left" not in _words(tmp_path)
    assert '<td class="wrong">77 of' in (tmp_path / "report.html").read_text()


def test_report_makes_the_same_page_again(emulated):
    folder = emulated[0]
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert "report.html" in _run("report", folder)
    assert (folder / "report.html").read_text() == before


@pytest.mark.parametrize(("content", "words"), [
    (None, "report.json does not exist: give the folder that"),
    ("{", "report.json is not JSON .*: give the folder that"),
    ("[]", "report.json does not say what each tile did: train again"),
    ('{"cycles": 1}', "report.json does not say what each tile did: train again"),
])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    # Long lines are broken where the console ends, within words too.
    found = _run("report", tmp_path, code=2).replace(" ", "")
    assert re.search(words.replace(" ", ""), found)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_what_a_page_needs_is_named(emulated, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    page._template.cache_clear()
    assert f"need {missing}: pip install 'gradmill[train]'" in _run("report", emulated[0], code=2)


# in a browser -------------------------------------------------------------------------------------

def _check(found, figures):
    """Nothing is cut off, doubled, empty or fetched."""
    assert found["needs"] <= found["width"]
    assert not [panel for panel in found["panels"] if panel["needs"] > panel["has"]]
    assert not found["doubled"] and not found["dangling"] and not found["fetched"]
    assert [picture["id"] for picture in found["pictures"]] == [f"figure-{f}" for f in figures]
    for picture in found["pictures"]:
        assert picture["width"] > 900 and 100 < picture["height"] < 900, picture["id"]
        assert picture["bars"] > 5 and len(picture["words"]) > 5, picture["id"]
    assert found["font"] == "15px", "the style is in force"


def test_a_browser_shows_the_page(emulated, tmp_path):
    found = lay_out(emulated[0] / "report.html", tmp_path)
    _check(found, ("learning", "traffic"))
    assert found["title"] == "Gradmill: tiny on emulator"


@pytest.mark.rtl
def test_a_browser_shows_the_page_of_the_rtl(simulated, tmp_path):
    found = lay_out(simulated[0] / "report.html", tmp_path)
    _check(found, FIGURES)
    pictures = {picture["id"].removeprefix("figure-"): picture["words"]
                for picture in found["pictures"]}
    for name in ("stages", "array", "stash"):
        assert {"tile 0", "tile 1", "tile 2"} <= set(pictures[name])
    assert {f"virtual minibatch {v}" for v in range(3)} <= set(pictures["stages"])
    assert pictures["units"].count("link in") == 3
    period = simulated[1]["pipeline"]["cycles_per_virtual_minibatch"]["measured"]
    ticks = [int(word.replace(",", "")) for word in pictures["units"] if word[0].isdecimal()]
    assert 0.6 * period < max(ticks) <= period, "one virtual minibatch"
    assert "bound 5" in pictures["stash"]
