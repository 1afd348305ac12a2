"""Draws virtual-minibatch.svg, the picture in docs/pipeline.md: two virtual minibatches of four
sub-minibatches on three tiles that cost the same, in the order that the planner finds."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from gradmill.planner import Costs, OpKind, make_schedule, simulate
from gradmill.report.figures import draw_stages, legend
from gradmill.report.plan_figure import colours, plan_lanes
from gradmill.report.style import INK, MUTED, drawing


TILES, COUNT, UNIT = 3, 4, 100


def main():
    """Write the picture beside this script."""
    equal = (UNIT,) * TILES
    costs = Costs(forward=equal, backward=(0, *equal[1:]), weight=(2 * UNIT, *equal[1:]),
                  update=(UNIT // 2,) * TILES)
    simulation = simulate(make_schedule("zero-bubble", costs, COUNT), costs, virtual=2)
    lanes = plan_lanes(simulation)
    last = max(end for lane in lanes for *_, end in lane)
    with drawing(10.5, 3.1) as (figure, axes):
        draw_stages(axes, lanes, 0, last, COUNT)
        axes.set(ylim=(TILES + 0.05, -1.35), xticks=[], yticklabels=[
            f"tile {tile}\nlayer {tile}" for tile in range(TILES)])
        for side in ("bottom", "left"):
            axes.spines[side].set_visible(False)
        _updates(axes, simulation)
        _journey(axes, simulation)
        axes.set_xlabel("time runs to the right; a box is one sub-minibatch of M samples; where it "
                        "is white, the tile waits; arrows follow sub-minibatch 0", loc="left")
        legend(axes, colours())
        figure.savefig(Path(__file__).with_name("virtual-minibatch.svg"), facecolor="white",
                       metadata={"Date": None})


def _updates(axes, simulation):
    """Where the weights of each tile change."""
    ends = simulation.end[OpKind.U]
    rows = [tile + half for tile in range(TILES) for half in (-0.5, 0.5)]
    axes.plot(np.repeat(ends[0], 2), rows, color=INK, lw=1, ls=(0, (3, 2)))
    axes.text(0, -0.75, "virtual minibatch 0: all four with the same weights", color=MUTED,
              fontsize=8.5)
    axes.text(ends[0, 0] + 15, -0.75, "virtual minibatch 1: with the updated weights", color=MUTED,
              fontsize=8.5)
    axes.text(ends[0, -1] + 12, TILES - 0.32, "each tile updates once per virtual minibatch and "
              "goes on at once", color=MUTED, fontsize=8.5, ha="center", va="center")


def _journey(axes, simulation):
    """The way of the first sub-minibatch, there and back."""
    start, end = simulation.start, simulation.end
    stops = [(OpKind.F, tile) for tile in range(TILES)]
    stops += [(OpKind.B, tile) for tile in reversed(range(1, TILES))] + [(OpKind.W, 0)]
    for (kind, tile), (after, target) in pairwise(stops):
        if tile != target:
            axes.annotate("", (start[after][0, target, 0] + 12, target),
                          (end[kind][0, tile, 0] - 12, tile), zorder=5,
                          arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.1,
                                      "shrinkA": 0, "shrinkB": 0})


if __name__ == "__main__":
    main()
