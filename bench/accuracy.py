"""Digits: BFP on the emulator (bit-exact to the RTL) beside binary32 NumPy, paired seeds."""

import numpy as np
from rich.progress import track
from rich.table import Table

import gradmill as gm
from gradmill.data import epoch_order
from gradmill.datasets import load_task
from gradmill_hw.config import SIM, TILE


SEEDS = range(6)
#: Two-sided 95 % quantile of Student's t with len(SEEDS) - 1 degrees of freedom.
QUANTILE = 2.571
#: Numbers too coarse for this task: an interval that includes 0 would say that the bench is blind.
CONTROL = "control: 4-bit mantissas, 32 x 32 tiles"
COARSE  = TILE.replace(n=32, mantissa_bits=4, bus_bits=1024, burst_beats=32)


def run(console):
    """Print accuracies and the 95 % interval of their paired difference, for both networks."""
    for config in (TILE, SIM):
        _compare(console, config)


def _compare(console, config):
    """Of the network that is meant for ``config``."""
    rows = {"float32 NumPy": [], "BFP, 9-bit mantissas": [], CONTROL: []}
    for seed in track(SEEDS, f"seeds, {config.name}", console=console):
        rows["float32 NumPy"].append(_reference(seed, config))
        rows["BFP, 9-bit mantissas"].append(_device(seed, config, TILE))
        rows[CONTROL].append(_device(seed, config, COARSE))
    table = Table(title=f"test accuracy [%], digits, network of {config.name!r}, mean over seeds "
                        f"{SEEDS.start}..{SEEDS.stop - 1}")
    for column in ("arithmetic", "mean", "difference to float32, 95 % interval"):
        table.add_column(column, justify="right")
    reference = np.array(rows["float32 NumPy"])
    for name, values in rows.items():
        difference = 100 * (np.array(values) - reference)
        half = QUANTILE * difference.std(ddof=1) / np.sqrt(len(SEEDS))
        table.add_row(name, f"{100 * np.mean(values):.2f}",
                      "" if name == "float32 NumPy" else
                      f"{difference.mean():+.2f} ± {half:.2f}")
    console.print(table)


def _device(seed, config, arithmetic):
    """On one tile: the bits do not depend on the number of tiles."""
    task = load_task("digits", seed, tiles=config.tiles)
    s = task.settings
    with gm.open("emulator", arithmetic) as device:
        trainer = gm.Trainer(task.model, device,
                             optimizer=gm.SGD(s["lr"], s["momentum"], s["decay"]),
                             virtual_minibatch=s["virtual_minibatch"],
                             sub_minibatch=s["sub_minibatch"], seed=seed)
        trainer.fit(task.x, task.y, epochs=s["epochs"])
        return trainer.evaluate(task.x_test, task.y_test)["accuracy"]


def _reference(seed, config):
    """The same network, initial weights, order of samples and optimizer in binary32."""
    task = load_task("digits", seed, tiles=config.tiles)
    s, size = task.settings, task.settings["virtual_minibatch"]
    parameters = list(task.model.state_dict().values())
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    velocity = [np.zeros_like(p) for p in parameters]
    for epoch in range(s["epochs"]):
        order = epoch_order(seed, epoch, len(task.x), shuffle=True)
        for start in range(0, len(order), size):
            x, y = task.x[order[start:start + size]], task.y[order[start:start + size]]
            for w, v, g in zip(parameters, velocity, _gradients(layers, x, y), strict=True):
                v *= np.float32(s["momentum"])
                v += g
                w -= np.float32(s["lr"] * s["decay"] ** epoch) * v
    return float(np.mean(_outputs(layers, task.x_test)[-1].argmax(axis=1) == task.y_test))


def _outputs(layers, x):
    """The input and the output of every layer; a ReLU after all but the last."""
    found = [x]
    for number, (w, b) in enumerate(layers, 1):
        z = found[-1] @ w.T + b
        found.append(z if number == len(layers) else np.maximum(z, 0))
    return found


def _gradients(layers, x, y):
    """Of the mean cross-entropy, for every weight and bias."""
    *inputs, z = _outputs(layers, x)
    back = np.exp(z - z.max(axis=1, keepdims=True))
    back /= back.sum(axis=1, keepdims=True)
    back[np.arange(len(y)), y] -= 1
    back /= np.float32(len(y))
    found = []
    for (w, _), a in zip(reversed(layers), reversed(inputs), strict=True):
        found += [back.sum(axis=0), back.T @ a]
        back = (back @ w) * (a > 0)
    return found[::-1]
