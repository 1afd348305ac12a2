"""What a policy chooses for activations is what the device does, bit for bit."""

from concurrent.futures import CancelledError
from functools import cache
from itertools import count
from queue import SimpleQueue
from unittest.mock import patch

import numpy as np
import pytest
from gradmill_hw.config import ConfigError
from gradmill_hw.regs import Tier
from typer.testing import CliRunner

import gradmill as gm
from bench.memory import CODEC, CONFIG, network
from gradmill.cli import app
from gradmill.cli.common import console
from gradmill.cli.train import follow, tell
from gradmill.emulator import Emulator
from gradmill.lowering.passing import POISON, runs_of
from gradmill.memory.chooser import Decision, evaluate


WIDTHS, SIZE, SUB = (8, *[16] * 8, 8), 24, 16
STASH = gm.Stash("mask+bfp", bits=3, block=64)


def train(ways=None, *, fast=None, first=0, last=4, model=None, config=CONFIG, **options):
    """Train virtual minibatches ``first`` to ``last - 1``; ``(weights, counters, trainer,
    model)``."""
    rng = np.random.default_rng(0)
    part = slice(first * SIZE, last * SIZE)
    x = rng.normal(size=(SIZE * 4, WIDTHS[0])).astype(np.float32)[part]
    y = rng.integers(0, WIDTHS[-1], SIZE * 4)[part]
    with gm.open("emulator", config, near_bytes=1 << 22) as device:
        model = model or network(WIDTHS)
        trainer = gm.Trainer(model, device, optimizer=gm.SGD(0.05), virtual_minibatch=SIZE,
                             sub_minibatch=SUB, fast_memory=fast, **options)
        if callable(ways):
            ways(trainer)
        elif ways:
            trainer.activations.chooser.choose = lambda costs, room: evaluate(costs, room, ways)
        trainer.fit(x, y, epochs=1, shuffle=False)
        return ({k: v.tobytes() for k, v in model.state_dict().items()}, device.counters(),
                trainer, model)


def chosen(size):
    return gm.FastMemory(size, policy="chosen", poison=True)


@pytest.mark.parametrize("again", [(), (2,), (1, 3, 4), (1, 2, 3, 4, 5, 6, 7)])
def test_the_choice_changes_no_bit(again):
    reference, kept, *_ = train()
    ways = {s: "recompute" if s in again else "store" for s in range(1, 8)}
    found, counters, trainer, _ = train(ways, fast=chosen("35%"))
    assert found == reference
    choice, memory = trainer.activations.choice, trainer.memory
    advances = trainer.activations.plan.advances
    samples = SIZE * 3  # the first virtual minibatch is the one that is measured
    assert counters["macs"] - kept["macs"] == samples * sum(
        WIDTHS[s] * WIDTHS[s + 1] for s in advances)
    assert len(advances) >= len(again) and memory.most_used <= memory.count
    assert sum(choice.leaving.values()) == memory.excess * memory.place


def named(ways):
    """Way by activation."""
    names = {"s": "store", "c": "compress", "r": "recompute"}
    return {s: names[way] for s, way in enumerate(ways, 1)}


@cache
def stashed(*layers):
    """Weights where these are stashed from the second virtual minibatch on."""
    *_, model = train(last=1, config=CODEC)
    return train(first=1, model=model, config=CODEC,
                 stash=gm.Stash(layers=dict.fromkeys(layers, STASH.format)))[0]


def test_what_is_compressed_has_the_bits_of_a_stash():
    found, counters, trainer, _ = train(named("sccsrsc"), fast=chosen("45%"), config=CODEC,
                                        stash=STASH)
    assert found == stashed(2, 3, 7)
    assert counters["stash_rows"] > 0 and set(trainer.activations.coded) == {2, 3, 7}
    memory = trainer.memory
    places = sorted(buffer.fast for buffer in trainer.activations.coded.values())
    assert places[0] >= memory.base + memory.count * memory.place, (
        "beside the others, in the same fast memory")
    assert (np.diff(places) >= _coded_bytes(trainer, 2, SUB)).all()


@pytest.mark.parametrize("size, ways, leaving", [("25%", "sccsrsc", {1, 4, 2, 3}),
                                                 ("12%", "ccccccc", {1, 2, 3, 4, 5, 6})])
