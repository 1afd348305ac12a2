"""Schedule no-drain: minibatch SGD whose gradients are one update late, by bits."""

import numpy as np
import pytest

import gradmill as gm
from gradmill.data import epoch_order
from gradmill.gradient_probe import gradients
from gradmill_hw.config import TILE
from gradmill_hw.numeric import fp32_model
from tests.test_pipeline import CASES, network


SGD = gm.SGD(lr=0.1, momentum=0.9, decay=0.5)


def multiply_add(scale, a, b):
    """``scale*a + b`` in binary32, both operations rounded as on the device."""
    return fp32_model.add_f32(fp32_model.mul_f32(np.full_like(a, scale), a), b)


def samples(widths, count):
    rng = np.random.default_rng(count)
    return (rng.normal(size=(count, widths[0])).astype(np.float32),
            rng.integers(0, widths[-1], count))


def delayed(widths, size, sub, count, *, optimizer=SGD, epochs=2, predict=False, **options):
    """Weights after SGD with gradients that are one update late. The gradients of each virtual
    minibatch are those of a schedule that drains, on one tile; versions and updates are here."""
    x, y = samples(widths, count)
    model = network(widths)
    newest = model.state_dict()
    velocity = {key: np.zeros_like(values) for key, values in newest.items()}
    used = [newest, newest]  # by the next virtual minibatch, by the one after it
    with gm.open("emulator", TILE) as device:
        probe = gm.Trainer(model, device, optimizer=gm.SGD(lr=1.0), virtual_minibatch=size,
                           sub_minibatch=sub, tiles=1, **options)
        number = 0
        for epoch in range(epochs):
            rate = np.float32(-optimizer.rate(epoch))
            order = epoch_order(0, epoch, count, shuffle=True)
            for start in range(0, count, size):
                model.load_state_dict(used[0])
                probe._parameters.upload()
                chosen = order[start:start + size]
                found, _ = gradients(probe, x[chosen], y[chosen], number=number)
                if optimizer.momentum:
                    found = {key: multiply_add(optimizer.momentum, velocity[key], grad)
                             for key, grad in found.items()}
                velocity = found
                newest = {key: multiply_add(rate, velocity[key], w) for key, w in newest.items()}
                used = [used[1], {key: multiply_add(rate, velocity[key], w)
                                  for key, w in newest.items()} if predict else newest]
                number += 1
    return newest


def run(device, widths, size, sub, count, *, optimizer=SGD, epochs=2, predict=False, **options):
    """A trained trainer of schedule no-drain."""
    x, y = samples(widths, count)
    trainer = gm.Trainer(network(widths), device, optimizer=optimizer, virtual_minibatch=size,
                         sub_minibatch=sub, schedule="no-drain", predict_weights=predict, **options)
    trainer.fit(x, y, epochs=epochs)
    return trainer


def assert_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("predict", [False, True], ids=["late", "predicted"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_it_is_sgd_with_gradients_one_update_late(case, predict):
    widths, size, sub, tiles, count = CASES[case]
    expected = delayed(widths, size, sub, count, predict=predict)
    for used in (1, tiles):
        with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
            trainer = run(device, widths, size, sub, count, predict=predict, tiles=used)
            assert_bits(trainer.model.state_dict(), expected)
