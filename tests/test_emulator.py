"""What the emulator has beyond a device: no RTL, no clock, the models' results bit by bit."""

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

import gradmill as gm
from gradmill_hw.config import NANO, SIM
from gradmill_hw.isa import AddSource, Kind, MaskKind, MulSource, Queue
from gradmill_hw.matrix.matrix_model import matmul
from gradmill_hw.memory import transfer_model
from gradmill_hw.regs import COUNTERS, Tier
from gradmill_hw.sequencer_model import commands
from gradmill_hw.vector.vector_model import vector


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


def _training_like(config, iterations):
    """Loop over loads, quantisation, products in both orientations, masks, stores."""
    n, rows = config.n, 3 * config.n
    size = config.run_bytes("fp32", rows)
    program = gm.Program(config)
    program.base(1, mem=0x4000, level=0, step=size)
    program.base(2, mem=0, level=0, step=config.run_bytes("bfp", rows))
    with program.loop(iterations):
        program.load(kind=Kind.FP32, run=rows, mem_base=1, post=[Queue.VECTOR])
        program.vector(rows=rows, cols=n - 1, op0=0, op3=0, write_tensor=1, stochastic=1, mem=99,
                       layer=3, wait=[Queue.LOAD], post=[Queue.MATRIX, Queue.STORE])
        program.matmul(m=rows, k=n, c=n, op0=0, a_stride_m=n, op1=n, w_transpose=1, op2=64,
                       wait=[Queue.VECTOR])
        program.matmul(m=n, k=rows, c=n, op0=0, a_stride_k=n, a_transpose=1, op1=0, w_stride_k=n,
                       op2=64 + rows, accumulate=1, narrow=1, post=[Queue.VECTOR])
        program.vector(rows=rows, cols=n, op0=64, op1=64 + rows, b_step=0, op2=128, op4=8,
                       mul=MulSource.SCALAR, scalar0=gm.Scalar(0), add_source=AddSource.ROW,
                       mask=MaskKind.POSITIVE, write_acc=1, write_mask=1, wait=[Queue.MATRIX],
                       post=[Queue.STORE, (Queue.LOAD, 1)])
        program.store(kind=Kind.BFP, run=rows, mem_base=2, tier=Tier.FAR, wait=[Queue.VECTOR])
        program.store(kind=Kind.FP32, run=rows, op0=128, mem=0x8000, tier=Tier.FAR)
        program.store(kind=Kind.MASK, run=rows, op0=8, mem=0xc000, tier=Tier.FAR,
                      wait=[Queue.VECTOR])
        program.load(kind=Kind.MASK, run=1, op0=100, mem=0x4000, wait=[(Queue.VECTOR, 1)])
    program.halt()
    return program


def test_programs_give_what_the_models_give():
    config, count = NANO, 5
    rng = np.random.default_rng(1)
    data = rng.normal(size=(count, 3 * config.n, config.n)).astype(np.float32)
    raw = _training_like(config, count).assemble()
    with gm.open("emulator", config, near_bytes=1 << 16, far_bytes=1 << 16, seed=5) as device:
        device.write_memory(Tier.NEAR, 0, raw)
        device.write_memory(Tier.NEAR, 0x4000, data)
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
    """About 9,000 instructions of the size that training uses."""
    with gm.open("emulator", SIM, near_bytes=1 << 20, far_bytes=1 << 20) as device:
        device.write_memory(Tier.NEAR, 0, _training_like(SIM, 1000).assemble())
        start = time.process_time()
        device.run(0, scalars=[1.0])
        assert time.process_time() - start < 10
