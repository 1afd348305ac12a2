"""What a trainer refuses, and in which words."""

import numpy as np
import pytest

import gradmill as gm
from gradmill_hw.config import TILE, ConfigError
from tests.test_trainer import _assert_equal, _network


def _trainer(device, /, **changes):
    settings = {"model": _network((6, 4, 3), (1, 0), (1, 1), 0), "optimizer": gm.SGD(lr=0.1),
                "virtual_minibatch": 8, "sub_minibatch": 4, "device": device, **changes}
    return gm.Trainer(**settings)


@pytest.mark.parametrize(("changes", "words"), [
    ({"virtual_minibatch": 0}, "virtual_minibatch=0.*at least 1"),
    ({"virtual_minibatch": 8.0}, "virtual_minibatch=8.0.*integer"),
    ({"virtual_minibatch": True}, "virtual_minibatch=True"),
    ({"sub_minibatch": 0}, "sub_minibatch=0.*at least 1"),
    ({"sub_minibatch": -4}, "sub_minibatch=-4"),
    ({"sub_minibatch": 9}, "sub_minibatch=9 is larger than virtual_minibatch=8"),
    ({"level1": "fp16"}, "level1='fp16'.*fp32, bf16"),
    ({"loss": "mse"}, "loss='mse'.*CrossEntropy"),
    ({"optimizer": 0.1}, "optimizer=0.1.*SGD"),
    ({"model": gm.Sequential(gm.Linear(6, 3), gm.ReLU())}, "last layer is a Linear"),
    ({"model": [gm.Linear(6, 3)]}, "must be a Sequential"),
    ({"device": "emulator"}, r"device='emulator'; open one: gm.open\('emulator'\)"),
    ({"seed": "a"}, "seed='a'; give an integer of at least 0"),
    ({"seed": -1}, "seed=-1; give an integer of at least 0"),
    ({"predict_weights": True}, "predict_weights=True with schedule=None.*only 'no-drain'.*leave"),
    ({"layer_to_layer": True, "stash": gm.Stash("mx6")}, "^stash with layer_to_layer=True: "),
    ({"layer_to_layer": True, "fast_memory": "20%"}, "^fast_memory='20%' with layer_to_layer"),
    ({"virtual_minibatch": 10**7}, "10000000: .* takes .* bytes, near memory has .*; use at most"),
])
def test_bad_settings_are_refused(changes, words):
    with gm.open("emulator", TILE) as device, pytest.raises(ValueError, match=words):
        _trainer(device, **changes)


def _x(**changes):
    x = np.zeros((20, 6), np.float32)
    for place, value in changes.get("at", {}).items():
        x[place] = value
    return x


Y = np.arange(20) % 3


@pytest.mark.parametrize(("x", "y", "words"), [
    (_x().astype(np.float64), Y, "x has dtype float64; pass float32"),
    (_x()[:, :5], Y, r"x has shape \(20, 5\).*\(samples, 6\)"),
    (_x()[0], Y, r"x has shape \(6,\)"),
    (_x()[:0], Y[:0], "at least one sample"),
    (_x(at={(3, 2): np.nan}), Y, r"x\[3, 2\] is nan"),
    (_x(at={(19, 5): -np.inf}), Y, r"x\[19, 5\] is -inf"),
    (_x(), Y[:19], r"y is int64 \(19,\).*\(20,\)"),
    (_x(), Y.astype(np.float32), "integer labels"),
    (_x(), Y[:, None], "integer labels of shape"),
    (_x(), Y + 1, "labels 1 to 3; the network has outputs 0 to 2"),
    (_x(), Y - 1, "labels -1 to 1"),
])
def test_bad_samples_are_refused(x, y, words):
    with gm.open("emulator", TILE) as device:
        trainer = _trainer(device)
        before = trainer.model.state_dict()
        with pytest.raises(ValueError, match=words):
            trainer.fit(x, y, epochs=1)
        with pytest.raises(ValueError, match=f"^validation_data: .*{words}"):
            trainer.fit(_x(), Y, epochs=1, validation_data=(x, y))
        with pytest.raises(ValueError):
            trainer.evaluate(x, y)
        assert device.counters()["macs"] == 0
        _assert_equal(trainer.model.state_dict(), before)


@pytest.mark.parametrize(("target", "words"), [
    (np.zeros((20, 2), np.float32), r"MSE takes float32 \(20, 3\)"),
    (np.zeros((20, 3)), "y is float64"),
    (np.full((20, 3), np.nan, np.float32), r"y\[0, 0\] is nan"),
])
def test_bad_targets_are_refused(target, words):
    with gm.open("emulator", TILE) as device:
        trainer = _trainer(device, loss=gm.MSE())
        with pytest.raises(ValueError, match=words):
            trainer.fit(_x(), target, epochs=1)


@pytest.mark.parametrize("call", [
    lambda trainer: trainer.fit(_x(), Y, epochs=0),
    lambda trainer: trainer.fit(_x(), Y, epochs=1, checkpoint_every=0),
])
def test_bad_lengths_are_refused(call):
    with gm.open("emulator", TILE) as device, pytest.raises(ValueError, match="at least 1"):
        call(_trainer(device))


