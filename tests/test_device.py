"""The driver on every backend: the same program, the same bits, the same errors."""

import copy
import pickle

import numpy as np
import pytest

import gradmill as gm
from gradmill_hw.config import NANO
from gradmill_hw.isa import AddSource, Class, Kind, MulSource, Opcode, Queue, encode, token
from gradmill_hw.regs import COUNTERS, UNLOCKED, Tier


PROGRAM = 0x1000


@pytest.fixture(scope="module", params=["emulator", pytest.param("verilator",
                                                                 marks=pytest.mark.rtl)])
def opened(request):
    with gm.open(request.param, "nano", near_bytes=1 << 16, far_bytes=1 << 16, seed=7,
                 watchdog=3000) as device:
        yield device


@pytest.fixture
def device(opened):
    """The device as after a reset, with empty memories and counters."""
    opened.reset()
    opened.clear_counters()
    for tier in Tier:
        opened.write_memory(tier, 0, np.zeros(opened.size(tier), np.uint8))
    opened.write_pair("near_window0_limit", opened.size(Tier.NEAR))
    opened.write_register("flags", matrix_nonfinite=1, vector_nonfinite=1, saturated=1)
    opened.clear_counters()
    return opened


def _run(device, program, **options):
    raw = program if isinstance(program, bytes) else program.assemble()
    device.write_memory(Tier.NEAR, PROGRAM, raw, cls=Class.COMMAND)
    device.run(PROGRAM, **options)


def _fails(device, *instructions, error, queue):
    """Run instructions that the assembler would refuse; the tile must stop at the first."""
    _run_fails(device, b"".join(instructions) + encode(Opcode.HALT), error=error, queue=queue)


def _run_fails(device, raw, *, error, queue, **options):
    with pytest.raises(gm.DeviceError) as caught:
        _run(device, raw, **options)
    assert (caught.value.error, caught.value.queue) == (error, queue)
    assert device.read_register("status")["error"]
    return caught.value


def _copy(rows=8, **fields):
    """Program that moves rows of binary32 through the accumulators."""
    program = gm.Program(NANO)
    program.load(kind=Kind.FP32, run=rows, op0=4, cls=Class.DATA, post=[Queue.STORE], **fields)
    program.store(kind=Kind.FP32, run=rows, op0=4, cls=Class.RESULT, tier=Tier.FAR, mem=0x100,
                  wait=[Queue.LOAD])
    program.halt()
    return program


def test_identity(device):
    array = device.read_register("config_array")
    assert (array["n"], array["mantissa_bits"]) == (NANO.n, NANO.mantissa_bits)
    assert device.read_register("seed") == {"value": 7}
    assert device.read_register("window_lock") == {"value": UNLOCKED}
    assert not any(device.read_register("status").values())
    with pytest.raises(gm.BackendError, match="refuses to write id at 0x0"):
        device.write_register("id", value=1)


def test_memory_is_checked_and_accounted(device):
    device._host.clear()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    device.write_memory(Tier.FAR, 64, values, cls=Class.WEIGHT)
    assert (device.read_memory(Tier.FAR, 64, (2, 3), np.float32) == values).all()
    assert device.read_memory(Tier.FAR, 64, (), np.float32) == 0
    copy = device.read_memory(Tier.FAR, 64, 4)
    copy[:] = 1
    assert device.read_memory(Tier.FAR, 64, 4).sum() == 0
    moved = {name: count for name, count in device.host_bytes().items() if count}
    assert moved == {"host_write_weight_bytes": 24, "host_read_result_bytes": 36}
    with pytest.raises(gm.BackendError, match="write of 8 bytes at 0xfffc"):
        device.write_memory(Tier.NEAR, 0xfffc, bytes(8))


def test_copy_and_its_counters(device):
    data = np.random.default_rng(1).integers(0, 256, NANO.run_bytes("fp32", 8), np.uint8)
    device.write_memory(Tier.NEAR, 0x200, data)
    _run(device, _copy(mem=0x200))
    assert (device.read_memory(Tier.FAR, 0x100, data.size) == data).all()
    counters = device.counters()
    assert set(counters) == {counter.name for counter in COUNTERS}
    assert counters["near_read_data_bytes"] == counters["far_write_result_bytes"] == data.size
    assert counters["instructions_load"] == counters["instructions_store"] == 1
    assert counters["instructions_vector"] == counters["far_read_data_bytes"] == 0
    assert device.read_register("status")["done"]
    device.clear_counters()
    assert not any(device.counters().values())


def test_arguments_bases_and_loops(device):
    size = NANO.run_bytes("fp32", 2)
    data = np.random.default_rng(2).integers(0, 256, 6 * size, np.uint8)
    device.write_memory(Tier.NEAR, 0x2000, data)
    program = gm.Program(NANO)
    program.base(1, argument=1, level=1, step=size)
    program.base(2, mem=5 * size, argument=2, level=1, step=-size)
    program.base(3, mem=10, level=0, step=4)
    with program.loop(2), program.loop(6):
        program.load(kind=Kind.FP32, run=2, mem_base=1, op0_base=3, post=[Queue.STORE],
                     wait=[])
        program.store(kind=Kind.FP32, run=2, mem_base=2, op0_base=3, tier=Tier.FAR,
                      wait=[Queue.LOAD])
        program.fence()
    program.halt()
    _run(device, program, arguments=[0x2000, 0x400])
    result = device.read_memory(Tier.FAR, 0x400, (6, size))
    assert (result == data.reshape(6, size)[::-1]).all()
    assert device.counters()["instructions_load"] == 12


