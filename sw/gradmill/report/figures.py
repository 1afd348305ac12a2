"""The pictures of a report; each function draws on given axes or returns an ``<svg>``."""

import numpy as np

from gradmill_hw.isa import Queue

from ..timeline import Work
from .tiers import idle, occupancy
from .style import CLASS_COLOURS, INK, MUTED, WORK_COLOURS, drawing, needed, svg


__all__ = [
    "array",
    "bits",
    "learning",
    "operations",
    "plot_history",
    "stages",
    "stash",
    "tiers",
    "traffic",
    "units",
]

_WIDE = 10.5
#: Units from the top of a tile's lane down.
_UNITS = (Queue.MATRIX, Queue.VECTOR, Queue.LOAD, Queue.STORE, Queue.COPY, Queue.LINK_IN,
          Queue.LINK_OUT)
#: Gaps below this share of the picture are not seen.
_INVISIBLE = 1 / 1500


def learning(report):
    """Loss and accuracy by epoch."""
    with drawing(_WIDE, 2.7, 1, 2) as (figure, axes):
        _draw_learning(axes, report)
        return svg(figure, "learning")


def plot_history(path, report):
    """The same as an image file; returns its path."""
    with drawing(_WIDE, 3, 1, 2) as (figure, axes):
        _draw_learning(axes, report)
        figure.suptitle(f"{report['task']}, {report['device']}, {report['config']['name']}")
        figure.savefig(path, dpi=120, facecolor="white")
    return path


def _draw_learning(axes, report):
    left, right = axes
    epochs = range(1, len(report["train_loss"]) + 1)
    left.plot(epochs, report["train_loss"], marker="o", ms=3.5, color=WORK_COLOURS["forward"],
              label="training samples, measured on the device")
    left.plot(epochs, [entry["loss"] for entry in report["validation"]], marker="o", ms=3.5,
              color=WORK_COLOURS["data gradient"], label="test samples")
    left.set(title="Loss", xlabel="epoch", ylim=(0, None))
    left.legend()
    accuracy = [100 * entry["accuracy"] for entry in report["validation"]]
    right.plot(epochs, accuracy, marker="o", ms=3.5, color=WORK_COLOURS["weight gradient"])
    right.set(title=f"Accuracy on the test samples: {accuracy[-1]:.1f} % at the end",
              xlabel="epoch", ylabel="%")
    for part in axes:
        part.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def operations(spans):
    """``(work, sub-minibatch, start, end)`` of the matrix unit of one tile: neighbouring products
    of the same pass joined."""
    joined = []
    for span in sorted(spans, key=lambda span: span.start):
        if joined and joined[-1][:2] == [span.work, span.sub]:
            joined[-1][3] = max(joined[-1][3], span.end)
        else:
            joined.append([span.work, span.sub, span.start, span.end])
    return [tuple(entry) for entry in joined]


def draw_stages(axes, lanes, first, last, count):
    """Draw ``lanes``, by tile operations as of :func:`operations`; sub-minibatches are numbered
    from 0 to ``count - 1`` where there is room."""
    width = last - first
    for tile, lane in enumerate(lanes):
        for work in WORK_COLOURS:
            axes.broken_barh([(start - first, max(end - start, 1)) for kind, _, start, end in lane
                              if kind is work], (tile - 0.38, 0.76), color=WORK_COLOURS[work],
                             linewidth=0)
        for kind, sub, start, end in lane:
            if sub >= 0 and end - start > 0.009 * width and start >= first and end <= last:
                axes.text((start + end) / 2 - first, tile, f"{sub % count}", color="white",
                          fontsize=6.5 if kind is not Work.OTHER else 0, ha="center", va="center")
    axes.set(xlim=(0, width), ylim=(len(lanes) - 0.45, -0.55), yticks=range(len(lanes)),
             yticklabels=[f"tile {tile}" for tile in range(len(lanes))])
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def legend(axes, names):
    """What the colours mean, above the picture."""
    patches = needed("matplotlib.patches")
    axes.legend([patches.Patch(color=WORK_COLOURS[work]) for work in names], list(names),
                ncols=len(names), loc="lower right", bbox_to_anchor=(1, 1), borderpad=0,
                handlelength=1, handleheight=1)


def stages(timeline, count):
    """Passes on the matrix unit of every tile over all recorded virtual minibatches."""
    starts = timeline.starts(count)
    lanes = [operations(_of(timeline, tile, Queue.MATRIX)) for tile in timeline.tiles]
    first, last = starts[0], max(end for lane in lanes for *_, end in lane)
    with drawing(_WIDE, 0.75 + 0.42 * len(lanes)) as (figure, axes):
        draw_stages(axes, lanes, first, last, count)
        for number, start in enumerate(starts):
            axes.axvline(start - first, color=INK, lw=0.8, ls=(0, (3, 2)))
            axes.text(start - first, -0.6, f" virtual minibatch {number}", fontsize=7.5,
                      color=MUTED, va="bottom")
        axes.set_xlabel("cycles")
        return svg(figure, "stages")


