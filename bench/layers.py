"""Layer-to-layer execution: bytes, weight high-water mark, stall and overlap of deep networks.

Predicted by the cycle model for L layers and several speeds of far memory, and measured on the RTL
for the shallow ones and some speeds. Stall: cycles beyond those with a far memory that takes no
time. Load over run: cycles in which far memory delivers what a layer loads in backward, over those
in which the array takes rows of one sub-minibatch then; a group should be above that.
"""

import numpy as np
from gradmill_hw.config import NANO
from rich.table import Table

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.report.layers import downloads, layers, weight_rows
from gradmill.timeline import record
from gradmill.unit_times import Memory


#: Two layers of 32 x 32 fill half of the tensor memory, what they compute with the other half.
CONFIG = NANO.replace(acc_rows=2048, mask_rows=512, bus_bits=128)
WIDTH, SUB = 32, 8
#: Beats a cycle of far memory in each direction.
SPEEDS = 1.0, 0.5, 0.25
#: Layers and sub-minibatches of a group.
CASES = ((4, 2), (4, 4), (4, 8), (16, 2), (16, 4), (16, 8), (64, 4))
#: Layers, and groups around load over run.
AROUND = 8, (1, 2, 3, 4, 5, 6, 7)
#: Layers and group of the runs on the RTL.
MEASURED = ((4, 4), (16, 4), (16, 8))
#: Layers, groups, and beats a cycle of far memory in both directions together, of those with a slow
#: one.
SLOW = 8, (4, 8), (None, 0.5, 0.25, 0.1)


def run(console):
    """Print the tables."""
    table = Table(title=f"layers {WIDTH} x {WIDTH}, M = {SUB}, n = {CONFIG.n}, tensor memory of "
                        f"{CONFIG.tensor_rows} rows: one virtual minibatch, cycle model")
    for column in ("L", "B/M", "weights / tensor memory", "rows for weights", "downloaded / |W|",
                   "cycles", "array", *(f"stall at {speed}" for speed in SPEEDS)):
        table.add_column(column, justify="right")
    for count, group in CASES:
        table.add_row(str(count), str(group), *_predicted(count, group))
    console.print(table)
    console.print("Stall at 1.0, 0.5, 0.25 beats a cycle of far memory; load over run there: "
                  + ", ".join(f"{_ratio(speed):.2f}" for speed in SPEEDS))
    console.print(_around())
    table = Table(title="the same on the RTL, far memory at a beat a cycle in each direction")
    for column in ("L", "B/M", "cycles", "predicted", "waits for weights",
                   "updates beside backward", "beside products"):
        table.add_column(column, justify="right")
    for count, group in MEASURED:
        table.add_row(str(count), str(group), *_measured(count, group))
    console.print(table)
    console.print(_slow())


def _around():
    """Stall against the group."""
    count, groups = AROUND
    table = Table("far memory, beats a cycle", *map(str, groups),
                  title=f"stall of L = {count} by B/M (and B/M over load over run)")
    programs = []
    for group in groups:
        with gm.open("emulator", CONFIG) as device:
            programs.append(_program(_trainer(device, count, group)))
    for speed in SPEEDS[1:]:
        table.add_row(str(speed), *(f"{_stall(program, speed):.1%} ({group / _ratio(speed):.1f})"
                                    for group, program in zip(groups, programs, strict=True)))
    return table


def _stall(program, speed):
    """Cycles beyond those with a far memory that takes no time, as a share."""
    ideal = predict([program], CONFIG, far=Memory(latency=0, beats=1e9)).cycles
    return predict([program], CONFIG, far=Memory(beats=2 * speed)).cycles / ideal - 1


def _trainer(device, count, group):
    parts = [gm.Linear(WIDTH, WIDTH), gm.ReLU()] * count
    return gm.Trainer(gm.Sequential(*parts[:-1], seed=0), device, optimizer=gm.SGD(0.05, 0.9),
                      virtual_minibatch=group * SUB, sub_minibatch=SUB, layer_to_layer=True)


def _program(trainer):
    lowering = trainer._lowering
    (program,) = lowering.train(trainer.virtual_minibatch, 1, (0, 0), lowering.regions,
                                trainer._losses_at)
    return program


def _predicted(count, group):
    with gm.open("emulator", CONFIG) as device:
        trainer = _trainer(device, count, group)
        program, lowering = _program(trainer), trainer._lowering
    rows = [w.extent for w in lowering.buffers[0].weight.values()]
    whole = lowering.weight_bytes(range(count))
    cycles = predict([program], CONFIG).cycles
    array = group * (3 * count - 1) * _product()
    return (f"{sum(rows) / CONFIG.tensor_rows:.1f}", str(weight_rows(program, CONFIG)),
            f"{downloads(program, CONFIG) / whole:.3f}", f"{cycles:,}",
            f"{array / cycles:.1%}", *(f"{_stall(program, speed):.1%}" for speed in SPEEDS))


def _product():
    """Cycles in which the array takes rows, for each of the three products of a sub-minibatch."""
    return SUB * (WIDTH // CONFIG.n) ** 2


def _ratio(speed):
    read = 2 * WIDTH // CONFIG.n * CONFIG.run_bytes("fp32", WIDTH)  # weights and momentum
    read += WIDTH // CONFIG.n * CONFIG.run_bytes("bfp", WIDTH)      # of the next layer
    return read / CONFIG.beat_bytes / speed / (2 * _product())


def _measured(count, group):
    with gm.open("verilator", CONFIG) as device:
        trainer, timeline, cycles = _trained(device, count, group)
        found = layers(trainer, timeline)
        predicted = predict([_program(trainer)], CONFIG).cycles
    return (f"{cycles:,}", f"{predicted:,}", f"{found['waits_for_weights']:.2%}",
            f"{found['updates_beside_backward']:.1%}", f"{found['updates_beside_products']:.1%}")


def _trained(device, count, group):
    """Trainer, timeline and cycles of a virtual minibatch whose weights are in far memory."""
    trainer, samples = _trainer(device, count, group), group * SUB
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, WIDTH)).astype(np.float32)
    trainer.predict(x[:SUB])  # brings the weights to far memory
    device.clear_counters()
    with record(device) as timeline:
        trainer.fit(x, rng.integers(0, WIDTH, samples), epochs=1)
    return trainer, timeline, device.counters()["cycles"]


def _slow():
    """Cycles with slow far memories; in brackets where the driver does not know how slow."""
    count, groups, speeds = SLOW
    table = Table(title=f"L = {count} on the RTL, far memory at so many beats a cycle in both "
                        "directions together: cycles (if the speed is not known)")
    for column in ("B/M", *(str(speed or "no limit") for speed in speeds)):
        table.add_column(column, justify="right")
    for group in groups:
        row = []
        for speed in speeds:
            with gm.open("verilator", CONFIG, bandwidth=(None, speed)) as device:
                *_, known = _trained(device, count, group)
            with gm.open("verilator", CONFIG, bandwidth=(None, speed)) as device:
                device.far_beats = None
                *_, unknown = _trained(device, count, group)
            row.append(f"{known:,}" + f" ({unknown:,})" * (known != unknown))
        table.add_row(str(group), *row)
    return table