def test_a_product_of_integers(device):
    """Small integers are exact in every format, so NumPy's integer product is the reference."""
    rng = np.random.default_rng(3)
    n, m, k, c = NANO.n, 6, 8, 4
    a, w = rng.integers(-50, 51, (m, k)), rng.integers(-50, 51, (c, k))
    scale = np.float32(0.5)
    program = gm.Program(NANO)
    at = 0x2000
    for matrix, op0 in ((a, 0), (w, 64)):
        rows, blocks = len(matrix), k // n
        stride = NANO.run_bytes("fp32", rows)
        for b in range(blocks):
            device.write_memory(Tier.NEAR, at + b * stride, np.float32(matrix[:, b * n:b * n + n]))
        program.load(kind=Kind.FP32, run=rows, count0=blocks, mem=at, mem_stride0=stride,
                     op0=op0, row_stride0=16, post=[Queue.VECTOR])
        program.vector(rows=rows, blocks=blocks, cols=k, op0=op0, a_stride=16, op3=op0,
                       t_stride=16, write_tensor=1, wait=[Queue.LOAD],
                       **({"post": [Queue.MATRIX]} if op0 else {}))
        at += blocks * stride
    program.matmul(m=m, k=k, c=c, op0=0, a_stride_m=n, a_stride_k=16, op1=64, w_stride_k=16,
                   w_stride_c=n, w_transpose=1, op2=128, wait=[Queue.VECTOR],
                   post=[Queue.VECTOR])
    program.vector(rows=m, cols=c, op0=128, mul=MulSource.SCALAR, scalar0=gm.Scalar(1),
                   add_source=AddSource.SCALAR, scalar1=3.0, op2=128, write_acc=1,
                   wait=[Queue.MATRIX], post=[Queue.STORE])
    program.store(kind=Kind.FP32, run=m, op0=128, mem=0, tier=Tier.FAR, wait=[Queue.VECTOR])
    program.halt()
    _run(device, program, scalars=[0.0, scale])
    result = device.read_memory(Tier.FAR, 0, (m, n), np.float32)
    assert (result == np.float32(a @ w.T) * scale + 3).all()
    counters = device.counters()
    assert counters["macs"] == m * k * c
    assert counters["vector_rows"] == 2 * m + 2 * c + m
    assert counters["instructions_matrix"] == 1
    assert not any(device.read_register("flags").values())


def test_infinities_set_a_flag(device):
    device.write_memory(Tier.NEAR, 0x200, np.full(16, np.inf, np.float32))
    program = gm.Program(NANO)
    program.load(kind=Kind.FP32, run=4, mem=0x200, post=[Queue.VECTOR])
    program.vector(rows=4, cols=4, op2=8, write_acc=1, wait=[Queue.LOAD])
    program.halt()
    _run(device, program)
    assert device.read_register("flags") == {"matrix_nonfinite": 0, "vector_nonfinite": 1,
                                             "saturated": 0}
    device.write_register("flags", matrix_nonfinite=1)
    assert device.read_register("flags")["vector_nonfinite"]
    device.write_register("flags", vector_nonfinite=1)
    assert not any(device.read_register("flags").values())
    assert device.read_register("irq_status") == {"done": 1, "error": 0}
    device.write_register("irq_status", done=1)
    assert device.read_register("irq_status") == {"done": 0, "error": 0}


@pytest.mark.parametrize("fields, error", [
    ({"kind": 5}, "KIND"),
    ({"kind": Kind.FP32, "codec": 1}, "CODEC"),
    ({"kind": Kind.FP32, "run": 0}, "COUNT"),
    ({"kind": Kind.FP32, "mem": 2}, "ALIGNMENT"),
    ({"kind": Kind.FP32, "mem": 0xfff4}, "WINDOW"),
    ({"kind": Kind.FP32, "mem": 1 << 39}, "WINDOW"),
])
@pytest.mark.parametrize("opcode", [Opcode.LOAD, Opcode.STORE])
def test_refused_transfers(device, opcode, fields, error):
    line = encode(opcode, **{"run": 1, "count0": 1, "count1": 1, "count2": 1, **fields})
    _fails(device, line, error=error, queue=opcode.queue)


@pytest.mark.parametrize("line", [
    bytes([0xee]) + bytes(63),
    encode(Opcode.HALT)[:-1] + b"\x80",
    encode(Opcode.LOAD, wait=token(Queue.LOAD), run=1, count0=1, count1=1, count2=1),
    encode(Opcode.VECTOR, rows=1, blocks=1, cols=1, post=token(Queue.LINK_IN)),
    encode(Opcode.LOOP, count=0),
    encode(Opcode.BASE, register=0),
    encode(Opcode.FENCE, wait=token(Queue.LOAD)),
])
def test_illegal_instructions(device, line):
    _fails(device, line, error="ILLEGAL_INSTRUCTION", queue=None)


