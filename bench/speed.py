"""Simulated clock cycles per second, and the emulator on the same run."""

import time

from rich.table import Table

import gradmill as gm
from gradmill.datasets import load_task


EPOCHS = 3


def run(console):
    """Print seconds and cycles per second of the digits run."""
    table = Table(title=f"digits, {EPOCHS} epochs, config sim; wall clock of this machine")
    for column in ("device", "seconds", "cycles", "cycles per second"):
        table.add_column(column, justify="right")
    for backend in ("verilator", "emulator"):
        task = load_task("digits")
        with gm.open(backend, "sim") as device:
            s = task.settings
            trainer = gm.Trainer(task.model, device, optimizer=gm.SGD(s["lr"], s["momentum"]),
                                 virtual_minibatch=s["virtual_minibatch"],
                                 sub_minibatch=s["sub_minibatch"])
            started = time.perf_counter()
            trainer.fit(task.x, task.y, epochs=EPOCHS)
            seconds = time.perf_counter() - started
            cycles = device.counters()["cycles"]
        table.add_row(backend, f"{seconds:.1f}", f"{cycles:,}" if cycles else "no clock",
                      f"{cycles / seconds:,.0f}" if cycles else "")
    console.print(table)
