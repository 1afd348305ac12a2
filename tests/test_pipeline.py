"""Training over several tiles: the same bits as on one, in any order that drains."""

import random
from itertools import pairwise

import numpy as np
import pytest

import gradmill as gm
from gradmill.lowering.pipeline import Lowering
from gradmill.lowering.tiles import Variant
from gradmill.planning import EXACT, plan
from gradmill_hw.config import NANO, TILE, ConfigError
from gradmill_hw.isa import Opcode, encode
from gradmill_hw.regs import Tier


#: widths, B, M, tiles, samples: short last groups, fewer sub-minibatches than tiles, M = 1, M = B
CASES = [
    ((9, 12, 5), 12, 3, 2, 36),
    ((9, 12, 7, 5), 16, 4, 3, 48),
    ((9, 12, 7, 5), 10, 3, 2, 30),
    ((20, 16, 12, 9, 5), 24, 4, 4, 75),
    ((20, 16, 12, 9, 5), 9, 4, 4, 30),
    ((5, 6, 7, 8, 3), 6, 1, 4, 20),
    ((5, 6, 7, 8, 3), 8, 8, 4, 24),
    ((17, 9, 3), 7, 2, 2, 25),
    ((4, 4, 4, 4), 5, 5, 3, 15),
    ((33, 8, 10), 20, 6, 2, 60),
    ((8, 24, 16, 2), 11, 2, 3, 40),
    ((10, 10, 10, 10, 10), 40, 5, 3, 120),
]
#: A small chain for the RTL.
CHAIN = NANO.replace(tiles=3, tensor_rows=2048, acc_rows=2048, mask_rows=512, bus_bits=128)
#: Of them, those that run on the RTL too.
ON_RTL = (0, 1, 4, 5, 6, 8)


def network(widths, seed=1):
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [gm.Linear(inputs, outputs), gm.ReLU()]
    return gm.Sequential(*layers[:-1], seed=seed)


def train(device, widths, size, sub, samples, *, mse=False, epochs=1, **options):
    """Weights and losses after training on random samples."""
    rng = np.random.default_rng(samples)
    x = rng.normal(size=(samples, widths[0])).astype(np.float32)
    y = (rng.normal(size=(samples, widths[-1])).astype(np.float32) if mse
         else rng.integers(0, widths[-1], samples))
    trainer = gm.Trainer(network(widths), device, loss=gm.MSE() if mse else gm.CrossEntropy(),
                         optimizer=gm.SGD(lr=0.1, momentum=0.9), virtual_minibatch=size,
                         sub_minibatch=sub, **options)
    history = trainer.fit(x, y, epochs=epochs)
    return trainer.model.state_dict(), history.train_loss


def assert_same(found, expected):
    """Equal bits."""
    assert found[1] == expected[1]
    for name, values in expected[0].items():
        assert found[0][name].tobytes() == values.tobytes(), name


@pytest.fixture(scope="module")
def alone():
    """Results on one tile by case."""
    found = {}

    def of(case, config=TILE, **options):
        key = case, config, *options.items()
        if key not in found:
            widths, size, sub, _, samples = CASES[case]
            with gm.open("emulator", config.replace(tiles=1)) as device:
                found[key] = train(device, widths, size, sub, samples, **options)
        return found[key]
    return of


@pytest.mark.parametrize("schedule", EXACT)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_schedule_gives_the_bits_of_one_tile(case, schedule, alone):
    widths, size, sub, tiles, samples = CASES[case]
    with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
        found = train(device, widths, size, sub, samples, schedule=schedule)
        counters = device.counters()
    assert_same(found, alone(case))
    assert counters["link_in_rows"] == counters["link_out_rows"] > 0
    assert not [name for name in counters if "gradient" in name and counters[name]]


@pytest.mark.parametrize("tiles", [1, 3])
def test_virtual_minibatches_in_a_hardware_loop(tiles):
    """Of seven virtual minibatches four are a loop: the same bits as with a start for each."""
    results = []
    for every in (None, 1):
        with gm.open("emulator", TILE.replace(tiles=3)) as device:
            rng = np.random.default_rng(3)
            trainer = gm.Trainer(network((9, 12, 7, 5)), device, tiles=tiles,
                                 optimizer=gm.SGD(lr=0.1, momentum=0.9), virtual_minibatch=10,
                                 sub_minibatch=3)
            if every:
                trainer._starts = lambda first, whole, _: ((k, k + 1) for k in range(first, whole))
            history = trainer.fit(rng.normal(size=(70, 9)).astype(np.float32),
                                  rng.integers(0, 5, 70), epochs=1)
            results.append((trainer.model.state_dict(), history.train_loss))
            assert {count for _, _, count, *_ in filter(
                lambda key: key[0] == "train", trainer._programs)} == {every or 7}
    assert_same(*results)


