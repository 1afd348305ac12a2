"""The ``gradmill`` command."""

import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from gradmill_hw.config import CONFIGS, ConfigError, get_config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .backends import open_device
from .checkpoint import CheckpointError
from .datasets import TASKS, load_task
from .errors import GradmillError
from .nn import SGD, CrossEntropy, Sequential
from .report import differences, performance, plot_history, write_report
from .stash import Stash
from .trainer import Trainer


__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
                  help="Gradmill: train neural networks on an open training accelerator.")
bench = typer.Typer(no_args_is_help=True, help="Measure on the simulated RTL.")
app.add_typer(bench, name="bench")
console = Console()



class Backend(StrEnum):
    """Where to run."""

    emulator = "emulator"
    verilator = "verilator"


_CONFIG = Annotated[str, typer.Option(help="Sizes of the accelerator, see `gradmill info`: "
                                           f"{', '.join(CONFIGS)}.")]
_DEVICE = Annotated[Backend, typer.Option(help="`emulator`: exact NumPy models. `verilator`: the "
                                               "RTL, simulated.")]


def _configured(name, n, tiles=None):
    config = get_config(name)
    if n is not None and n != config.n:
        config = config.replace(n=n, bus_bits=min(32 * n, 1024))
    if tiles is not None and tiles != config.tiles:
        config = config.replace(tiles=tiles)
    return config


@contextmanager
def _clear_errors():
    """Turns the errors a user can cause into one clear line and exit code 2."""
    try:
        yield
    except (ConfigError, CheckpointError, GradmillError, ValueError) as error:
        console.print(f"[red]{type(error).__name__}:[/red] {error}", highlight=False)
        raise typer.Exit(2) from None


@app.command()
def train(
    task: Annotated[str, typer.Argument(help=f"What to learn: {', '.join(TASKS)}.")],
    device: _DEVICE = Backend.verilator,
    config: _CONFIG = "sim",
    out: Annotated[Path, typer.Option(help="Folder for report, plot and checkpoint.")] = Path(
        "build/train"),
    n: Annotated[int | None, typer.Option(help="Rows and columns of the array instead of the "
                                               "configuration's.")] = None,
    tiles: Annotated[int | None, typer.Option(help="Tiles of the chain instead of the "
                                                   "configuration's.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Order of the tiles' work: sequential, 1f1b "
                                                 "or zero-bubble; the result is the same.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of the hidden layers, as in "
                                               "96,48,88,40; by default enough for all tiles.")]
        = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option()] = None,
    virtual_minibatch: Annotated[int | None, typer.Option(
        "--virtual-minibatch", "-B", help="Samples between two updates.")] = None,
    sub_minibatch: Annotated[int | None, typer.Option(
        "--sub-minibatch", "-M", help="Samples reduced beside the MACs (level 1).")] = None,
    level1: Annotated[str, typer.Option(help="Format of level 1: fp32 or bf16.")] = "fp32",
    rounding: Annotated[str, typer.Option(help="Rounding of gradients to block floating point: "
                                               "nearest or stochastic.")] = "nearest",
    stash: Annotated[str | None, typer.Option(help="Keep hidden activations in near memory in this "
                                              "stash format, as in mask+bfp(3)/64.")] = None,
    seed: Annotated[int, typer.Option(help="Key of initial weights and sample order.")] = 0,
    stall: Annotated[float, typer.Option(min=0, max=0.9, help="Probability of a random stall, on "
                                         "every AXI channel of the simulated board.")] = 0.0,
    waveform: Annotated[Path | None, typer.Option(help="Write a waveform here (.fst or .vcd); "
                                                  "large: use few epochs.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint in OUT.")] = False,
    check: Annotated[bool, typer.Option(help="Train on the emulator too and compare every bit.")]
        = True,
) -> None:
    """Train a network and write report.json, training.png and a checkpoint to OUT.

    Samples are real data; losses are computed on the device. With the verilator device the same run
    is repeated on the emulator at the end and every weight and counter is compared by bits.
    """
    with _clear_errors():
        sizes = _configured(config, n, tiles)
        job = load_task(task, seed, hidden and _numbers(hidden), tiles=sizes.tiles)
        chosen = {"epochs": epochs, "lr": lr, "momentum": momentum,
                  "virtual_minibatch": virtual_minibatch, "sub_minibatch": sub_minibatch}
        settings = job.settings | {k: v for k, v in chosen.items() if v is not None}
        settings["sub_minibatch"] = min(settings["sub_minibatch"], settings["virtual_minibatch"])
        out.mkdir(parents=True, exist_ok=True)
        options = {"stall": stall, "waveform": waveform} if device is Backend.verilator else {}
        how = {"level1": level1, "rounding": rounding, "seed": seed, "schedule": schedule,
               "stash": stash and Stash(stash)}

        started = time.perf_counter()
        with open_device(device.value, sizes, **options) as machine:
            ready = time.perf_counter()
            trainer = _trainer(job, machine, settings, how, resume and out)
            _fit(trainer, job, settings, out, resume, f"{task} on {device.value}")
            seconds = time.perf_counter() - ready
            report = {
                "task": task, "device": device.value, "config": asdict(sizes), "seed": seed,
                "settings": settings, "stash_format": stash, "epochs": trainer.epoch,
                "pipeline": _pipeline(trainer),
                "train_loss": trainer.history.train_loss,
                "test_loss": trainer.history.validation[-1]["loss"],
                "test_accuracy": trainer.history.validation[-1]["accuracy"],
                "validation": trainer.history.validation,
                **performance(machine.counters(), sizes),
                "host_bytes": machine.host_bytes(), "counters": machine.counters(),
                "build_seconds": ready - started, "wall_seconds": seconds,
                "cycles_per_second": machine.counters()["cycles"] / seconds,
                "bit_exact_to_emulator": None,
            }
            if check and device is Backend.verilator and not resume:
                report["bit_exact_to_emulator"] = _compare(trainer, job, settings, how)
        path = write_report(out, report)
        picture = plot_history(out, trainer.history, f"{task}, {device.value}, {sizes.name}")
        _summary(report, path, picture)
        if report["bit_exact_to_emulator"] is False:
            raise typer.Exit(1)


