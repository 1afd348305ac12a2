"""Networks that do not fit a tile: layer after layer from far memory, the bits of a run on chip."""

import random
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.report.layers import (beside_backward, downloads, layers, waits_for_weights,
                                    weight_rows)
from gradmill.timeline import Span, Work, record
from gradmill.unit_times import Memory, product_cycles
from gradmill_hw.config import NANO, SIM, ConfigError
from gradmill_hw.isa import Opcode, Queue
from gradmill_hw.regs import ARGUMENTS, COUNTERS
from gradmill_hw.sequencer_model import commands


#: A tensor memory of 1024 rows of 4, with room for two layers of 32 x 32 and nothing else.
SMALL = NANO.replace(acc_rows=2048, mask_rows=512, bus_bits=128)
#: The same array where 42 such layers fit at once.
LARGE = SMALL.replace(tensor_rows=1 << 15, acc_rows=1 << 15, mask_rows=1 << 14)
DEEP = (32,) * 43


def network(widths, *, seed=1, bias=True):
    """Weights keep the size of activations and gradients, so that every layer learns."""
    parts = []
    for inputs, outputs in pairwise(widths):
        parts += [gm.Linear(inputs, outputs, bias=bias), gm.ReLU()]
    model, rng = gm.Sequential(*parts[:-1], seed=seed), np.random.default_rng(seed)
    model.load_state_dict({
        name: values if values.ndim == 1 else (rng.uniform(-1, 1, values.shape) * np.sqrt(
            6 / values.shape[1])).astype(np.float32)
        for name, values in model.state_dict().items()})
    return model


def trainer(device, widths, size, sub, *, mse=False, momentum=0.9, bias=True, **options):
    return gm.Trainer(network(widths, bias=bias), device,
                      loss=gm.MSE() if mse else gm.CrossEntropy(),
                      optimizer=gm.SGD(lr=0.02, momentum=momentum), virtual_minibatch=size,
                      sub_minibatch=sub, **options)


def samples(widths, count, *, mse=False):
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, widths[0])).astype(np.float32)
    y = (rng.normal(size=(count, widths[-1])).astype(np.float32) if mse
         else rng.integers(0, widths[-1], count))
    return x, y


def result(config, widths, size, sub, count, *, backend="emulator", epochs=1, **options):
    """Weights, losses, outputs and clock-less counters after training."""
    with gm.open(backend, config, **options.pop("device", {})) as device:
        made = trainer(device, widths, size, sub, **options)
        x, y = samples(widths, count, mse=options.get("mse", False))
        history = made.fit(x, y, epochs=epochs, validation_data=(x, y))
        counters = device.counters()
        return (made.model.state_dict(), history.train_loss, history.validation,
                {c.name: counters[c.name] for c in COUNTERS if not c.timing})


def assert_same(found, expected):
    assert found[1:3] == expected[1:3]
    for name, values in expected[0].items():
        assert found[0][name].tobytes() == values.tobytes(), name


def program(made):
    """Program of a whole virtual minibatch."""
    lowering = made._lowering
    (found,) = lowering.train(made.virtual_minibatch, 1, (0, 0), lowering.regions,
                              made._losses_at)
    return found


# The same bits -----------------------------------------------------------------------------------

