"""What the emulator has beyond a device: no RTL, no clock, the models' results bit by bit."""

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

import gradmill as gm
from gradmill_hw.config import NANO, TILE
from gradmill_hw.isa import Queue
from gradmill_hw.matrix.matrix_model import matmul
from gradmill_hw.memory import transfer_model
from gradmill_hw.regs import COUNTERS, Tier
from gradmill_hw.sequencer_model import commands
from gradmill_hw.vector.vector_model import vector
from tests.training_like import FAR_BYTES, NEAR_BYTES, SAMPLES, training_like


def test_driver_never_imports_the_rtl_language():
    code = ("import pkgutil, sys, importlib, gradmill as gm\n"
            "for name in gm.__all__: getattr(gm, name)\n"
            "gm.open('emulator', 'nano').close()\n"
            "import gradmill.verilator\n"
            "loaded = [m for m in sys.modules if m.split('.')[0] == 'amaranth']\n"
            "assert not loaded, loaded")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_is_light():
    code = "import sys, gradmill; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_programs_give_what_the_models_give():
    config, count = NANO, 5
    rng = np.random.default_rng(1)
    data = rng.normal(size=(count, 3 * config.n, config.n)).astype(np.float32)
    raw = training_like(config, count).assemble()
    with gm.open("emulator", config, near_bytes=NEAR_BYTES, far_bytes=FAR_BYTES,
                 seed=5) as device:
        device.write_memory(Tier.NEAR, 0, raw)
        device.write_memory(Tier.NEAR, SAMPLES, data)
        memories = [memory.copy() for memory in device.memories]
        device.run(0, scalars=[0.75], step=11)

        # The same instructions, handed to the models by hand.
        mantissa = np.zeros((config.tensor_rows, config.n), np.int16)
        exponent = np.zeros(config.tensor_rows, np.uint8)
        state = SimpleNamespace(
            config=config, acc=np.zeros((config.acc_rows, config.n), np.float32),
            tensor_mantissa=mantissa, mantissa=mantissa, tensor_exponent=exponent,
            exponent=exponent, mask=np.zeros((config.mask_rows, config.n), bool),
            scalars=np.array([0.75] + [0] * 7, np.float32).view(np.uint32), seed=5, step=11)
        for command in commands(raw):
            fields = {**command.fields, "mem": command.mem,
                      **{f"op{k}": op for k, op in enumerate(command.op)}}
            match command.opcode.queue:
                case Queue.LOAD:
                    transfer_model.load(config, fields, memories, state)
                case Queue.STORE:
                    transfer_model.store(config, fields, memories, state)
                case Queue.MATRIX:
                    matmul(fields, mantissa, exponent, state.acc, config)
                case Queue.VECTOR:
                    vector(fields, state)
        for name in ("acc", "tensor_mantissa", "tensor_exponent", "mask"):
            assert getattr(device.state, name).tobytes() == getattr(state, name).tobytes(), name
        for mine, theirs in zip(device.memories, memories, strict=True):
            assert (mine == theirs).all()
        assert state.acc.any() and state.mask.any() and mantissa.any()
        counters = device.counters()
        assert counters["macs"] == count * 2 * 3 * config.n ** 3
        assert not any(counters[c.name] for c in COUNTERS if c.timing)


def test_a_long_training_takes_seconds():
    """About 8,000 instructions of the size that training uses."""
    with gm.open("emulator", TILE, near_bytes=NEAR_BYTES, far_bytes=FAR_BYTES) as device:
        device.write_memory(Tier.NEAR, 0, training_like(TILE, 1000).assemble())
        start = time.process_time()
        device.run(0, scalars=[1.0])
        assert time.process_time() - start < 10
