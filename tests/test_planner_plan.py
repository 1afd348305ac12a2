"""From a profile to a plan."""

import json

import pytest

from gradmill.planner import LayerProfile, Profile, bound, make_plan, simulate, validate
from gradmill_hw.config import ConfigError


SIZES = (96, 128, 128, 64, 64, 32, 160, 10)
NAMES = ("sequential", "1f1b", "zero-bubble", "no-drain")


def profile(sub=16):
    return Profile([LayerProfile(size * sub, size * sub * (index > 0), size * sub + 40, size * 20,
                                 size * sub, size * 100) for index, size in enumerate(SIZES)],
                   sub, 8, 12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "sub"), [(16, 16), (64, 16), (200, 16), (30, 1), (17, 16)])
def test_a_plan_holds_together(name, size, sub):
    made = make_plan(profile(sub), 4, name, virtual_minibatch=size, sub_minibatch=sub)
    validate(made.schedule)
    assert made.schedule.sub_minibatches == -(-size // sub)
    assert (made.costs.tail == 1) == (size % sub == 0)
    assert made.makespan == simulate(made.schedule, made.costs).makespan
    assert made.bubble == pytest.approx(
        1 - sum(made.costs.work(made.schedule.sub_minibatches)) / 4 / made.cycles)
    assert made.cycles >= 0.99 * made.bound
    table = made.table()
    assert [row["tile"] for row in table] == [0, 1, 2, 3]
    assert [row["sets"] for row in table] == list(made.sets)
    assert all(held <= bound(name, s, 4) for s, held in enumerate(made.sets))
    assert all(0 < row["busy"] <= 1.001 for row in table)
    described = json.loads(json.dumps(made.as_dict()))
    assert described["schedule"] == name and described["stages"] == [
        list(stage) for stage in made.partition.stages]


def test_the_first_tile_sends_no_gradient():
    """What it spends on data gradients counts as part of the weight gradients: nobody waits."""
    layers = [LayerProfile(100, 60 * (k > 0), 90, 10, 16, 16) for k in range(4)]
    made = make_plan(Profile(layers, 16), 2, virtual_minibatch=64, sub_minibatch=16)
    assert made.spans == ((0, 1), (2, 3))
    assert made.costs.backward == (0, 120) and made.costs.weight == (240, 180)


def test_more_tiles_are_faster_and_one_tile_never_waits():
    cycles = [make_plan(profile(), tiles, virtual_minibatch=256, sub_minibatch=16).cycles
              for tiles in (1, 2, 4)]
    assert cycles[0] > 1.8 * cycles[1] > 3 * cycles[2]
    alone = make_plan(profile(), 1, virtual_minibatch=256, sub_minibatch=16)
    assert alone.bubble == 0 and alone.sets == (1,)
    assert alone.cycles == alone.makespan == alone.bound == alone.partition.loads[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_adapts_to_the_sets_that_there_is_room_for(name):
    made = [make_plan(profile(), 3, name, virtual_minibatch=256, sub_minibatch=16, limits=limits)
            for limits in (None, [2] * 3, [1] * 3)]
    assert made[0].cycles <= made[1].cycles <= made[2].cycles
    assert max(made[1].sets) <= 2 and max(made[2].sets) == 1
    assert name == "sequential" or max(made[0].sets) > 2


def test_tiles_get_layers_that_fit():
    pairs = ((0, 1), (2, 3), (4, 5), (6, 7))
    assert make_plan(profile(), 4, virtual_minibatch=64, sub_minibatch=16).spans != pairs
    assert make_plan(profile(), 4, virtual_minibatch=64, sub_minibatch=16,
                     fits=lambda first, last: last - first < 2).spans == pairs


def test_what_does_not_fit_names_what_does():
    def within(rows):
        return lambda first, last: sum(SIZES[first:last + 1]) <= rows

    with pytest.raises(ConfigError, match="into 3 stages fits; 4 tiles do: "):
        make_plan(profile(), 3, virtual_minibatch=64, sub_minibatch=16, fits=within(225))
    with pytest.raises(ConfigError, match="layer 6 does not fit a tile even alone"):
        make_plan(profile(), 3, virtual_minibatch=64, sub_minibatch=16, fits=within(150))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"tiles": 9}, "9 tiles, but only 8 layers; use at most 8 tiles"),
    ({"schedule": "x"}, "unknown schedule 'x'; use one of sequential, 1f1b, zero-bubble, no-drain"),
    ({"virtual_minibatch": 8}, "sub_minibatch=16 is larger than virtual_minibatch=8"),
    ({"sub_minibatch": 0}, "sub_minibatch=0; give an integer of at least 1"),
    ({"sub_minibatch": 8}, "the profile is of sub-minibatches of 16 samples, not 8"),
    ({"tiles": 0}, "tiles=0; give an integer of at least 1"),
])
def test_bad_input(arguments, message):
    given = {"tiles": 2, "virtual_minibatch": 64, "sub_minibatch": 16, **arguments}
    with pytest.raises(ValueError, match=message):
        make_plan(profile(), **given)


def test_plans_are_repeatable():
    first, second = (make_plan(profile(), 4, virtual_minibatch=150, sub_minibatch=16)
                     for _ in range(2))
    assert first == second


def test_layers_that_cost_nothing():
    empty = Profile([LayerProfile(0, 0, 0, 0, 0, 0)] * 3, 4)
    for name in NAMES:
        assert make_plan(empty, 3, name, virtual_minibatch=40, sub_minibatch=4).bound == 0