@pytest.mark.parametrize("options", [
    {"rounding": "stochastic"}, {"level1": "bf16"}, {"mse": True}, {"epochs": 2}], ids=str)
@pytest.mark.parametrize("case", [3, 4])
def test_options(case, options, alone):
    widths, size, sub, tiles, samples = CASES[case]
    with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
        found = train(device, widths, size, sub, samples, **options)
    assert_same(found, alone(case, **options))


def random_order(tiles, count, cap, rng):
    """Operations of all tiles, each after what it needs, at most ``cap`` sets alive in a tile."""
    at, order = {(s, k): 0 for s in range(tiles) for k in "FBW"}, []

    def possible(s, kind):
        j = at[s, kind]
        if kind == "F":
            return j < count and (s == 0 or at[s - 1, "F"] > j) and j - at[s, "W"] < cap
        if kind == "B":
            return at[s, "F"] > j and (s == tiles - 1 or at[s + 1, "B"] > j)
        return at[s, "B"] > j

    while choices := [(s, k) for s in range(tiles) for k in "FBW" if possible(s, k)]:
        s, kind = rng.choice(choices)
        order.append((s, kind, at[s, kind]))
        at[s, kind] += 1
    assert len(order) == 3 * tiles * count
    return order


@pytest.mark.parametrize("backend", ["emulator", pytest.param("verilator", marks=pytest.mark.rtl)])
def test_hurried_forwards_give_the_bits_of_one_tile(backend, monkeypatch):
    """Some rows at a time, in more transfers."""
    widths, size, sub, samples, sends = (16, 12, 20, 9), 46, 12, 92, []
    with gm.open("emulator", CHAIN) as device:
        expected = train(device, widths, size, sub, samples, tiles=1)
    for hurried in (1, 3, 4):
        class Hurried(Lowering):
            def _written(self, order, _, *rest, hurried=hurried):
                codes, steps = super()._written(order, Variant(hurried), *rest)
                sends.append(sum(opcode is Opcode.SEND for code in codes for opcode, _ in code))
                return codes, steps

        monkeypatch.setattr("gradmill.planning.Lowering", Hurried)
        with gm.open(backend, CHAIN, stall=0.3, watchdog=100_000) as device:
            assert_same(train(device, widths, size, sub, samples), expected)
        assert sends[-1] > (sends[0] if hurried > 1 else 0)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_gives_the_bits_of_one_tile(seed, alone, monkeypatch):
    rng = random.Random(seed)
    case = rng.randrange(len(CASES))
    widths, size, sub, tiles, samples = CASES[case]
    expected = alone(case)
    order = random_order(tiles, -(-size // sub), rng.randrange(1, 6), rng)

    class Shuffled(Lowering):
        def __init__(self, config, stages, spans, _, *rest, **options):
            super().__init__(config, stages, spans, order, *rest, **options)

    monkeypatch.setattr("gradmill.planning.Lowering", Shuffled)
    with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
        assert_same(train(device, widths, size, sub, samples), expected)


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_stash_does_not_grow_with_the_virtual_minibatch(schedule):
    tiles, most = 3, []
    for count in (2 * tiles, 8 * tiles, 32 * tiles):
        with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
            train(device, (8, 8, 8, 4), 2 * count, 2, 4 * count, schedule=schedule)
            most.append([device.stash(tile)[1] for tile in device.tiles])
            assert {device.stash(tile)[0] for tile in device.tiles} == {0}
    assert most[1] == most[2]
    bounds = [tiles - s for s in range(tiles)] if schedule == "1f1b" else [2 * tiles - 1] * tiles
    assert all(a <= b for a, b in zip(most[2], bounds, strict=True))


@pytest.mark.rtl
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_rtl_gives_the_bits_of_the_emulator(stall):
    config = CHAIN
    for case in ON_RTL:
        widths, size, sub, tiles, samples = CASES[case]
        results = []
        for backend in ("emulator", "verilator"):
            with gm.open(backend, config, stall=stall, watchdog=100_000) as device:
                found = train(device, widths, size, sub, samples, tiles=min(tiles, 3))
                stash = [device.stash(tile) for tile in device.tiles]
                results.append((found, stash, [_timeless(device, t) for t in device.tiles]))
        assert_same(results[1][0], results[0][0])
        assert results[1][1:] == results[0][1:]
        with gm.open("emulator", config) as device:
            assert_same(results[1][0], train(device, widths, size, sub, samples, tiles=1))


@pytest.mark.parametrize("backend", ["emulator", pytest.param("verilator", marks=pytest.mark.rtl)])
def test_a_start_of_fewer_tiles_than_the_one_before(backend):
    a = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)
    with gm.open("emulator", NANO) as device:
        expected = gm.ops.matmul(device, a, a, transpose_b=True)
    with gm.open(backend, CHAIN, watchdog=100_000) as device:
        with device.heap.scratch(64, "program") as address:
            device.write_memory(Tier.NEAR, address, encode(Opcode.HALT))
            device.run([address] * 3)
        found = gm.ops.matmul(device, a, a, transpose_b=True)
    assert found.tobytes() == expected.tobytes()


def _timeless(device, tile):
    from gradmill_hw.regs import COUNTERS

    timing = {counter.name for counter in COUNTERS if counter.timing}
    return {name: value for name, value in device.counters(tile).items() if name not in timing}


# Memory -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", [{"mask_rows": 256}, {"tensor_rows": 512}], ids=str)
def test_a_plan_has_the_sets_that_fit(sizes):
    widths, size, sub = (9, 24, 24, 5), 96, 16
    roomy, tight = TILE.replace(tiles=3), TILE.replace(tiles=3, **sizes)
    plans = [plan(network(widths), config, virtual_minibatch=size, sub_minibatch=sub)
             for config in (roomy, tight)]
    pairs = list(zip(plans[1].sets, plans[0].sets, strict=True))
    assert all(a <= b for a, b in pairs) and sum(a < b for a, b in pairs), "a tile has fewer"
    assert plans[1].cycles > plans[0].cycles
    results = []
    for config in (roomy, tight):
        with gm.open("emulator", config) as device:
            results.append(train(device, widths, size, sub, 2 * size))
    assert_same(*results)


def test_what_does_not_fit_names_what_does():
    sizes = {"virtual_minibatch": 96, "sub_minibatch": 16}
    model = network((9, 24, 24, 5))
    with pytest.raises(ConfigError, match=r"mask memory has 128 rows.* What fits: tiles=1, "):
        plan(model, TILE.replace(tiles=3, mask_rows=128), **sizes)
    tiny = TILE.replace(tiles=3, tensor_rows=256)
    with pytest.raises(ConfigError, match=r"What fits: tiles=3, sub_minibatch=8 \(layer 0 | "):
        plan(model, tiny, **sizes)
    assert len(plan(model, tiny, virtual_minibatch=96, sub_minibatch=8).spans) == 3
    with pytest.raises(ConfigError, match="Nothing near fits"):
        plan(network((9, 2000, 5)), tiny, **sizes)


# What is refused ----------------------------------------------------------------------------------

def test_what_a_plan_refuses():
    model = network((4, 4, 4))
    sizes = {"virtual_minibatch": 8, "sub_minibatch": 2}
    with pytest.raises(ValueError, match=r"schedule='gpipe'; use one of sequential, 1f1b"):
        plan(model, TILE.replace(tiles=2), schedule="gpipe", **sizes)
    with pytest.raises(ConfigError, match="tiles=3, but the network has only 2 Linear layers"):
        plan(model, TILE.replace(tiles=4), tiles=3, **sizes)
    with pytest.raises(ValueError, match="tiles=5: configuration 'tile with tiles=4' has 4"):
        plan(model, TILE.replace(tiles=4), tiles=5, **sizes)


def test_a_missing_neighbour_is_named():
    """A tile that waits for rows which never come: the watchdog, the tile and the instruction."""
    config = NANO.replace(tiles=2)
    program = gm.Program(config)
    program.receive(peer=0, rows=4, blocks=1, t_stride=4)
    program.halt()
    idle = gm.Program(config)
    idle.halt()
    with gm.open("emulator", config) as device:
        for address, code in ((0x1000, idle), (0x2000, program)):
            device.write_memory(0, address, code.assemble())
        with pytest.raises(gm.DeviceError, match="WATCHDOG in the link_in queue of tile 1") as info:
            device.run([0x1000, 0x2000])
        assert info.value.tile == 1 and "RECEIVE" in info.value.instruction
        device.reset()
        device.run([0x1000, 0x1000])
