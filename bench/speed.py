"""Simulated clock cycles per second, and the emulator on the same run."""

import time

from rich.table import Table

import gradmill as gm
from gradmill.datasets import load_task


EPOCHS = 3


def run(console):
    """Print seconds and cycles per second of the digits run."""
    table = Table(title=f"digits, {EPOCHS} epochs; wall clock of this machine")
    for column in ("device", "configuration", "seconds", "cycles", "cycles per second"):
        table.add_column(column, justify="right")
    for backend, config in (("verilator", "tile"), ("emulator", "tile"), ("verilator", "sim")):
        seconds, cycles = _train(backend, config)
        table.add_row(backend, config, f"{seconds:.1f}", f"{cycles:,}" if cycles else "no clock",
                      f"{cycles / seconds:,.0f}" if cycles else "")
    console.print(table)


def _train(backend, config):
    """Seconds and cycles of a run."""
    with gm.open(backend, config) as device:
        task = load_task("digits", tiles=device.config.tiles)
        s = task.settings
        trainer = gm.Trainer(task.model, device, optimizer=gm.SGD(s["lr"], s["momentum"]),
                             virtual_minibatch=s["virtual_minibatch"],
                             sub_minibatch=s["sub_minibatch"])
        started = time.perf_counter()
        trainer.fit(task.x, task.y, epochs=EPOCHS)
        return time.perf_counter() - started, device.counters()["cycles"]
