"""``gradmill plan``: what a pipelined training would do, without running it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..data import check_prediction
from ..datasets import TASKS, load_task
from ..forecast import forecast, one_tile_cycles
from ..nn import CrossEntropy
from ..planning import plan as make_plan
from ..profiler import profile
from ..report import data
from ..report.plan_figure import colours, plot_plan, shown_lanes
from ..stash import parse_stash
from .common import (
    ConfigName,
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
from .tiers import show_tiers


__all__ = ["plan"]


def plan(
    task: Annotated[str, typer.Argument(help=f"What to learn: {', '.join(TASKS)}.")],
    config: ConfigName = "sim",
    out: Annotated[Path | None, typer.Option(help="Folder for plan.svg, a picture of the order.")]
        = None,
    sizes: Sizes = None,
    n: Size = None,
    tiles: Tiles = None,
    schedule: Schedule = None,
    predict_weights: PredictWeights = False,
    hidden: Hidden = None,
    virtual_minibatch: VirtualMinibatch = None,
    sub_minibatch: SubMinibatch = None,
    stash: Annotated[str | None, typer.Option(
        help="With --fast-memory: format in which activations may be stored.")] = None,
    fast_memory: FastMemorySize = None,
    recompute: Recompute = None,
    memory_policy: MemoryPolicy = "chosen",
    far_bandwidth: FarBandwidth = None,
) -> None:
    """Show how a network would be spread over tiles: layers, cycles, memory, order.

    With --fast-memory, what one tile would do with each hidden activation, and why. Nothing is
    trained or simulated; cycles are those of the cycle model.
    """
    with clear_errors():
        policy = memory_policy if fast_memory and not recompute else "offload"
        fast = fast_memory_options(fast_memory, recompute, policy)
        machine = configured(config, sizes, n=n, tiles=tiles if fast is None else tiles or 1,
                             stash=stash is not None, copy=fast is not None)
        job = load_task(task, hidden=hidden and numbers(hidden), tiles=machine.tiles)
        settings = chosen(job, virtual_minibatch, sub_minibatch)
        loss, optimizer = CrossEntropy(), sgd(settings)
        if predict_weights:
            check_prediction(schedule, optimizer.momentum)
        if fast is not None:
            show_tiers(job, machine, settings, loss, optimizer, fast,
                       None if stash is None else parse_stash([stash]), far_bandwidth)
            return
        amounts = {name: settings[name] for name in ("virtual_minibatch", "sub_minibatch")}
        with working("planning"):
            made = make_plan(job.model, machine, tiles=tiles, schedule=schedule, loss=loss,
                             optimizer=optimizer, **amounts)
            if made.profile is None:  # one tile: the plan needs none, its table does
                measured = profile(job.model, machine, settings["sub_minibatch"], loss, optimizer)
                made = make_plan(job.model, machine, tiles=1, schedule=made.schedule.name,
                                 loss=loss, optimizer=optimizer, measured=measured, **amounts)
        with working("writing the programs and predicting their cycles"):
            expected = forecast(made, job.model, machine, loss, optimizer,
                                predict_weights=predict_weights)
            alone = expected.cycles if len(made.spans) == 1 else one_tile_cycles(
                job.model, machine, loss, optimizer, **amounts)
        console.print(_stages(made, job.model, expected))
        console.print(_costs(made, expected))
        console.print(_totals(made, expected, alone))
        console.print(_gantt(made, max(40, min(console.width, 120) - 9)))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            console.print(f"picture {plot_plan(made, out / 'plan.svg', task)}", soft_wrap=True,
                          highlight=False)


def _stages(made, model, expected):
    """One row per tile: what lies on it."""
    table = Table(title=f"{made.schedule.name}, B = {made.virtual_minibatch}, "
                        f"M = {made.sub_minibatch}")
    memories = [f"{name}\n{rows:,}" for name, (_, rows) in expected.memory[0].items()]
    for column in ("tile", "layers", "weights", "sets", *memories):
        table.add_column(column, justify="left" if column == "layers" else "right")
    for tile, (span, memory) in enumerate(zip(made.spans, expected.memory, strict=True)):
        table.add_row(str(tile), "\n".join(data.layer_names(model, *span)),
                      f"{data.parameters(model, *span):,}", str(made.sets[tile]),
                      *(f"{used:,}" for used, _ in memory.values()))
    table.caption = ("sets: sub-minibatches whose activations are kept for backward; "
                     "tensor, acc, mask: on-chip memories, their rows and how many are used")
    return table


def _costs(made, expected):
    """One row per tile: what it spends."""
    table = Table(title="cycles of one sub-minibatch; of an update, once per virtual minibatch")
    for column in ("tile", "forward", "data gradient", "weight gradient", "update", "matrix busy"):
        table.add_column(column, justify="right")
    for row, busy in zip(made.table(), expected.busy, strict=True):
        table.add_row(str(row["tile"]), *(f"{row[name]:,}" for name in
                                          ("forward", "backward", "weight", "update")),
                      f"{busy['matrix']:.0%}")
    return table


def _totals(made, expected, alone):
    """What the whole pipeline is expected to do."""
    table = Table(show_header=False, title="one virtual minibatch, in steady state")
    found = data.speedup(alone, expected.cycles, None)["predicted_over_one_tile_predicted"]
    rows = (
        ("bubble", f"{made.bubble:.1%}, while tiles wait only for each other"),
        ("cycles of the schedule", f"{made.cycles:,}; with these sets at least {made.bound:,}"),
        ("cycles of the programs", f"{expected.cycles:,.0f}, by the cycle model"),
        ("one tile", "does not fit" if alone is None else f"{alone:,.0f}, by the cycle model"),
        ("speed-up", "unknown" if found is None else f"{found:.2f} over one tile, predicted"),
    )
    for name, value in rows if len(made.spans) > 1 else rows[:-2]:
        table.add_row(name, value)
    return table


def _gantt(made, width):
    """The order of one virtual minibatch, one line per tile, a colour for each kind."""
    text, styles = Text(), colours()
    lanes = shown_lanes(made, 1)
    total = max(end for lane in lanes for *_, end in lane)
    for tile, lane in enumerate(lanes):
        text.append(f"tile {tile:<3}")
        for column in range(width):
            middle = (column + 0.5) * total / width
            kind = next((kind for kind, _, start, end in lane if start <= middle < end), None)
            text.append("\u2588" if kind else "\u00b7", style=styles.get(kind, "grey50"))
        text.append("\n")
    text.append("        ")
    for kind, style in styles.items():
        text.append("\u2588 ", style=style)
        text.append(f"{kind}  ")
    return text
