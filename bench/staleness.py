"""Late gradients: what they gain in time, what they cost, and what weight prediction buys.

Cycles are those of the cycle model; losses and accuracies are of the emulator, with paired seeds.
"""

import warnings
from pathlib import Path

import numpy as np
from gradmill_hw.config import TILE
from rich.progress import track
from rich.table import Table

import gradmill as gm
from gradmill.datasets import load_task
from gradmill.forecast import forecast
from gradmill.planning import plan
from gradmill.report.style import drawing

from .pipeline_model import BALANCED, network


SEEDS, EPOCHS = range(3), 4
RATES = 0.025, 0.1, 0.2, 0.4
#: Virtual minibatch, and sub-minibatch: gradients are late by an update whatever M.
SIZE = 64
#: Label -> options of the trainer, look of the line. One tile: the bits do not depend on tiles.
SCHEDULES = {
    "exact": ({}, {"color": "#4178be"}),
    "no-drain": ({"schedule": "no-drain"}, {"color": "#e8912d"}),
    "no-drain, predicted weights": ({"schedule": "no-drain", "predict_weights": True},
                                    {"color": "#2f9e8f"}),
}
#: Memories for such sub-minibatches.
MACHINE = TILE.replace(tensor_rows=32768, acc_rows=32768, mask_rows=16384)
PICTURE = Path("build/bench/staleness.svg")
#: Tiles, M and sub-minibatches for which cycles are predicted.
TILES, SUB, COUNTS = 4, 16, (2, 4, 8, 16)


def run(console):
    """Print cycles, losses and accuracies by schedule; draw the accuracies."""
    console.print(_cycles())
    console.print(_accuracies(console))


def _cycles():
    """Table of the cycles of a virtual minibatch in steady state."""
    table = Table(title=f"MLP {'-'.join(map(str, BALANCED))} on {TILES} tiles, M = {SUB}: cycles "
                        "of a virtual minibatch in steady state, by the cycle model")
    for column in ("sub-minibatches", "zero-bubble", *list(SCHEDULES)[1:]):
        table.add_column(column, justify="right")
    for count in COUNTS:
        table.add_row(str(count), *(f"{_period(count, **options):,.0f}" for options in (
            {"schedule": "zero-bubble"}, *(options for options, _ in SCHEDULES.values() if options)
        )))
    return table


def _period(count, schedule, **options):
    config = TILE.replace(tiles=TILES)
    model, rest = network(BALANCED), (gm.CrossEntropy(), gm.SGD(lr=0.1, momentum=0.9))
    made = plan(model, config, virtual_minibatch=count * SUB, sub_minibatch=SUB, schedule=schedule,
                loss=rest[0], optimizer=rest[1])
    return forecast(made, model, config, *rest, **options).cycles


def _accuracies(console):
    """Table of training loss and test accuracy, after they have been drawn."""
    found = {(label, rate): [measure(seed, rate, options) for seed in SEEDS]
             for rate in track(RATES, "learning rates", console=console)
             for label, (options, _) in SCHEDULES.items()}
    table = Table(title=f"digits, B = {SIZE}, momentum 0.9, {EPOCHS} epochs, seeds {SEEDS.start} "
                        f"to {SEEDS.stop - 1}: training loss of the last epoch and test accuracy, "
                        "means; accuracies of the worst and the best seed")
    for column in ("learning rate", *SCHEDULES):
        table.add_column(column, justify="right")
    for rate in RATES:
        table.add_row(f"{rate:g}", *(_cell(found[label, rate]) for label in SCHEDULES))
    console.print(f"picture {_draw(found)}", highlight=False)
    return table


def measure(seed, rate, options):
    """Training loss of the last epoch, test accuracy."""
    task = load_task("digits", seed)
    with gm.open("emulator", MACHINE) as device, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of divergence, which is shown
        trainer = gm.Trainer(task.model, device, optimizer=gm.SGD(lr=rate, momentum=0.9),
                             virtual_minibatch=SIZE, sub_minibatch=SIZE, seed=seed, tiles=1,
                             **options)
        trainer.fit(task.x, task.y, epochs=EPOCHS)
        return (trainer.history.train_loss[-1],
                trainer.evaluate(task.x_test, task.y_test)["accuracy"])


def _cell(results):
    losses, accuracies = zip(*results, strict=True)
    return (f"{np.mean(losses):.3f}, {np.mean(accuracies):.1%} "
            f"({min(accuracies):.1%} - {max(accuracies):.1%})")


def _draw(found):
    """A picture of test accuracy over learning rate; each seed a dot."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with drawing(6.5, 3.2) as (figure, axes):
        for label, (_, look) in SCHEDULES.items():
            accuracies = [[accuracy for _, accuracy in found[label, rate]] for rate in RATES]
            axes.plot(RATES, np.mean(accuracies, axis=1), label=label, **look)
            axes.plot(np.repeat(RATES, len(SEEDS)), np.ravel(accuracies), "o", markersize=4, **look)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="learning rate", xticks=RATES, xticklabels=[f"{r:g}" for r in RATES],
                 ylim=(0, 1))
        axes.minorticks_off()
        axes.set_title(f"Test accuracy on digits, {EPOCHS} epochs")
        axes.legend(loc="lower left")
        figure.savefig(PICTURE, facecolor="white", metadata={"Date": None})
    return PICTURE
