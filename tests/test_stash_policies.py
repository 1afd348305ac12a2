"""Policies that choose and change stash formats: scripted metrics, measurements, checkpoints."""

from itertools import pairwise

import numpy as np
import pytest

import gradmill as gm
from gradmill.checkpoint import read_checkpoint
from gradmill.stash.adaptive import AdaptiveState
from gradmill.stash.auto import Measured
from gradmill.stash.control import StashControl, describe_policy, policy_from_description
from gradmill_hw.config import TILE, ConfigError
from gradmill_hw.regs import COUNTERS
from gradmill_hw.stash.formats import Format
from tests.golden import Golden


CODEC = TILE.replace(stash=True)
LADDER = ["ubfp(1)/128", "ubfp(2)/64", "mx6/32"]
SEED = 5


def network(widths=(9, 20, 12, 3), relu=True, seed=3):
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [gm.Linear(inputs, outputs)] + [gm.ReLU()] * relu
    return gm.Sequential(*(layers[:-1] if relu else layers), seed=seed)


def samples(count=40, inputs=9, classes=3):
    rng = np.random.default_rng(2)
    return rng.normal(size=(count, inputs)).astype(np.float32), rng.integers(0, classes, count)


def trainer(device, stash, **options):
    """4 virtual minibatches an epoch of 40 samples, the last one short."""
    return gm.Trainer(network(), device, optimizer=gm.SGD(lr=0.1, momentum=0.9), stash=stash,
                      **{"virtual_minibatch": 12, "sub_minibatch": 5, "seed": 4, **options})


# adaptive: the rule ---------------------------------------------------------------------------

#: policy, metrics of the windows -> numbers of the windows after which formats widen
SCRIPTS = [
    ({}, [1, .9, .8, .7, .6], []),
    ({}, [1, 1, 1, 1, 1, 1, 1, 1], [2, 5]),                     # the one after a switch settles
    ({"settle": 0}, [1, 1, 1, 1, 1, 1], [2, 4]),
    ({"settle": 3}, [1, 1, 1, 1, 1, 1, 1, 1], [2, 7]),
    ({"patience": 1}, [1, 1, 1, 1, 1], [1, 3]),
    ({"patience": 1}, [1, .995, .99, .985, .98], [1, 3]),       # each against the best before it
    ({}, [1, .98, .965, .955, .951], []),                       # between the thresholds: no stall
    ({}, [1, .995, .98, .979, .978], [3]),                      # ... and no progress either
    ({}, [1, .995, .95, .949, .948], [4]),                      # progress clears the count
    ({}, [1, 2, 1.5, 1.2], [2]),                                # best counts, not the last
    ({"settle": 1, "patience": 1}, [1, 1, .5, .5, .5], [1, 3]),  # best is kept while it settles
    ({}, [0, 0, 0, 0], [2]),
    ({"stall": 0.2, "recover": 0.3}, [1, .9, .8, .7, .4], [2]),
]


@pytest.mark.parametrize(("options", "metrics", "expected"), SCRIPTS)
def test_a_scripted_metric_switches_exactly_when_it_should(options, metrics, expected):
    policy, state = gm.AdaptiveStash(LADDER, **options), AdaptiveState()
    found = [k for k, metric in enumerate(metrics) if policy.judge(state, metric, len(LADDER))]
    assert found == expected
    assert state.rung == len(expected) and state.best == min(metrics)


# adaptive: training ---------------------------------------------------------------------------

def _scripted(monkeypatch, losses):
    """Training reports ``losses``, one for each virtual minibatch."""
    script = iter(losses)
    original = StashControl.trained

    def trained(self, batch, batches, number, size, loss):
        original(self, batch, batches, number, size, next(script))

    monkeypatch.setattr(StashControl, "trained", trained)


def test_training_switches_where_the_script_says(monkeypatch):
    _scripted(monkeypatch, [1.0] * 20)
    policy = gm.AdaptiveStash(LADDER, interval=2, settle=1)
    with gm.open("emulator", CODEC, seed=SEED) as device:
        run = trainer(device, policy)
        run.fit(*samples(), epochs=5)
    # Windows end after 2, 4, 6, ... virtual minibatches: stalls in 4 and 6, 8 settles, 10 and 12.
    assert [entry["virtual_minibatch"] for entry in run.stashing.switches] == [0, 6, 12]
    assert [entry["formats"]["1"] for entry in run.stashing.switches] == LADDER
    assert [entry[0] for entry in run.stashing.bits] == [k for k in range(2, 21) if k % 4 != 1
                                                         and (k % 2 == 0 or k % 4 == 3)]
    n = CODEC.n
    for number, values, stored in run.stashing.bits:
        rung = 0 if number <= 6 else 1 if number <= 12 else 2
        assert 8 * stored / values >= (1, 2, 6)[rung]
        assert values % n == 0 and values > 0


