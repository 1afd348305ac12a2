"""Tables of the stash format ``nonuniform``, written at run time."""

import numpy as np
import pytest

import gradmill as gm
from gradmill_hw.config import NANO, TILE
from gradmill_hw.regs import COUNTERS
from gradmill_hw.stash.formats import SLOTS, FormatError
from gradmill_hw.stash.tables import DECODE_BITS, PRESETS, STEPS, Table
from tests import test_stash_training
from tests.golden import Golden
from tests.test_stash_training import Recall, network, samples


CODEC = TILE.replace(stash=True)
SEED = test_stash_training.SEED
WIDTHS, RELUS = (9, 33, 12, 3), (1, 0, 0)


def random_table(rng, bits):
    bins = 1 << bits
    low = np.sort(rng.choice(230, bins, replace=False))
    spread = [int(rng.integers(0, min(DECODE_BITS, int(256 - first).bit_length())))
              for first in low]
    thresholds = np.sort(rng.choice(np.arange(4, 256, 4), bins - 1, replace=False))
    return Table(tuple(thresholds.tolist()), tuple(low.tolist()), tuple(spread))


def random_stashes(rng):
    """One slot after the other, of one layer and of two, drawn or not, and presets again."""
    one, two, three = (random_table(rng, bits) for bits in (1, 2, 3))
    return [
        gm.Stash("nonuniform", table=three, block=16, pack=True, rounding="stochastic",
                 draw=True),
        gm.Stash("nonuniform-lite/64"),
        gm.Stash(layers={1: "nonuniform-aggressive/32", 2: "nonuniform-normal/16"}, draw=True,
                 tables={"aggressive": one, "normal": two}),
    ]


def train(device, stash, number):
    x, y = samples(np.random.default_rng((SEED, number)), 50, WIDTHS[0], WIDTHS[-1])
    model = network(WIDTHS, RELUS, number)
    trainer = gm.Trainer(model, device, optimizer=gm.SGD(lr=0.07, momentum=0.9), stash=stash,
                         virtual_minibatch=24, sub_minibatch=10)
    trainer.fit(x, y, epochs=1, shuffle=False)
    return trainer, x, y


def state_bytes(model):
    return {name: value.tobytes() for name, value in model.state_dict().items()}


def test_training_uses_the_tables_of_its_stash():
    """Weights are those of the golden run with the same tables, on one device."""
    rng = np.random.default_rng(SEED)
    with gm.open("emulator", CODEC, seed=SEED) as device:
        for number, stash in enumerate([*random_stashes(rng), *random_stashes(rng)]):
            fresh = network(WIDTHS, RELUS, number)
            state = fresh.state_dict()
            layers = [(state[f"{stage.index}.weight"], state[f"{stage.index}.bias"], stage.relu)
                      for stage in fresh.stages]
            golden = Golden(CODEC, layers, 0.07, 0.9, False, 10, False,
                            recall=Recall(CODEC, fresh, stash, 10))
            trainer, x, y = train(device, stash, number)
            for k in range(0, len(x), 24):
                golden.step(x[k:k + 24], y[k:k + 24])
            found = trainer.model.state_dict()
            for stage, (weight, bias, _) in zip(fresh.stages, golden.layers, strict=True):
                assert found[f"{stage.index}.weight"].tobytes() == weight.tobytes()
                assert found[f"{stage.index}.bias"].tobytes() == bias.tobytes()


@pytest.mark.rtl
def test_the_rtl_equals_the_emulator():
    """Weights and counters, one random table after the other on the same device."""
    config, found = NANO.replace(stash=True, acc_rows=2048), {}
    for backend in ("verilator", "emulator"):
        rng = np.random.default_rng(SEED)
        with gm.open(backend, config, seed=SEED) as device:
            for number, stash in enumerate(random_stashes(rng)):
                model = train(device, stash, number)[0].model
                counters = device.counters()
                found[backend, number] = state_bytes(model), {
                    c.name: counters[c.name] for c in COUNTERS if not c.timing}
    for number in range(3):
        assert found["verilator", number] == found["emulator", number]


def test_what_is_held_is_not_written_again(monkeypatch):
    table = random_table(np.random.default_rng(SEED), 2)
    with gm.open("emulator", CODEC.replace(tiles=2)) as device:
        written = []
        write = device.write_register
        monkeypatch.setattr(device, "write_register", lambda name, tile, **fields: (
            written.append((name, tile)), write(name, tile, **fields)))
        device.write_tables()
        assert not written
        device.write_tables({"normal": table})
        device.write_tables({"normal": table})
        bins = sum(1 << bits for bits in SLOTS.values())
        for tile in device.tiles:
            assert written.count(("stash_encode", tile)) == STEPS
            assert written.count(("stash_decode", tile)) == bins
            held = device.chain[tile].state.tables
            assert held["normal"].low[:4].tolist() == list(table.low)
            assert np.array_equal(held["normal"].codes, table.codes)
            assert np.array_equal(held["lite"].codes, PRESETS["lite"].codes)
        device.reset()
        assert device.chain[1].state.tables["normal"].low[:4].tolist() == list(table.low)
    with gm.open("emulator", TILE) as device:
        device.write_tables({"normal": table})  # without a codec there is nothing to write


def test_a_checkpoint_remembers_the_tables(tmp_path):
    for number, stash in enumerate(random_stashes(np.random.default_rng(SEED))):
        with gm.open("emulator", CODEC) as device:
            train(device, stash, 0)[0].save(tmp_path / str(number))
        with gm.open("emulator", CODEC) as device:
            assert gm.Trainer.load(tmp_path / str(number), device).stash == stash


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Table((64, 32, 128), (0, 1, 2, 3), (0, 0, 0, 0)), "give ascending multiples of 4"),
    (lambda: Table((32, 64, 128), (0, 2, 1, 3), (0, 0, 0, 0)), "is not monotonic"),
    (lambda: gm.Stash("nonuniform", table="wide"), "lite, normal, aggressive"),
    (lambda: gm.Stash("mx6", tables={"wide": PRESETS["lite"]}), "slot 'wide'"),
    (lambda: gm.Stash("nonuniform-lite", tables={"lite": PRESETS["normal"]}), "2 bits"),
    (lambda: gm.Stash("nonuniform-lite", tables={"lite": (1, 2)}), "give a Table"),
    (lambda: gm.codec.fit_table(np.ones(64), 2), "float64"),
    (lambda: gm.codec.fit_table(np.float32([1, np.nan]), 2), "finite"),
    (lambda: gm.codec.fit_table(np.float32([1, 2]), 4), "1 to 3 bits"),
])
def test_bad_tables_are_refused(make, words):
    with pytest.raises(FormatError, match=words):
        make()
