"""Schedule no-drain: minibatch SGD whose gradients are one update late, by bits."""

import numpy as np
import pytest

import gradmill as gm
from bench.pipeline_model import array_rows
from gradmill.data import epoch_order
from gradmill.forecast import forecast
from gradmill.gradient_probe import gradients
from gradmill.lowering.sets import received
from gradmill.planning import plan
from gradmill_hw.config import TILE, ConfigError
from gradmill_hw.numeric import fp32_model
from tests.test_interleave import WIDE
from tests.test_pipeline import CASES, CHAIN, ON_RTL, network


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


@pytest.mark.parametrize("options", [
    {"rounding": "stochastic"}, {"level1": "bf16"}, {"stash": gm.Stash("ubfp(4)/64")},
    {"optimizer": gm.SGD(lr=0.1)}], ids=str)
def test_options(options):
    widths, size, sub, tiles, count = CASES[1]
    stash = "stash" in options
    found = []
    for used in (1, tiles):
        with gm.open("emulator", TILE.replace(tiles=tiles, stash=stash)) as device:
            found.append(run(device, widths, size, sub, count, tiles=used, **options))
    assert_bits(found[1].model.state_dict(), found[0].model.state_dict())
    assert found[1].history == found[0].history
    if not stash:
        assert_bits(found[0].model.state_dict(), delayed(widths, size, sub, count, **options))


@pytest.mark.parametrize("predict", [False, True], ids=["late", "predicted"])
def test_evaluation_uses_the_newest_weights_and_changes_nothing(predict):
    widths, size, sub, tiles, count = CASES[1]
    x, y = samples(widths, count)
    found = []
    for every in (False, True):
        with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
            trainer = gm.Trainer(network(widths), device, optimizer=SGD, virtual_minibatch=size,
                                 sub_minibatch=sub, schedule="no-drain", predict_weights=predict)
            for _ in range(2):
                trainer.fit(x, y, epochs=1, validation_data=(x, y) if every else None)
            found.append(trainer.model.state_dict())
            outputs = trainer.predict(x)
    assert_bits(found[1], found[0])
    with gm.open("emulator", TILE) as device:
        model = network(widths)
        model.load_state_dict(found[1])
        exact = gm.Trainer(model, device, optimizer=SGD, virtual_minibatch=size, sub_minibatch=sub,
                           tiles=1)
        assert outputs.tobytes() == exact.predict(x).tobytes()


class Interrupted(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("predict", [False, True], ids=["late", "predicted"])
@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, stop, predict):
    """With a checkpoint after each of four virtual minibatches an epoch: after five, the two
    versions were made with different learning rates."""
    widths, size, sub, tiles, count = CASES[3]
    x, y = samples(widths, count)

    def on_step(trainer, batch, batches):
        if trainer.epoch * batches + batch == stop:
            raise Interrupted

    expected = delayed(widths, size, sub, count, predict=predict)
    with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
        trainer = gm.Trainer(network(widths), device, optimizer=SGD, virtual_minibatch=size,
                             sub_minibatch=sub, schedule="no-drain", predict_weights=predict)
        with pytest.raises(Interrupted):
            trainer.fit(x, y, epochs=2, checkpoint=tmp_path / "run", checkpoint_every=1,
                        on_step=on_step)
    with gm.open("emulator", TILE.replace(tiles=2)) as device:
        trainer = gm.Trainer.load(tmp_path / "run", device, tiles=2)
        assert trainer.plan.schedule.name == "no-drain" and trainer.predict_weights == predict
        trainer.resume(x, y)
        assert_bits(trainer.model.state_dict(), expected)


def test_a_run_keeps_its_kind_of_schedule(tmp_path):
    widths, size, sub, _, _ = CASES[0]
    with gm.open("emulator", TILE.replace(tiles=2)) as device:
        for schedule in ("no-drain", "1f1b"):
            gm.Trainer(network(widths), device, optimizer=SGD, virtual_minibatch=size,
                       sub_minibatch=sub, schedule=schedule).save(tmp_path / schedule)
        with pytest.raises(gm.CheckpointError, match="schedule='1f1b' would go on with other bits"):
            gm.Trainer.load(tmp_path / "no-drain", device, schedule="1f1b")
        with pytest.raises(gm.CheckpointError, match="'no-drain' would go on with other bits"):
            gm.Trainer.load(tmp_path / "1f1b", device, schedule="no-drain")


