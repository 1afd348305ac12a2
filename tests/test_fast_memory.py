"""Activations through a small fast memory: the bits of a run that keeps everything on chip."""

from contextlib import nullcontext
from queue import SimpleQueue

import numpy as np
import pytest

import gradmill as gm
from bench.memory import CONFIG, network
from gradmill.cli.train import follow, tell
from gradmill.lowering.passing import ActivationMemory
from gradmill.lowering.pipeline import Lowering
from gradmill.lowering.tiles import Variant
from gradmill.memory.activations import foresee
from gradmill.unit_times import Memory
from gradmill_hw.config import NANO, SIM, ConfigError
from gradmill_hw.regs import COUNTERS, Tier


COPY = SIM.replace(copy=True)
BOTH = SIM.replace(copy=True, stash=True)
SIZES = ("100%", "50%", "35%", "20%")


def trained(widths, size, sub, count, *, config=COPY, backend="emulator", device=None, epochs=1,
            number=0, prepare=None, **options):
    """``(parameters and losses, counters, trainer)``."""
    rng = np.random.default_rng((4, number))
    x = rng.normal(size=(count, widths[0])).astype(np.float32)
    y = rng.integers(0, widths[-1], count)
    with gm.open(backend, config, **{"seed": 5, "near_bytes": 1 << 22, **(device or {})}) as board:
        model = network(widths, number)
        trainer = gm.Trainer(model, board, optimizer=gm.SGD(0.05, 0.9), virtual_minibatch=size,
                             sub_minibatch=sub, **options)
        if prepare is not None:
            prepare(trainer)
        history = trainer.fit(x, y, epochs=epochs)
        return (({name: value.tobytes() for name, value in model.state_dict().items()},
                 history.train_loss), board.counters(), trainer)


def far_stash(counters):
    return counters["far_write_stash_bytes"], counters["far_read_stash_bytes"]