def test_a_window_of_an_epoch_is_weighted_by_samples(monkeypatch):
    seen = []
    monkeypatch.setattr(gm.AdaptiveStash, "judge", lambda self, state, metric, rungs:
                        seen.append(metric))
    _scripted(monkeypatch, [1.0, 2.0, 3.0, 5.0])
    with gm.open("emulator", CODEC) as device:
        trainer(device, gm.AdaptiveStash(LADDER)).fit(*samples(), epochs=1)
    assert seen == [(12 * 1 + 12 * 2 + 12 * 3 + 4 * 5) / 40]


def test_accuracy_is_judged_after_each_epoch():
    x, y = samples()
    policy = gm.AdaptiveStash(LADDER, metric="accuracy", patience=1, settle=0, stall=0.99,
                              recover=0.99)
    with gm.open("emulator", CODEC) as device:
        run = trainer(device, policy)
        run.fit(x, y, epochs=3, validation_data=(x, y))
        assert [entry["virtual_minibatch"] for entry in run.stashing.switches] == [0, 8, 12]
        with pytest.raises(ValueError, match="needs validation_data"):
            trainer(device, policy).fit(x, y, epochs=1)


class _Adapting:
    """Weights of a run whose formats widen after ``switches`` virtual minibatches."""

    def __init__(self, switches, recalls):
        self.switches, self.recalls = switches, recalls

    def __call__(self, s, pair, batch, sub_minibatch):
        rung = sum(batch >= number for number in self.switches)
        return self.recalls[rung](s, pair, batch, sub_minibatch)


def test_weights_equal_the_golden_run_across_switches(monkeypatch):
    from tests.test_stash_training import Recall

    _scripted(monkeypatch, [1.0] * 9)
    x, y = samples(36)
    policy = gm.AdaptiveStash(LADDER, interval=1, settle=0, layers={2: ["mask+bfp(2)/16", "mx9"]})
    model = network()
    state = model.state_dict()
    layers = [(state[f"{stage.index}.weight"], state[f"{stage.index}.bias"], stage.relu)
              for stage in model.stages]
    recalls = [Recall(CODEC, model, stash, 5) for stash in policy.rungs(model.stages)]
    golden = Golden(CODEC, layers, 0.1, 0.9, False, 5, False, recall=_Adapting((3, 5), recalls))
    for _ in range(3):
        for k in range(0, 36, 12):
            golden.step(x[k:k + 12], y[k:k + 12])
    with gm.open("emulator", CODEC, seed=SEED) as device:
        run = trainer(device, policy)
        run.fit(x, y, epochs=3, shuffle=False)
    assert [entry["virtual_minibatch"] for entry in run.stashing.switches] == [0, 3, 5]
    for stage, (weight, bias, _) in zip(run.model.stages, golden.layers, strict=True):
        found = run.model.state_dict()
        assert found[f"{stage.index}.weight"].tobytes() == weight.tobytes()
        assert found[f"{stage.index}.bias"].tobytes() == bias.tobytes()


def test_programs_are_compiled_once_for_each_combination(monkeypatch):
    _scripted(monkeypatch, [1.0] * 40)
    with gm.open("emulator", CODEC) as device:
        run = trainer(device, gm.AdaptiveStash(LADDER, patience=1, settle=0))
        run.fit(*samples(), epochs=4)
        names = sorted(str(key[3].formats(run.model.stages, CODEC)[1])
                       for key in run._programs if key[0] == "train" and key[1] == 12)
        assert names == sorted(LADDER)
        before = list(run._programs)
        run.fit(*samples(), epochs=2)
        assert list(run._programs) == before


@pytest.mark.parametrize("schedule", ["zero-bubble", "no-drain"])
def test_several_tiles_switch_like_one(schedule):
    x, y = samples()
    for policy in (gm.AdaptiveStash(LADDER, interval=2, stall=0.9, recover=0.9),
                   gm.AutoStash(LADDER[1:], every=2)):
        found = []
        for tiles in (1, 3):
            with gm.open("emulator", CODEC.replace(tiles=tiles), seed=SEED) as device:
                run = trainer(device, policy, schedule=schedule)
                run.fit(x, y, epochs=3)
                found.append(({name: value.tobytes()
                               for name, value in run.model.state_dict().items()},
                              run.stashing.state()))
        assert found[0] == found[1]
        assert len(found[0][1]["switches"]) > 1


