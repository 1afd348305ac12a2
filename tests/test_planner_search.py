"""What schedules that are made from costs reach, beside bounds that no schedule can pass."""

import random

import pytest

from gradmill.planner import (
    OpKind,
    make_schedule,
    no_drain,
    period_bound,
    simulate,
    validate,
    zero_bubble,
)
from tests.planner_cases import equal, flush, partitioned, random_order, unequal


def limits_of(schedule):
    return [schedule.sets(s) for s in range(schedule.tiles)]


def ratio(schedule, costs, m, limits, versions=1):
    """Of the steady period to its bound."""
    virtual = schedule.virtual if schedule.virtual > 1 else 12
    return (simulate(schedule, costs, virtual=virtual).period
            / period_bound(costs, m, limits, versions=versions))


@pytest.mark.parametrize("tiles", range(1, 17))
def test_equal_costs_reach_the_shortest_period(tiles):
    f = b = w = 10
    for m in range(1, 25):
        shortest = max(m * (f + b + w), (m + tiles - 1) * (f + b) + w)
        schedule = zero_bubble(equal(tiles, f, b, w), m)
        assert simulate(schedule, equal(tiles, f, b, w), virtual=8).period == shortest
        assert max(limits_of(schedule)) <= min(m, 2 * tiles - 1)
        assert period_bound(equal(tiles), m, [2 * tiles - 1] * tiles) == shortest


@pytest.mark.parametrize(("f", "b", "w"), [(10, 10, 5), (10, 20, 10), (20, 10, 15), (10, 10, 2),
                                           (7, 13, 29)])
def test_other_proportions_of_equal_tiles_reach_their_bound(f, b, w):
    for tiles in (2, 5, 8):
        for m in (1, 2, tiles, 2 * tiles - 1, 2 * tiles, 3 * tiles):
            costs = equal(tiles, f, b, w, 9)
            assert ratio(zero_bubble(costs, m), costs, m, [2 * tiles - 1] * tiles) == 1
            if w <= f and m < 2 * tiles:
                assert period_bound(costs, m, [m] * tiles) == 9 + max(
                    m * (f + b + w), (m + tiles - 1) * (f + b) + w)


@pytest.mark.parametrize("seed", range(10))
def test_stages_of_a_good_partition(seed):
    rng = random.Random(seed)
    tiles = rng.randint(2, 6)
    costs, limits = partitioned(rng, tiles), [2 * tiles - 1] * tiles
    ratios = {}
    for m in (2 * tiles - 1, 2 * tiles, 3 * tiles, 8 * tiles):
        schedule = zero_bubble(costs, m)
        validate(schedule)
        ratios[m] = ratio(schedule, costs, m, limits)
        assert all(held <= limit for held, limit in
                   zip(limits_of(schedule), limits, strict=True))
    assert all(1 <= found <= 1.03 for found in ratios.values()), ratios
    assert ratios[8 * tiles] <= 1.01, ratios


@pytest.mark.parametrize("spread", [0.1, 0.25])
def test_random_stages(spread):
    ratios = []
    for seed in range(12):
        rng = random.Random(seed)
        tiles = rng.randint(2, 6)
        costs = unequal(rng, tiles, spread)
        for m in (2 * tiles, 4 * tiles):
            ratios.append(ratio(zero_bubble(costs, m), costs, m, [2 * tiles - 1] * tiles))
    ratios.sort()
    assert 1 <= ratios[0] and ratios[-1] <= 1.045, ratios
    assert sum(ratios) / len(ratios) <= 1.01, ratios
    assert ratios[int(0.9 * len(ratios))] <= 1.03, ratios


def test_tiles_are_busy():
    for tiles in (2, 4, 7):
        rng = random.Random(tiles)
        costs = equal(tiles, *(rng.randint(98, 102) for _ in range(3)), 10)
        for m in (2 * tiles - 1, 4 * tiles):
            period = simulate(zero_bubble(costs, m), costs, virtual=12).period
            assert min(costs.work(m)) / period >= 0.95


