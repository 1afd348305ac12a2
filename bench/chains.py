"""Small fast memory for random chains of layers, in the cycle model, beside the bound.

Every chain is one line of build/bench/chains.jsonl; one that has its line, written by the same
sources, is not followed again, so the bench can be stopped and continued at any time.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import gradmill_hw
import numpy as np
from gradmill_hw.sequencer_model import commands
from rich.progress import track
from rich.table import Table

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.memory.activations import foresee
from gradmill.timeline import Span, Timeline, work_of
from gradmill.unit_times import Memory

from .memory import CONFIG as SMALL
from .memory import Measured, bound, network, passes


#: Room for all chains.
CONFIG = SMALL.replace(tensor_rows=16384, acc_rows=16384)

__all__ = ["case", "modelled", "over"]

#: What has been found so far.
LINES = Path("build/bench/chains.jsonl")
#: Chains, and virtual minibatches of a program.
_CHAINS, _BATCHES = 200, 3


def case(seed):
    """``(widths, M, beats per cycle of far memory, fast memory)``."""
    rng = np.random.default_rng((5, seed))
    depth = int(rng.integers(4, 9))
    widths = (int(rng.integers(4, 17)), *(4 * rng.integers(4, 13, depth)).tolist(),
              int(rng.integers(4, 13)))
    return (tuple(widths), int(rng.choice([16, 24, 32])), float(rng.choice([0.1, 0.15, 0.25, 0.5])),
            f"{int(rng.integers(20, 76))}%")


def modelled(widths, sub, far, fast, subs=4):
    """:class:`Measured` of virtual minibatches of ``subs`` sub-minibatches in the cycle model."""
    memory = Memory(beats=far)
    with gm.open("emulator", CONFIG, near_bytes=1 << 22) as device:
        trainer = gm.Trainer(network(widths), device, optimizer=gm.SGD(0.05, 0.9),
                             virtual_minibatch=subs * sub, sub_minibatch=sub, fast_memory=fast)
        placed = trainer._regions, trainer._losses_at
        foresee(trainer._lowering, subs * sub, *placed, memory)
        (program,) = trainer._lowering.train(subs * sub, _BATCHES, (0, 0), *placed)
    timeline = _timeline(program, memory)
    manager = trainer.memory
    return Measured(timeline.period(subs), passes(timeline, len(widths) - 2, subs), {},
                    manager.made * manager.place, manager.count * manager.place,
                    manager.excess * manager.place, {}, "")


def _timeline(program, far):
    """What the cycle model says of a program."""
    own = {}
    for command in commands(bytes(program.assemble()), queues=CONFIG.queues):
        own.setdefault(command.opcode.queue, []).append(command)
    turns = {queue: iter(found) for queue, found in own.items()}
    spans = []
    for queue, start, end, layer, opcode in predict([program], CONFIG, far=far,
                                                    spans=True).spans[0]:
        fields = next(turns[queue]).fields
        spans.append(Span(0, queue, opcode, layer, start, end, work_of(opcode, fields),
                          fields["hold"] - fields["release"]))
    return Timeline(range(1), spans)


def over(seed):
    """``(case, cycles / bound, cycles / kept)``."""
    widths, sub, far, fast = case(seed)
    kept, found = modelled(widths, sub, far, "100%"), modelled(widths, sub, far, fast)
    return ((widths, sub, far, fast), found.cycles / bound(kept, found.spilled, CONFIG, far),
            found.cycles / kept.cycles)


def run(console, chains=_CHAINS, lines=LINES):
    """Print how far random chains are above the bound."""
    found = _known(lines)
    lines.parent.mkdir(parents=True, exist_ok=True)
    for seed in track([seed for seed in range(chains) if seed not in found], "chains",
                      console=console):
        (widths, sub, far, fast), above, slower = over(seed)
        console.print(f"{seed}: {'-'.join(map(str, widths))}, M = {sub}, far {far}, {fast}: "
                      f"{above - 1:+.2%} above the bound, {slower - 1:+.2%} above keep",
                      highlight=False)
        found[seed] = above
        with lines.open("a") as file:
            file.write(json.dumps({"sources": _sources(), "seed": seed, "above": above}) + "\n")
    above = np.array([found[seed] for seed in range(chains)]) - 1
    table = Table(title=f"{chains} random chains in the cycle model: cycles above the bound")
    for column in ("", "within 1 %", "within 2 %", "within 5 %", "mean", "most"):
        table.add_column(column, justify="right")
    speeds = np.array([case(seed)[2] for seed in range(chains)])
    for name, part in [("all", above), *((f"far {far}", above[speeds == far])
                                         for far in sorted(set(speeds)))]:
        table.add_row(name, *(f"{(part <= limit).mean():.1%}" for limit in (0.01, 0.02, 0.05)),
                      f"{part.mean():+.2%}", f"{part.max():+.2%}")
    console.print(table)


def _known(lines):
    """Seed -> cycles / bound, of the lines that these sources wrote."""
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return {line["seed"]: line["above"] for line in found if line["sources"] == _sources()}


@cache
def _sources():
    """Digest of all that the result of a chain depends on."""
    digest = hashlib.sha256()
    for root in (Path(gm.__file__).parent, Path(gradmill_hw.__file__).parent,
                 Path(__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