def test_what_leaves_coded_has_the_bits_of_a_stash_too(size, ways, leaving):
    ways, options = named(ways), {"config": CODEC, "stash": STASH}
    coded = [s for s, way in ways.items() if way == "compress"]
    with patch.object(Emulator, "close"):  # keeps its memory
        found, counters, trainer, _ = train(ways, fast=chosen(size), **options)
    assert found == stashed(*coded)
    choice, memory = trainer.activations.choice, trainer.memory
    assert set(choice.leaving) == leaving and not trainer.activations.coded
    raw, pool = memory.raw, memory.coded
    assert pool.excess == len(leaving & set(coded))
    assert raw.excess * raw.place + pool.excess * pool.place == sum(choice.leaving.values())
    assert raw.base + raw.count * raw.place <= pool.base, "beside each other"
    freed = trainer.device.read_memory(Tier.NEAR, pool.base, pool.place)
    assert (freed == POISON).all(), "the last sub-minibatch has ended"
    learned = train(fast=chosen(size), last=1, **options)[1]
    for way in "read", "write":
        crossed = counters[f"far_{way}_stash_bytes"] - learned[f"far_{way}_stash_bytes"]
        assert crossed == 3 * sum(_leaving(trainer, m) for m in (SUB, SIZE - SUB)), "once each way"


def _leaving(trainer, m):
    """Bytes that leave in a sub-minibatch of ``m`` samples."""
    memory = trainer.memory
    coded = [s for s in memory.coded.sizes if s in trainer.activations.choice.leaving]
    return memory.raw.excess * CODEC.run_bytes("bfp", m) + sum(
        _coded_bytes(trainer, s, m) for s in coded)


def _coded_bytes(trainer, s, m):
    return runs_of(trainer._lowering.buffers[0].x[0][s], m, CODEC,
                   trainer.activations.formats[s]).nbytes


def test_measured_costs_decide():
    _, _, trainer, _ = train(fast=chosen("35%"))
    costs, room = trainer.activations.chooser.known
    assert costs.cycles_per_byte > 0 and len(costs.forward) == len(WIDTHS) - 1
    assert trainer.activations.choice.cycles <= evaluate(
        costs, room, dict.fromkeys(costs.sizes, "store")).cycles
    assert Decision.offload in trainer.activations.choice.decisions.values(), "copies hide"


@pytest.mark.parametrize("fast", [chosen("35%"), "35%"])
def test_the_emulator_follows_what_the_device_measured(fast):
    """As `gradmill train` on the RTL does, which compares all counters."""
    times, pieces = SimpleQueue(), count()

    def measure(trainer):
        tell(trainer, times)
        clock = trainer.activations.clock
        trainer.activations.clock = lambda cycles: clock(cycles * (1 + 5 * (next(pieces) % 3)))

    found, counters, trainer, _ = train(measure, fast=fast, last=2)
    alone, _, own, _ = train(fast=fast, last=2)
    assert found == alone and trainer.memory.describe() != own.memory.describe()
    times.put(None)
    again, theirs, other, _ = train(lambda reference: follow(reference, times), fast=fast, last=2)
    assert (found, counters) == (again, theirs)
    assert other.memory.describe() == trainer.memory.describe()
    assert other.activations.choice == trainer.activations.choice
    with pytest.raises(CancelledError):
        train(lambda reference: follow(reference, times), fast=fast, last=2)


def plan(*arguments, code=0):
    with patch.object(console, "_width", 140):
        result = CliRunner().invoke(
            app, ["plan", "digits", "--config", "tile", "--hidden", "24,24,24,24", "-B", "32", "-M",
                  "16", "--fast-memory", "34%", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_plan_shows_decisions_and_why():
    text = plan()
    assert "480 of 1,440 bytes" in text and text.count(" offload ") == 2
    assert text.count("there is room") == 1 and "the least" in text
    assert "2 beats/cycle" in text
    text = plan("--far-bandwidth", "0.002")
    assert "recompute" in text and "products again" in text and "less than to store" in text
    text = plan("--far-bandwidth", "0.002", "--stash", "mask+bfp(3)/64", "--fast-memory", "67%")
    assert "compress" in text and "bytes less" in text
    text = plan("--far-bandwidth", "0.01", "--stash", "mask+bfp(3)/64")
    assert text.count(" compress + offload ") == 1 and text.count(" compress ") == 3
    assert "256 bytes less, 224 bytes, 700 cycles each way" in text and "hidden" in text
    text = plan("--recompute", "optimal")
    assert "computed again in backward: stages" in text
    text = plan("--memory-policy", "offload")
    assert "back from backward of stage" in text


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="use 'offload' or 'chosen'"):
        gm.FastMemory("20%", policy="best")
    with pytest.raises(ValueError, match="leave one of them out"):
        gm.FastMemory("20%", policy="chosen", recompute=2)
    assert "use 'offload' or 'chosen'" in plan("--memory-policy", "best", code=2)


def test_far_memory_must_have_room_for_coded_activations_too():
    with gm.open("emulator", CODEC, near_bytes=1 << 22, far_bytes=8192) as device:
        options = {"virtual_minibatch": 64, "sub_minibatch": 64, "fast_memory": chosen("50%"),
                   "optimizer": gm.SGD(0.05)}
        gm.Trainer(network(WIDTHS), device, **options)
        with pytest.raises(ConfigError, match="larger far_bytes"):
            gm.Trainer(network(WIDTHS), device, **options, stash=STASH)
