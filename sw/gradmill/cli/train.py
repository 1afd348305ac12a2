"""``gradmill train``: a run with its report."""

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..backends import open_device
from ..datasets import TASKS, load_task
from ..nn import SGD, CrossEntropy, Sequential
from ..report import (
    differences,
    layers,
    performance,
    pipeline,
    plot_history,
    write_page,
    write_report,
)
from ..stash import Stash
from ..timeline import record
from ..trainer import Trainer
from .common import (
    Backend,
    ConfigName,
    DeviceName,
    Hidden,
    Schedule,
    Size,
    SubMinibatch,
    Tiles,
    VirtualMinibatch,
    chosen,
    clear_errors,
    configured,
    console,
    numbers,
)


__all__ = ["train"]

#: Virtual minibatches that the timeline shows.
_SHOWN = 3


def train(
    task: Annotated[str, typer.Argument(help=f"What to learn: {', '.join(TASKS)}.")],
    device: DeviceName = Backend.verilator,
    config: ConfigName = "sim",
    out: Annotated[Path, typer.Option(help="Folder for report, plot and checkpoint.")] = Path(
        "build/train"),
    n: Size = None,
    tiles: Tiles = None,
    schedule: Schedule = None,
    hidden: Hidden = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option()] = None,
    virtual_minibatch: VirtualMinibatch = None,
    sub_minibatch: SubMinibatch = None,
    level1: Annotated[str, typer.Option(help="Format of level 1: fp32 or bf16.")] = "fp32",
    rounding: Annotated[str, typer.Option(help="Rounding of gradients to block floating point: "
                                               "nearest or stochastic.")] = "nearest",
    stash: Annotated[str | None, typer.Option(help="Keep hidden activations in near memory in this "
                                              "stash format, as in mask+bfp(3)/64; tiles then have "
                                              "the codec.")] = None,
    layer_to_layer: Annotated[bool, typer.Option(
        "--layer-to-layer", help="Execute layer after layer on one tile, with weights from far "
                                 "memory: for networks that do not fit.")] = False,
    boundaries: Annotated[str, typer.Option(help="Where --layer-to-layer keeps what passes between "
                                                 "layers: near or far memory.")] = "near",
    seed: Annotated[int, typer.Option(help="Key of initial weights and sample order.")] = 0,
    stall: Annotated[float, typer.Option(min=0, max=0.9, help="Probability of a random stall, on "
                                         "every AXI channel of the simulated board.")] = 0.0,
    waveform: Annotated[Path | None, typer.Option(help="Write a waveform here (.fst or .vcd); "
                                                  "large: use few epochs.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint in OUT.")] = False,
    check: Annotated[bool, typer.Option(help="Train on the emulator too and compare every bit.")]
        = True,
) -> None:
    """Train a network and write report.html, report.json, timeline.json and a checkpoint to OUT.

    Samples are real data; losses are computed on the device. With the verilator device the same run
    is repeated on the emulator at the end and every weight and counter is compared by bits.
    """
    with clear_errors():
        sizes = configured(config, n, tiles, stash=bool(stash))
        job = load_task(task, seed, hidden and numbers(hidden), tiles=sizes.tiles)
        settings = chosen(job, virtual_minibatch, sub_minibatch, epochs=epochs, lr=lr,
                          momentum=momentum)
        out.mkdir(parents=True, exist_ok=True)
        options = {"stall": stall, "waveform": waveform} if device is Backend.verilator else {}
        how = {"level1": level1, "rounding": rounding, "seed": seed, "tiles": tiles,
               "schedule": schedule, "stash": stash and Stash(stash),
               "layer_to_layer": layer_to_layer, "boundaries": boundaries}

        started = time.perf_counter()
        with open_device(device.value, sizes, **options) as machine:
            ready = time.perf_counter()
            trainer = _trainer(job, machine, settings, how, resume and out)
            timeline = _fit(trainer, job, settings, out, resume, f"{task} on {device.value}")
            seconds = time.perf_counter() - ready
            with console.status("predicting cycles"):
                results = _results(trainer, timeline)
            report = {
                "task": task, "device": device.value, "seed": seed, "epochs": trainer.epoch,
                "settings": settings | _settings(trainer), "stash_format": stash, **results,
                "build_seconds": ready - started, "wall_seconds": seconds,
                "cycles_per_second": machine.counters()["cycles"] / seconds,
                "bit_exact_to_emulator": None,
            }
            if check and device is Backend.verilator and not resume:
                report["bit_exact_to_emulator"] = _compare(trainer, job, settings, how)
        write_report(out, report)
        _write_timeline(out / "timeline.json", timeline, report)
        page = write_page(out)
        plot_history(out / "training.png", report)
        _summary(report, page)
        if report["bit_exact_to_emulator"] is False:
            raise typer.Exit(1)


