"""One training step of the MLP 64-128-10 at batch 32: the five products, and the whole step."""

import numpy as np
from gradmill_hw.config import TILE
from rich.table import Table

import gradmill as gm


BATCH = 32
PRODUCTS = (32 * 64 * 128, 32 * 128 * 10, 32 * 10 * 128, 10 * 32 * 128, 128 * 32 * 64)


def run(console):
    """Print utilisation and where the cycles went."""
    config, macs = TILE, sum(PRODUCTS)
    rng = np.random.default_rng(0)
    x, y = rng.random((BATCH, 64), np.float32), rng.integers(0, 10, BATCH)
    with gm.open("verilator", config) as device:
        model = gm.Sequential(gm.Linear(64, 128), gm.ReLU(), gm.Linear(128, 10))
        trainer = gm.Trainer(model, device, optimizer=gm.SGD(0.1, 0.9), virtual_minibatch=BATCH,
                             sub_minibatch=BATCH)
        trainer.fit(x, y, epochs=1)
        device.clear_counters()
        trainer.fit(x, y, epochs=1)
        counters = device.counters()
    assert counters["macs"] == macs
    streaming = counters["array_rows"]
    table = Table(title=f"denominator: n·n·cycles, n = {config.n}; {macs:,} useful MACs")
    for column in ("what", "cycles", "utilisation"):
        table.add_column(column, justify="right")
    for name, cycles in (
        ("five products (cycles the array takes rows or waits inside a product)",
         streaming + counters["matrix_stall"]),
        ("whole step: products, softmax, bias, update, DMA", counters["cycles"]),
    ):
        table.add_row(name, f"{cycles:,}", f"{macs / (config.n**2 * cycles):.1%}")
    console.print(table)
    console.print({name: value for name, value in counters.items() if value})