def test_what_is_refused():
    widths, size, sub, _, _ = CASES[0]
    amounts = {"virtual_minibatch": size, "sub_minibatch": sub}
    with gm.open("emulator", TILE.replace(tiles=2)) as device:
        with pytest.raises(ValueError, match="predict_weights=True with schedule='1f1b'"):
            gm.Trainer(network(widths), device, optimizer=SGD, schedule="1f1b",
                       predict_weights=True, **amounts)
        with pytest.raises(ValueError, match="predict_weights=True with momentum=0"):
            gm.Trainer(network(widths), device, optimizer=gm.SGD(lr=0.1), schedule="no-drain",
                       predict_weights=True, **amounts)
        with pytest.raises(ConfigError, match="fast_memory with schedule='no-drain'"):
            gm.Trainer(network(widths), device, optimizer=SGD, schedule="no-drain", tiles=1,
                       fast_memory="50%", **amounts)


def test_two_versions_take_more_room():
    model, tight = network((9, 24, 64, 5)), TILE.replace(tiles=3, tensor_rows=512)
    with pytest.raises(ConfigError, match=r"fit.*What fits: schedule='zero-bubble', tiles=3, "):
        plan(model, tight, schedule="no-drain", virtual_minibatch=96, sub_minibatch=8)


@pytest.mark.parametrize("room", [0, 3])
def test_sets_do_not_grow_with_the_virtual_minibatch(room, monkeypatch):
    """Even if there is room for more of them."""
    monkeypatch.setattr("gradmill.lowering.pipeline.received", lambda *order: [
        (x + room, dy + room) for x, dy in received(*order)])
    tiles, most = 3, []
    for count in (2 * tiles, 8 * tiles):
        with gm.open("emulator", TILE.replace(tiles=tiles)) as device:
            run(device, (8, 8, 8, 4), 2 * count, 2, 6 * count, epochs=1)
            most.append([device.stash(tile)[1] for tile in device.tiles])
            assert {device.stash(tile)[0] for tile in device.tiles} == {0}
    assert most[0] == most[1] == [2 * (tiles - s) for s in range(tiles)]


def predicted(tiles, count):
    """Cycles of a virtual minibatch by schedule, and those in which the busiest array takes
    rows."""
    config, model = TILE.replace(tiles=tiles), network(WIDE)
    cycles = {}
    for schedule in ("zero-bubble", "no-drain"):
        made = plan(model, config, schedule=schedule, virtual_minibatch=16 * count,
                    sub_minibatch=16)
        cycles[schedule] = forecast(made, model, config, gm.CrossEntropy(), SGD).cycles
    return cycles, count * max(map(sum, array_rows(made, model, 16, config.n)))


@pytest.mark.parametrize(("tiles", "count", "most"), [
    (2, 2, 0.9), (4, 4, 0.9), (2, 4, 0.95), (4, 8, 0.95)])
def test_it_is_faster_than_a_schedule_that_drains(tiles, count, most):
    cycles, rows = predicted(tiles, count)
    assert rows < cycles["no-drain"] < most * cycles["zero-bubble"], cycles


@pytest.mark.xfail(strict=True, reason="waits for buses and links are counted now")
@pytest.mark.parametrize(("tiles", "count", "above"), [
    (2, 2, 1.35), (4, 4, 1.22), (2, 4, 1.13), (4, 8, 1.03)])
def test_it_takes_little_more_than_the_rows_of_the_busiest_array(tiles, count, above):
    cycles, rows = predicted(tiles, count)
    assert cycles["no-drain"] < above * rows, (cycles, rows)


@pytest.mark.rtl
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_rtl_gives_the_bits_of_the_emulator(stall):
    for case in ON_RTL[::2]:
        widths, size, sub, tiles, count = CASES[case]
        found = []
        for backend in ("emulator", "verilator"):
            with gm.open(backend, CHAIN, stall=stall, watchdog=100_000) as device:
                trainer = run(device, widths, size, sub, count, predict=case > 0,
                              tiles=min(tiles, 3))
                found.append((trainer.model.state_dict(), trainer.history.train_loss,
                              [device.stash(tile) for tile in device.tiles]))
        assert_bits(found[1][0], found[0][0])
        assert found[1][1:] == found[0][1:]
