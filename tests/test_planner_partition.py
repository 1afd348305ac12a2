"""Stages by dynamic programming against all stages there are; what the planner is told about a
network."""

from itertools import combinations, pairwise
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmill.planner import LayerProfile, Profile, partition
from gradmill_hw.config import ConfigError


LAYERS = st.builds(LayerProfile, *[st.integers(0, 50)] * 4, st.integers(0, 300),
                   st.integers(0, 300))


def compositions(total, parts):
    """All ways to write ``total`` as ``parts`` positive numbers."""
    for cuts in combinations(range(1, total), parts - 1):
        edges = (0, *cuts, total)
        yield [b - a for a, b in pairwise(edges)]


def stage_load(profile, first, last, r, m):
    """Cycles of a virtual minibatch, straight from the definition."""
    layers = profile.layers[first:last + 1]
    rate = profile.link_bytes_per_cycle
    busy = ceil(m * sum(x.forward + x.backward + x.weight for x in layers) / r)
    busy += sum(x.update for x in layers)
    busy += ceil(2 * (r - 1) * sum(x.weight_bytes for x in layers) / r / rate)
    ends = [first - 1] * (first > 0) + [last] * (last + 1 < len(profile.layers))
    links = [ceil(profile.layers[layer].output_bytes / rate) for layer in ends]
    return max([busy, *(ceil(m * cycles / r) for cycles in links)])


def brute_force(profile, tiles, m, replicate, fits):
    """Loads of the best partition, largest and second largest; ``None`` if nothing fits."""
    count, best = len(profile.layers), None
    for stages in range(1, min(tiles, count) + 1) if replicate else (tiles,):
        for sizes in compositions(count, stages):
            firsts = [sum(sizes[:i]) for i in range(stages)]
            spans = [(first, first + size - 1) for first, size in zip(firsts, sizes, strict=True)]
            if not all(fits(*span) for span in spans):
                continue
            for replicas in compositions(tiles, stages) if replicate else ([1] * stages,):
                loads = sorted((stage_load(profile, *span, r, m) for span, r in
                                zip(spans, replicas, strict=True)), reverse=True)
                best = min(best or [float("inf")], [*loads, 0][:2])
    return best


def check(profile, tiles, m, replicate, fits):
    expected = brute_force(profile, tiles, m, replicate, fits)
    if expected is None:
        with pytest.raises(ConfigError):
            partition(profile, tiles, sub_minibatches=m, replicate=replicate, fits=fits)
        return
    found = partition(profile, tiles, sub_minibatches=m, replicate=replicate, fits=fits)
    assert ([*sorted(found.loads, reverse=True), 0])[:2] == expected
    assert max(found.loads) == expected[0]
    assert [layer for first, last in found.stages for layer in range(first, last + 1)] == \
        list(range(len(profile.layers)))
    assert sum(found.replicas) == tiles
    assert list(found.loads) == [stage_load(profile, *span, r, m) for span, r in
                                 zip(found.stages, found.replicas, strict=True)]
    assert found == partition(profile, tiles, sub_minibatches=m, replicate=replicate, fits=fits)


@given(st.lists(LAYERS, min_size=1, max_size=12), st.data(), st.integers(1, 40),
       st.sampled_from([0.5, 1, 3, 16]), st.integers(1, 12))
def test_one_tile_a_stage(layers, data, m, rate, longest):
    profile = Profile(layers, 4, rate)
    tiles = data.draw(st.integers(1, len(layers)))
    check(profile, tiles, m, False, lambda first, last: last - first < longest)


@given(st.lists(LAYERS, min_size=1, max_size=7), st.integers(1, 7), st.integers(1, 40),
       st.sampled_from([1, 4]))
def test_several_tiles_a_stage(layers, tiles, m, rate):
    check(Profile(layers, 4, rate), tiles, m, True, lambda first, last: last - first < 5)


def test_twelve_layers_on_every_number_of_tiles():
    layers = [LayerProfile(7 * i % 11 + 1, 5 * i % 7, i % 5 + 3, 2, 40, 10) for i in range(12)]
    for tiles in range(1, 13):
        check(Profile(layers, 4), tiles, 8, False, lambda first, last: True)


def test_a_balanced_partition_is_not_an_equal_split():
    layers = [LayerProfile(cycles, cycles, cycles, 0, 0, 0) for cycles in (60, 10, 10, 10, 10, 20)]
    found = partition(Profile(layers, 4), 2)
    assert found.stages == ((0, 0), (1, 5)) and found.loads == (180, 180)
    assert str(found) == "layer 0 | layers 1-5"


