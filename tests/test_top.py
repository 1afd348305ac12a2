"""The whole device over AXI: training steps of the driver, replayed on the RTL under cocotb."""

import numpy as np
import pytest

import gradmill as gm
from gradmill_hw.config import NANO
from gradmill_hw.emit import emit
from tb.run import run_verilog
from tests.recording import Recorder


def record(folder):
    """Two virtual minibatches of a small network, the second one short; B = 7, M = 3."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((12, 6), np.float32), rng.integers(0, 5, 12)
    device = Recorder(NANO, near_bytes=1 << 18, far_bytes=1 << 12)
    model = gm.Sequential(gm.Linear(6, 10), gm.ReLU(), gm.Linear(10, 5), seed=1)
    trainer = gm.Trainer(model, device, loss=gm.CrossEntropy(), optimizer=gm.SGD(0.1, 0.9),
                         virtual_minibatch=7, sub_minibatch=3)
    trainer.fit(x, y, epochs=1)
    device.save(folder)
    return device


def test_recording_covers_the_step(tmp_path):
    device = record(tmp_path)
    assert len(device.runs) == 3  # start-up, a whole and a short virtual minibatch
    changed = sum(int((b != a).sum()) for run in device.runs
                  for b, a in zip(run["before"], run["after"], strict=True))
    assert changed > 1000


@pytest.mark.rtl
def test_replay(tmp_path):
    record(tmp_path)
    run_verilog(emit(NANO, name="dut"), "tb.tb_top", tmp_path, recording=tmp_path)
