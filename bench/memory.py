"""Small fast memory: slowdown against its size, for keep, offload, recompute, compress, chosen."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from gradmill_hw.config import NANO
from gradmill_hw.isa import Opcode
from rich.table import Table

import gradmill as gm
from gradmill.report.style import WORK_COLOURS, drawing
from gradmill.timeline import Work, record


__all__ = ["CONFIG", "Measured", "bound", "measure", "network", "passes"]

CONFIG = NANO.replace(copy=True, tensor_rows=4096, acc_rows=8192, mask_rows=4096)
CODEC = CONFIG.replace(stash=True)
WIDTHS, VIRTUAL, SUB = (8, *[32] * 8, 8), 128, 16
#: Beats per cycle of far memory; near memory has one in each direction.
FAR = 0.1
SIZES = (100, 75, 50, 35, 20)
#: Virtual minibatches that are measured, behind the recorded one.
_BATCHES = 3
STASH = gm.Stash("mask+bfp", bits=3, block=64)
#: Where ``run`` leaves its picture.
PICTURE = Path("docs/images/fast-memory.svg")


@dataclass(frozen=True)
class Measured:
    """A virtual minibatch in steady state, on the RTL.

    Members
    -------
    cycles : float
        From its first forward product to that of the next one.
    passes : list of (int, int, int, int)
        Of each sub-minibatch: cycles of forward, until the second layer begins in it, of backward,
        until the second layer from the end begins in it.
    counters : dict
        What the counters gained.
    footprint, fast, spilled : int
        Bytes of activations of a sub-minibatch, of fast memory, and that leave it.
    weights : dict
        At the end of training.
    choice : str
        What was chosen for the activations, if that was asked for.
    """

    cycles:    float
    passes:    list
    counters:  dict
    footprint: int
    fast:      int
    spilled:   int
    weights:   dict
    choice:    str


def network(widths, seed=0):
    """An MLP with a ReLU behind each hidden layer."""
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [gm.Linear(inputs, outputs), gm.ReLU()]
    return gm.Sequential(*layers[:-1], seed=seed)


def measure(config, widths, virtual, sub, *, far=FAR, batches=_BATCHES, **options):
    """:class:`Measured` for training with ``fast_memory`` and other ``options``."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=((batches + 1) * virtual, widths[0])).astype(np.float32)
    y = rng.integers(0, widths[-1], len(x))
    with gm.open("verilator", config, near_bytes=1 << 22, bandwidth=(None, far)) as device:
        model = network(widths)
        trainer = gm.Trainer(model, device, optimizer=gm.SGD(0.05, 0.9), virtual_minibatch=virtual,
                             sub_minibatch=sub, **options)
        trainer.fit(x[:virtual], y[:virtual], epochs=1)  # the manager learns
        device.clear_counters()
        with record(device) as timeline:
            trainer.fit(x[virtual:], y[virtual:], epochs=1)
        counters = device.counters()
    subs = -(-virtual // sub)
    memory = trainer.memory.describe()
    return Measured(timeline.period(subs), passes(timeline, len(widths) - 2, subs), counters,
                    memory["footprint_bytes"], memory["fast_bytes"], memory["far_bytes_each_way"],
                    model.state_dict(),
                    _choice(trainer.activations.choice))


def _choice(choice):
    if choice is None:
        return ""
    return ": " + ", ".join(f"{s} {words}" for s, words in choice.words.items())


def passes(timeline, last, subs):
    """``passes`` of the second virtual minibatch of the record."""
    products = sorted((span for span in timeline.spans if span.opcode is Opcode.MATMUL),
                      key=lambda span: span.start)
    starts = sorted(span.start for span in products if span.sets > 0)[subs:2 * subs + 1]
    found = []
    for start, end in pairwise(starts):
        own = [span for span in products if start <= span.start < end]
        back = [span for span in own if span.work is not Work.FORWARD]
        turn = back[0].start
        second = next(span.start for span in own if span.layer == 1)
        before = next(span.start for span in back if span.layer == last - 1)
        found.append((turn - start, second - start, end - turn, before - turn))
    return found


def bound(kept, spilled, config, far=FAR):
    """Cycles of a virtual minibatch in which ``spilled`` bytes of each sub-minibatch cross to far
    memory and back beside the passes of ``kept``."""
    over = spilled / config.beat_bytes / far
    return sum(max(forward, first + over) + max(backward, last + over)
               for forward, first, backward, last in kept.passes)


@cache
def _measured(config, **options):
    return measure(config, WIDTHS, VIRTUAL, SUB, **options)


def _modes(size):
    """Name -> ``(config, options)`` for ``size`` bytes of fast memory."""
    return {
        "offload": (CONFIG, {"fast_memory": size}),
        "recompute": (CONFIG, {"fast_memory": gm.FastMemory(size, recompute="optimal")}),
        "compress": (CODEC, {"fast_memory": size, "stash": STASH}),
        "chosen": (CODEC, {"fast_memory": gm.FastMemory(size, policy="chosen"), "stash": STASH}),
    }


def run(console):
    """Print the table and draw the picture."""
    kept = _measured(CONFIG, fast_memory="100%")
    coded = _measured(CODEC, fast_memory="100%", stash=STASH)
    table = Table(title=f"MLP {'-'.join(map(str, WIDTHS))}, B = {VIRTUAL}, M = {SUB}, n = "
                        f"{CONFIG.n}, far memory {FAR} beats/cycle: cycles over keep")
    for column in ("fast memory", "bound", *_modes(1), "far bytes / 2(footprint - fast)"):
        table.add_column(column, justify="right")
    curves = {"bound": [], **{name: [] for name in _modes(1)}}
    for percent in SIZES:
        size = kept.footprint * percent // 100
        found = {}
        for name, (config, options) in _modes(size).items():
            whole = (coded if name == "compress" else kept).footprint
            found[name] = _measured(config, **options | ({"fast_memory": "100%"}
                                                         if size >= whole and name != "chosen"
                                                         else {}))
            console.print(f"{percent} %, {name}: {found[name].cycles:,.0f} cycles"
                          f"{found[name].choice}", highlight=False)
            curves[name].append(found[name].cycles / kept.cycles - 1)
        offload = found["offload"]
        curves["bound"].append(bound(kept, offload.spilled, CONFIG) / kept.cycles - 1)
        table.add_row(f"{percent} %", *(f"{curve[-1]:+.1%}" for curve in curves.values()),
                      _traffic(offload))
    console.print(table)
    console.print(f"bound: max(F, f1+o) + max(B, bL+o). compress: {STASH.format}, "
                  f"{coded.footprint / kept.footprint:.0%} of the bytes.")
    console.print(f"picture: {_draw(curves)}")


def _traffic(one):
    moved = one.counters["far_read_stash_bytes"] + one.counters["far_write_stash_bytes"]
    asked = 2 * (one.footprint - one.fast) * _BATCHES * len(one.passes)
    return f"{moved / asked:.3f}" if asked > 0 else f"{moved} / 0"


def _draw(curves):
    colours = dict(zip(curves, ("#6b7785", *list(WORK_COLOURS.values())), strict=False))
    with drawing(7, 3.6, 1, 1) as (figure, axes):
        for name, values in curves.items():
            axes.plot(SIZES, [100 * value for value in values], label=name, color=colours[name],
                      marker=None if name == "bound" else "o", ms=4,
                      ls="--" if name == "bound" else "-")
        axes.axhline(0, color="#1f2933", lw=1)
        axes.set(title="Cycles over a run that keeps everything in fast memory", ylabel="%",
                 xlabel="fast memory, % of the activations")
        axes.legend()
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(PICTURE, facecolor="white", metadata={"Date": None})
    return PICTURE
