"""The buffer table: who leaves, who comes back, and when; against its rules on random chains."""

import numpy as np
import pytest

from gradmill.memory import FastMemory, Manager
from gradmill.memory.pools import Pools
from gradmill_hw.config import ConfigError


PLACE = 64


def far_places(base, place, grown):
    """Hands out places in far memory; ``grown[0]`` counts them."""
    def more_far(places):
        start = grown[0]
        grown[0] += places
        return [base + (start + k) * place for k in range(places)]

    return more_far


def manager(count, **options):
    grown = [0]
    made = Manager(base=4096, place=PLACE, count=count, more_far=far_places(1 << 20, PLACE, grown),
                   **options)
    made.grown = grown
    return made


def pools_of(raw, coded, count):
    return Pools(raw, coded, base=1 << 14, place=2 * PLACE, count=count,
                 more_far=far_places(1 << 22, 2 * PLACE, [0]))


class Bench:
    """Runs passes through a manager and follows every byte."""

    def __init__(self, owner, sizes, pools=()):
        self.manager, self.sizes, self.pools = owner, sizes, pools or [owner]
        self.fast, self.far = {}, {}  # address -> buffer whose bytes lie there
        self.log = []

    def move(self, moves):
        for move in moves:
            source, target = (self.fast, self.far) if move.out else (self.far, self.fast)
            near_far = (move.near, move.far)
            start, end = near_far if move.out else near_far[::-1]
            assert source[start] is move.buffer, "moved what is not there"
            target[end] = move.buffer
            del source[start]  # evicted and freed memory is poisoned
            self.log.append((move.out, move.buffer.activation, move.buffer.number))

    def forward(self, parts=2):
        parts = min(parts, self.manager.high)
        for activation, size in self.sizes.items():
            for first in range(0, size, parts):
                new, moves = self.manager.produce(activation, min(parts, size - first))
                self.move(moves)
                for buffer in new:
                    assert buffer.fast not in self.fast, "overwrites what is alive"
                    self.fast[buffer.fast] = buffer
            self.move(self.manager.write_back())
            self.check_room()

    def backward(self):
        for stage in range(max(self.sizes), -1, -1):
            if stage in self.sizes:
                seen = []
                for moves, own, more in self.manager.fetch(stage):
                    self.move(moves)
                    assert all(self.fast[buffer.fast] is buffer for buffer in own)
                    seen += [buffer.part for buffer in own]
                    for buffer in own if more else ():
                        del self.fast[buffer.fast]
                assert sorted(seen) == list(range(self.sizes[stage]))
                for buffer in self.manager.release(stage):
                    del self.fast[buffer.fast]
            moves = self.manager.prefetch(stage)
            if len(self.pools) > 1:
                first = [move.buffer.activation for move in moves]
                assert first == sorted(first, reverse=True), "what is needed first comes first"
            self.move(moves)
            self.check_room()
        assert not self.fast and not any(pool.used for pool in self.pools)

    def check_room(self):
        assert all(pool.used <= pool.high for pool in self.pools)

    def times(self, rng=None):
        for stage in range(max(self.sizes) + 1):
            self.manager.forward[stage] = 100 if rng is None else int(rng.integers(10, 500))


def test_the_oldest_leave_above_the_high_threshold_until_the_low_one():
    owner = manager(10, high=0.8, low=0.5)
    bench = Bench(owner, {1: 4, 2: 4, 3: 3})
    bench.forward(parts=4)
    assert [number for out, _, number in bench.log if out] == list(range(4 + 2))
    assert owner.used == 11 - 6


def test_after_the_first_pass_exactly_what_does_not_fit_leaves_at_once():
    owner = manager(10, high=0.8, low=0.3)
    bench = Bench(owner, dict.fromkeys(range(1, 6), 4))
    bench.times()
    owner.timed_copy(8, 80)
    bench.forward()
    owner.learn()
    bench.backward()
    assert owner.excess == 20 - 8
    places = owner.grown[0]
    for _ in range(3):
        bench.log.clear()
        bench.forward()
        assert [number for _, _, number in bench.log] == list(range(12))
        assert owner.used == 8
        bench.backward()
        back = [activation for out, activation, _ in bench.log if not out]
        assert back == sorted(back, reverse=True) and len(back) == 12
    assert owner.grown[0] == places, "places in far memory are used again"
    new, _ = owner.produce(1, 4)
    moves = owner.write_back()
    assert [move.buffer for move in moves] == new, "though there is room"


def test_those_of_the_first_activations_leave_though_others_are_stored_before():
    owner = manager(5)
    bench = Bench(owner, dict.fromkeys((1, 2, 3), 4))
    bench.times()
    bench.forward()
    owner.timed_copy(8, 80)
    owner.learn()
    bench.backward()
    assert owner.excess == 12 - 5
    left = []
    for activation, count in ((1, 2), (2, 3), (1, 2), (3, 4), (2, 1)):
        _, moves = owner.produce(activation, count)
        left += [(move.buffer.activation, move.buffer.part)
                 for move in [*moves, *owner.write_back()]]
    assert left == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (1, 2), (1, 3)]
    assert owner.used == 5


