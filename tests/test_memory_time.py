"""Time and traffic of a small fast memory on the RTL, beside their bounds."""

from itertools import pairwise

import pytest

import gradmill as gm
from bench.chains import over
from bench.memory import CONFIG, bound, measure
from gradmill.lowering import interleave, pipeline
from gradmill.memory import optimal


#: widths, B, M, beats per cycle of far memory, fast memory, whether copies hide behind the passes
CASES = [
    ((8, *[32] * 6, 8), 96, 24, 0.25, "20%", True),
    ((8, 24, 32, 16, 32, 24, 32, 8), 96, 24, 0.2, "35%", True),
    ((6, 16, 24, 32, 32, 24, 16, 4), 128, 32, 0.15, "50%", True),
    ((8, *[32] * 8, 8), 128, 16, 0.1, "35%", True),
]
#: `python -m bench chains` has 200. These have 21 to 51 % of fast memory.
CHAINS = [0, 91, 149, 188]


@pytest.mark.rtl
@pytest.mark.parametrize("case", range(len(CASES)))
def test_time_is_near_the_bound_and_traffic_is_what_does_not_fit(case):
    widths, virtual, sub, far, fast, hidden = CASES[case]
    kept = measure(CONFIG, widths, virtual, sub, far=far, fast_memory="100%")
    found = measure(CONFIG, widths, virtual, sub, far=far, fast_memory=fast)
    for name, value in kept.weights.items():
        assert found.weights[name].tobytes() == value.tobytes(), name
    passes = 3 * virtual // sub
    moved = [found.counters[f"far_{way}_stash_bytes"] for way in ("read", "write")]
    assert moved == [found.spilled * passes] * 2
    # The fast memory is a whole number of buffers.
    assert found.spilled == found.footprint - found.fast
    least = bound(kept, found.spilled, CONFIG, far)
    print(f"{found.cycles / least - 1:+.2%} above the bound, {found.cycles / kept.cycles - 1:+.2%} "
          "above keep")
    assert found.cycles <= 1.05 * least
    assert (least <= 1.001 * kept.cycles) == hidden
    if hidden:
        assert found.cycles <= 1.02 * kept.cycles
    assert kept.counters["far_read_stash_bytes"] == 0


@pytest.mark.parametrize("seed", CHAINS)
def test_random_chains_are_at_the_bound_in_the_cycle_model(seed):
    _, above, _ = over(seed)
    assert above <= 1.01


def test_pieces_that_are_stored_late_keep_copies_going(monkeypatch):
    """With four places of fast memory for ten pieces, the last ones wait for copies on chip, where
    products read them."""
    monkeypatch.setattr(pipeline, "_LATE_STORES", ())
    _, above, _ = over(188)
    assert above > 1.03


def test_of_several_rules_the_best_counts(monkeypatch):
    monkeypatch.setattr(interleave, "_PASSING", (interleave.Rules(),))
    _, above, _ = over(149)
    assert above > 1.01


@pytest.mark.rtl
def test_computing_again_costs_what_was_planned():
    widths, virtual, sub = (8, *[32] * 6, 8), 96, 24
    kept = measure(CONFIG, widths, virtual, sub, fast_memory="100%")
    fast = gm.FastMemory("60%", recompute="optimal")
    found = measure(CONFIG, widths, virtual, sub, fast_memory=fast)
    assert not found.counters["far_read_stash_bytes"]
    # Three of six activations fit; costs are tiles of the array.
    plan = optimal([-(-a // 4) * -(-b // 4) for a, b in pairwise(widths)], 3)
    more = sum(widths[s] * widths[s + 1] for s in plan.advances) * virtual * 3
    assert found.counters["macs"] - kept.counters["macs"] == more > 0
    assert found.cycles <= 1.4 * kept.cycles
    for name, value in kept.weights.items():
        assert found.weights[name].tobytes() == value.tobytes(), name
