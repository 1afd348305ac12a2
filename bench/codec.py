"""What stashed activations cost in cycles: the RTL with and without, beside the cycle model."""

import numpy as np
from gradmill_hw.config import TILE
from rich.table import Table

import gradmill as gm
from gradmill.cycle_model import predict

from .pipeline_model import network


CONFIG = TILE.replace(stash=True)
FORMATS = "ubfp(1)/128", "mask+bfp(2)/64", "outlier(2, 4)/128"
#: Network, B, M; the last two with a sub-minibatch of n samples.
CASES = (((16, 12, 16, 8), 24, 4), ((64, 128, 10), 128, 32), ((196, 64, 64, 10), 64, 16),
         ((64, 64, 64, 10), 128, 32), ((64, 48, 48, 48, 48, 10), 64, 16),
         ((64, 64, 48, 64, 10), 64, 8), ((32, 48, 48, 48, 8), 64, 8))
#: Virtual minibatches.
COUNT = 4


def run(console):
    """Print the table."""
    table = Table(title=f"{COUNT} virtual minibatches and their start on a tile of n = {CONFIG.n}: "
                        "cycles on the RTL, in brackets the error of the cycle model")
    for column in ("network, B, M", "on chip", *FORMATS):
        table.add_column(column, justify="right")
    for widths, size, sub in CASES:
        (kept, expected), *others = [_cycles(widths, size, sub, text) for text in (None, *FORMATS)]
        table.add_row(f"{'-'.join(map(str, widths))}, {size}, {sub}",
                      f"{kept:,} ({expected / kept - 1:+.2%})",
                      *(f"{cycles / kept - 1:+.2%} ({predicted / cycles - 1:+.2%})"
                        for cycles, predicted in others))
    console.print(table)


def _cycles(widths, size, sub, text):
    """On the RTL and predicted."""
    x = np.random.default_rng(1).standard_normal((COUNT * size, widths[0])).astype(np.float32)
    with gm.open("verilator", CONFIG) as device:
        trainer = gm.Trainer(network(widths), device, optimizer=gm.SGD(lr=0.05, momentum=0.9),
                             virtual_minibatch=size, sub_minibatch=sub,
                             stash=text and gm.Stash(text))
        trainer.fit(x, np.arange(len(x)) % widths[-1], epochs=1)
        programs = trainer._lowering.train(size, COUNT, (8192, 1024), trainer._regions,
                                           trainer._losses_at)
        startup = predict(trainer._lowering.startup(trainer._regions), CONFIG).cycles
        return device.counters()["cycles"], startup + predict(programs, CONFIG).cycles