@pytest.mark.parametrize("seed", range(40))
def test_random_chains_lose_nothing_and_move_each_buffer_once(seed):
    rng = np.random.default_rng(seed)
    sizes = {s: int(rng.integers(1, 9)) for s in range(1, int(rng.integers(3, 14)))}
    total = sum(sizes.values())
    count = int(rng.integers(1, total + 2))
    high = float(rng.uniform(1 / count, 1.0))
    owner = manager(count, high=high, low=float(rng.uniform(0.01, high)))
    if not owner.high:
        owner = manager(count)
    bench = Bench(owner, sizes)
    bench.times(rng)
    for step in range(4):
        bench.log.clear()
        owner.begin()
        bench.forward(parts=int(rng.integers(1, 4)))
        owner.timed_copy(5, int(rng.integers(1, 3000)))
        if step < 2:
            owner.learn()
        bench.backward()
        out = [number for leaves, _, number in bench.log if leaves]
        back = [number for leaves, _, number in bench.log if not leaves]
        assert sorted(out) == sorted(back) and len(set(out)) == len(out)
        assert out == sorted(out)
        if step:
            assert len(out) == max(0, total - owner.high)
    assert owner.most_used <= owner.high


@pytest.mark.parametrize("seed", range(20))
def test_two_pools_lose_nothing_and_move_each_buffer_once(seed):
    rng = np.random.default_rng(seed)
    raw = manager(40)
    bench = Bench(raw, {s: int(rng.integers(1, 5)) for s in range(1, int(rng.integers(4, 14)))})
    bench.times(rng)
    raw.timed_copy(5, int(rng.integers(1, 3000)))
    bench.forward()
    bench.backward()
    coded = {s: 1 for s in bench.sizes if rng.random() < 0.5}
    own = {s: size for s, size in bench.sizes.items() if s not in coded}
    count = int(rng.integers(1, max(2, len(coded) + 1)))
    raw.adopt(own, 40 - int(rng.integers(max(own.values(), default=0), sum(own.values()) + 1)))
    pools = pools_of(raw, coded, count)
    assert pools.excess == (sum(own.values()) - raw.high) + max(0, len(coded) - count)
    bench = Bench(pools, {**bench.sizes, **coded}, [raw, pools.coded])
    for _ in range(3):
        bench.log.clear()
        pools.begin()
        bench.forward()
        bench.backward()
        out, back = ([entry[1:] for entry in bench.log if entry[0] is way]
                     for way in (True, False))
        assert sorted(out) == sorted(back) and len(set(out)) == len(out) == pools.excess
        for kind in coded, own:
            oldest = [s for s in kind for _ in range(bench.sizes[s])]
            leaving = [s for s, _ in out if s in kind]
            assert leaving == oldest[:len(leaving)]


def test_fetches_of_two_pools_follow_each_other():
    raw = manager(20)
    bench = Bench(raw, dict.fromkeys(range(1, 9), 2))
    bench.times()
    raw.timed_copy(1, 300)
    raw.adopt(dict.fromkeys((1, 3, 5), 2), 16)
    told = pools_of(raw, (2, 4, 6, 7, 8), 3).describe()
    assert told["far_bytes_each_way"] == 6 * PLACE
    # 200 cycles for backward of a stage, 600 for each of the copies.
    assert told["fetched_in_backward_of"] == {1: 5, 2: 8, 4: 8}


def test_prefetch_is_as_far_ahead_as_copies_are_slow():
    issued = {}
    for cycles in (1, 250, 100_000):
        owner = manager(2)
        bench = Bench(owner, dict.fromkeys(range(1, 9), 2))
        bench.times()
        owner.timed_copy(1, cycles)
        bench.forward()
        owner.learn()
        issued[cycles] = owner._issue
        bench.backward()
        bench.forward()
        # Nothing is missing when it is needed, and nothing came before it had to.
        for stage in range(8, 0, -1):
            if stage < 8:
                assert not [move for moves, *_ in owner.fetch(stage) for move in moves]
            else:
                list(owner.fetch(stage))
            owner.release(stage)
            came = {move.buffer.activation for move in owner.prefetch(stage)}
            assert came <= {a for a, first in owner._issue.items() if first >= stage}
            assert came or stage == 1
    assert issued[1] == {s: s + 2 for s in range(1, 7)} | {7: 8}
    assert issued[250][1] > issued[1][1]
    assert set(issued[100_000].values()) == {8}


def test_a_complete_copy_is_not_written_again():
    owner = manager(4)
    bench = Bench(owner, {1: 2, 2: 2, 3: 2})
    bench.forward()
    assert [number for _, _, number in bench.log] == [0, 1, 2][:len(bench.log)]
    for activation in (3, 2):
        list(owner.fetch(activation)), owner.release(activation)
    ((moves, own, _),) = owner.fetch(1)
    assert len(moves) == 2 and not any(move.out for move in moves)
    assert all(buffer.copied for buffer in own)
    assert owner._evict(own[0]) == [], "far memory has it already"
    assert own[0].fast is None


def test_what_cannot_be_a_fast_memory_is_refused():
    for size in (0, -1, 1.5, True, "20", "0%", "101%", "x%", None):
        with pytest.raises(ValueError, match="percentage"):
            FastMemory(size)
    for low, high in ((0.8, 0.5), (0, 1), (0.5, 1.5), (-1, 1)):
        with pytest.raises(ValueError, match="0 < low <= high <= 1"):
            FastMemory("20%", low=low, high=high)
    for how in (0, -2, "best", (), (0,), [1, "2"], True):
        with pytest.raises(ValueError, match="recompute="):
            FastMemory("20%", recompute=how)
    with pytest.raises(ConfigError, match="give at least 128 bytes"):
        FastMemory("2%").places(4096, 128)
    with pytest.raises(ConfigError, match="give at least 256 bytes"):
        FastMemory("6%", high=0.5, low=0.2).places(4096, 128)
    assert FastMemory("100%").places(4096, 128) == 32
    assert FastMemory(1 << 30).places(4096, 128) == 32
    assert FastMemory.of(None) is None and FastMemory.of("50%") == FastMemory("50%")
