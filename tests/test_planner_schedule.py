"""Orders of tiles: complete, in order, free of deadlock, within their bounds; and their times
against a slow reference."""

import random
from dataclasses import replace
from fractions import Fraction

import pytest

from gradmill.planner import (
    Op,
    OpKind,
    Schedule,
    bound,
    global_order,
    make_schedule,
    one_f_one_b,
    sequential,
    simulate,
    validate,
)
from tests.planner_cases import by_hand, equal, flush, random_order, slow_starts, unequal


NAMES = ("sequential", "1f1b", "zero-bubble", "no-drain")


def sets_of(schedule):
    return [schedule.sets(s) for s in range(schedule.tiles)]


def bounds_of(schedule):
    return [bound(schedule.name, s, schedule.tiles) for s in range(schedule.tiles)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tiles", "m"), [(1, 1), (1, 5), (2, 1), (3, 2), (4, 7), (5, 3), (6, 40)])
def test_every_schedule_is_valid_and_within_its_bound(name, tiles, m):
    rng = random.Random(tiles * 100 + m)
    for costs in (equal(tiles), unequal(rng, tiles, 0.4)):
        schedule = make_schedule(name, costs, m, virtual=5)
        validate(schedule)
        assert (schedule.tiles, schedule.sub_minibatches) == (tiles, m)
        assert schedule.virtual == (5 if name == "no-drain" else 1)
        assert all(held <= most for held, most in
                   zip(sets_of(schedule), bounds_of(schedule), strict=True))
        assert schedule == make_schedule(name, costs, m, virtual=5)


@pytest.mark.parametrize("name", NAMES)
def test_sets_do_not_grow_with_the_virtual_minibatch(name):
    tiles = 5
    for costs in (equal(tiles), unequal(random.Random(7), tiles, 0.2)):
        held = [sets_of(make_schedule(name, costs, tiles * factor)) for factor in (2, 8, 32)]
        assert held[0] == held[1] == held[2]


def test_one_f_one_b():
    schedule = one_f_one_b(3, 4)
    words = [" ".join(f"{op.kind.name}{op.sub}" for op in order) for order in schedule.orders]
    assert words == ["F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3 U0",
                     "F0 F1 B0 W0 F2 B1 W1 F3 B2 W2 B3 W3 U0",
                     "F0 B0 W0 F1 B1 W1 F2 B2 W2 F3 B3 W3 U0"]
    assert sets_of(one_f_one_b(16, 200)) == [16 - s for s in range(16)]
    validate(one_f_one_b(4, 9, [3, 9, 1, 9]))
    assert sets_of(one_f_one_b(4, 9, [3, 9, 1, 9])) == [3, 3, 1, 1]


def test_a_flush_is_not_1f1b():
    schedule = flush(4, 12)
    validate(schedule)
    assert sets_of(schedule) == [12] * 4
    assert all(held > bound("1f1b", s, 4) for s, held in enumerate(sets_of(schedule)))


def test_sequential_holds_one_set():
    assert sets_of(sequential(6, 30)) == [1] * 6


def test_the_global_order_respects_all_dependencies():
    rng = random.Random(3)
    schedules = [make_schedule(name, unequal(rng, 6, 0.3), 11, virtual=3) for name in NAMES]
    for schedule in [*schedules, *(random_order(rng, 5, 6) for _ in range(20))]:
        order = global_order(schedule)
        assert order == global_order(schedule)
        for s, ops in enumerate(schedule.orders):
            assert tuple(op for tile, op in order if tile == s) == ops
        seen = set()
        for s, (kind, sub, virtual, _) in order:
            if kind is OpKind.F and s:
                assert (OpKind.F, virtual, s - 1, sub) in seen
            if kind is OpKind.B:
                assert (OpKind.F, virtual, s, sub) in seen
                assert s == schedule.tiles - 1 or (OpKind.B, virtual, s + 1, sub) in seen
            if kind is OpKind.W:
                assert (OpKind.B, virtual, s, sub) in seen
            seen.add((kind, virtual, s, sub))


@pytest.mark.parametrize(("orders", "message"), [
    (("F0 B0 W0 F1 B1 W1 U", "F0 F1 B0 W0 B1 W1 U"),
     r"cannot go on: tile 0 at B\(0\) .* tile 1 at F\(1\)"),
    (("F0 F1 B0 W0 B1 W1 U", "F0 F1 B1 B0 W0 W1 U"), "tile 1: the B must be of every"),
    (("F0 F1 B0 W0 B1 U W1",) * 2, r"tile 0: U\(0\) .* comes before what it needs"),
    (("F0 F1 W0 B0 W1 B1 U",) * 2, r"tile 0: W\(0\) .* comes before what it needs"),
    (("B0 F0 F1 B1 W0 W1 U",) * 2, r"tile 0: B\(0\) .* comes before what it needs"),
    (("F0 F1 B0 B1 W0 U",) * 2, "tile 0: the W must be"),
    (("F0 F1 B0 B1 W0 W1",) * 2, "tile 0: the U must be"),
])
def test_invalid_orders(orders, message):
    with pytest.raises(ValueError, match=message):
        validate(by_hand(*orders))


def test_wrong_versions():
    schedule = make_schedule("no-drain", equal(3), 4, virtual=4)
    order = schedule.orders[0]
    stale = next(i for i, op in enumerate(order) if op.kind is OpKind.B and op.version < op.virtual)
    for index in (stale, next(i for i, op in enumerate(order) if op.virtual == 2)):
        changed = list(order)
        changed[index] = order[index]._replace(version=order[index].version + 1)
        with pytest.raises(ValueError, match="has version"):
            validate(Schedule("no-drain", (tuple(changed), *schedule.orders[1:])))
    updates = [Op(OpKind.U, 0, v, v) for v in range(3)]
    late = [Op(kind, 0, v, max(0, v - 1)) for kind in (OpKind.F, OpKind.B, OpKind.W)
            for v in range(3)]
    with pytest.raises(ValueError, match=r"tile 0: F\(0\) of virtual minibatch 2 comes before"):
        validate(Schedule("no-drain", ((*late, *updates),)))


def test_no_drain_is_one_update_behind():
    tiles, m, virtual = 5, 8, 6
    schedule = make_schedule("no-drain", equal(tiles), m, virtual=virtual)
    for order in schedule.orders:
        done, ahead = 0, False
        for op in order:
            if op.kind is OpKind.U:
                assert op.version == op.virtual == done
                done += 1
            else:
                assert op.version == max(0, op.virtual - 1) <= done
                ahead |= op.kind is OpKind.F and op.virtual > done
        assert ahead, "forwards begin before the update of the virtual minibatch before"
    result = simulate(schedule, equal(tiles))
    assert (result.start[OpKind.F][1:, 0, 0] < result.end[OpKind.W][:-1, 0, m - 1]).all()


def test_unknown_schedules():
    with pytest.raises(ValueError, match="unknown schedule 'gpipe'; use one of sequential, 1f1b, "
                                         "zero-bubble, no-drain"):
        make_schedule("gpipe", equal(2), 3)
    with pytest.raises(ValueError, match="unknown schedule 'x'; use one of"):
        bound("x", 0, 2)
    with pytest.raises(ValueError, match="m=0; give an integer"):
        one_f_one_b(2, 0)
    with pytest.raises(ValueError, match=r"limits=\[1, 0\]; give 2 integers of at least 1"):
        make_schedule("zero-bubble", equal(2), 3, limits=[1, 0])


@pytest.mark.parametrize("seed", range(12))
def test_times_against_the_slow_reference(seed):
    rng = random.Random(seed)
    tiles, m, virtual = rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 3)
    costs = unequal(rng, tiles, 0.9)
    transfer = tuple(cycles * rng.choice((1, 9)) for cycles in costs.transfer)
    costs = replace(costs, transfer=transfer, tail=Fraction(rng.randint(1, 6), 6))
    name = rng.choice(NAMES)
    schedule = random_order(rng, tiles, m) if seed % 2 else make_schedule(
        name, costs, m, virtual=virtual)
    result = simulate(schedule, costs, virtual=virtual)
    for (kind, v, s, sub), start in slow_starts(schedule, costs, virtual).items():
        where = (v, s) if kind is OpKind.U else (v, s, sub)
        assert result.start[kind][where] == start
    ends = [result.end[kind].max() for kind in OpKind]
    assert result.makespan == max(ends)
    assert result.busy.tolist() == [virtual * cycles for cycles in costs.work(m)]
    assert (result.busy + result.waiting == result.end[OpKind.U][-1]).all()