def test_layers_with_short_lists_stay_with_their_last_format():
    stages = network().stages
    first, last = gm.AdaptiveStash(LADDER[1:], layers={2: ["mx4"]}).rungs(stages)
    assert first.formats(stages, CODEC) == {1: Format("ubfp", 2), 2: Format("mx4")}
    assert last.formats(stages, CODEC) == {1: Format("mx6", block=32), 2: Format("mx4")}
    (kept,) = gm.AdaptiveStash(LADDER, layers={2: ["mx4"], 1: None}).rungs(stages)
    assert kept.formats(stages, CODEC) == {2: Format("mx4")}
    mixed = gm.AdaptiveStash().rungs(network(relu=False).stages)
    assert all(entry.kind.signed for stash in mixed
               for entry in stash.formats(network(relu=False).stages, CODEC).values())


# auto -----------------------------------------------------------------------------------------

def _measured(layer, text, error, bits):
    return Measured(layer, Format.parse(text), error, 1.0, bits)


def test_fewest_bytes_among_the_good_are_chosen():
    found = [_measured(1, "mx4", 0.5, 4.2), _measured(1, "mx6", 0.2, 6.2),
             _measured(1, "mx9", 0.01, 9.2), _measured(2, "mx4", 0.3, 4.2),
             _measured(2, "mask/64", 0.29, 4.2), _measured(2, "mx6", 0.1, 6.2),
             _measured(3, "mx4", 0.9, 4.2), _measured(3, "mx6", 0.7, 6.2)]
    chosen = dict(gm.AutoStash(error=0.3).choose(found).layers)
    assert {s: str(entry) for s, entry in chosen.items()} == {
        1: "mx6/64", 2: "mask/64", 3: "mx6/64"}


def test_gradients_are_those_of_the_golden_run_and_change_nothing():
    from tests.test_stash_training import Recall

    x, y = samples(12)
    for stash in (None, gm.Stash("mx4/32"), gm.Stash(layers={2: "ubfp(1)/128"},
                                                     rounding="stochastic")):
        with gm.open("emulator", CODEC, seed=SEED) as device:
            run = trainer(device, None)
            before = run.model.state_dict()
            found, bits = gm.gradients(run, x, y, stash=stash)
            run.fit(x, y, epochs=1, shuffle=False)
            trained = run.model.state_dict()
        with gm.open("emulator", CODEC, seed=SEED) as device:
            plain = trainer(device, None)
            plain.fit(x, y, epochs=1, shuffle=False)
        for name, value in plain.model.state_dict().items():
            assert value.tobytes() == trained[name].tobytes()
        layers = [(before[f"{stage.index}.weight"], before[f"{stage.index}.bias"], stage.relu)
                  for stage in run.model.stages]
        recall = stash and Recall(CODEC, run.model, stash, 5)
        golden = Golden(CODEC, layers, 1, 0.5, False, 5, False, recall=recall)
        golden.step(x, y)
        for stage, (weight, bias) in zip(run.model.stages, golden.velocity, strict=True):
            assert found[f"{stage.index}.weight"].tobytes() == weight.tobytes()
            assert found[f"{stage.index}.bias"].tobytes() == bias.tobytes()
        assert (bits is None) == (stash is None)


def test_auto_measures_on_the_device_and_trains_with_its_choice():
    x, y = samples()
    policy = gm.AutoStash(["ubfp(1)/128", "mx4", "mx9"], error=0.1, every=2)
    with gm.open("emulator", CODEC, seed=SEED) as device:
        run = trainer(device, policy)
        run.fit(x, y, epochs=3, shuffle=False)
        control = run.stashing
        assert [entry["virtual_minibatch"] for entry in control.switches] == [0, 8]
        assert len(control.measured) == 2 * 2 * 3
        first = control.measured[:6]
        assert [(entry["layer"], entry["format"]) for entry in first] == [
            (s, name) for s in (1, 2) for name in ("ubfp(1)/128", "mx4/64", "mx9/64")]
        errors = [entry["error"] for entry in first]
        assert errors[0] > errors[1] > errors[2] and errors[3] > errors[4] > errors[5]
        for s, formats in control.switches[0]["formats"].items():
            good = [entry for entry in first if entry["layer"] == int(s)
                    and entry["error"] <= 0.1]
            assert formats == min(good, key=lambda entry: entry["bits"])["format"]
        assert sum(1 for key in run._programs if key[0] == "gradients") == 1 + 6
        assert [entry[0] for entry in control.bits][-1] == 12
        assert describe_policy(policy_from_description(describe_policy(policy))) \
            == describe_policy(policy)


# checkpoints ----------------------------------------------------------------------------------

class Interrupted(Exception):
    """Raised by a test in the middle of a run."""


def _run(path, policy, stop=None):
    x, y = samples()
    steps = []

    def on_step(*_):
        steps.append(1)
        if len(steps) == stop:
            raise Interrupted

    with gm.open("emulator", CODEC, seed=SEED) as device:
        run = trainer(device, policy)
        run.fit(x, y, epochs=5, validation_data=(x[:9], y[:9]), checkpoint=path,
                checkpoint_every=1, on_step=on_step)
        return read_checkpoint(path)