@pytest.mark.parametrize(("options", "words"), [
    ({"validation_data": _x()}, r"^validation_data: give a pair \(x, y\), not ndarray"),
    ({"validation_data": (_x(), Y, Y)}, "^validation_data: give a pair"),
    ({"checkpoint_every": 1}, "^checkpoint_every=1 without checkpoint: say where"),
])
def test_bad_options_of_fit_are_refused(options, words):
    with gm.open("emulator", TILE) as device, pytest.raises(ValueError, match=words):
        _trainer(device).fit(_x(), Y, epochs=1, **options)


def test_a_virtual_minibatch_larger_than_the_data_is_said_to_be_cut():
    losses = []
    with gm.open("emulator", TILE) as device:
        for size in (20, 64):
            trainer = _trainer(device, virtual_minibatch=size)
            if size > 20:
                with pytest.warns(UserWarning, match="virtual_minibatch=64, but there are 20 samp"):
                    trainer.fit(_x(), Y, epochs=1)
            else:
                trainer.fit(_x(), Y, epochs=1)
            losses.append(trainer.history.train_loss)
    assert losses[0] == losses[1]


def test_samples_that_overflow_are_named_in_the_warning():
    with gm.open("emulator", TILE) as device, \
            pytest.warns(RuntimeWarning, match="lower the learning rate.*samples.*1e\\+37"):
        _trainer(device).fit(np.full((20, 6), 1e37, np.float32), Y, epochs=1)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: gm.Linear(0, 3), "inputs=0"),
    (lambda: gm.Linear(3, 1 << 16), "outputs=65536"),
    (lambda: gm.Linear(3, 2.0), "outputs=2.0"),
    (lambda: gm.SGD(lr=0), "lr=0"),
    (lambda: gm.SGD(lr=float("nan")), "lr=nan"),
    (lambda: gm.SGD(lr="0.1"), "lr='0.1'; give a positive finite number"),
    (lambda: gm.SGD(lr=1, momentum="0"), "momentum='0'; give 0 <= momentum < 1"),
    (lambda: gm.SGD(lr=1, decay=None), "decay=None; give 0 < decay <= 1"),
    (lambda: gm.SGD(lr=1, momentum=1), "momentum=1"),
    (lambda: gm.SGD(lr=1, decay=0), "decay=0; give 0 < decay <= 1"),
    (lambda: gm.SGD(lr=1, decay=1.5), "decay=1.5"),
    (lambda: gm.Sequential(), "first layer must be a Linear"),
    (lambda: gm.Sequential(gm.ReLU()), "first layer must be a Linear"),
    (lambda: gm.Sequential(gm.Linear(2, 3), gm.Linear(4, 5)), "takes 4 inputs.*gives 3"),
    (lambda: gm.Sequential(gm.Linear(2, 3), gm.ReLU(), gm.ReLU()), "must follow a Linear"),
    (lambda: gm.Sequential(gm.Linear(2, 3), "relu"), "use Linear or ReLU"),
    (lambda: gm.Sequential(gm.Linear(2, 3)).load_state_dict({}), "the model needs"),
    (lambda: gm.Sequential(gm.Linear(2, 3)).load_state_dict(
        {"0.weight": np.zeros((2, 3), np.float32), "0.bias": np.zeros(3, np.float32)}),
     r"0.weight: got float32 \(2, 3\).*\(3, 2\)"),
])
def test_bad_networks_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(("widths", "settings", "words"), [
    ((2000, 2000), {}, "tensor memory has .* weight 0 needs .*sub_minibatch or network"),
    ((6, 3), {"virtual_minibatch": 3000, "sub_minibatch": 3000}, "needs 3000.*sub_minibatch"),
])
def test_networks_beyond_the_memories_are_refused(widths, settings, words):
    with gm.open("emulator", TILE) as device, pytest.raises(ConfigError, match=words):
        _trainer(device, model=_network(widths, (0,), (1,), 0), **settings)


def test_what_does_not_fit_names_layer_to_layer_and_few_places():
    widths = (6, *[40] * 24, 3)
    with gm.open("emulator", TILE) as device:
        with pytest.raises(ConfigError) as caught:
            _trainer(device, model=_network(widths, (1,) * 24 + (0,), (1,) * 25, 0))
        text = str(caught.value)
        assert "layer_to_layer=True" in text and "more tiles" in text
        assert len(text) < 700 and " and " in text and "more" in text
        with pytest.raises(ConfigError) as caught:
            _trainer(device, model=_network((6, 2000, 3), (1, 0), (1, 1), 0), layer_to_layer=True)
        assert "layer_to_layer" not in str(caught.value)


def test_near_memory_that_is_too_small_is_refused():
    with gm.open("emulator", TILE, near_bytes=8192) as device, \
            pytest.raises(ConfigError, match="larger near_bytes"):
        _trainer(device)
