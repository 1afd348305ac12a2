"""Digits: BFP on the emulator (bit-exact to the RTL) beside binary32 NumPy, paired seeds."""

import numpy as np
from rich.progress import track
from rich.table import Table

import gradmill as gm
from gradmill.data import epoch_order
from gradmill.datasets import load_task
from gradmill_hw.config import TILE


SEEDS = range(6)
#: Two-sided 95 % quantile of Student's t with len(SEEDS) - 1 degrees of freedom.
QUANTILE = 2.571
#: Numbers too coarse for this task: an interval that includes 0 would say that the bench is blind.
CONTROL = "control: 4-bit mantissas, 32 x 32 tiles"
COARSE  = TILE.replace(n=32, mantissa_bits=4, bus_bits=1024, burst_beats=32)


def run(console):
    """Print accuracies and the 95 % interval of their paired difference."""
    rows = {"float32 NumPy": [], "BFP, 9-bit mantissas": [], CONTROL: []}
    for seed in track(SEEDS, "seeds", console=console):
        rows["float32 NumPy"].append(_reference(seed))
        rows["BFP, 9-bit mantissas"].append(_device(seed, TILE))
        rows[CONTROL].append(_device(seed, COARSE))
    table = Table(title="test accuracy [%], digits, mean over seeds "
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


def _device(seed, config):
    task = load_task("digits", seed)
    s = task.settings
    with gm.open("emulator", config) as device:
        trainer = gm.Trainer(task.model, device, optimizer=gm.SGD(s["lr"], s["momentum"]),
                             virtual_minibatch=s["virtual_minibatch"],
                             sub_minibatch=s["sub_minibatch"], seed=seed)
        trainer.fit(task.x, task.y, epochs=s["epochs"])
        return trainer.evaluate(task.x_test, task.y_test)["accuracy"]


def _reference(seed):
    """The same network, initial weights, order of samples and optimizer in binary32."""
    task = load_task("digits", seed)
    s, size = task.settings, task.settings["virtual_minibatch"]
    w1, b1, w2, b2 = parameters = list(task.model.state_dict().values())
    velocity = [np.zeros_like(p) for p in parameters]
    for epoch in range(s["epochs"]):
        order = epoch_order(seed, epoch, len(task.x), shuffle=True)
        for start in range(0, len(order), size):
            x, y = task.x[order[start:start + size]], task.y[order[start:start + size]]
            hidden = np.maximum(x @ w1.T + b1, 0)
            z = hidden @ w2.T + b2
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(y)), y] -= 1
            p /= np.float32(len(y))
            back = (p @ w2) * (hidden > 0)
            for w, v, g in zip(parameters, velocity,
                               (back.T @ x, back.sum(axis=0), p.T @ hidden, p.sum(axis=0)),
                               strict=True):
                v *= np.float32(s["momentum"])
                v += g
                w -= np.float32(s["lr"]) * v
    z = np.maximum(task.x_test @ w1.T + b1, 0) @ w2.T + b2
    return float(np.mean(z.argmax(axis=1) == task.y_test))