def units(timeline, first, last):
    """Every unit of every tile from one cycle to another."""
    part = timeline.between(first, last)
    tiles = sorted({span.tile for span in part.spans})
    lanes = [(tile, queue) for tile in tiles for queue in _UNITS if _of(part, tile, queue)]
    with drawing(_WIDE, 0.8 + 0.19 * len(lanes)) as (figure, axes):
        for row, (tile, queue) in enumerate(lanes):
            place = row + 0.9 * tiles.index(tile)
            for work, colour in WORK_COLOURS.items():
                bars = _merged([span for span in _of(part, tile, queue) if span.work is work],
                               (last - first) * _INVISIBLE)
                axes.broken_barh([(start - first, end - start) for start, end in bars],
                                 (place - 0.4, 0.8), color=colour, linewidth=0)
        places = [row + 0.9 * tiles.index(tile) for row, (tile, _) in enumerate(lanes)]
        names = [f"tile {tile}  {_name(queue)}" if queue is Queue.MATRIX else _name(queue)
                 for tile, queue in lanes]
        axes.set(xlim=(0, last - first), ylim=(places[-1] + 0.8, -0.8), yticks=places,
                 yticklabels=names, xlabel="cycles from the first forward pass on tile 0")
        axes.tick_params(axis="y", labelsize=7.5)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        legend(axes, WORK_COLOURS)
        return svg(figure, "units")


def array(tiles):
    """Where the cycles of each tile's matrix unit went."""
    parts = {
        "takes rows": ([tile["array"]["array_rows"] for tile in tiles], WORK_COLOURS["forward"]),
        "waits for weights": ([tile["array"]["matrix_stall_weights"] for tile in tiles],
                              WORK_COLOURS["data gradient"]),
        "memory bank taken": ([tile["array"]["matrix_stall"] - tile["array"]["matrix_stall_weights"]
                               for tile in tiles], "#c8453b"),
    }
    with drawing(_WIDE, 0.9 + 0.36 * len(tiles)) as (figure, axes):
        left = np.zeros(len(tiles))
        for name, (shares, colour) in parts.items():
            axes.barh(range(len(tiles)), 100 * np.array(shares), left=left, height=0.62,
                      color=colour, label=name)
            left += 100 * np.array(shares)
        axes.barh(range(len(tiles)), 100 - left, left=left, height=0.62, color="#eceff2",
                  label="has nothing to do")
        for row, tile in enumerate(tiles):
            axes.text(100 * tile["array"]["array_rows"] / 2, row,
                      f"{tile['array']['array_rows']:.0%}", ha="center", va="center",
                      color="white", weight="bold", fontsize=8)
        axes.set(xlim=(0, 100), ylim=(len(tiles) - 0.5, -0.5), yticks=range(len(tiles)),
                 yticklabels=[f"tile {row}" for row in range(len(tiles))], xlabel="% of cycles")
        axes.grid(visible=False, axis="y")
        axes.legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0,
                    handlelength=1, handleheight=1)
        return svg(figure, "array")


def stash(timeline, tiles, bounds, first):
    """Sets of activations that each tile keeps, beside the most that the schedule allows."""
    last = max(span.end for span in timeline.spans)
    top = max(bounds) + 0.6
    with drawing(_WIDE, 1.9, 1, len(tiles), sharey=True, squeeze=False) as (figure, (row)):
        for tile, (axes, bound) in enumerate(zip(row[0], bounds, strict=True)):
            cycles, sets = timeline.sets(tile)
            at = np.concatenate([[first], np.maximum(cycles, first), [last]]) - first
            held = np.concatenate([[0], sets, sets[-1:]])
            colour = WORK_COLOURS["forward"]
            axes.fill_between(at, held, step="post", color=colour, alpha=0.25, lw=0)
            axes.step(at, held, where="post", color=colour, lw=1)
            axes.axhline(bound, color="#c8453b", lw=1, ls=(0, (4, 2)))
            axes.text(last - first, bound, f"bound {bound}", color="#c8453b", fontsize=7.5,
                      ha="right", va="bottom")
            axes.set(title=f"tile {tile}", xlim=(0, last - first), ylim=(0, top * 1.08))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
            axes.xaxis.get_major_locator().set_params(nbins=4)
            axes.yaxis.get_major_locator().set_params(integer=True)
        row[0][0].set_ylabel("sets kept")
        figure.supxlabel("cycles", fontsize=9, color=MUTED)
        return svg(figure, "stash")


