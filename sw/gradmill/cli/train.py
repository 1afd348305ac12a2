"""``gradmill train``: a run with its report."""

import time
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer
from rich.table import Table

from ..backends import open_device
from ..datasets import TASKS, load_task
from ..nn import CrossEntropy, Sequential
from ..report import (
    differences,
    expectation,
    layers,
    performance,
    pipeline,
    plot_history,
    stashing,
    write_page,
    write_report,
)
from ..stash import HELP, parse_stash
from ..trainer import Trainer
from .beside import beside
from .common import (
    Backend,
    ConfigName,
    DeviceName,
    FarBandwidth,
    FastMemorySize,
    Hidden,
    MemoryPolicy,
    PredictWeights,
    Recompute,
    Schedule,
    Size,
    Sizes,
    SubMinibatch,
    Tiles,
    VirtualMinibatch,
    chosen,
    clear_errors,
    configured,
    console,
    fast_memory_options,
    numbers,
    sgd,
    working,
)
from .fit import fit
from .resume import check_options, given_options, state_of


__all__ = ["follow", "tell", "train"]

#: Virtual minibatches that the timeline shows.
_SHOWN = 3


def train(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help=f"What to learn: {', '.join(TASKS)}.")],
    device: DeviceName = Backend.verilator,
    config: ConfigName = "sim",
    out: Annotated[Path, typer.Option(help="Folder for report, plot and checkpoint.")] = Path(
        "build/train"),
    sizes: Sizes = None,
    n: Size = None,
    tiles: Tiles = None,
    schedule: Schedule = None,
    predict_weights: PredictWeights = False,
    hidden: Hidden = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option()] = None,
    decay: Annotated[float | None, typer.Option(help="Factor of the learning rate from epoch to "
                                                "epoch.")] = None,
    virtual_minibatch: VirtualMinibatch = None,
    sub_minibatch: SubMinibatch = None,
    level1: Annotated[str, typer.Option(help="Format of level 1: fp32 or bf16.")] = "fp32",
    rounding: Annotated[str, typer.Option(help="Rounding of gradients to block floating point: "
                                               "nearest or stochastic.")] = "nearest",
    stash: Annotated[list[str] | None, typer.Option(help=HELP)] = None,
    stash_rounding: Annotated[str | None, typer.Option(
        help="Rounding of the stash: nearest (default of a FORMAT) or stochastic (default of "
             "adaptive and auto).")] = None,
    stash_interval: Annotated[int | None, typer.Option(
        min=1, help="Virtual minibatches over whose loss an adaptive stash judges; by default an "
                    "epoch.")] = None,
    fast_memory: FastMemorySize = None,
    recompute: Recompute = None,
    memory_policy: MemoryPolicy = "offload",
    far_bandwidth: FarBandwidth = None,
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
    resume: Annotated[bool, typer.Option(
        help="Continue from the checkpoint in OUT, as it says; --epochs may ask for more.")]
        = False,
    check: Annotated[bool, typer.Option(help="Train on the emulator too and compare every bit.")]
        = True,
) -> None:
    """Train a network and write report.html, report.json, timeline.json and a checkpoint to OUT.

    Samples are real data; losses are computed on the device. With the verilator device the emulator
    trains the same at the same time; at the end every weight and counter is compared by bits.
    """
    with clear_errors():
        policy = parse_stash(stash, rounding=stash_rounding, interval=stash_interval)
        fast = fast_memory_options(fast_memory, recompute, memory_policy)
        if tiles is None and (fast is not None or layer_to_layer):
            tiles = 1
        state = state_of(out) if resume else None
        given = given_options(context)
        if state and not given.keys() & {"n", "config", "sizes"}:
            n = state["numbers"]["n"]
        wanted = configured(config, sizes, n=n, tiles=tiles, copy=fast is not None,
                            stash=(state["stash"] if state else policy) is not None)
        job = load_task(task, seed, hidden and numbers(hidden), tiles=wanted.tiles)
        settings = chosen(job, virtual_minibatch, sub_minibatch, epochs=epochs, lr=lr,
                          momentum=momentum, decay=decay)
        if state:
            settings["epochs"] = check_options(state, given, job, wanted, policy)
            if state["epoch"] >= settings["epochs"]:
                console.print(f"already finished: {state['epoch']} of {settings['epochs']} epochs; "
                              f"the report stays as it is, --epochs with more goes on")
                return
        out.mkdir(parents=True, exist_ok=True)
        options = {"stall": stall, "waveform": waveform, "bandwidth": (None, far_bandwidth)} \
            if device is Backend.verilator else {}
        how = {"level1": level1, "rounding": rounding, "seed": seed, "tiles": tiles,
               "schedule": schedule, "predict_weights": predict_weights, "stash": policy,
               "fast_memory": fast,
               "layer_to_layer": layer_to_layer, "boundaries": boundaries}

        started = time.perf_counter()
        with ExitStack() as stack:
            machine = stack.enter_context(open_device(device.value, wanted, **options))
            ready = time.perf_counter()
            compared = check and device is Backend.verilator and not resume
            times: SimpleQueue = SimpleQueue()  # that the device's memory manager measures
            reference = stack.enter_context(_on_emulator(job, machine, settings, how, times)) \
                if compared else None
            stack.callback(times.put, None)  # nobody waits for a time that never comes
            with working("planning"):
                trainer = _trainer(job, machine, settings, how, resume and out)
            began = {"epoch": trainer.epoch, "virtual_minibatch": trainer.step} if resume else None
            tell(trainer, times)
            timeline = fit(trainer, job, epochs=settings["epochs"], folder=out, resume=resume,
                           title=f"{task} on {device.value}")
            seconds = time.perf_counter() - ready
            with working("the same on the emulator" if compared else "predicting cycles"):
                other, expected = reference() if reference else (None, expectation(trainer))
                results = _results(trainer, expected, timeline)
            report = {
                "task": task, "device": device.value, "seed": trainer.seed,
                "epochs": trainer.epoch, "resumed_at": began,
                "settings": settings | _settings(trainer), **results,
                "build_seconds": ready - started, "wall_seconds": seconds,
                "cycles_per_second": machine.counters()["cycles"] / seconds,
                "bit_exact_to_emulator": _same(trainer, other) if compared else None,
            }
        write_report(out, report)
        _write_timeline(out / "timeline.json", timeline, report)
        page = write_page(out)
        plot_history(out / "training.png", report)
        _summary(report, page)
        if report["bit_exact_to_emulator"] is False:
            raise typer.Exit(1)