@pytest.mark.parametrize("policy", [
    gm.AdaptiveStash(LADDER, interval=3, stall=0.5, recover=0.5, settle=1),
    gm.AdaptiveStash(LADDER, metric="accuracy", stall=0.5, recover=0.6),
    gm.AutoStash(LADDER[1:], error=0.4, every=3),
    gm.Stash("mx4", layers={2: "ubfp(2)/16"}, rounding="stochastic"),
])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, policy):
    x, y = samples()
    expected = _run(tmp_path / "whole", policy)
    if not isinstance(policy, gm.Stash):
        assert len(expected[1]["stashing"]["switches"]) > 1
    for stop in (3, 6, 14):
        with pytest.raises(Interrupted):
            _run(tmp_path / str(stop), policy, stop)
        with gm.open("emulator", CODEC, seed=SEED) as device:
            run = gm.Trainer.load(tmp_path / str(stop), device)
            assert run.stash == policy
            run.resume(x, y, validation_data=(x[:9], y[:9]), checkpoint=tmp_path / str(stop),
                       checkpoint_every=1)
        arrays, state = read_checkpoint(tmp_path / str(stop))
        assert state == expected[1]
        assert {k: v.tobytes() for k, v in arrays.items()} \
            == {k: v.tobytes() for k, v in expected[0].items()}


# bad input ------------------------------------------------------------------------------------

@pytest.mark.parametrize(("make", "words"), [
    (lambda: gm.AdaptiveStash("mx9"), "give a list, from narrow to wide"),
    (lambda: gm.AdaptiveStash([]), "give a list"),
    (lambda: gm.AdaptiveStash(["mx7"]), "unknown stash format"),
    (lambda: gm.AdaptiveStash(metric="f1"), "loss, accuracy"),
    (lambda: gm.AdaptiveStash(metric="accuracy", interval=3), "after each epoch"),
    (lambda: gm.AdaptiveStash(interval=0), "interval=0; give an integer of at least 1"),
    (lambda: gm.AdaptiveStash(patience=0), "patience=0"),
    (lambda: gm.AdaptiveStash(settle=-1), "settle=-1"),
    (lambda: gm.AdaptiveStash(stall=0.2, recover=0.1), "0 <= stall <= recover"),
    (lambda: gm.AdaptiveStash(rounding="up"), "nearest, stochastic"),
    (lambda: gm.AutoStash("mx9"), "list of candidates"),
    (lambda: gm.AutoStash(error=0), "error=0"),
    (lambda: gm.AutoStash(every=0), "every=0"),
])
def test_bad_policies_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_policies_that_do_not_fit_a_network_are_refused():
    with gm.open("emulator", CODEC) as device:
        with pytest.raises(ConfigError, match="more than one Linear"):
            gm.Trainer(network((9, 3), relu=False), device, optimizer=gm.SGD(lr=1),
                       virtual_minibatch=4, sub_minibatch=2, stash=gm.AdaptiveStash())
        for policy in (gm.AdaptiveStash(["bfp(2)", "mask"]), gm.AutoStash(["mask"])):
            with pytest.raises(ConfigError, match="no signs"):
                gm.Trainer(network(relu=False), device, optimizer=gm.SGD(lr=1),
                           virtual_minibatch=4, sub_minibatch=2, stash=policy)
    with gm.open("emulator", TILE) as device, pytest.raises(ConfigError, match="no stash codec"):
        trainer(device, gm.AdaptiveStash())


# RTL ------------------------------------------------------------------------------------------

@pytest.mark.rtl
def test_switches_on_the_rtl_equal_the_emulator():
    """Weights, log and counters, adaptive and auto."""
    from tests.test_stash_training import CONFIGS

    config, found = CONFIGS["nano"], {}
    policies = (gm.AdaptiveStash(["ubfp(1)/16", "mx4/32"], interval=1, stall=0.9, recover=0.9,
                                 settle=0), gm.AutoStash(["mask+bfp(2)/16", "mx6/32"], error=0.3))
    x, y = samples(30, 5)
    for backend in ("verilator", "emulator"):
        with gm.open(backend, config, seed=SEED) as device:
            for number, policy in enumerate(policies):
                model = network((5, 7, 6, 3))
                run = gm.Trainer(model, device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                                 stash=policy, virtual_minibatch=11, sub_minibatch=4)
                run.fit(x, y, epochs=2)
                counters = device.counters()
                found[backend, number] = (
                    {name: value.tobytes() for name, value in model.state_dict().items()},
                    run.stashing.state(),
                    {c.name: counters[c.name] for c in COUNTERS if not c.timing})
    for number in range(len(policies)):
        assert found["verilator", number] == found["emulator", number]
    assert len(found["verilator", 0][1]["switches"]) == 2
    assert found["verilator", 1][1]["measured"]