#: widths, B, M, samples: one, two, three, many layers; M = 1, M = B, short last ones
CASES = [
    ((17, 3), 7, 2, 25),
    ((9, 12, 5), 12, 3, 36),
    ((9, 12, 7, 5), 10, 3, 30),
    ((20, 16, 12, 9, 5), 9, 4, 31),
    ((5, 6, 7, 8, 3), 6, 1, 16),
    ((4, 4, 4, 4), 5, 5, 15),
    ((8, 24, 16, 2), 11, 2, 40),
    ((10, 10, 10, 10, 10, 10, 10), 40, 5, 90),
    ((9, 12, 7, 5), 12, 5, 26),   # the last virtual minibatch is shorter than a sub-minibatch
    ((9, 12, 7, 5), 12, 12, 13),
]
OPTIONS = [
    {}, {"boundaries": "far", "mse": True, "rounding": "stochastic"},
    {"level1": "bf16", "epochs": 2, "momentum": 0.0}, {"bias": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_bits_of_a_run_with_all_weights_on_chip(case, options):
    resident = {name: value for name, value in options.items() if name != "boundaries"}
    assert_same(result(SIM, *CASES[case], layer_to_layer=True, **options),
                result(SIM, *CASES[case], **resident))


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed):
    rng = random.Random(seed)
    widths = tuple(rng.randrange(1, 40) for _ in range(rng.randrange(2, 9)))
    size = rng.randrange(1, 30)
    case = widths, size, rng.randrange(1, size + 1), rng.randrange(size, 3 * size)
    config = rng.choice([SIM, NANO.replace(tensor_rows=8192, acc_rows=8192, mask_rows=2048)])
    assert_same(result(config, *case, layer_to_layer=True,
                       boundaries=rng.choice(["near", "far"])), result(config, *case))


def test_ten_times_the_tensor_memory():
    """A resident run on a larger device ends with the same bits."""
    small = result(SMALL, DEEP, 16, 8, 32, layer_to_layer=True)
    assert_same(small, result(LARGE, DEEP, 16, 8, 32))
    model, fresh = small[0], network(DEEP).state_dict()
    assert sum(w.size for w in model.values() if w.ndim == 2) >= 10 * SMALL.tensor_rows * SMALL.n
    assert all((model[name] != fresh[name]).any() for name in fresh), "every layer learns"
    with gm.open("emulator", SMALL) as device, pytest.raises(ConfigError, match="tensor memory"):
        trainer(device, DEEP, 16, 8)


def test_a_checkpoint_goes_on_either_way(tmp_path):
    x, y = samples((9, 12, 7, 5), 24)
    ends = []
    for first, second in ((False, True), (True, False), (False, False)):
        with gm.open("emulator", SIM) as device:
            made = trainer(device, (9, 12, 7, 5), 12, 4, layer_to_layer=first)
            made.fit(x, y, epochs=1)
            made.save(tmp_path / "checkpoint")
        with gm.open("emulator", SIM) as device:
            again = gm.Trainer.load(tmp_path / "checkpoint", device, layer_to_layer=second)
            again.fit(x, y, epochs=1)
            ends.append(again.model.state_dict())
    for name, values in ends[2].items():
        assert ends[0][name].tobytes() == ends[1][name].tobytes() == values.tobytes(), name


def test_two_trainers_share_a_device():
    """Whoever comes back finds the weight buffers of another and fills them anew."""
    x, y = samples((9, 12, 7, 5), 24)
    with gm.open("emulator", SIM) as device:
        pair = [trainer(device, (9, 12, 7, 5), 12, 4, layer_to_layer=True) for _ in range(2)]
        for _ in range(2):
            for one in pair:
                one.fit(x, y, epochs=1)
        first, second = (one.model.state_dict() for one in pair)
    expected = result(SIM, (9, 12, 7, 5), 12, 4, 24, epochs=2)[0]
    for name, values in expected.items():
        assert first[name].tobytes() == second[name].tobytes() == values.tobytes(), name


# What moves, what stays --------------------------------------------------------------------------

@pytest.mark.parametrize("count", [4, 16, 64])
def test_weights_take_two_layers_and_cross_twice(count):
    rng = random.Random(count)
    widths = (24, *(rng.choice([8, 16, 24]) for _ in range(count)))
    moved = []
    for group in (2, 3):
        with gm.open("emulator", SMALL) as device:
            made = trainer(device, widths, 4 * group, 4, layer_to_layer=True)
            code, lowering = program(made), made._lowering
        largest = max(w.extent for w in lowering.buffers[0].weight.values())
        assert largest < weight_rows(code, SMALL) <= 2 * largest
        moved.append(downloads(code, SMALL))
        # Two layers are kept at each turn.
        kept = lowering.weight_bytes([0, 1, count - 2, count - 1])
        assert moved[-1] == 2 * lowering.weight_bytes(range(count)) - kept
    assert moved[0] == moved[1]


def test_bytes_by_tier_and_class():
    """Of two virtual minibatches less one: what the counters of the emulator saw."""
    widths, size, sub = (16, 16, 16, 16, 16), 16, 8
    counters = []
    for count in (size, 2 * size):
        with gm.open("emulator", SMALL) as device:
            made = trainer(device, widths, size, sub, layer_to_layer=True)
            made.fit(*samples(widths, count), epochs=1)
            counters.append(device.counters())
    once = {name: counters[1][name] - counters[0][name] for name in counters[0]}
    lowering = made._lowering
    assert once["far_read_weight_bytes"] == downloads(program(made), SMALL)
    assert once["far_write_weight_bytes"] == lowering.weight_bytes(range(4))
    masters = sum(region.nbytes for regions in lowering.regions.values()
                  for name, region in regions.items() if name != "bias")
    assert once["far_read_optimizer_bytes"] == once["far_write_optimizer_bytes"] == masters
    assert once["near_read_weight_bytes"] == once["near_write_weight_bytes"] == 0
    block = SMALL.run_bytes("bfp", 4 * sub)  # 16 columns of a sub-minibatch
    assert once["near_write_stash_bytes"] == 4 * 2 * block
    assert once["near_read_gradient_bytes"] == once["near_write_gradient_bytes"] == 3 * 2 * block


@pytest.mark.rtl
@pytest.mark.parametrize(("beats", "group"), [(0.6, 1), (0.5, 2), (0.4, 2), (0.25, 4)])
def test_little_stall_where_a_layer_loads_while_the_group_runs(beats, group):
    """On the RTL, beside the cycle model of a far memory that takes no time. That is no lower
    bound: the order of instructions is made for a slow one. The cycles in which the array takes
    rows are."""
    with gm.open("verilator", SMALL, bandwidth=(None, 2 * beats)) as device:
        made = trainer(device, (32,) * 9, 8 * group, 8, layer_to_layer=True)
        x, y = samples((32,) * 9, 8 * group)
        made.fit(x, y, epochs=1)
        device.clear_counters()
        made.fit(x, y, epochs=1)
        cycles, code = device.counters()["cycles"], program(made)
    ideal = predict([code], SMALL, far=Memory(latency=0, beats=1e9)).cycles
    rows = sum(product_cycles(command.fields, SMALL.n) for command in
               commands(bytes(code), (0,) * ARGUMENTS, 0, SMALL.queues)
               if command is not None and command.opcode is Opcode.MATMUL)
    assert rows <= cycles <= 1.05 * ideal and 0.95 * ideal <= cycles
    expected = predict([code], SMALL, far=Memory(beats=2 * beats)).cycles
    assert abs(expected / cycles - 1) < 0.03, f"{cycles} cycles, {expected} predicted"


def test_a_slow_far_memory_has_its_own_order():
    """In the cycle model, for a device that knows how fast its far memory is."""
    cycles = []
    for known in (None, 0.2):
        with gm.open("emulator", SMALL) as device:
            device.far_beats = known
            code = program(trainer(device, (32,) * 9, 48, 8, layer_to_layer=True))
        cycles.append(predict([code], SMALL, far=Memory(beats=0.2)).cycles)
    assert cycles[1] < 0.9 * cycles[0]


def test_what_the_report_measures():
    def span(queue, start, end, layer, work, opcode=Opcode.MATMUL):
        return Span(0, queue, opcode, layer, start, end, work, 0)

    spans = [
        span(Queue.MATRIX, 0, 50, 2, Work.DATA_GRADIENT),
        span(Queue.MATRIX, 70, 100, 2, Work.WEIGHT_GRADIENT),
        span(Queue.VECTOR, 60, 140, 3, Work.UPDATE, Opcode.VECTOR),
        span(Queue.LOAD, 90, 130, 1, Work.WEIGHTS, Opcode.LOAD),
        span(Queue.MATRIX, 140, 200, 1, Work.DATA_GRADIENT),
        span(Queue.VECTOR, 180, 220, 1, Work.UPDATE, Opcode.VECTOR),
    ]
    assert beside_backward(spans) == (60 / 120, 50 / 120)
    assert waits_for_weights(spans) == 30 / 220
    assert beside_backward([]) is None and waits_for_weights([]) is None


# What is refused ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("widths", "memory", "message"), [
    ((32, 300, 32), {}, r"layer, 0 \(32 -> 300\), takes 2400 rows of a buffer, which could have 0"),
    ((32, 60, 32), {}, "use narrower layers, a smaller sub_minibatch, or .* tensor_rows=2048"),
    ((32,) * 9, {"far_bytes": 1 << 16}, "far memory has 65536 bytes.* with a larger far_bytes"),
    ((32,) * 9, {"near_bytes": 1 << 14}, 'near memory has 16384 bytes.* or boundaries="far"'),
])
def test_what_does_not_fit(widths, memory, message):
    with gm.open("emulator", SMALL, **memory) as device, pytest.raises(ConfigError, match=message):
        trainer(device, widths, 64, 8, layer_to_layer=True)