def _results(trainer, expected, timeline):
    device, history = trainer.device, trainer.history
    return {
        "config": asdict(device.config), "pipeline": pipeline(trainer, expected, timeline),
        "stashing": stashing(trainer), "layer_to_layer": layers(trainer, timeline),
        "train_loss": history.train_loss, "test_loss": history.validation[-1]["loss"],
        "test_accuracy": history.validation[-1]["accuracy"], "validation": history.validation,
        **performance(device.counters(), device.config),
        "host_bytes": device.host_bytes(), "counters": device.counters(),
    }


def _settings(trainer):
    """What a resumed run goes on with, whatever the options say."""
    return {**asdict(trainer.optimizer),
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
            name: how[name] for name in ("tiles", "schedule", "fast_memory", "layer_to_layer",
                                         "boundaries")})
    return Trainer(job.model, machine, loss=CrossEntropy(),
                   optimizer=sgd(settings),
                   virtual_minibatch=settings["virtual_minibatch"],
                   sub_minibatch=settings["sub_minibatch"], **how)


def tell(trainer, times):
    """Put what a memory manager measures into ``times``."""
    if trainer.memory:
        def clock(cycles):
            times.put(cycles)
            return cycles

        trainer.activations.clock = clock


def follow(trainer, times):
    """Let the memory manager decide by what another device has put into ``times``; ``None``: that
    device has stopped."""
    if trainer.memory:
        def clock(_):
            cycles = times.get()
            if cycles is None:
                raise CancelledError
            return cycles

        trainer.activations.clock = clock


