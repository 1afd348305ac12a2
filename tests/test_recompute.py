"""Plans for what is stored and what computed again: legal, small enough, and optimal."""

import heapq
from itertools import combinations
from math import comb

import numpy as np
import pytest

from gradmill.memory.recompute import again, every, optimal, store_all, stored_at
from gradmill_hw.config import ConfigError


def execute(plan, stages):
    """Follow a plan: ``(most activations stored, stages advanced)``; fails if it uses what is not
    there."""
    stored, on_chip = set(plan.kept), stages - 1
    most, advanced, done = len(stored), [], []
    for step in plan.backward:
        s = step.stage
        if step.action == "load":
            assert s in stored
            on_chip = s
        elif step.action == "advance":
            assert on_chip == s or (s == 0 and on_chip not in range(1, s + 1))
            advanced.append(s)
            on_chip = s + 1
        elif step.action == "store":
            assert on_chip == s and s not in stored
            stored.add(s)
            most = max(most, len(stored))
        elif step.action == "free":
            stored.remove(s)
        else:
            assert s in (0, on_chip), f"backward of {s} without its activation"
            done.append(s)
            on_chip = None if s else 0
    assert done == list(reversed(range(stages))), "every stage once, from the last"
    assert not stored, "everything is freed"
    return most, advanced


@pytest.mark.parametrize("stages", [2, 3, 4, 7, 16, 33])
def test_storing_all_computes_nothing_again(stages):
    most, advanced = execute(store_all(stages), stages)
    assert most == stages - 2 and not advanced


@pytest.mark.parametrize("stages", [2, 5, 9, 16, 25, 64])
def test_every_k_layers(stages):
    for k in range(1, stages + 2):
        plan = every(stages, k)
        most, advanced = execute(plan, stages)
        assert most == plan.most <= -(-stages // k) + k
        assert advanced == plan.advances
        # Of each segment but the last, all stages but its last.
        assert len(advanced) == ((stages - 2) // k) * (k - 1)


def test_chosen_layers():
    plan = stored_at(8, (5, 2))
    assert plan.kept == (2, 5, 6), "the last one is used at once"
    _, advanced = execute(plan, 8)
    assert advanced == [2, 3, 0]
    for wrong in (0, 8, 9):
        with pytest.raises(ConfigError, match="1 to 7"):
            stored_at(8, (2, wrong))


@pytest.mark.parametrize("stages", [3, 6, 12])
def test_each_is_computed_from_the_nearest(stages):
    for count in range(stages - 1):
        for recomputed in combinations(range(1, stages - 1), count):
            plan = again(stages, recomputed)
            most, advanced = execute(plan, stages)
            assert most == len(plan.kept) == stages - 2 - count
            assert len(advanced) == sum(
                s - max((k for k in plan.kept if k < s), default=0) for s in recomputed)


def test_what_was_coded_is_loaded_though_it_is_the_last():
    most, advanced = execute(store_all(5, last=True), 5)
    assert most == 4 and not advanced


def fewest(forward, places):
    """Least recomputed cost over all orders: a search that knows nothing of the plan's form. State:
    stored activations, the one on chip, the stage whose backward is next."""
    stages = len(forward)

    def neighbours(stored, chip, due):
        if chip == due:
            yield 0, (stored, -1, due - 1)
        for s in (0, *stored):
            if s != chip and s <= due:
                yield 0, (stored, s, due)
        if 0 <= chip < due:
            yield forward[chip], (stored, chip + 1, due)
        if chip > 0 and chip not in stored and len(stored) < places:
            yield 0, (tuple(sorted((*stored, chip))), chip, due)
        for s in stored:
            yield 0, (tuple(a for a in stored if a != s), chip, due)

    heap = [(0, (kept, stages - 1, stages - 1)) for size in range(min(places, stages - 1) + 1)
            for kept in combinations(range(1, stages), size)]
    best = {state: 0 for _, state in heap}
    while heap:
        cost, state = heapq.heappop(heap)
        if state[2] < 0:
            return cost
        if cost > best[state]:
            continue
        for more, after in neighbours(*state):
            if cost + more < best.get(after, float("inf")):
                best[after] = cost + more
                heapq.heappush(heap, (cost + more, after))
    raise AssertionError


@pytest.mark.parametrize("seed", range(12))
def test_the_optimal_plan_equals_a_search_of_everything(seed):
    rng = np.random.default_rng(seed)
    stages = int(rng.integers(2, 8))
    forward = rng.integers(1, 20, stages).tolist()
    for places in range(stages):
        plan = optimal(forward, places)
        most, advanced = execute(plan, stages)
        assert most == plan.most <= places
        assert sum(forward[s] for s in advanced) == fewest(forward, places)


def test_revolve_at_equal_costs():
    """With c checkpoints besides the input, chains up to binomial(c + 1 + r, r) stages need at most
    r forward passes of each."""
    for places in range(5):
        for r in range(1, 4):
            stages = comb(places + 1 + r, r)
            if stages > 40:
                continue
            plan = optimal([1] * stages, places)
            _, advanced = execute(plan, stages)
            counts = [advanced.count(s) for s in range(stages)]
            assert max(counts) <= r