def test_a_slow_link_moves_the_cut():
    layers = [LayerProfile(10, 10, 10, 0, size, 0) for size in (1, 1000, 1, 1)]
    assert partition(Profile(layers, 4, 100), 2).stages == ((0, 1), (2, 3))
    assert partition(Profile(layers, 4, 1), 2).stages == ((0, 0), (1, 3))


def test_weights_are_exchanged_between_replicas():
    light, heavy = ([LayerProfile(30, 30, 30, 0, 0, size)] for size in (10, 1000))
    assert max(partition(Profile(light, 4), 3, replicate=True).loads) == 30 + 14
    assert max(partition(Profile(heavy, 4), 3, replicate=True).loads) == 30 + 1334


def test_costs_of_the_stages():
    layers = [LayerProfile(1, 0, 2, 3, 10, 0), LayerProfile(4, 5, 6, 7, 20, 0),
              LayerProfile(8, 9, 10, 11, 30, 0)]
    costs = partition(Profile(layers, 4, 3, 9), 2).costs(Profile(layers, 4, 3, 9))
    assert (costs.forward, costs.backward, costs.weight) == ((5, 8), (5, 9), (8, 10))
    assert (costs.update, costs.transfer, costs.latency) == ((10, 11), (7,), 9)
    replicated = partition(Profile(layers[:1], 4), 2, replicate=True)
    with pytest.raises(ValueError, match="one tile per stage"):
        replicated.costs(Profile(layers[:1], 4))


def test_what_cannot_be_partitioned():
    profile = Profile([LayerProfile(1, 1, 1, 0, 0, 0)] * 4, 4)
    with pytest.raises(ValueError, match="5 tiles, but only 4 layers; use at most 4 tiles"):
        partition(profile, 5)
    assert partition(profile, 5, replicate=True).tiles == 5
    with pytest.raises(ValueError, match=r"tiles=0; give an integer"):
        partition(profile, 0)
    with pytest.raises(ConfigError, match=r"into 1 stages fits; 3 tiles do: layer 0 \| layer 1 \| "
                                          "layers 2-3"):
        partition(profile, 1, fits=lambda first, last: last == first or first == 2)
    with pytest.raises(ConfigError, match="layer 2 does not fit a tile even alone"):
        partition(profile, 4, fits=lambda first, last: not first <= 2 <= last)


def test_a_profile_survives_json():
    layers = [LayerProfile(1, 0, 2, 3, 4, 5), LayerProfile(6, 7, 8, 9, 10, 11)]
    profile = Profile(layers, 16, 2.5, 7)
    assert Profile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(("text", "message"), [
    ("{", "profile is not JSON"),
    ("[]", "profile is .*must be an object with"),
    ('{"layers": [], "sub_minibatch": 1, "link_latency": 0, "link_bytes_per_cycle": 1}',
     "at least one LayerProfile"),
    (('{"layers": [{"forward": 1}], "sub_minibatch": 1, "link_latency": 0, '
     '"link_bytes_per_cycle": 1}'), "layer 0 is .* must be an object with backward"),
])
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        Profile.from_json(text)


def test_bad_profiles():
    with pytest.raises(ValueError, match="forward=-1; give an integer of at least 0"):
        LayerProfile(-1, 0, 0, 0, 0, 0)
    layers = [LayerProfile(1, 1, 1, 1, 1, 1)]
    with pytest.raises(ValueError, match="link_bytes_per_cycle=0; give a positive number"):
        Profile(layers, 1, 0)
    with pytest.raises(ValueError, match="sub_minibatch=0"):
        Profile(layers, 0)


def test_a_tile_is_as_fast_as_its_slower_unit():
    """Products 30 30 30 | 30; the vector unit needs 10 10 10 | 130."""
    layers = [LayerProfile(10, 10, 10, 5, 0, 0, vector) for vector in (10, 10, 10, 130)]
    profile = Profile(layers, 4)
    found = partition(profile, 2, sub_minibatches=3)
    assert found.stages == ((0, 2), (3, 3)) and found.loads == (3 * 90 + 15, 3 * 130 + 5)
    costs = found.costs(profile)
    assert (costs.forward, costs.backward, costs.weight) == ((30, 44), (30, 44), (30, 42))
