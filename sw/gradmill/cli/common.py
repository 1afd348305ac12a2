"""What several commands share: options, console, errors in words."""

import sys
import tomllib
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from gradmill_hw.config import CONFIGS, ConfigError, derive, get_config
from rich.console import Console
from rich.markup import escape

from ..checkpoint import CheckpointError
from ..errors import GradmillError
from ..heartbeat import heartbeat
from ..memory import FastMemory
from ..nn import SGD


__all__ = ["Backend", "ConfigName", "DeviceName", "FarBandwidth", "FastMemorySize", "Hidden",
           "MemoryPolicy", "Recompute", "Schedule", "Size", "Sizes", "SubMinibatch", "Tiles",
           "VirtualMinibatch", "chosen", "clear_errors", "configured", "console",
           "fast_memory_options", "numbers", "sgd", "working"]

console = Console()


class Backend(StrEnum):
    """Where to run."""

    emulator = "emulator"
    verilator = "verilator"


ConfigName = Annotated[str, typer.Option(
    help=f"Sizes of the accelerator, see `gradmill info`: {', '.join(CONFIGS)}, or a .toml or "
         ".json file with them.")]
Sizes = Annotated[list[str] | None, typer.Option(
    "--set", metavar="FIELD=VALUE", help="Another size than the configuration's, as in banks=2; "
                                         "may be given several times.")]
DeviceName = Annotated[Backend, typer.Option(help="`emulator`: exact NumPy models. `verilator`: "
                                                  "the RTL, simulated.")]
Size = Annotated[int | None, typer.Option(help="Rows and columns of the array instead of the "
                                               "configuration's.")]
Tiles = Annotated[int | None, typer.Option(help="Tiles of the chain instead of the "
                                                "configuration's.")]
Schedule = Annotated[str | None, typer.Option(help="Order of the tiles' work: sequential, 1f1b or "
                                              "zero-bubble, whose result is the same, or no-drain, "
                                              "whose gradients are one update late.")]
FastMemorySize = Annotated[str | None, typer.Option(
    "--fast-memory", help="Near memory for hidden activations: a percentage of them, as in 20%, or "
                          "bytes; the rest goes to far memory and back. One tile.")]
Recompute = Annotated[str | None, typer.Option(
    help="With --fast-memory: compute activations again instead; `optimal`, every so many layers, "
         "or those whose input is kept: 2,5")]
MemoryPolicy = Annotated[str, typer.Option(
    help="With --fast-memory: `offload` what does not fit, or after the first virtual minibatch "
         "what is `chosen` for each activation: keep, compress (with --stash), recompute or "
         "offload.")]
FarBandwidth = Annotated[float | None, typer.Option(
    help="Beats per cycle of far memory, both directions together; by default without limit.")]
PredictWeights = Annotated[bool, typer.Option(
    "--predict-weights", help="With --schedule no-drain: use weights as they would be after "
                              "another update like the last one.")]
Hidden = Annotated[str | None, typer.Option(help="Widths of the hidden layers, as in 96,48,88,40; "
                                            "by default enough for all tiles.")]
VirtualMinibatch = Annotated[int | None, typer.Option(
    "--virtual-minibatch", "-B", help="Samples between two updates.")]
SubMinibatch = Annotated[int | None, typer.Option(
    "--sub-minibatch", "-M", help="Samples reduced beside the MACs (level 1).")]


def configured(name, sizes=None, **others):
    """The configuration ``name`` with other ``sizes``, texts ``FIELD=VALUE``, and with those of
    ``others`` that are neither ``None`` nor ``False``."""
    changes = dict(map(_size, sizes or ()))
    return derive(get_config(name), changes | {
        field: value for field, value in others.items()
        if value is not None and value is not False})


def _size(text):
    """``FIELD=VALUE`` as a pair; values are written as in TOML."""
    field, equals, value = text.partition("=")
    try:
        (value,) = tomllib.loads(f"value = {value}").values()
    except ValueError:
        equals = ""
    if not equals:
        raise ConfigError(f"--set {text}: write a field of a configuration and its value, as in "
                          "banks=2 or stash=true")
    return field, value


def fast_memory_options(size, recompute, policy):
    """The :class:`FastMemory` that the options describe; ``None`` without."""
    if size is None:
        for name, value in (("recompute", recompute),
                            ("memory-policy", None if policy == "offload" else policy)):
            if value is not None:
                raise ValueError(f"--{name} {value}: say how much is kept with --fast-memory, as "
                                 "in --fast-memory 20%")
        return None
    if recompute and recompute != "optimal":
        chosen_layers = numbers(recompute.rstrip(","))
        recompute = chosen_layers if "," in recompute else chosen_layers[0]
    return FastMemory(int(size) if size.isdecimal() else size, recompute=recompute, policy=policy)


def numbers(text):
    """``96,48`` as integers."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"hidden={text!r}: write positive sizes, as in 96,48,88,40")
    return tuple(map(int, parts))


def chosen(job, virtual_minibatch, sub_minibatch, **others):
    """The settings of a task, those that are given instead of its own."""
    given = {**others, "virtual_minibatch": virtual_minibatch, "sub_minibatch": sub_minibatch}
    settings = job.settings | {k: v for k, v in given.items() if v is not None}
    if settings["virtual_minibatch"] > len(job.x):
        raise ValueError(f"virtual_minibatch={virtual_minibatch}: the task has {len(job.x)} "
                         f"samples to train; use at most {len(job.x)}")
    if sub_minibatch is None:
        settings["sub_minibatch"] = min(settings["sub_minibatch"], settings["virtual_minibatch"])
    return settings


def sgd(settings):
    """The optimizer of a task's settings."""
    return SGD(lr=settings["lr"], momentum=settings["momentum"], decay=settings.get("decay", 1.0))


@contextmanager
def working(what):
    """Says what takes long: beside a spinner, or without a terminal now and then, apart from the
    results."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        with heartbeat(lambda seconds: print(f"{what}: {seconds:.0f} s so far", file=sys.stderr,
                                             flush=True)):
            yield


@contextmanager
def clear_errors():
    """Turns the errors a user can cause into one clear line and exit code 2."""
    try:
        yield
    except (ConfigError, CheckpointError, GradmillError, ValueError) as error:
        console.print(f"[red]{type(error).__name__}:[/red] {escape(str(error))}",
                      highlight=False)
        raise typer.Exit(2) from None
