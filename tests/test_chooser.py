"""What happens to each activation: the best of all choices, or one within its bound."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmill.memory.chooser import (
    EXACT,
    Costs,
    Decision,
    choose,
    evaluate,
    exact,
    greedy,
    lower_bound,
)


cycles = st.integers(1, 400)


@st.composite
def chains(draw, most=6):
    """``(costs, bytes of fast memory)``."""
    count = draw(st.integers(1, most))
    stages = range(count + 2)
    sizes = {s: draw(st.integers(8, 64)) for s in range(1, count + 1)}
    coded = {s: draw(st.integers(1, size)) for s, size in sizes.items() if draw(st.booleans())}
    costs = Costs(tuple(draw(cycles) for _ in stages), tuple(draw(cycles) for _ in stages), sizes,
                  coded, draw(st.sampled_from([0.0, 0.5, 3.0, 20.0])), 8)
    return costs, draw(st.integers(8, sum(sizes.values()) + 8))


def all_choices(costs, fast):
    """Brute force."""
    for ways in product(("store", "compress", "recompute"), repeat=len(costs.sizes)):
        choice = evaluate(costs, fast, dict(zip(costs.sizes, ways, strict=True)))
        if choice is not None:
            yield choice


def least(costs, fast):
    """Cycles of the best choice, by the rules of the two pools: brute force over what is done with
    each activation and how many of the coded ones leave."""
    whole, steps = max(costs.sizes.values()), costs.least
    found = []
    for ways in product("scr", repeat=len(costs.sizes)):
        ways = dict(zip(costs.sizes, ways, strict=True))
        raw = [s for s in ways if ways[s] == "s"]
        coded = [s for s in ways if ways[s] == "c"]
        again = [s for s in ways if ways[s] == "r"]
        sources = {s: max((a for a in ways if a < s and ways[a] != "r"), default=0) for s in again}
        if not set(coded) <= set(costs.coded) or set(coded) & set(sources.values()):
            continue
        stored = sum(costs.sizes[s] for s in raw)
        for away in range(len(coded) + 1):
            taken = sum(costs.coded[s] for s in coded)
            if away:
                taken = (len(coded) - away) * max(costs.coded[s] for s in coded)
            room = fast - taken
            if coded:
                room -= room % steps
            needed = max([steps, *(costs.sizes[a] for a in sources.values() if a)]) if raw else 0
            if coded and stored > room:
                needed = whole
            if room < needed or (away and away == len(coded)):
                continue
            over = max(0, stored - room)
            crossing = over + sum(costs.coded[s] for s in coded[:away])
            first = min([*(raw[:1] if over else []), *coded[:away]], default=1)
            redone = sum(sum(costs.forward[a:s]) for s, a in sources.items())
            copies = crossing * costs.cycles_per_byte
            found.append(max(sum(costs.forward), sum(costs.forward[:first]) + copies)
                         + max(sum(costs.backward) + redone, costs.backward[-1] + copies))
    return min(found)


@settings(deadline=None)
@given(chains(most=5))
def test_the_exact_choice_is_the_best_of_all(case):
    best = least(*case)
    found = exact(*case)
    assert found.cycles == pytest.approx(best, rel=1e-12) and found.cycles == found.bound


@settings(deadline=None)
@given(chains())
def test_the_greedy_choice_is_within_its_bound(case):
    best = min(choice.cycles for choice in all_choices(*case))
    found = greedy(*case)
    assert found.bound <= best * (1 + 1e-12)
    assert best <= found.cycles
    everything = evaluate(*case, dict.fromkeys(case[0].sizes, "store"))
    assert found.cycles <= everything.cycles, "no worse than to offload"


@settings(deadline=None)
@given(chains(most=40))
def test_a_choice_fits_and_adds_up(case):
    costs, fast = case
    found = choose(costs, fast)
    assert list(found.decisions) == list(costs.sizes)
    stored = sum(costs.sizes[s] - found.leaving.get(s, 0) for s, way in found.decisions.items()
                 if way in (Decision.keep, Decision.offload))
    assert stored + found.coded_bytes(costs.coded) <= fast
    coded = [s for s, way in found.decisions.items() if way is Decision.compress]
    assert found.coded_bytes(costs.coded) >= sum(costs.coded[s] for s in coded
                                                 if s not in found.leaving)
    assert set(found.leaving) - set(coded) == {s for s, way in found.decisions.items()
                                               if way is Decision.offload}
    assert all(found.leaving.get(s) in (None, costs.coded[s]) for s in coded), "whole"
    assert found.cycles == costs.cycles(sum(found.leaving.values()), found.again,
                                        min(found.leaving, default=1))
    assert found.cycles >= found.bound * (1 - 1e-12)
    for pool in coded, [s for s, way in found.decisions.items()
                        if way in (Decision.keep, Decision.offload)]:
        stays = [s not in found.leaving for s in pool]
        assert stays == sorted(stays), "the oldest leave"


def chain(**changes):
    given_costs = {"forward": (100,) * 6, "backward": (200,) * 6,
                   "sizes": dict.fromkeys(range(1, 5), 64), "coded": {}, "cycles_per_byte": 1.0,
                   "least": 8}
    return Costs(**{**given_costs, **changes})


def test_what_is_cheap_is_done():
    assert set(choose(chain(), 256).decisions.values()) == {Decision.keep}
    slow = choose(chain(cycles_per_byte=1000.0), 64)
    assert Decision.offload not in slow.decisions.values()
    assert list(slow.decisions.values()).count(Decision.recompute) == 3
    fast = choose(chain(), 64)
    assert fast.decisions == {1: "offload", 2: "offload", 3: "offload", 4: "keep"}
    assert fast.cycles == 600 + 1200, "copies hide behind the passes"
    coded = choose(chain(cycles_per_byte=1000.0, coded=dict.fromkeys(range(1, 5), 16)), 64)
    assert set(coded.decisions.values()) == {Decision.compress} and not coded.again


def test_nothing_is_computed_from_what_has_lost_bits():
    costs = chain(coded={1: 1}, cycles_per_byte=1e6)
    assert evaluate(costs, 256, {1: "compress", 2: "recompute", 3: "store", 4: "store"}) is None
    assert evaluate(costs, 256, {1: "compress", 2: "store", 3: "recompute", 4: "store"}).again == (
        100)


def test_coded_ones_leave_where_they_do_not_fit():
    costs = chain(coded=dict.fromkeys(range(1, 5), 20), cycles_per_byte=8.0)
    found = choose(costs, 48)
    assert found.words == {1: "compress + offload", 2: "compress + offload", 3: "compress",
                           4: "compress"}
    assert found.leaving == {1: 20, 2: 20} and found.coded_bytes(costs.coded) == 40
    assert found.cycles == 600 + 1200, "copies hide behind the passes"
    mixed = evaluate(costs, 64 + 24, {1: "store", 2: "compress", 3: "compress", 4: "store"})
    assert mixed.leaving == {1: 64, 2: 20}, "the oldest of each pool"
    assert mixed.cycles == 100 + 84 * 8 + 1200
    late = evaluate(costs, 64, {1: "recompute", 2: "recompute", 3: "store", 4: "store"})
    assert late.cycles == 300 + 64 * 8 + 1500, "nothing leaves before it is computed"
    assert evaluate(costs, 64 + 16, {1: "store", 2: "compress", 3: "compress", 4: "store"}) is None
    uneven = chain(coded={1: 8, 2: 32, 3: 8, 4: 8})
    assert evaluate(uneven, 56, dict.fromkeys(range(1, 5), "compress")).leaving == {}
    found = evaluate(uneven, 55, dict.fromkeys(range(1, 5), "compress"))
    assert found.leaving == {1: 8, 2: 32, 3: 8}, "places of the largest size"
    longer = chain(forward=(100,) * 7, backward=(200,) * 7, sizes=dict.fromkeys(range(1, 6), 64),
                   coded={3: 16, 4: 24, 5: 32}, cycles_per_byte=20.0)
    found = evaluate(longer, 128, {1: "store", 2: "store", **dict.fromkeys((3, 4, 5), "compress")})
    assert found.leaving == {1: 32, 3: 16, 4: 24}, "as many coded ones as is best"


def test_long_chains_say_how_far_from_the_best_they_are():
    count = EXACT + 20
    costs = chain(forward=(100,) * (count + 2), backward=(200,) * (count + 2),
                  sizes=dict.fromkeys(range(1, count + 1), 64), cycles_per_byte=4.0)
    found = choose(costs, 64 * 4)
    assert lower_bound(costs, 64 * 4) == found.bound <= found.cycles
    assert found.cycles < 1.1 * found.bound


def test_without_room_all_is_computed_again():
    for count in (4, EXACT + 4):
        costs = chain(forward=(100,) * (count + 2), backward=(200,) * (count + 2),
                      sizes=dict.fromkeys(range(1, count + 1), 64))
        found = choose(costs, 7)
        assert set(found.decisions.values()) == {Decision.recompute}
        assert found.again == 100 * count * (count + 1) / 2
