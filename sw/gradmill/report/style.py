"""Colours and drawing style that all pictures share."""

import io
import logging
import re
from contextlib import contextmanager
from importlib import import_module

from ..errors import GradmillError
from ..timeline import Work


__all__ = ["CLASS_COLOURS", "INK", "MUTED", "WORK_COLOURS", "ReportError", "drawing", "needed",
           "svg"]

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
#: Forward, data gradient, weight gradient and update are told apart without red against green.
WORK_COLOURS = {
    Work.FORWARD: "#4178be", Work.DATA_GRADIENT: "#e8912d", Work.WEIGHT_GRADIENT: "#2f9e8f",
    Work.UPDATE: "#8d5fb4", Work.WEIGHTS: "#c05a8a", Work.OTHER: "#b4bdc8",
}
CLASS_COLOURS = {
    "data": "#4178be", "weight": "#2f9e8f", "stash": "#7aa6dc", "gradient": "#c8453b",
    "optimizer": "#8d5fb4", "mask": "#e8912d", "command": "#8a95a3", "result": "#c9b458",
}

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "text.color": INK, "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID, "xtick.color": MUTED, "ytick.color": MUTED, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.5,
    "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.8,
    "svg.fonttype": "none", "svg.hashsalt": "gradmill", "savefig.facecolor": "none",
}


class ReportError(GradmillError):
    """There is no run to report, or nothing to draw it with."""


def needed(name):
    """The module ``name``, which only pictures and pages need."""
    try:
        return import_module(name)
    except ImportError:
        raise ReportError(f"pictures and pages need {name}: pip install 'gradmill[train]'") \
            from None


@contextmanager
def drawing(width, height, rows=1, columns=1, **options):
    """``(figure, axes)`` in the common style, closed at the end; sizes in inches."""
    needed("matplotlib").use("Agg")
    plt = needed("matplotlib.pyplot")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # the next font will do
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained",
                                    **options)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def svg(figure, name):
    """The figure as an ``<svg>`` element whose identifiers begin with ``name``."""
    file = io.StringIO()
    with needed("matplotlib").rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="([A-Za-z])', rf'id="{name}-\1', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(
        r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1)