@pytest.mark.parametrize("options", [
    {"boundaries": "disk"}, {"tiles": 2}, {"schedule": "1f1b"}, {"stash": gm.Stash("mx9")}],
    ids=lambda options: next(iter(options)))
def test_what_cannot_be_combined(options):
    name = next(iter(options))
    with gm.open("emulator", SIM.replace(tiles=2, stash=True)) as device, \
            pytest.raises(ValueError, match=f"{name}="):
        trainer(device, (8, 8, 8), 8, 4, layer_to_layer=True, **options)


# On the RTL --------------------------------------------------------------------------------------

@pytest.mark.rtl
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_rtl_trains_ten_times_its_tensor_memory(stall):
    found = result(SMALL, DEEP, 16, 8, 16, backend="verilator", device={"stall": stall},
                   layer_to_layer=True)
    ours = result(SMALL, DEEP, 16, 8, 16, layer_to_layer=True)
    assert_same(found, ours)
    assert found[3] == ours[3], "the same bytes"
    assert_same(found, result(LARGE, DEEP, 16, 8, 16))


@pytest.mark.rtl
def test_rtl_updates_beside_backward():
    found, *_ = measured_beside_prediction()
    assert found["updates_beside_backward"] >= 0.8
    assert found["waits_for_weights"] <= 0.05
    assert found["weight_rows"]["high_water_mark"] <= 2 * found["weight_rows"]["largest_layer"]


@pytest.mark.rtl
def test_the_cycle_model_is_near_the_rtl():
    _, cycles, expected = measured_beside_prediction()
    assert abs(cycles / expected - 1) < 0.05, f"{cycles} cycles, {expected} predicted"


@cache
def measured_beside_prediction():
    """Report of a run on the RTL, its cycles, and those that the cycle model expects."""
    with gm.open("verilator", SMALL) as device:
        made = trainer(device, (32,) * 9, 32, 8, layer_to_layer=True)
        x, y = samples((32,) * 9, 32)
        made.predict(x[:8])  # weights are in far memory, the first two layers on chip
        device.clear_counters()
        with record(device) as timeline:
            made.fit(x, y, epochs=1)
        return (layers(made, timeline), device.counters()["cycles"],
                predict([program(made)], SMALL).cycles)