def expected_bytes(trainer, sizes):
    """Bytes that leave in virtual minibatches of ``sizes`` samples, the first being recorded: full
    sub-minibatches move whole places, the short one what its rows take."""
    memory, config = trainer.memory, trainer.device.config
    total = 0
    for size in sizes:
        for rows in trainer._lowering.batch("train", size).rows:
            padded = -(-rows // config.n) * config.n
            total += memory.excess * config.run_bytes("bfp", padded)
    return total


def random_case(seed):
    """Widths, B, M, samples: uneven layers, short last groups."""
    rng = np.random.default_rng((8, seed))
    depth = int(rng.integers(5, 11))
    widths = (int(rng.integers(3, 20)), *rng.integers(8, 33, depth).tolist(),
              int(rng.integers(2, 9)))
    sub = int(rng.integers(4, 25))
    size = int(rng.integers(sub, 3 * sub))
    return widths, size, sub, int(rng.integers(2, 4)) * size + int(rng.integers(0, size))


@pytest.mark.parametrize("seed", range(5))
def test_random_networks_keep_their_bits(seed):
    case = random_case(seed)
    reference, *_ = trained(*case, number=seed)
    for fast in SIZES:
        fast = gm.FastMemory(fast, poison=True)
        found, counters, trainer = trained(*case, number=seed, fast_memory=fast)
        assert found == reference, fast.size
        memory = trainer.memory
        assert memory.count == memory.high
        assert memory.most_used == min(memory.count, memory.made), "all of it is used"
        out, back = far_stash(counters)
        assert out == back and bool(out) == bool(memory.excess)
        assert memory.excess == memory.made - memory.count


def test_traffic_is_what_does_not_fit_there_and_back():
    widths, size, sub, count = (9, *[32] * 8, 5), 40, 16, 5 * 40
    for fast in SIZES:
        _, counters, trainer = trained(widths, size, sub, 40, fast_memory=fast)
        first = far_stash(counters)
        _, counters, trainer = trained(widths, size, sub, count, fast_memory=fast)
        steady = np.subtract(far_stash(counters), first)
        assert (steady == expected_bytes(trainer, [40] * 4)).all()
        # The recorded pass leaves more, down to the low threshold.
        assert first[0] >= expected_bytes(trainer, [40])


@pytest.mark.parametrize(("beats", "found"), [
    (0.002, 0.002), (0.01, 0.01), (0.1, 0.1), (0.3371, 0.3371), (1.0, 2.0), (2.0, 2.0)])
def test_the_speed_of_far_memory_is_learned_from_copies(beats, found):
    """Memory that takes a beat a cycle is as good as one without limit."""
    with gm.open("emulator", CONFIG, near_bytes=1 << 22) as device:
        trainer = gm.Trainer(network((9, *[24] * 5, 5)), device, optimizer=gm.SGD(0.05, 0.9),
                             virtual_minibatch=16, sub_minibatch=16, fast_memory="35%")
        foresee(trainer._lowering, 16, trainer._regions, trainer._losses_at, Memory(beats=beats))
    assert trainer._lowering.activations.far.beats == pytest.approx(found, rel=2e-3)


@pytest.mark.parametrize("backend", ["emulator", pytest.param("verilator", marks=pytest.mark.rtl)])
@pytest.mark.parametrize("late", [(1 / 4, 1 / 4), (1 / 2, 0.0), (1.0, 1.0)])
def test_what_is_stored_late_keeps_its_bits_and_leaves_once(late, backend, monkeypatch):
    case = (9, *[24] * 6, 5), 24, 16
    reference, *_ = trained(*case, 4 * 24, config=CONFIG)
    written, codes = Lowering._written, []

    def stored_late(self, order, _, *rest):
        codes.append([written(self, order, Variant(late=own), *rest) for own in ((0, 0), late)])
        return codes[-1][1]

    monkeypatch.setattr(Lowering, "_written", stored_late)
    fast = gm.FastMemory("35%", poison=True)
    _, first, _ = trained(*case, 24, config=CONFIG, fast_memory=fast)
    found, counters, trainer = trained(*case, 4 * 24, config=CONFIG, fast_memory=fast,
                                       backend=backend,
                                       device={"stall": 0.3} if backend == "verilator" else {})
    assert found == reference
    moved = np.subtract(far_stash(counters), far_stash(first))
    assert (moved == expected_bytes(trainer, [24] * 3)).all()
    assert codes[-1][0] != codes[-1][1]


@pytest.mark.parametrize("fast", ["8%", "16%"])
def test_a_fast_memory_smaller_than_an_activation_will_do(fast):
    case = (9, 40, 64, 24, 5), 20, 12, 3 * 20
    reference, *_ = trained(*case)
    found, counters, trainer = trained(*case, fast_memory=gm.FastMemory(fast, poison=True))
    assert found == reference
    assert trainer.memory.count < 64 // 8 and trainer.memory.excess == 13 - trainer.memory.count
    assert far_stash(counters)[0] == far_stash(counters)[1] > 0


def test_the_programs_are_loops_with_the_same_bits():
    case = (9, *[24] * 6, 5), 16, 16, 12 * 16
    reference, *_ = trained(*case)
    found, *_ = trained(*case, fast_memory=gm.FastMemory("35%", poison=True))
    assert found == reference


@pytest.mark.parametrize("poison", [True, False])
def test_poison_finds_who_reads_what_is_gone(poison, monkeypatch):
    """A fetch that never comes is read as NaNs; without poison nobody may notice."""
    case = (9, *[24] * 6, 5), 16, 16, 3 * 16
    copy = ActivationMemory._copy

    def only_out(self, emit, runs, group, out, near, far):
        if out:
            copy(self, emit, runs, group, out, near, far)

    monkeypatch.setattr(ActivationMemory, "_copy", only_out)
    fast = gm.FastMemory("35%", poison=poison)
    with pytest.warns(RuntimeWarning, match="NaN") if poison else nullcontext():
        trained(*case, fast_memory=fast)


@pytest.mark.parametrize("how", ["optimal", 2, 3, (3,), (2, 4, 6)])
def test_recompute_keeps_bits_and_computes_what_was_planned(how):
    widths, size, sub, count = (9, *[24] * 8, 5), 20, 8, 5 * 20
    reference, kept, _ = trained(widths, size, sub, count, rounding="stochastic")
    fast = gm.FastMemory("80%" if how != "optimal" else "40%", recompute=how, poison=True)
    found, counters, trainer = trained(widths, size, sub, count, fast_memory=fast,
                                       rounding="stochastic")
    assert found == reference
    plan = trainer._lowering.activations.plan
    assert plan.advances
    macs = sum(count * widths[s] * widths[s + 1] for s in plan.advances)
    assert counters["macs"] == kept["macs"] + macs
    assert far_stash(counters) == (0, 0)
    assert trainer.memory.most_used <= trainer.memory.count
    if isinstance(how, int):
        most = -(-9 // how) + how
        assert trainer.memory.most_used <= most * 3


def test_less_memory_computes_more_again():
    advances = []
    for fast in ("100%", "60%", "40%", "15%"):
        *_, trainer = trained((9, *[24] * 8, 5), 8, 8, 16,
                              fast_memory=gm.FastMemory(fast, recompute="optimal"))
        advances.append(len(trainer._lowering.activations.plan.advances))
    assert advances[0] == 0 and advances == sorted(advances) and advances[-1] > advances[1]


@pytest.mark.parametrize("stash", [gm.Stash("mask+bfp", bits=3, block=64), gm.Stash("mx9"),
                                   gm.Stash("mask+bfp(2)/16", rounding="stochastic"),
                                   gm.Stash(layers={2: "mx6", 4: "bfp(4)/64"})])
def test_stash_formats_keep_their_bits(stash):
    case = (9, 24, 24, 17, 24, 24, 5), 20, 12, 4 * 20
    if all(s in dict(stash.layers) for s in (2, 4)):
        rest = {"fast_memory": gm.FastMemory("100%", poison=True)}
    else:
        rest = {"fast_memory": gm.FastMemory("45%", poison=True)}
    reference, *_ = trained(*case, config=BOTH, stash=stash)
    found, counters, _ = trained(*case, config=BOTH, stash=stash, **rest)
    assert found == reference
    assert bool(far_stash(counters)[0]) == (rest["fast_memory"].size != "100%")


def test_another_network_on_the_same_device_adapts():
    rng = np.random.default_rng(0)
    with gm.open("emulator", COPY, near_bytes=1 << 22) as board:
        for widths in ((6, *[16] * 6, 4), (12, 32, 8, 24, 8, 32, 5)):
            x = rng.normal(size=(60, widths[0])).astype(np.float32)
            y = rng.integers(0, widths[-1], 60)
            states = []
            for fast in (None, "50%"):
                model = network(widths)
                trainer = gm.Trainer(model, board, optimizer=gm.SGD(0.05), virtual_minibatch=20,
                                     sub_minibatch=10, fast_memory=fast)
                assert fast is None or not trainer.memory.learned
                trainer.fit(x, y, epochs=1)
                states.append([value.tobytes() for value in model.state_dict().values()])
            assert states[0] == states[1]
            assert trainer.memory.excess and trainer.memory.copy_cycles > 0
            assert sorted(trainer.memory.forward) == list(range(len(widths) - 1))
            assert sorted(trainer.memory.backward) == list(range(len(widths) - 1))


def test_training_resumes_with_another_fast_memory(tmp_path):
    widths, rng = (9, *[16] * 6, 5), np.random.default_rng(1)
    x, y = rng.normal(size=(80, 9)).astype(np.float32), rng.integers(0, 5, 80)
    reference, *_ = _fitted(widths, x, y, 4)
    _fitted(widths, x, y, 2, checkpoint=tmp_path / "kept", fast_memory="50%")
    with gm.open("emulator", COPY, near_bytes=1 << 22) as board:
        trainer = gm.Trainer.load(tmp_path / "kept", board, fast_memory="35%")
        trainer.fit(x, y, epochs=2)
        assert {k: v.tobytes() for k, v in trainer.model.state_dict().items()} == reference


def _fitted(widths, x, y, epochs, *, checkpoint=None, **options):
    with gm.open("emulator", COPY, near_bytes=1 << 22) as board:
        model = network(widths)
        trainer = gm.Trainer(model, board, optimizer=gm.SGD(0.05, 0.9), virtual_minibatch=20,
                             sub_minibatch=10, **options)
        trainer.fit(x, y, epochs=epochs, checkpoint=checkpoint)
        return {k: v.tobytes() for k, v in model.state_dict().items()}, trainer


def test_what_cannot_be_is_refused():
    deep = (9, *[24] * 6, 5)
    with pytest.raises(ConfigError, match="no unit that copies"):
        trained(deep, 8, 8, 8, config=SIM, fast_memory="50%")
    with pytest.raises(ConfigError, match="far memory has 4096 bytes"):
        trained(deep, 32, 32, 32, device={"far_bytes": 4096}, fast_memory="20%")
    with pytest.raises(ConfigError, match="what moves at a time needs"):
        trained(deep, 8, 8, 8, fast_memory=50)
    with pytest.raises(ConfigError, match="recompute=2 keeps up to"):
        trained(deep, 8, 8, 8, fast_memory=gm.FastMemory("20%", recompute=2))
    with pytest.raises(ConfigError, match="recompute=2 with a stash format"):
        trained(deep, 8, 8, 8, config=BOTH, fast_memory=gm.FastMemory("80%", recompute=2),
                stash=gm.Stash("mx9"))
    with pytest.raises(ConfigError, match="hidden activations 1 to 6"):
        trained(deep, 8, 8, 8, fast_memory=gm.FastMemory("50%", recompute=(9,)))
    with pytest.raises(ConfigError, match="no hidden activation has to wait"):
        trained((9, 5), 8, 8, 8, fast_memory="50%")
    with pytest.raises(ConfigError, match="use tiles=1"):
        trained(deep, 8, 8, 8, config=COPY.replace(tiles=2), tiles=2, fast_memory="50%")
    with pytest.raises(ConfigError, match="poison"):
        trained(deep, 8, 8, 8, config=SIM, fast_memory=gm.FastMemory("100%", poison=True))
    found, *_ = trained(deep, 8, 8, 24, config=SIM, fast_memory="100%")
    assert found == trained(deep, 8, 8, 24, config=SIM)[0], "no copy unit is needed"


# RTL ------------------------------------------------------------------------------------------


def exact(counters):
    return {counter.name: counters[counter.name] for counter in COUNTERS
            if not counter.timing}


@pytest.mark.rtl
@pytest.mark.parametrize(("fast", "memory"), [
    (gm.FastMemory("35%", poison=True), {"bandwidth": (None, 0.25), "stall": 0.3}),
    ("20%", {"bandwidth": (1.0, 0.25), "latency": (16, 64)}),
    (gm.FastMemory("40%", recompute="optimal", poison=True), {"stall": 0.2}),
])
def test_rtl_has_the_bits_of_a_run_that_keeps_everything(fast, memory):
    case = (5, *[16] * 8, 3), 24, 16, 24 * 3 + 5
    reference, *_ = trained(*case, config=CONFIG)
    times: SimpleQueue = SimpleQueue()
    found, ours, trainer = trained(*case, config=CONFIG, backend="verilator", fast_memory=fast,
                                   device=memory, prepare=lambda made: tell(made, times))
    emulated, counters, _ = trained(*case, config=CONFIG, fast_memory=fast,
                                    prepare=lambda made: follow(made, times))
    assert found == emulated == reference
    assert exact(ours) == exact(counters)
    assert trainer.memory.learned


@pytest.mark.rtl
@pytest.mark.parametrize("writes", [False, True])
def test_a_failing_far_memory_stops_at_a_boundary_and_nothing_is_lost(writes, tmp_path):
    from gradmill.verilator.backend import Fault

    widths, rng = (5, *[16] * 8, 3), np.random.default_rng(2)
    x, y = rng.normal(size=(24 * 6, 5)).astype(np.float32), rng.integers(0, 3, 24 * 6)
    options = {"optimizer": gm.SGD(0.05, 0.9), "virtual_minibatch": 24, "sub_minibatch": 16}
    with gm.open("emulator", CONFIG) as board:
        reference = network(widths)
        gm.Trainer(reference, board, **options).fit(x, y, epochs=2)
    with gm.open("verilator", CONFIG, near_bytes=1 << 21) as board:
        model = network(widths)
        trainer = gm.Trainer(model, board, fast_memory="35%", **options)

        def fail(running, batch, batches):
            if running.epoch == 1 and batch == 0:
                board.inject(Fault(Tier.FAR, 0, 1 << 16, writes=writes))

        with pytest.raises(gm.FarMemoryError, match="training stopped"):
            trainer.fit(x, y, epochs=2, checkpoint=tmp_path / "kept", checkpoint_every=1,
                        on_step=fail)
        assert (trainer.epoch, trainer.step) == (1, 1)
        board.clear_faults()
        trainer.resume(x, y)
        found = model.state_dict()
    with gm.open("emulator", CONFIG) as board:
        again = gm.Trainer.load(tmp_path / "kept", board)
        again.resume(x, y)
    for name, value in reference.state_dict().items():
        assert found[name].tobytes() == value.tobytes(), name
        assert again.model.state_dict()[name].tobytes() == value.tobytes(), name


def test_nano_without_copy_is_refused_by_name():
    with pytest.raises(ConfigError, match="'nano'"):
        trained((5, *[6] * 4, 3), 8, 4, 8, config=NANO, fast_memory="50%")