@contextmanager
def _on_emulator(job, device, settings, how, times):
    """Train the same as on ``device`` on the emulator meanwhile; yields a function that waits for
    the trainer and what :func:`expectation` says of it."""
    fresh = replace(job, model=Sequential(*job.model.layers, seed=how["seed"]))
    with open_device("emulator", device.config) as machine:
        machine.far_beats = device.far_beats

        def fit(go_on):
            reference = _trainer(fresh, machine, settings, how, None)
            follow(reference, times)
            reference.fit(job.x, job.y, epochs=settings["epochs"], on_step=go_on,
                          validation_data=(job.x_test, job.y_test))
            return reference, expectation(reference)

        with beside(fit) as result:
            yield result


def _same(trainer, reference):
    """Whether the emulator ends with the same bits."""
    different = differences(trainer, reference)
    for name in different:
        console.print(f"[red]differs from the emulator: {name}[/red]")
    return not different


def _summary(report, page):
    table = Table(show_header=False, title=f"{report['task']} on {report['device']}")
    utilisation, chain = report["utilisation"], report["pipeline"]
    cycles, shares = chain["cycles_per_virtual_minibatch"], [tile["utilisation"]
                                                             for tile in chain["tiles"]]
    for name, value in (
        ("test accuracy", f"{report['test_accuracy']:.2%}"),
        *_resumed(report["resumed_at"]),
        ("schedule", f"{chain['schedule']}, {len(shares)} of {report['config']['tiles']} tiles"),
        ("cycles", f"{report['cycles']:,}" if report["cycles"] else "no clock"),
        ("of a virtual minibatch", f"{cycles['predicted']:,.0f} predicted" + (
            f", {cycles['measured']:,.0f} measured" if cycles["measured"] else "")),
        ("useful MACs", f"{report['macs']:,}"),
        ("utilisation", utilisation and f"{utilisation:.1%} of n·n·tiles·cycles, with evaluation"),
        ("in training alone", chain["training"]["utilisation"]
         and f"{chain['training']['utilisation']:.1%}"),
        ("of each tile", utilisation and shares[1:] and " ".join(f"{s:.1%}" for s in shares)),
        ("speed-up over one tile", shares[1:] and _speedup(chain["speedup"])),
        ("hidden activations", _activations(report)),
        ("seconds", f"{report['wall_seconds']:.1f}, after {report['build_seconds']:.1f} to build"),
        ("cycles per second", report["cycles"] and f"{report['cycles_per_second']:,.0f}"),
        ("bit-exact to the emulator", report["device"] != "emulator" and {
            None: "not compared", True: "yes", False: "NO"}[report["bit_exact_to_emulator"]]),
    ):
        if value:
            table.add_row(name, value)
    console.print(table)
    console.print(f"report {page}, from report.json beside it", soft_wrap=True, highlight=False)


def _resumed(at):
    """Row that says what the counters do not cover."""
    if at:
        yield "resumed", (f"after {at['epoch']} epochs and {at['virtual_minibatch']} virtual "
                          "minibatches; cycles, MACs and seconds are of what followed")


def _activations(report):
    """Where they are kept for backward, and in how many bits."""
    fast, layers_in_turn = report["pipeline"]["fast_memory"], report["layer_to_layer"]
    if fast:
        where = f"{fast['fast_bytes']:,} of {fast['footprint_bytes']:,} bytes in fast memory"
    elif layers_in_turn:
        where = f"in {layers_in_turn['boundaries']} memory"
    else:
        where = "in near memory" if report["stash"] else "on chip"
    if not report["stash"]:
        return where
    switches = len(report["stashing"]["switches"][1:])
    return f"{where}, {report['stash']['bits_per_value']:.3f} bits each, {switches} switches"


def _speedup(factors):
    predicted, measured = (factors[f"{name}_over_one_tile_predicted"]
                           for name in ("predicted", "measured"))
    if predicted is None:
        return "the network does not fit one tile"
    return f"{predicted:.2f} predicted" + (f", {measured:.2f} measured" if measured else "")
