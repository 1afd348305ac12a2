"""report.html: one file without network, made from report.json and timeline.json."""

import json
from functools import cache
from pathlib import Path

from ..timeline import read_trace
from . import figures
from .style import CLASS_COLOURS, WORK_COLOURS, ReportError, needed


__all__ = ["write_page"]

_HERE = Path(__file__).parent


def write_page(directory):
    """Write ``report.html`` into the folder of a training run; returns its path."""
    directory = Path(directory)
    report = _read(directory / "report.json")
    trace = directory / "timeline.json"
    timeline = read_trace(trace) if trace.is_file() else None
    page = directory / "report.html"
    page.write_text(_template().render(
        report=report, pictures=_pictures(report, timeline), work=WORK_COLOURS,
        classes=CLASS_COLOURS, timeline=timeline, **_derived(report)), encoding="utf-8")
    return page


def _read(path):
    advice = "give the folder that `gradmill train ... --out DIR` wrote"
    if not path.is_file():
        raise ReportError(f"{path} does not exist: {advice}")
    try:
        report = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is not JSON ({error}): {advice}") from None
    if not isinstance(report, dict) or "tiles" not in report.get("pipeline", {}):
        raise ReportError(f"{path} does not say what each tile did: train again, older versions "
                          "did not record it")
    return report


def _derived(report):
    """What the page says in words."""
    pipeline = report["pipeline"]
    cycles, gain = pipeline["cycles_per_virtual_minibatch"], pipeline["speedup"]
    measured = cycles["measured"]
    kind = "measured" if measured else "predicted"
    return {
        "tiles": pipeline["tiles"], "several": len(pipeline["tiles"]) > 1,
        "cycles": cycles, "kind": kind,
        "speedup": gain[f"{kind}_over_one_tile_predicted"], "gain": gain,
        "error": cycles["predicted"] / measured - 1 if measured else None,
        "gradients": sum(sum(entries["gradient"].values()) for entries in report["bytes"].values()),
        "units": list(pipeline["tiles"][0]["units"]),
        "traffic": [(tier, name, entry) for tier, entries in report["bytes"].items()
                    for name, entry in entries.items()
                    if entry["read"] or entry["write"] or name == "gradient"],
    }


def _pictures(report, timeline):
    """Name -> ``<svg>`` of everything that the run has data for."""
    pipeline = report["pipeline"]
    made = {"traffic": figures.traffic(report["bytes"])}
    if report["train_loss"] and report["validation"]:
        made["learning"] = figures.learning(report)
    if report["cycles"]:
        made["array"] = figures.array(pipeline["tiles"])
    if (report.get("stashing") or {}).get("bits"):
        made["bits"] = figures.bits(report["stashing"])
    count = pipeline["sub_minibatches"]
    starts = timeline.starts(count) if timeline else []
    if starts:
        last = starts[-1] if starts[1:] else max(span.end for span in timeline.spans)
        made["stages"] = figures.stages(timeline, count)
        shown = starts[-2] if starts[1:] else starts[0], last
        made["units"] = figures.units(timeline, *shown)
        if pipeline["fast_memory"]:
            made["tiers"] = figures.tiers(timeline.between(*shown),
                                          pipeline["fast_memory"]["fast_bytes"])
        made["stash"] = figures.stash(timeline, pipeline["tiles"], pipeline["bounds"], starts[0])
    return made


@cache
def _template():
    jinja2 = needed("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value, digits=0: (
        "\N{EN DASH}" if value is None else f"{value:.{digits}%}")
    environment.filters["thousands"] = lambda value: (
        "\N{EN DASH}" if value is None else f"{value:,.0f}")
    environment.filters["shade"] = lambda value: f"--share:{round(100 * (value or 0))}%"
    return environment.get_template("page.html")