@pytest.mark.parametrize("seed", range(40))
def test_no_order_passes_the_bound(seed):
    """Neither one at random nor a known one, with the activation sets that it takes."""
    rng = random.Random(seed)
    tiles, m = rng.randint(1, 5), rng.randint(1, 8)
    costs = unequal(rng, tiles, rng.choice([0.2, 0.9]), links=seed % 2)
    schedules = [random_order(rng, tiles, m), flush(tiles, m)]
    schedules += [make_schedule(name, costs, m) for name in ("sequential", "1f1b", "zero-bubble")]
    for schedule in schedules:
        assert ratio(schedule, costs, m, limits_of(schedule)) >= 1


def test_zero_bubble_beats_the_others():
    tiles, m = 6, 8
    costs = equal(tiles)
    periods = {name: simulate(make_schedule(name, costs, m), costs, virtual=8).period
               for name in ("sequential", "1f1b", "zero-bubble")}
    assert periods["zero-bubble"] < periods["1f1b"] < periods["sequential"]


def test_orders_depend_on_costs():
    tiles, m = 3, 8
    lean = zero_bubble(equal(tiles, 10, 10, 10), m)
    assert zero_bubble(unequal(random.Random(1), tiles, 0.5), m).orders != lean.orders


def test_zero_bubble_keeps_to_the_memory():
    tiles, m = 5, 20
    for costs in (equal(tiles), unequal(random.Random(3), tiles, 0.3)):
        periods = []
        for limits in ([1] * 5, [2, 3, 1, 4, 9], [4] * 5, [9] * 5):
            schedule = zero_bubble(costs, m, limits)
            validate(schedule)
            assert all(held <= limit for held, limit in
                       zip(limits_of(schedule), limits, strict=True))
            periods.append(simulate(schedule, costs, virtual=8).period)
        assert periods == sorted(periods, reverse=True)


def test_a_longer_virtual_minibatch_only_repeats_steps():
    tiles = 4
    costs = unequal(random.Random(11), tiles, 0.25)
    short, long = (zero_bubble(costs, m) for m in (2 * tiles, 50))
    for few, many in zip(short.orders, long.orders, strict=True):
        few, many = ("".join(op.kind.name for op in order) for order in (few, many))
        extra = "BWF" * (50 - 2 * tiles)
        assert any(few[:at] + extra + few[at:] == many for at in range(len(few)))


@pytest.mark.parametrize("seed", range(8))
def test_no_drain_has_no_bubbles(seed):
    rng = random.Random(seed)
    tiles = rng.randint(2, 6)
    for costs in (equal(tiles), partitioned(rng, tiles), unequal(rng, tiles, 0.4)):
        for m in (tiles, 2 * tiles, 5 * tiles):
            schedule = no_drain(costs, m, 12)
            validate(schedule)
            limits = [2 * (tiles - s) for s in range(tiles)]
            assert ratio(schedule, costs, m, limits, versions=2) <= 1.03
    update = simulate(schedule, costs).start[OpKind.U]
    weight = simulate(schedule, costs).end[OpKind.W][:, :, -1]
    assert (update == weight).all()


def test_no_drain_runs_ahead_as_far_as_it_helps():
    tiles = 4
    costs = equal(tiles)
    slow = type(costs)(costs.forward, costs.backward, costs.weight, latency=20)
    assert limits_of(no_drain(slow, 12, 8)) == limits_of(no_drain(costs, 12, 8)) == [8, 6, 4, 2]
    assert limits_of(no_drain(costs, 4, 8)) == [5, 4, 3, 2], "an update would come too late"
    tight = no_drain(slow, 12, 8, limits=[4, 3, 2, 1])
    assert simulate(tight, slow).period > 1.7 * simulate(no_drain(slow, 12, 8), slow).period