def test_tiles_hold_as_many_sets_as_their_schedule_says():
    """A set lives from the start of its F to the end of its W."""
    rng = random.Random(5)
    for schedule in (random_order(rng, 4, 9), one_f_one_b(4, 9), flush(4, 9)):
        result = simulate(schedule, unequal(rng, 4, 0.5), virtual=3)
        for s in range(4):
            starts = result.start[OpKind.F][:, s].ravel()
            ends = result.end[OpKind.W][:, s].ravel()
            held = [((starts <= cycle) & (ends > cycle)).sum() for cycle in starts]
            assert max(held) == schedule.sets(s)


def test_sequential_takes_the_sum_of_all_stages():
    result = simulate(sequential(4, 6), equal(4, 10, 20, 30, 5), virtual=3)
    assert result.period == 6 * (4 * 30 + 30) + 5


def test_a_million_operations():
    result = simulate(one_f_one_b(64, 320), equal(64), virtual=16)
    assert sum(start.size for start in result.start.values()) == 64 * 16 * (3 * 320 + 1)
    assert result.busy.tolist() == [16 * 320 * 30] * 64


def test_what_cannot_be_simulated():
    with pytest.raises(ValueError, match="costs are of 3 tiles; the schedule has 2"):
        simulate(sequential(2, 2), equal(3))
    with pytest.raises(ValueError, match="is of 4 virtual minibatches"):
        simulate(make_schedule("no-drain", equal(2), 3, virtual=4), equal(2), virtual=3)
    with pytest.raises(ValueError, match=r"Costs: weight=\(1,\); give 2 integers"):
        replace(equal(2), weight=(1,))
    with pytest.raises(ValueError, match="tail=0"):
        replace(equal(2), tail=Fraction(0))