def _results(trainer, timeline):
    device, history = trainer.device, trainer.history
    return {
        "config": asdict(device.config), "pipeline": pipeline(trainer, timeline),
        "layer_to_layer": layers(trainer, timeline),
        "train_loss": history.train_loss, "test_loss": history.validation[-1]["loss"],
        "test_accuracy": history.validation[-1]["accuracy"], "validation": history.validation,
        **performance(device.counters(), device.config),
        "host_bytes": device.host_bytes(), "counters": device.counters(),
    }


def _settings(trainer):
    """What a resumed run goes on with, whatever the options say."""
    return {"lr": trainer.optimizer.lr, "momentum": trainer.optimizer.momentum,
            "virtual_minibatch": trainer.virtual_minibatch, "sub_minibatch": trainer.sub_minibatch}


def _write_timeline(path, timeline, report):
    """The first virtual minibatches of the record; no file without one."""
    path.unlink(missing_ok=True)
    starts = timeline.starts(report["pipeline"]["sub_minibatches"]) if timeline else []
    if starts:
        last = max(span.end for span in timeline.spans)
        timeline.between(starts[0], [*starts, last][min(_SHOWN, len(starts))]).write_trace(path)
    elif timeline:  # layer to layer: a start is one virtual minibatch
        timeline.write_trace(path)


def _trainer(job, machine, settings, how, folder):
    if folder:
        return Trainer.load(folder / "checkpoint", machine, **{
            name: how[name] for name in ("tiles", "schedule", "layer_to_layer", "boundaries")})
    return Trainer(job.model, machine, loss=CrossEntropy(),
                   optimizer=SGD(lr=settings["lr"], momentum=settings["momentum"]),
                   virtual_minibatch=settings["virtual_minibatch"],
                   sub_minibatch=settings["sub_minibatch"], **how)


def _fit(trainer, job, settings, out, resume, title):
    """Train; returns the :class:`Timeline` of the first start of a device that has a clock."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
    with ExitStack() as recording, Progress(*columns, console=console) as progress:
        clocked = hasattr(trainer.device, "record_activity")
        timeline = recording.enter_context(record(trainer.device)) if clocked and out else None
        last = settings["epochs"]
        bar = progress.add_task(title, total=None, state="")

        def on_step(running, batch, batches):
            recording.close()
            history = running.history
            state = f"epoch {running.epoch + 1}/{last}"
            if history.validation:
                state += (f"  loss {history.train_loss[-1]:.3f}"
                          f"  test {history.validation[-1]['accuracy']:.1%}")
            progress.update(bar, total=last * batches,
                            completed=running.epoch * batches + batch + 1, state=state)

        rest = {"validation_data": (job.x_test, job.y_test), "on_step": on_step,
                "checkpoint": out / "checkpoint" if out else None}
        if resume:
            trainer.resume(job.x, job.y, **rest)
        else:
            trainer.fit(job.x, job.y, epochs=last, **rest)
    return timeline


def _compare(trainer, job, settings, how):
    """Whether the emulator ends with the same bits."""
    fresh = replace(job, model=Sequential(*job.model.layers, seed=how["seed"]))
    with open_device("emulator", trainer.device.config) as machine:
        reference = _trainer(fresh, machine, settings, how, None)
        _fit(reference, job, settings, None, False, "the same on the emulator")
        different = differences(trainer, reference)
    for name in different:
        console.print(f"[red]differs from the emulator: {name}[/red]")
    return not different


def _summary(report, page):
    table = Table(show_header=False, title=f"{report['task']} on {report['device']}")
    utilisation, cycles = report["utilisation"], report["pipeline"]["cycles_per_virtual_minibatch"]
    for name, value in (
        ("test accuracy", f"{report['test_accuracy']:.2%}"),
        ("cycles", f"{report['cycles']:,}" if report["cycles"] else "no clock"),
        ("of a virtual minibatch", f"{cycles['predicted']:,.0f} predicted" + (
            f", {cycles['measured']:,.0f} measured" if cycles["measured"] else "")),
        ("useful MACs", f"{report['macs']:,}"),
        ("utilisation", "" if utilisation is None else f"{utilisation:.1%} of n·n·tiles·cycles"),
        ("seconds", f"{report['wall_seconds']:.1f} (build {report['build_seconds']:.1f})"),
        ("cycles per second", f"{report['cycles_per_second']:,.0f}" if report["cycles"] else ""),
        ("bit-exact to the emulator", {None: "not compared", True: "yes", False: "NO"}[
            report["bit_exact_to_emulator"]]),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(f"report {page}, from report.json beside it", soft_wrap=True, highlight=False)
