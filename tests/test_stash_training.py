"""Training with hidden activations in stash formats, against the golden run by bits."""

import numpy as np
import pytest

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill_hw.config import CARD, NANO, TILE, ConfigError
from gradmill_hw.regs import COUNTERS
from gradmill_hw.stash import codec_model
from gradmill_hw.stash.formats import Format
from gradmill_hw.stash.tables import all_tables
from tests.golden import Golden


CODEC = TILE.replace(stash=True)
CONFIGS = {"sim": CODEC, "nano": NANO.replace(stash=True, acc_rows=2048), "card": CARD}
SEED = 5

#: config, widths, relu of each layer, B, M, samples, stash; short last groups everywhere
CASES = [
    ("sim", (13, 19, 17, 5), (1, 1, 0), 20, 7, 75, gm.Stash("bfp", bits=4, block=64)),
    ("sim", (13, 19, 17, 5), (1, 1, 0), 20, 16, 50, gm.Stash("mask+bfp(3)/128")),
    ("sim", (9, 40, 3), (1, 0), 32, 16, 90, gm.Stash("ubfp(2)+zeros/32")),
    ("sim", (9, 40, 3), (0, 0), 30, 12, 90, gm.Stash("mx6/64")),
    ("sim", (9, 33, 12, 3), (0, 1, 0), 24, 24, 75, gm.Stash("outlier(2, 4)/128")),
    ("sim", (9, 33, 12, 3), (1, 1, 0), 24, 10, 75,
     gm.Stash("nonuniform-normal/16", rounding="stochastic", draw=True)),
    ("sim", (9, 33, 12, 3), (1, 1, 0), 17, 1, 51, gm.Stash("mx4/16", rounding="stochastic")),
    ("sim", (20, 16, 12, 9, 5), (1, 0, 1, 0), 24, 9, 75,
     gm.Stash("bfp(6)/16", layers={2: "mx9/128", 3: None})),
    ("sim", (6, 10, 10, 4), (1, 1, 0), 16, 4, 48, gm.Stash(layers={2: "mask/64"})),
    ("nano", (5, 7, 6, 3), (1, 1, 0), 11, 3, 40, gm.Stash("mask+bfp(2)/16")),
    ("nano", (5, 7, 6, 3), (1, 0, 0), 11, 4, 40, gm.Stash("mx9/32", rounding="stochastic")),
    ("card", (18, 35, 6), (1, 0), 40, 18, 90,
     gm.Stash("nonuniform-lite+zeros/128", rounding="stochastic", draw=True)),
]


def network(widths, relus, seed):
    layers = []
    for inputs, outputs, relu in zip(widths, widths[1:], relus, strict=False):
        layers += [gm.Linear(inputs, outputs)] + [gm.ReLU()] * relu
    return gm.Sequential(*layers, seed=seed)


def samples(rng, count, inputs, outputs):
    return rng.normal(size=(count, inputs)).astype(np.float32), rng.integers(0, outputs, count)