def tiers(timeline, fast_bytes):
    """Bytes of activations in both memories over time, and what happened while the array had
    nothing to do."""
    first, last = timeline.cycles
    with drawing(_WIDE, 4.2, 3, 1, height_ratios=(2, 2, 1)) as (figure, axes):
        for (tier, (cycles, held)), part in zip(occupancy(timeline.spans).items(), axes,
                                                strict=False):
            at = np.concatenate([[first], cycles, [last]]) - first
            kib = np.concatenate([[0], held, held[-1:] or [0]]) / 1024
            colour = CLASS_COLOURS["stash"] if tier == 0 else WORK_COLOURS["data gradient"]
            part.fill_between(at, kib, step="post", color=colour, alpha=0.25, lw=0)
            part.step(at, kib, where="post", color=colour, lw=1)
            part.set(ylabel=f"{tier.name.lower()}, KiB", xlim=(0, last - first), ylim=(0, None))
            part.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes[0].axhline(fast_bytes / 1024, color="#c8453b", lw=1, ls=(0, (4, 2)))
        left = 0
        for colour, (cause, share) in zip((WORK_COLOURS["update"], CLASS_COLOURS["stash"],
                                           WORK_COLOURS["data gradient"], "#c8ced4"),
                                          idle(timeline.spans).items(), strict=True):
            axes[2].barh([0], [100 * share], left=left, color=colour,
                         label=f"{cause} {share:.1%}")
            left += 100 * share
        axes[2].set(xlim=(0, max(left, 1)), yticks=[], xlabel="% of cycles without a product")
        axes[2].legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0,
                       handlelength=1, handleheight=1)
        return svg(figure, "tiers")


def bits(stashing):
    """Bits of a stored value over virtual minibatches; dashed lines are switches of formats."""
    numbers, values, stored = np.array(stashing["bits"], float).T
    means = 8 * stored / np.maximum(values, 1)
    colour, top = CLASS_COLOURS["stash"], 1.3 * means.max()
    with drawing(_WIDE, 2.4) as (figure, axes):
        starts = np.concatenate([[0], numbers])
        axes.stairs(means, starts, color=colour, lw=1.6)
        axes.stairs(means, starts, color=colour, fill=True, alpha=0.25)
        for switch in stashing["switches"]:
            at = switch["virtual_minibatch"]
            axes.axvline(at, color=INK, lw=0.8, ls=(0, (3, 2)))
            names = sorted(set(switch["formats"].values()))
            axes.text(at, top, " " + "\n ".join(names), fontsize=7.5, color=MUTED, va="top")
        axes.set(xlim=(0, numbers[-1]), ylim=(0, top), xlabel="virtual minibatches",
                 ylabel="bits per value")
        return svg(figure, "bits")


def traffic(entries):
    """Bytes by memory, direction and traffic class."""
    lanes = [(tier, way) for tier in entries for way in ("read", "write")
             if any(entry[way] for entry in entries[tier].values())]
    classes = [name for name in CLASS_COLOURS
               if any(entries[tier][name][way] for tier, way in lanes)]
    with drawing(_WIDE, 0.8 + 0.38 * max(1, len(lanes))) as (figure, axes):
        left = np.zeros(len(lanes))
        for name in classes:
            values = np.array([entries[tier][name][way] for tier, way in lanes]) / 2**20
            axes.barh(range(len(lanes)), values, left=left, height=0.62, label=name,
                      color=CLASS_COLOURS[name])
            left += values
        axes.set(ylim=(len(lanes) - 0.5, -0.5), yticks=range(len(lanes)), xlabel="MiB",
                 yticklabels=[f"{tier} memory, {way}" for tier, way in lanes])
        axes.grid(visible=False, axis="y")
        axes.legend(ncols=len(classes) or 1, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0,
                    handlelength=1, handleheight=1)
        return svg(figure, "traffic")


def _of(timeline, tile, queue):
    return [span for span in timeline.spans if span.tile == tile and span.queue is queue]


def _name(queue):
    return queue.name.lower().replace("_", " ")


def _merged(spans, gap):
    """Disjoint ``(start, end)``, gaps up to ``gap`` closed."""
    bars = []
    for span in sorted(spans, key=lambda span: span.start):
        if bars and span.start <= bars[-1][1] + gap:
            bars[-1][1] = max(bars[-1][1], span.end)
        else:
            bars.append([span.start, span.end])
    return bars
