"""Utilisation against B, M and S: the cycle model beside RTL counters.

Utilisation is useful MACs / (n·n·S·cycles) of a virtual minibatch in steady state. The network has
eight equal layers, so that it divides among one, two, four and eight tiles.
"""

from itertools import product
from math import isnan, nan
from pathlib import Path

import numpy as np
from gradmill_hw.config import SIM, TILE, ConfigError
from rich.progress import track
from rich.table import Table

import gradmill as gm
from gradmill.forecast import forecast
from gradmill.planning import plan
from gradmill.report.style import drawing


WIDTH, LAYERS = 48, 8
SIZES, SUBS, TILES = (32, 64, 128, 256), (8, 16, 32, 64), (1, 2, 4, 8)
#: B where M varies, M where B varies.
SIZE, SUB = 128, 16
#: (B, M) that the RTL runs too, on one tile and on the chain of ``sim``.
CHECKED = ((64, 16), (128, 16), (128, 32))
#: Virtual minibatches of the shorter and of the longer run on the RTL.
RUNS = 1, 3
PICTURE = Path("build/bench/utilisation.svg")
_COLOURS = dict(zip(TILES, ("#8d5fb4", "#4178be", "#2f9e8f", "#e8912d"), strict=True))


def run(console):
    """Predict the sweep, measure some of it, print both and draw :data:`PICTURE`."""
    points = dict.fromkeys([(size, SUB) for size in SIZES] + [(SIZE, sub) for sub in SUBS])
    predicted = {(tiles, *point): _predicted(tiles, *point) for tiles, point in track(
        list(product(TILES, points)), "cycle model", console=console)}
    measured = {(config.tiles, *point): _measured(config, *point) for config, point in track(
        list(product((TILE, SIM), CHECKED)), "simulated RTL", console=console)}
    console.print(_table(predicted, measured))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(PICTURE, predicted, measured)
    console.print(f"picture {PICTURE}", highlight=False)


def _network():
    layers = [layer for _ in range(LAYERS) for layer in (gm.Linear(WIDTH, WIDTH), gm.ReLU())]
    return gm.Sequential(*layers[:-1], seed=0)


def _share(cycles, size, tiles):
    products = 3 * LAYERS - 1  # the first layer needs no data gradient
    return products * size * WIDTH**2 / (TILE.n**2 * tiles * cycles)


def _predicted(tiles, size, sub):
    """``nan`` if it does not fit the memories."""
    model, loss, optimizer = _network(), gm.CrossEntropy(), gm.SGD(0.05, 0.9)
    config = TILE.replace(tiles=tiles)
    try:
        made = plan(model, config, virtual_minibatch=size, sub_minibatch=sub, loss=loss,
                    optimizer=optimizer)
    except ConfigError:
        return nan
    return _share(forecast(made, model, config, loss, optimizer).cycles, size, tiles)


def _measured(config, size, sub):
    rng, totals = np.random.default_rng(0), []
    with gm.open("verilator", config, watchdog=1_000_000) as device:
        trainer = gm.Trainer(_network(), device, optimizer=gm.SGD(0.05, 0.9),
                             virtual_minibatch=size, sub_minibatch=sub)
        trainer.predict(np.zeros((sub, WIDTH), np.float32))  # loads the weights too
        for count in RUNS:
            device.clear_counters()
            trainer.fit(rng.normal(size=(count * size, WIDTH)).astype(np.float32),
                        rng.integers(0, WIDTH, count * size), epochs=1)
            totals.append(device.counters()["cycles"])
    return _share((totals[1] - totals[0]) / (RUNS[1] - RUNS[0]), size, config.tiles)


def _table(predicted, measured):
    table = Table(title=f"{LAYERS} layers of {WIDTH} x {WIDTH}, n = {TILE.n}: utilisation "
                        "predicted (measured)")
    for column in ("B", "M", *(f"S = {tiles}" for tiles in TILES)):
        table.add_column(column, justify="right")
    for size, sub in dict.fromkeys(key[1:] for key in predicted):
        cells = []
        for tiles in TILES:
            share, seen = predicted[tiles, size, sub], measured.get((tiles, size, sub))
            cells.append("does not fit" if isnan(share) else
                         f"{share:.1%}" + (f" ({seen:.1%})" if seen else ""))
        table.add_row(str(size), str(sub), *cells)
    return table


def draw(path, predicted, measured):
    """Three plots: lines are the cycle model, points the RTL."""
    with drawing(10.5, 3.2, columns=3, sharey=True) as (figure, (by_size, by_sub, by_tiles)):
        for tiles in TILES:
            look = {"color": _COLOURS[tiles], "label": f"S = {tiles}"}
            _line(by_size, SIZES, [(tiles, size, SUB) for size in SIZES], predicted, measured, look)
            _line(by_sub, SUBS, [(tiles, SIZE, sub) for sub in SUBS], predicted, measured, look)
        for size, shade in zip(SIZES, ("#c5d4ea", "#7aa6dc", "#4178be", "#1f3f73"), strict=True):
            _line(by_tiles, TILES, [(tiles, size, SUB) for tiles in TILES], predicted, measured,
                  {"color": shade, "label": f"B = {size}"})
        for axes, ticks, what in ((by_size, SIZES, f"B, with M = {SUB}"),
                                  (by_sub, SUBS, f"M, with B = {SIZE}"),
                                  (by_tiles, TILES, f"S, with M = {SUB}")):
            axes.set_xscale("log", base=2)
            axes.set(xlabel=what, xticks=ticks, xticklabels=ticks, ylim=(0, 1))
            axes.minorticks_off()
            axes.legend()
        by_size.set_ylabel("useful MACs / (n·n·S·cycles)")
        by_size.yaxis.set_major_formatter("{x:.0%}")
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def _line(axes, positions, keys, predicted, measured, look):
    axes.plot(positions, [predicted[key] for key in keys], **look)
    seen = [(x, measured[key]) for x, key in zip(positions, keys, strict=True) if key in measured]
    axes.plot([x for x, _ in seen], [y for _, y in seen], "o", color=look["color"], markersize=5)
