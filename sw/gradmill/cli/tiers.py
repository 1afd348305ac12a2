"""``gradmill plan --fast-memory``: what would happen to each activation, and why."""

from rich.table import Table

from ..backends import open_device
from ..forecast import forecast
from ..memory import FastMemory
from ..memory.activations import foresee
from ..memory.chooser import EXACT, Decision, alternatives
from ..trainer import Trainer
from ..unit_times import Memory
from .common import console, working


__all__ = ["show_tiers"]


def show_tiers(job, config, settings, loss, optimizer, fast, stash, far_bandwidth):
    """Print the table; ``fast``: a :class:`FastMemory`, ``far_bandwidth``: beats per cycle."""
    far = Memory(beats=far_bandwidth or Memory.beats)
    sizes = {name: settings[name] for name in ("virtual_minibatch", "sub_minibatch")}

    def learned(options):
        """A trainer whose manager has learned, and its cycles per virtual minibatch."""
        with open_device("emulator", config) as device:
            trainer = Trainer(job.model, device, loss=loss, optimizer=optimizer, tiles=1,
                              stash=stash, fast_memory=options, **sizes)
            placed = trainer._lowering, trainer._regions, trainer._losses_at
            foresee(placed[0], trainer.virtual_minibatch, *placed[1:], far)
            return trainer, forecast(trainer.plan, job.model, config, loss, optimizer,
                                     placed=placed, far=far).cycles

    with working("writing the programs and predicting their cycles"):
        trainer, cycles = learned(fast)
        whole = FastMemory("100%", policy=fast.policy)
        kept = learned(whole)[1] if fast.recompute is None else None
    if trainer.activations.choice is None:
        console.print(_offloads(trainer))
    else:
        console.print(_choices(trainer))
    beside = f", {cycles / kept - 1:+.1%} over a fast memory for all" if kept else ""
    console.print(f"virtual minibatch: {cycles:,.0f} cycles{beside}, by the cycle model; far "
                  f"memory {far.beats:g} beats/cycle", highlight=False)


def _choices(trainer):
    """A row per activation: its decision, and a sub-minibatch with each other way."""
    memory = trainer.activations
    choice, (costs, fast) = memory.choice, memory.chooser.known
    others = alternatives(costs, fast, choice)
    table = Table(title=f"{fast:,} of {sum(costs.sizes.values()):,} bytes of activations fit")
    for column in ("activation", "bytes", "coded", "decision", "stored", "coded ", "computed again",
                   "why"):
        table.add_column(column, justify="left" if column in ("decision", "why") else "right")
    for s, words in choice.words.items():
        cycles = [others[s][way] for way in ("store", "compress", "recompute")]
        numbers = ["-" if value is None else f"{value:,.0f}"
                   for value in (costs.sizes[s], costs.coded.get(s), *cycles)]
        table.add_row(str(s), *numbers[:2], words, *numbers[2:],
                      _reason(costs, choice, s, others[s]))
    how = "the least of all choices" if len(costs.sizes) <= EXACT else (
        f"at most {choice.cycles / choice.bound - 1:.1%} above the least")
    table.caption = (f"cycles of a sub-minibatch if only this activation were stored, coded, "
                     f"computed again; chosen: {choice.cycles:,.0f}, {how}")
    return table


def _reason(costs, choice, s, others):
    decision = choice.decisions[s]
    if decision is Decision.keep:
        return "there is room"
    if decision is Decision.offload:
        return _copies(costs, choice, s)
    stored = others["store"]
    if decision is Decision.compress:
        leaves = f", {_copies(costs, choice, s)}" if s in choice.leaving else ""
        return f"{costs.sizes[s] - costs.coded[s]:,} bytes less{leaves}" + _saved(stored, choice)
    return "products again" + _saved(stored, choice)


def _copies(costs, choice, s):
    cycles = choice.leaving[s] * costs.cycles_per_byte
    hidden = choice.cycles <= costs.cycles(0, choice.again)
    return (f"{choice.leaving[s]:,} bytes, {cycles:,.0f} cycles each way, "
            f"{'hidden' if hidden else 'for which passes wait'}")


def _saved(stored, choice):
    return "" if stored is None else f", {stored - choice.cycles:,.0f} cycles less than to store"


def _offloads(trainer):
    """A row per activation: what leaves of it, and when it comes back."""
    told = trainer.memory.describe()
    sizes, place = trainer.memory.sizes, trainer.memory.place
    table = Table(title=f"{told['fast_bytes']:,} of {told['footprint_bytes']:,} bytes of "
                        "activations fit")
    for column in ("activation", "bytes", "decision", "why"):
        table.add_column(column, justify="left" if column in ("decision", "why") else "right")
    left, per_buffer = trainer.memory.excess, trainer.memory.copy_cycles
    for s, count in sizes.items():
        leaves = min(left, count)
        left -= leaves
        why = (f"{leaves * place:,} bytes, {leaves * per_buffer:,.0f} cycles each way; back from "
               f"backward of stage {told['fetched_in_backward_of'][s]} on" if leaves else
               "there is room")
        table.add_row(str(s), f"{count * place:,}", "offload" if leaves else "keep", why)
    again = trainer.activations.plan.advances
    if again:
        table.caption = f"computed again in backward: stages {', '.join(map(str, again))}"
    return table
