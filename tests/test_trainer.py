"""Training on the emulator against :mod:`tests.golden`, by bits, and what the trainer refuses."""

import numpy as np
import pytest

import gradmill as gm
from gradmill.datasets import load_task
from gradmill_hw.config import NANO, TILE
from tests.golden import Golden


CONFIGS = {"nano": NANO, "nano6": NANO.replace(mantissa_bits=6, acc_rows=2048), "sim": TILE}

#: config, widths, relu and bias of each layer, B, M, samples, level 1, momentum, loss, scale of x
CASES = [
    ("sim", (8, 8), (0,), (1,), 8, 8, 24, "fp32", 0.9, "ce", 1),
    ("sim", (13, 19, 5), (1, 0), (1, 1), 16, 4, 48, "fp32", 0.9, "ce", 1),
    ("sim", (9, 17, 11, 3), (1, 1, 0), (1, 0, 1), 40, 4, 130, "bf16", 0.5, "ce", 1),
    ("sim", (9, 17, 11, 3), (1, 0, 0), (0, 1, 0), 40, 4, 120, "fp32", 0.0, "mse", 1),
    ("sim", (20, 10), (0,), (0,), 11, 1, 30, "bf16", 0.9, "ce", 1),
    ("sim", (7, 12, 10), (1, 0), (1, 1), 37, 5, 100, "fp32", 0.9, "ce", 1),
    ("sim", (7, 12, 10), (0, 0), (1, 1), 38, 3, 100, "bf16", 0.9, "mse", 1),
    ("sim", (24, 33, 16), (1, 0), (0, 0), 30, 30, 75, "fp32", 0.9, "ce", 1),
    ("sim", (5, 150, 2), (1, 0), (1, 1), 20, 6, 60, "fp32", 0.9, "ce", 1),
    ("sim", (200, 9, 4), (1, 0), (1, 1), 18, 9, 50, "bf16", 0.9, "ce", 1e-19),
    ("sim", (16, 140, 17), (1, 0), (1, 1), 64, 7, 130, "fp32", 0.9, "ce", 100),
    ("sim", (10, 10, 1), (1, 0), (1, 1), 17, 2, 51, "fp32", 0.3, "mse", 30),
    ("nano", (4, 3), (0,), (1,), 8, 4, 24, "fp32", 0.9, "ce", 1),
    ("nano", (5, 7, 3), (1, 0), (1, 1), 24, 3, 75, "bf16", 0.9, "ce", 1),
    ("nano", (6, 6, 5, 2), (1, 1, 0), (1, 1, 1), 23, 2, 70, "fp32", 0.9, "ce", 1),
    ("nano", (3, 9, 6), (0, 0), (0, 1), 5, 5, 23, "bf16", 0.0, "mse", 1),
    ("nano", (1, 1), (0,), (1,), 9, 1, 27, "fp32", 0.9, "mse", 1),
    ("nano", (9, 5), (0,), (1,), 32, 2, 80, "fp32", 0.0, "ce", 1),
    ("nano6", (15, 30, 7), (1, 0), (1, 1), 33, 4, 99, "bf16", 0.9, "ce", 1),
    ("nano6", (6, 21, 10, 10), (0, 1, 0), (1, 1, 0), 29, 13, 87, "fp32", 0.7, "mse", 1),
]


def _network(widths, relus, biases, seed):
    layers = []
    for inputs, outputs, relu, bias in zip(widths, widths[1:], relus, biases, strict=False):
        layers += [gm.Linear(inputs, outputs, bias=bool(bias))] + [gm.ReLU()] * relu
    return gm.Sequential(*layers, seed=seed)