def _trainer(job, machine, settings, how, folder):
    if folder:
        return Trainer.load(folder / "checkpoint", machine, schedule=how["schedule"])
    return Trainer(job.model, machine, loss=CrossEntropy(),
                   optimizer=SGD(lr=settings["lr"], momentum=settings["momentum"]),
                   virtual_minibatch=settings["virtual_minibatch"],
                   sub_minibatch=settings["sub_minibatch"], **how)


def _pipeline(trainer):
    """Which tile did what, and how busy it was."""
    plan, device = trainer.plan, trainer.device
    tiles = []
    for tile, (first, last) in enumerate(plan.spans):
        counters = device.counters(tile)
        cycles = counters["cycles"]
        tiles.append({
            "stages": [first, last], "macs": counters["macs"], "cycles": cycles,
            "utilisation": counters["macs"] / (device.config.n ** 2 * cycles) if cycles else None,
            "sets": device.stash(tile)[1]})
    return {"schedule": plan.schedule.name, "tiles": tiles}


def _fit(trainer, job, settings, out, resume, title):
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=console) as progress:
        last = settings["epochs"]
        bar = progress.add_task(title, total=None, state="")

        def on_step(running, batch, batches):
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


def _summary(report, path, picture):
    table = Table(show_header=False, title=f"{report['task']} on {report['device']}")
    utilisation = report["utilisation"]
    for name, value in (
        ("test accuracy", f"{report['test_accuracy']:.2%}"),
        ("cycles", f"{report['cycles']:,}" if report["cycles"] else "no clock"),
        ("useful MACs", f"{report['macs']:,}"),
        ("utilisation", "" if utilisation is None else f"{utilisation:.1%} of n·n·tiles·cycles"),
        ("seconds", f"{report['wall_seconds']:.1f} (build {report['build_seconds']:.1f})"),
        ("cycles per second", f"{report['cycles_per_second']:,.0f}"),
        ("bit-exact to the emulator", {None: "not compared", True: "yes", False: "NO"}[
            report["bit_exact_to_emulator"]]),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(f"report {path}\nplot   {picture}", soft_wrap=True, highlight=False)


@bench.command("gemm")
def bench_gemm(
    sizes: Annotated[list[str] | None, typer.Argument(help="Products as MxKxC.")] = None,
    config: _CONFIG = "sim",
    n: Annotated[int | None, typer.Option(help="Rows and columns of the array.")] = None,
) -> None:
    """Cycles of matrix products with operands on chip, beside the bound, for all three variants."""
    from .gemm import measure_gemm

    with _clear_errors():
        table = Table(title="C = A·B, operands on chip")
        for column in ("m x k x c", "variant", "cycles", "bound", "utilisation"):
            table.add_column(column, justify="right")
        shapes = [_shape(size) for size in sizes or ("128x128x128", "100x100x100", "13x17x19")]
        for entry in measure_gemm(_configured(config, n), shapes):
            table.add_row("x".join(map(str, entry.shape)), entry.variant, f"{entry.cycles}",
                          f"{entry.bound}", f"{entry.utilisation:.1%}")
        console.print(table)


def _numbers(text):
    """``96,48`` as integers."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"hidden={text!r}: write positive sizes, as in 96,48,88,40")
    return tuple(map(int, parts))


def _shape(text):
    """``MxKxC`` as three positive integers."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{text!r} is no product: write three positive sizes, as in 128x64x10")
    return tuple(map(int, parts))


@app.command()
def verilog(
    config: _CONFIG = "edge",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("build/verilog"),
) -> None:
    """Write one Verilog file with standard AXI port names, and its manuals, to OUT."""
    with _clear_errors():
        get_config(config)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"gradmill_{config}.v"
    for command in (["gradmill_hw.emit", "--config", config, "--out", str(target)],
                    ["gradmill_hw.manual", str(out)]):
        subprocess.run([sys.executable, "-m", *command], check=True)
    console.print(f"wrote {target} and the register and instruction manuals beside it")


@app.command()
def info() -> None:
    """List configurations, devices and tasks."""
    table = Table(title="configurations")
    for column in ("name", "n", "tiles", "mantissa", "tensor rows", "acc rows", "mask rows", "bus"):
        table.add_column(column, justify="right")
    for c in CONFIGS.values():
        table.add_row(c.name, *(str(v) for v in (c.n, c.tiles, c.mantissa_bits, c.tensor_rows,
                                                 c.acc_rows, c.mask_rows, c.bus_bits)))
    console.print(table)
    console.print("devices:", ", ".join(Backend), " tasks:", ", ".join(TASKS))