def test_loop_and_fetch_errors(device):
    _fails(device, encode(Opcode.NEXT), error="LOOP", queue=None)
    device.reset()
    _fails(device, *[encode(Opcode.LOOP, count=2)] * 5, error="LOOP", queue=None)
    device.reset()
    device.write_pair("near_window0_limit", PROGRAM + 64)
    raw = encode(Opcode.FENCE) + encode(Opcode.HALT)
    failure = _run_fails(device, raw, error="FETCH", queue=None)
    assert failure.instruction.startswith(f"{PROGRAM + 64:#010x}  HALT")


def test_rows_beyond_a_memory(device):
    line = encode(Opcode.VECTOR, rows=4, blocks=1, cols=4, op2=NANO.acc_rows - 2, write_acc=1)
    _fails(device, line, error="RANGE", queue=Queue.VECTOR)


def test_unmet_wait_names_the_instruction(device):
    line = encode(Opcode.VECTOR, rows=1, blocks=1, cols=1, write_acc=1, wait=token(Queue.LOAD, 1))
    with pytest.raises(gm.DeviceError, match=r"vector queue waits for load\.1 before 0x00001000"):
        _run(device, line + encode(Opcode.HALT))
    assert device.read_register("error")["code"] != 0
    device.reset()
    assert not device.read_register("waiting_vector")["valid"]


def test_semaphore_overflow(device):
    program = gm.Program(NANO)
    with program.loop(256):
        program.load(kind=Kind.FP32, run=1, post=[Queue.VECTOR])
    program.halt()
    _run_fails(device, bytes(program), error="SEMAPHORE_OVERFLOW", queue=Queue.LOAD)


def test_error_names_queue_instruction_and_address(device):
    raw = bytes(_copy(mem=0x200)).replace(encode(Opcode.HALT), b"")
    bad = encode(Opcode.LOAD, kind=Kind.BFP, mem=0xfffc, run=9, count0=1, count1=1, count2=1)
    failure = _run_fails(device, raw + bad + encode(Opcode.HALT), error="WINDOW",
                         queue=Queue.LOAD)
    assert failure.address == 0xfffc
    assert failure.instruction == "0x00001080  LOAD   mem=0xfffc kind=bfp run=9"
    assert "WINDOW in the load queue, address 0xfffc" in str(failure)


def test_after_a_reset_it_works_again(device):
    _fails(device, encode(Opcode.LOAD, kind=5), error="KIND", queue=Queue.LOAD)
    device.reset()
    data = np.arange(128, dtype=np.uint8)
    device.write_memory(Tier.NEAR, 0x200, data)
    _run(device, _copy(mem=0x200))
    assert (device.read_memory(Tier.FAR, 0x100, 128) == data).all()


def test_locked_windows(device):
    device.write_register("near_window3_control", read=0)
    device.write_register("window_lock", value=1)
    try:
        assert device.read_register("status")["locked"]
        with pytest.raises(gm.BackendError, match="refuses to write near_window3_control"):
            device.write_register("near_window3_control", read=1)
    finally:
        _unlock(device)


def _unlock(device):
    """Only the reset pin unlocks: open the backend's registers anew."""
    if hasattr(device, "hard_reset"):
        device.hard_reset()
    else:
        for tile in device.chain:
            tile._words["window_lock"] = UNLOCKED
            tile._set("status", locked=0)
    device._start_up()


def test_what_run_refuses(device):
    with pytest.raises(ValueError, match="multiple of 64, not at 0x20"):
        device.run(0x20)
    with pytest.raises(ValueError, match="9 arguments"):
        device.run(0, arguments=range(9))


def test_open_says_what_it_knows():
    with pytest.raises(gm.BackendError, match="no backend 'fpga': choose one of emulator"):
        gm.open("fpga")
    with pytest.raises(gm.ConfigError, match="unknown configuration 'big'"):
        gm.open("emulator", "big")
    with pytest.raises(gm.BackendError, match="near_bytes=5: choose a multiple of 4096"):
        gm.open("emulator", near_bytes=5)
    with pytest.raises(gm.BackendError, match=r"latncy is no option of open: choose from near_bytes"
                       r".*latency"):
        gm.open("verilator", latncy=3)
    with pytest.raises(gm.BackendError, match="bandwith, start are no options"):
        gm.open("emulator", bandwith=3, start=True)
    gm.open("emulator", latency=3, verilog=None).close()


def test_a_configuration_says_which_sizes_it_has():
    with pytest.raises(gm.ConfigError, match="bank is no size of a Config: choose from name, n, "):
        gm.Config(bank=8)
    with pytest.raises(gm.ConfigError, match="bank is no size"):
        NANO.replace(bank=8)
    assert gm.Config(banks=8) == copy.deepcopy(pickle.loads(pickle.dumps(gm.Config(banks=8))))
