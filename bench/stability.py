"""The sum of 4096 gradients of one sign: in one level of bfloat16, and in two levels.

One ``Linear`` without bias and with zero weights, mean squared error, targets -1, positive inputs,
learning rate 1 and no momentum: after one virtual minibatch the weights are the negative sums of
the gradients, as the tile reduced them. The exact sums are those of the inputs in binary64.
"""

import numpy as np
from gradmill_hw.config import NANO
from rich.table import Table

import gradmill as gm


GRADIENTS = 4096
#: The smallest array, with memories for a sub-minibatch of all samples.
MACHINE = NANO.replace(tensor_rows=16384, acc_rows=65536)
#: Format of level 1 and samples that are summed in it; level 2 is binary32.
REDUCTIONS = (("bf16", GRADIENTS), ("bf16", 64), ("fp32", GRADIENTS))


def run(console):
    """Print how much of the sums each reduction loses, on the simulated RTL."""
    table = Table(title=f"{GRADIENTS} gradients of one sign, n = {MACHINE.n}, simulated RTL")
    for column in ("level 1", "M", "sums in level 2", "cycles", "lost"):
        table.add_column(column, justify="right")
    for level1, sub in REDUCTIONS:
        lost, cycles = measure("verilator", level1, sub)
        table.add_row(level1, str(sub), str(GRADIENTS // sub), f"{cycles:,}", f"{lost:.4%}")
    console.print(table)


def measure(backend, level1, sub):
    """The largest share of a sum that is lost or gained, and cycles."""
    inputs = MACHINE.n
    x = np.random.default_rng(0).uniform(0.5, 1, (GRADIENTS, inputs)).astype(np.float32)
    targets = -np.ones((GRADIENTS, 1), np.float32)
    model = gm.Sequential(gm.Linear(inputs, 1, bias=False))
    (name, weights), = model.state_dict().items()
    model.load_state_dict({name: np.zeros_like(weights)})
    with gm.open(backend, MACHINE, watchdog=1_000_000) as device:
        trainer = gm.Trainer(model, device, loss=gm.MSE(), optimizer=gm.SGD(lr=1),
                             virtual_minibatch=GRADIENTS, sub_minibatch=sub, level1=level1)
        trainer.fit(x, targets, epochs=1, shuffle=False)
        cycles = device.counters()["cycles"]
    found = -model.state_dict()[name][0].astype(np.float64)
    exact = 2 / GRADIENTS * x.astype(np.float64).sum(axis=0)
    return float(np.abs(found / exact - 1).max()), cycles