def _samples(rng, count, inputs, outputs, mse, scale):
    x = (scale * rng.normal(size=(count, inputs))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    if mse:
        return x, rng.normal(size=(count, outputs)).astype(np.float32)
    return x, rng.integers(0, outputs, count)


def _golden(config, model, optimizer, mse, sub, level1):
    state = model.state_dict()
    layers = [(state[f"{stage.index}.weight"], state.get(f"{stage.index}.bias"), stage.relu)
              for stage in model.stages]
    return Golden(config, layers, optimizer.lr, optimizer.momentum, mse, sub, level1 == "bf16")


def _state(golden, model):
    found = {}
    for stage, (weight, bias, _) in zip(model.stages, golden.layers, strict=True):
        found[f"{stage.index}.weight"] = weight
        if bias is not None:
            found[f"{stage.index}.bias"] = bias
    return found


def _assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        different = found[name].view(np.uint32) != expected[name].view(np.uint32)
        assert not different.any(), f"{name} differs at {np.argwhere(different)[:5].tolist()}"


@pytest.mark.parametrize("case", range(len(CASES)))
def test_weights_and_losses_equal_the_golden_run(case):
    (name, widths, relus, biases, size, sub, count, level1, momentum, loss,
     scale) = CASES[case]
    config, mse = CONFIGS[name], loss == "mse"
    rng = np.random.default_rng((77, case))
    x, y = _samples(rng, count, widths[0], widths[-1], mse, scale)
    model, optimizer = _network(widths, relus, biases, case), gm.SGD(lr=0.07, momentum=momentum)
    golden = _golden(config, model, optimizer, mse, sub, level1)
    with gm.open("emulator", config, near_bytes=1 << 22) as device:
        trainer = gm.Trainer(model, device, loss=gm.MSE() if mse else gm.CrossEntropy(),
                             optimizer=optimizer, virtual_minibatch=size, sub_minibatch=sub,
                             level1=level1, seed=case)
        assert device.counters()["macs"] == 0
        history = trainer.fit(x, y, epochs=1, shuffle=False)
    batches = [slice(start, start + size) for start in range(0, count, size)]
    assert len(batches) >= 3
    losses = [(len(x[batch]), golden.step(x[batch], y[batch])) for batch in batches]
    _assert_equal(model.state_dict(), _state(golden, model))
    assert history.train_loss == [sum(n * value for n, value in losses) / count]


def test_every_epoch_has_an_order_of_samples_and_a_learning_rate_of_its_own():
    rng = np.random.default_rng(5)
    x, y = _samples(rng, 21, 6, 3, False, 1)
    model, optimizer = _network((6, 3), (0,), (1,), 5), gm.SGD(lr=0.1, decay=0.7)
    golden = _golden(TILE, model, optimizer, False, 4, "fp32")
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer(model, device, optimizer=optimizer, virtual_minibatch=8,
                             sub_minibatch=4, seed=9)
        trainer.fit(x, y, epochs=2)
    assert repr(trainer) == "<Trainer: 6-3 on 1 tile, B = 8, M = 4, at epoch 2, step 0>"
    for epoch in range(2):
        golden.lr = 0.1 * 0.7 ** epoch
        order = np.random.default_rng((9, epoch)).permutation(21)
        for start in range(0, 21, 8):
            golden.step(x[order[start:start + 8]], y[order[start:start + 8]])
    _assert_equal(model.state_dict(), _state(golden, model))


def test_prediction_equals_the_golden_forward_pass():
    rng = np.random.default_rng(6)
    model = _network((11, 14, 5), (1, 0), (1, 1), 6)
    golden = _golden(TILE, model, gm.SGD(lr=1), True, 4, "fp32")
    x = rng.normal(size=(43, 11)).astype(np.float32)
    outputs = []
    golden._mse = lambda z, t, batch: (outputs.append(z), (z, np.float32(0)))[1]
    for start in range(0, 43, 4):
        golden._sub_minibatch(x[start:start + 4], np.zeros((4, 5), np.float32), 4, start // 4)
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer(model, device, optimizer=gm.SGD(lr=1), virtual_minibatch=8,
                             sub_minibatch=4)
        found = trainer.predict(x)
        first = trainer.predict(x[:8])
    assert found.tobytes() == np.concatenate(outputs).tobytes()
    assert first.tobytes() == found[:8].tobytes()


def test_two_trainers_share_a_device():
    rng = np.random.default_rng(8)
    x, y = _samples(rng, 30, 6, 3, False, 1)

    def trainer(device, seed):
        return gm.Trainer(_network((6, 9, 3), (1, 0), (1, 1), seed), device,
                          optimizer=gm.SGD(lr=0.1, momentum=0.9), virtual_minibatch=10,
                          sub_minibatch=5)

    with gm.open("emulator", TILE) as device:
        pair = [trainer(device, seed) for seed in (1, 2)]
        for _ in range(2):
            for each in pair:
                each.fit(x, y, epochs=1)
    for seed, each in zip((1, 2), pair, strict=True):
        with gm.open("emulator", TILE) as device:
            alone = trainer(device, seed)
            alone.fit(x, y, epochs=2)
        _assert_equal(each.model.state_dict(), alone.model.state_dict())


def test_digits_are_learned():
    job = load_task("digits")
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer(job.model, device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                             virtual_minibatch=64, sub_minibatch=64)
        history = trainer.fit(job.x, job.y, epochs=2)
        found = trainer.evaluate(job.x_test, job.y_test)
    assert history.train_loss[1] < history.train_loss[0] / 2
    assert found["accuracy"] > 0.8 and found["loss"] < 1


# What crosses the host link ---------------------------------------------------------------------

def _traffic(size, monkeypatch):
    """Host bytes, register writes and starts of the second of two epochs of three virtual
    minibatches of ``size`` each; all host bytes and counters of both."""
    rng = np.random.default_rng(3)
    x, y = _samples(rng, 3 * size, 10, 4, False, 1)
    bytes_at, words_at, writes, starts = [], [], [], []
    with gm.open("emulator", TILE) as device:
        trainer = gm.Trainer(_network((10, 12, 4), (1, 0), (1, 1), 0), device,
                             optimizer=gm.SGD(lr=0.1, momentum=0.9), virtual_minibatch=size,
                             sub_minibatch=4)
        write_register = device.write_register

        def watch(name, tile=0, **fields):
            writes.append(name)
            starts.append(fields.get("start", 0))
            write_register(name, tile, **fields)

        monkeypatch.setattr(device, "write_register", watch)

        def on_step(*_):
            bytes_at.append(device.host_bytes())
            words_at.append((len(writes), sum(starts)))

        trainer.fit(x, y, epochs=2, on_step=on_step)
        counters = device.counters()
    moved = {name: bytes_at[5][name] - bytes_at[2][name] for name in bytes_at[0]}
    words = tuple(b - a for a, b in zip(words_at[2], words_at[5], strict=True))
    return moved, words, bytes_at[5], counters


def test_host_work_does_not_grow_with_the_virtual_minibatch(monkeypatch):
    small, large = (_traffic(size, monkeypatch) for size in (8, 128))
    assert small[1] == large[1] and small[1][1] == 1, "one doorbell"
    fed = {"host_write_data_bytes", "host_write_mask_bytes"}
    assert {name: n for name, n in small[0].items() if name not in fed} == \
        {name: n for name, n in large[0].items() if name not in fed}
    assert small[0]["host_read_result_bytes"] == 3 * 32, "three losses, a row each"
    for name in small[2]:
        if name not in ("host_write_data_bytes", "host_write_mask_bytes",
                        "host_write_command_bytes"):
            assert small[2][name] == large[2][name], name


def test_no_gradient_leaves_the_tile(monkeypatch):
    _, _, host, counters = _traffic(16, monkeypatch)
    assert {host[name] for name in host if "gradient" in name} == {0}
    assert {counters[name] for name in counters if "gradient" in name} == {0}


# Why two levels ---------------------------------------------------------------------------------

def _gradient(sub, level1):
    """Gradient of one weight over 4096 samples whose gradients have the same sign, and what it
    should be."""
    count = 4096
    config = NANO.replace(acc_rows=1 << 16, tensor_rows=1 << 14, mask_rows=1 << 13)
    target = np.random.default_rng(2).uniform(-1.9, -1.1, (count, 1)).astype(np.float32)
    model = gm.Sequential(gm.Linear(1, 1, bias=False))
    model.load_state_dict({"0.weight": np.zeros((1, 1), np.float32)})
    with gm.open("emulator", config) as device:
        trainer = gm.Trainer(model, device, loss=gm.MSE(), optimizer=gm.SGD(lr=1.0),
                             virtual_minibatch=count, sub_minibatch=sub, level1=level1)
        trainer.fit(np.ones((count, 1), np.float32), target, epochs=1)
    return -float(model.state_dict()["0.weight"][0, 0]), -2 * target.mean(dtype=np.float64)


def test_level_two_keeps_what_bfloat16_alone_loses():
    lost, exact = _gradient(4096, "bf16")
    assert 0 < lost < exact / 2
    kept, exact = _gradient(64, "bf16")
    assert abs(kept / exact - 1) < 0.002
    wide, exact = _gradient(4096, "fp32")
    assert abs(wide / exact - 1) < 0.0005
