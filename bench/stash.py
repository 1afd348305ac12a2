"""Stash formats: bits per stored value against gradient and accuracy, paired seeds.

``make bench-stash`` or ``python -m bench.stash``. Every run is one line of docs/stash-study.jsonl;
a run that has its line is not repeated, so the study can be stopped and continued at any time, by
anyone. When all have, docs/stash-study.md and docs/images/stash-study.svg are written from them.
To make a run again, delete its line.

Runs are on the emulator, which has the bits of the RTL; ``--rtl`` compares some of them with it.
On-chip memories are larger than those of ``sim``, so that a sub-minibatch is a whole virtual
minibatch: the same formats and counters from fewer and larger instructions.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

import gradmill as gm
from gradmill.datasets import load_task
from gradmill_hw.config import TILE
from gradmill_hw.regs import COUNTERS

from . import stash_report


CONFIG = TILE.replace(stash=True, tensor_rows=32768, acc_rows=32768, mask_rows=16384)
LINES = Path("docs/stash-study.jsonl")
SEEDS = range(5)
BATCH = 128
#: Task -> data set, epochs, learning rate.
TASKS = {"digits": ("digits", 12, 0.15), "mnist": ("mnist", 6, 0.1),
         "mnist1d": ("mnist1d", 10, 0.1), "digits, long": ("digits", 30, 0.15)}
#: Random draws over which gradients are averaged to see their bias, and values for the QSNR.
DRAWS, VALUES = 16, 1 << 16


def _rectified(seed):
    """Of a Gaussian."""
    values = np.random.default_rng(seed).standard_normal(VALUES)
    return np.maximum(values, 0).astype(np.float32)


def _fitted(bits):
    """Table for other values of the same distribution as those of the QSNR."""
    return gm.codec.fit_table(_rectified(1), bits, block=128)


_STOCHASTIC, _DRAWN = {"rounding": "stochastic"}, {"rounding": "stochastic", "draw": True}
#: Label -> stash; the first one is what all others are compared with.
ENTRIES = {
    "none": None,
    "ubfp(1)/128, stochastic": gm.Stash("ubfp(1)/128", **_STOCHASTIC),
    "ubfp(2)/128, stochastic": gm.Stash("ubfp(2)/128", **_STOCHASTIC),
    "ubfp(4)/64, stochastic": gm.Stash("ubfp(4)/64", **_STOCHASTIC),
    "ubfp(1)/128, nearest (control)": gm.Stash("ubfp(1)/128"),
    "bfp(3)/64, nearest (control)": gm.Stash("bfp(3)/64"),
    "mask/128": gm.Stash("mask/128"),
    "mx4/64": gm.Stash("mx4/64"),
    "mx6/64": gm.Stash("mx6/64"),
    "mx9/64": gm.Stash("mx9/64"),
    "outlier(2, 4)/128": gm.Stash("outlier(2, 4)/128"),
    "nonuniform-normal/128, drawn": gm.Stash("nonuniform-normal/128", **_DRAWN),
    "nonuniform-aggressive/128, drawn": gm.Stash("nonuniform-aggressive/128", **_DRAWN),
    "nonuniform-normal/128, fitted": gm.Stash("nonuniform", table=_fitted(2), block=128),
    "mask+bfp(2)/128, stochastic": gm.Stash("mask+bfp(2)/128", **_STOCHASTIC),
    "bfp(3)/64, stochastic": gm.Stash("bfp(3)/64", **_STOCHASTIC),
    "adaptive": gm.AdaptiveStash(),
    "auto": gm.AutoStash(every=None),
}
#: What is compared in the long run, in which formats have time to adapt.
ADAPTING = "adaptive", "ubfp(4)/64, stochastic", "ubfp(2)/128, stochastic"


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.stash", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="one seed and one epoch of digits, into build/bench/")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="*", metavar="WORD", default=[""],
                        help="formats whose label has one of these words")
    parser.add_argument("--minutes", type=float, help="begin no more runs after so long")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                        help="runs at a time (default: %(default)s)")
    parser.add_argument("--page", action="store_true",
                        help="write page and picture from the lines there are, run nothing")
    parser.add_argument("--rtl", action="store_true",
                        help="instead: train a little on the RTL and compare every bit")
    options = parser.parse_args()
    console = Console(width=100)
    if options.rtl:
        spot_check(console)
        return
    if options.page:
        _write_page(console, read(LINES))
        return
    lines = Path("build/bench/stash-quick.jsonl") if options.quick else LINES
    tasks = {task: TASKS[task] for task in options.tasks}
    if options.quick:
        tasks = {"digits": ("digits", 1, 0.15)}
    seeds = SEEDS[:1] if options.quick else SEEDS
    labels = [label for label in ENTRIES
              if label == "none" or any(word in label for word in options.only)]
    study(console, lines, tasks, seeds, labels, options.minutes, options.workers)
    if options.quick:
        return
    missing = len(_missing(read(lines), TASKS, SEEDS, ENTRIES))
    if missing:
        console.print(f"{missing} runs have no line yet: run this again, or with --page write "
                      "docs/stash-study.md from those that have")
    else:
        _write_page(console, read(lines))


def _write_page(console, found):
    stash_report.write(found, ENTRIES)
    console.print("wrote docs/stash-study.md and docs/images/stash-study.svg")


def read(lines):
    """All lines so far."""
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def _missing(found, tasks, seeds, labels):
    """``(kind, task, label, seed)`` of runs without a line."""
    wanted = [("qsnr", None, label, 0) for label in labels]
    wanted += [("gradient", task, label, 0) for task in tasks for label in labels
               if task != "digits, long"]
    wanted += [("training", task, label, seed) for seed in seeds for task in tasks
               for label in labels if task != "digits, long" or label in ADAPTING]
    done = {(line["kind"], line["task"], line["label"], line["seed"]) for line in found}
    return [key for key in wanted if key not in done]


def study(console, lines, tasks, seeds, labels, minutes=None, workers=1):
    """Make the runs that have no line yet, ``workers`` at a time."""
    missing = _missing(read(lines), tasks, seeds, labels)
    lines.parent.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * minutes if minutes else float("inf")
    with _each(workers) as each:
        for entry in track(each(_entry, [(key, tasks.get(key[1]), ends) for key in missing]),
                           "runs", total=len(missing), console=console):
            if entry is not None:
                with lines.open("a") as file:
                    file.write(json.dumps(entry) + "\n")


@contextmanager
def _each(workers):
    """``each(function, arguments)``: results as they come, of ``workers`` processes."""
    if workers == 1:
        yield lambda function, arguments: (function(*own) for own in arguments)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield lambda function, arguments: (future.result() for future in as_completed(
            [pool.submit(function, *own) for own in arguments]))


def _entry(key, task, ends):
    """Line of a run; none if it would begin too late."""
    kind, name, label, seed = key
    started = time.monotonic()
    if started > ends:
        return None
    found = {"qsnr": _qsnr, "gradient": _gradient, "training": _training}[kind](
        ENTRIES[label], task, seed)
    return {"kind": kind, "task": name, "label": label, "seed": seed, **found,
            "seconds": round(time.monotonic() - started, 1)}


def _trainer(job, device, stash, lr, seed):
    return gm.Trainer(job.model, device, optimizer=gm.SGD(lr=lr, momentum=0.9), stash=stash,
                      virtual_minibatch=BATCH, sub_minibatch=BATCH, seed=seed)


def _training(stash, task, seed):
    """Accuracy on the test samples, and what the counters saw."""
    name, epochs, lr = task
    job = load_task(name, seed)
    with gm.open("emulator", CONFIG, seed=seed) as device:
        trainer = _trainer(job, device, stash, lr, seed)
        history = trainer.fit(job.x, job.y, epochs=epochs)
        control = trainer.stashing
        values, stored = (sum(entry[k] for entry in control.bits) for k in (1, 2))
        return {"epochs": epochs, "lr": lr, **trainer.evaluate(job.x_test, job.y_test),
                "train_loss": history.train_loss[-1], "values": values, "bytes": stored,
                "bits": control.bits, "switches": control.switches,
                "measured": control.measured}


def _gradient(stash, task, seed):
    """Weight gradients of one virtual minibatch, after an epoch without a stash: cosine and
    relative error of those that the stash enters, and of their mean over random draws."""
    name, _, lr = task
    if not isinstance(stash, gm.Stash):
        return {}
    job = load_task(name, seed)
    x, y = job.x[:BATCH], job.y[:BATCH]
    with gm.open("emulator", CONFIG, seed=seed) as device:
        trainer = _trainer(job, device, None, lr, seed)
        trainer.fit(job.x, job.y, epochs=1)
        exact = _flat(gm.gradients(trainer, x, y)[0], trainer.model)
        random = stash.draw or stash.rounding == "stochastic"
        found = [_flat(gm.gradients(trainer, x, y, stash=stash, number=number)[0], trainer.model)
                 for number in range(DRAWS if random else 1)]
    size, mean = np.linalg.norm(exact), np.mean(found, axis=0)
    return {"cosine": float(found[0] @ exact / size / np.linalg.norm(found[0])),
            "error": float(np.linalg.norm(found[0] - exact) / size),
            "mean_error": float(np.linalg.norm(mean - exact) / size), "draws": len(found)}


def _flat(found, model):
    names = [f"{stage.index}.weight" for stage in model.stages[1:]]
    return np.concatenate([found[name].ravel() for name in names]).astype(np.float64)


def _qsnr(stash, task, seed):
    """Of a rectified Gaussian, in dB."""
    if not isinstance(stash, gm.Stash):
        return {}
    x = _rectified(seed)
    stored = gm.codec.encode(stash.format, x, n=CONFIG.n, tables=dict(stash.tables),
                             seed=1 if stash.rounding == "stochastic" else None)
    back = gm.codec.decode(stored, seed=2 if stash.draw else None)
    noise = np.mean((back - x).astype(np.float64) ** 2)
    return {"qsnr": float(10 * np.log10(np.mean(x.astype(np.float64) ** 2) / noise)),
            "bits": stored.bits_per_value}


def spot_check(console):
    """Two virtual minibatches of digits in every format, on the RTL and on the emulator: a small
    array and network, which are simulated soon."""
    config, found = TILE.replace(stash=True, n=4, bus_bits=128), {}
    job = load_task("digits")
    for backend in ("verilator", "emulator"):
        with gm.open(backend, config) as device:
            for label, stash in track(ENTRIES.items(), backend, console=console):
                model = load_task("digits", hidden=(16, 16)).model
                trainer = gm.Trainer(model, device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                                     virtual_minibatch=32, sub_minibatch=16, stash=stash)
                trainer.fit(job.x[:64], job.y[:64], epochs=1)
                counters = device.counters()
                found[backend, label] = (
                    {name: value.tobytes() for name, value in model.state_dict().items()},
                    {c.name: counters[c.name] for c in COUNTERS if not c.timing})
    for label in ENTRIES:
        same = found["verilator", label] == found["emulator", label]
        console.print(f"{label}: {'equal' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