class Recall:
    """What comes back of an activation: column blocks as runs of rows, through the codec models."""

    def __init__(self, config, model, stash, sub):
        self.config, self.stash, self.sub = config, stash, sub
        self.formats = stash.formats(model.stages, config)
        n = config.n
        widest = max(stage.linear.outputs for stage in model.stages)
        self.tall = -(-sub // n) * n
        self.numbers = self.tall * -(-widest // n)

    def __call__(self, s, pair, batch, sub_minibatch):
        if s not in self.formats:
            return pair
        n, (mantissa, exponent) = self.config.n, pair
        rows, cols = mantissa.shape
        tiles, blocks = exponent.shape
        padded = np.zeros((tiles * n, blocks * n), np.int16)
        padded[:rows, :cols] = mantissa
        runs = padded.reshape(tiles * n, blocks, n).transpose(1, 0, 2)
        exponents = exponent.T.repeat(n, axis=1)
        if tiles * n == self.tall:
            runs, exponents = runs.reshape(1, -1, n), exponents.reshape(1, -1)
        number = (batch << 24) + sub_minibatch * self.numbers
        found = []
        for run, shared in zip(runs, exponents, strict=True):
            found.append(self._there_and_back(s, run, shared.astype(np.uint8), number))
            number += len(run)
        back = np.concatenate([run for run, _ in found]).reshape(blocks, tiles * n, n)
        shared = np.concatenate([shared for _, shared in found]).reshape(blocks, tiles * n)
        whole = back.transpose(1, 0, 2).reshape(tiles * n, blocks * n)
        return whole[:rows, :cols], shared[:, ::n].T.copy()

    def _there_and_back(self, s, run, shared, number):
        def options(random):
            return ({"first_row": number, "tables": all_tables(self.stash.tables)}
                    | ({"key": (SEED, 0, s)} if random else {}))

        stored = codec_model.encode_rows(self.config, self.formats[s], run, shared,
                                         **options(self.stash.rounding == "stochastic"))
        return codec_model.decode_rows(self.config, stored.raw, len(run),
                                       **options(self.stash.draw))


def trained(device, case, number, **options):
    _, widths, relus, size, sub, count, stash = case
    x, y = samples(np.random.default_rng((9, number)), count, widths[0], widths[-1])
    model = network(widths, relus, number)
    trainer = gm.Trainer(model, device, optimizer=gm.SGD(lr=0.07, momentum=0.9), stash=stash,
                         virtual_minibatch=size, sub_minibatch=sub, **options)
    history = trainer.fit(x, y, epochs=1, shuffle=False)
    return model, history, trainer


@pytest.mark.parametrize("number", range(len(CASES)))
def test_weights_equal_the_golden_run(number):
    name, widths, relus, size, sub, count, stash = case = CASES[number]
    config = CONFIGS[name]
    x, y = samples(np.random.default_rng((9, number)), count, widths[0], widths[-1])
    model = network(widths, relus, number)
    state = model.state_dict()
    layers = [(state[f"{stage.index}.weight"], state[f"{stage.index}.bias"], stage.relu)
              for stage in model.stages]
    golden = Golden(config, layers, 0.07, 0.9, False, sub, False,
                    recall=Recall(config, model, stash, sub))
    plain = Golden(config, layers, 0.07, 0.9, False, sub, False)
    batches = [slice(k, k + size) for k in range(0, count, size)]
    losses = [golden.step(x[batch], y[batch]) for batch in batches]
    # The first loss is that of a run without a stash, the weights are not.
    without = [plain.step(x[batch], y[batch]) for batch in batches]
    assert losses[0] == without[0]
    assert not np.array_equal(golden.layers[0][0], plain.layers[0][0])
    with gm.open("emulator", config, seed=SEED, near_bytes=1 << 22) as device:
        model, history, _ = trained(device, case, number)
        counters = device.counters()
    for stage, (weight, bias, _) in zip(model.stages, golden.layers, strict=True):
        for part, expected in (("weight", weight), ("bias", bias)):
            found = model.state_dict()[f"{stage.index}.{part}"]
            assert found.tobytes() == expected.tobytes(), f"{stage.index}.{part}"
    sizes = [len(x[batch]) for batch in batches]
    weighted = [rows * loss for rows, loss in zip(sizes, losses, strict=True)]
    assert history.train_loss == [sum(weighted) / count]

    n = config.n
    subs = [len(range(rows)[k:k + sub]) for rows in sizes for k in range(0, rows, sub)]
    rows = sum(-(-m // n) * n * -(-model.stages[s].linear.inputs // n)
               for m in subs for s in stash.formats(model.stages, config))
    assert counters["stash_rows"] == rows
    assert counters["near_read_stash_bytes"] >= counters["near_write_stash_bytes"] > 0


def test_step_zero_is_the_same_with_and_without():
    results = []
    for stash in (None, gm.Stash("mx4"), gm.Stash("mask+bfp(1)")):
        with gm.open("emulator", CODEC) as device:
            case = ("sim", (13, 19, 17, 5), (1, 1, 0), 20, 20, 20, stash)
            model, history, _ = trained(device, case, 1)
            results.append((history.train_loss, model.state_dict()["4.bias"].tobytes()))
    assert results[0] == results[1] == results[2]


def test_several_tiles_give_the_same_bits():
    case = ("sim", (20, 16, 12, 9, 5), (1, 1, 1, 0), 24, 5, 75,
            gm.Stash("mask+bfp(3)/64", rounding="stochastic"))
    found = []
    for tiles in (1, 3):
        with gm.open("emulator", CODEC.replace(tiles=tiles), seed=SEED) as device:
            found.append(trained(device, case, 3)[0].state_dict())
    for name in found[0]:
        assert found[0][name].tobytes() == found[1][name].tobytes(), name


def test_a_checkpoint_remembers_the_stash(tmp_path):
    stash = gm.Stash("bfp(5)/32", layers={2: "mask+bfp(2)/16"}, rounding="stochastic", draw=True)
    case = ("sim", (9, 12, 12, 3), (1, 1, 0), 24, 10, 75, stash)
    with gm.open("emulator", CODEC) as device:
        trained(device, case, 3)[2].save(tmp_path / "kept")
    with gm.open("emulator", CODEC) as device:
        assert gm.Trainer.load(tmp_path / "kept", device).stash == stash


def test_what_cannot_be_stashed_is_refused():
    linear = network((4, 4, 4), (0, 0), 0)
    relu = network((4, 4, 4), (1, 0), 0)
    with pytest.raises(ConfigError, match="no stash codec"):
        gm.Stash("mx9").formats(relu.stages, NANO)
    with pytest.raises(ConfigError, match="no signs"):
        gm.Stash("mask+bfp(2)").formats(linear.stages, CODEC)
    for layer in (0, 2, "a"):
        with pytest.raises(ConfigError, match="hidden activations"):
            gm.Stash(layers={layer: "mx9"}).formats(relu.stages, CODEC)
    with pytest.raises(ValueError, match="without a format"):
        gm.Stash()
    with pytest.raises(ValueError, match="rounding"):
        gm.Stash("mx9", rounding="up")
    with pytest.raises(ValueError, match="no room"):
        gm.Stash(Format("mx9"), bits=3)
    with gm.open("emulator", CODEC) as device, pytest.raises(ValueError, match="use Stash"):
        gm.Trainer(relu, device, optimizer=gm.SGD(lr=1), virtual_minibatch=4, sub_minibatch=2,
                   stash="mx9")


def _program(config):
    """Good there and back, then a load of a block that nobody wrote, then one that must not run."""
    codec, rows = Format("bfp", bits=4, block=16).tag, 3 * config.n
    size = config.run_bytes("bfp", rows, codec)
    common = {"kind": gm.Kind.BFP, "cls": gm.Class.STASH, "run": rows, "codec": codec}
    program = gm.Program(config)
    program.store(op0=0, mem=0x4000, post=[gm.Queue.LOAD], **common)
    program.load(op0=64, mem=0x4000, wait=[gm.Queue.STORE], **common)
    program.load(op0=128, mem=0x4000 + size, **common)
    program.load(op0=192, mem=0x4000, **common)
    program.halt()
    return program


@pytest.mark.rtl
def test_rtl_equals_the_emulator():
    """Weights, losses and counters, one format after the other on the same device."""
    config, cases = CONFIGS["nano"], [case for case in CASES if case[0] == "nano"]
    cases += [
        ("nano", (5, 9, 6, 3), (1, 1, 0), 11, 4, 40,
         gm.Stash("nonuniform-lite+zeros/128", rounding="stochastic", draw=True)),
        ("nano", (5, 9, 6, 3), (0, 1, 0), 11, 11, 40, gm.Stash("outlier(2, 4)/64")),
    ]
    found = {}
    for backend in ("verilator", "emulator"):
        with gm.open(backend, config, seed=SEED) as device:
            for number, case in enumerate(cases):
                model, history, _ = trained(device, case, number)
                state = {name: value.tobytes() for name, value in model.state_dict().items()}
                counters = device.counters()
                kept = {c.name: counters[c.name] for c in COUNTERS if not c.timing}
                found[backend, number] = state, history.train_loss, kept
    for number in range(len(cases)):
        assert found["verilator", number] == found["emulator", number]


@pytest.mark.rtl
@pytest.mark.parametrize("backend", ["emulator", "verilator"])
def test_a_corrupted_block_names_its_instruction(backend):
    config = CONFIGS["nano"]
    program = _program(config)
    with gm.open(backend, config) as device:
        raw = np.frombuffer(program.assemble(), np.uint8)
        device.write_memory(gm.Tier.NEAR, 0, raw)
        device.write_memory(gm.Tier.NEAR, 0x4000, np.full(4096, 0xC0, np.uint8))
        with pytest.raises(gm.DeviceError, match="STASH") as failure:
            device.run(0)
        assert failure.value.queue == gm.Queue.LOAD
        assert "op0=128" in failure.value.instruction
        size = config.run_bytes("bfp", 3 * config.n, Format("bfp", bits=4, block=16).tag)
        assert failure.value.address == 0x4000 + size
        device.reset()
        model, _, _ = trained(device, CASES[9], 9)
    with gm.open("emulator", config) as device:
        expected = trained(device, CASES[9], 9)[0].state_dict()
    for name, value in model.state_dict().items():
        assert value.tobytes() == expected[name].tobytes()


def test_stores_and_loads_cost_no_cycles():
    """By the cycle model, which knows the banks that products take."""
    widths, size, sub, cycles = (64, 128, 10), 128, 32, []
    with gm.open("emulator", CODEC) as device:
        for stash in (None, gm.Stash("mask+bfp(2)/64")):
            trainer = gm.Trainer(network(widths, (1, 0), SEED), device,
                                 optimizer=gm.SGD(lr=0.1), stash=stash, virtual_minibatch=size,
                                 sub_minibatch=sub)
            few, many = (predict(trainer._lowering.train(size, count, (0, 0), trainer._regions,
                                                         trainer._losses_at), CODEC).cycles
                         for count in (1, 3))
            cycles.append(many - few)
    assert cycles[1] < 1.01 * cycles[0], cycles
