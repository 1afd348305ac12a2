"""Whatever goes wrong, the RTL says the same as the emulator, harms nothing and recovers."""

from typing import NamedTuple

import numpy as np
import pytest

import gradmill as gm
from gradmill.verilator import Fault
from gradmill_hw.config import NANO
from gradmill_hw.isa import INSTRUCTION_BYTES, LOOPS, Kind, Opcode, Queue, encode, token
from gradmill_hw.regs import SEMAPHORE_MAX, Tier
from tests.training_like import FAR_BYTES, NEAR_BYTES, SAMPLES, training_like


pytestmark = pytest.mark.rtl

#: Granted while something goes wrong: base, limit, read, write.
WINDOWS = {Tier.NEAR: [(0, 0x8000, 1, 1), (0x8000, 0x9000, 1, 0)],
           Tier.FAR: [(0x4000, 0x8000, 1, 1)]}
WHOLE = {Tier.NEAR: [(0, NEAR_BYTES, 1, 1)], Tier.FAR: [(0, FAR_BYTES, 1, 1)]}
PROGRAM, TARGET = 0x1000, 0x4000
#: With every queue that one tile can have.
CONFIG = NANO.replace(copy=True)
SIZES = {"near_bytes": NEAR_BYTES, "far_bytes": FAR_BYTES, "seed": 5, "watchdog": 1500}


def _transfer(opcode, **fields):
    one = dict.fromkeys(("run", "count0", "count1", "count2"), 1)
    return encode(opcode, **{"kind": Kind.FP32, "mem": 0x2000, **one, **fields})


def _load(**fields):
    return _transfer(Opcode.LOAD, **fields)


def _store(**fields):
    return _transfer(Opcode.STORE, **{"tier": Tier.FAR, "mem": TARGET, **fields})


def _matmul(**fields):
    return encode(Opcode.MATMUL, **{"m": 1, "k": NANO.n, "c": NANO.n, **fields})


def _vector(**fields):
    return encode(Opcode.VECTOR, **{"rows": 1, "blocks": 1, "cols": NANO.n, **fields})


def _copy(**fields):
    return encode(Opcode.COPY, **{"kind": Kind.FP32, "mem": 0x2000, "run": 1, "count": 1,
                                  "target_tier": Tier.FAR, "target": TARGET, **fields})


def _flip(raw, bit):
    return (int.from_bytes(raw, "little") ^ 1 << bit).to_bytes(INSTRUCTION_BYTES, "little")


LOOP, NEXT = encode(Opcode.LOOP, count=2), encode(Opcode.NEXT)
FENCE, HALT = encode(Opcode.FENCE), encode(Opcode.HALT)
#: Work that is complete before the instruction that fails.
BEFORE = [_load(run=8, post=token(Queue.STORE)), _store(run=8, wait=token(Queue.LOAD)), FENCE]


class Case(NamedTuple):
    """A program's ending; ``guilty`` is the number in it of the instruction that fails."""

    error: str
    queue: Queue | None
    words: list
    guilty: int = 0
    address: int | None = 0


def _refused(error, address, **fields):
    queue = Queue.STORE if fields.pop("store", False) else Queue.LOAD
    word = (_store if queue is Queue.STORE else _load)(**fields)
    return Case(error, queue, [word], address=address)


def _illegal(*words):
    return Case("ILLEGAL_INSTRUCTION", None, list(words), len(words) - 1)


def _range(queue, word, address=None):
    return Case("RANGE", queue, [word], address=address)


LAST_ACC, LAST_TENSOR, LAST_MASK = NANO.acc_rows - 1, NANO.tensor_rows - 1, NANO.mask_rows - 1
SLOW_MATMUL = _matmul(m=64, k=8 * NANO.n)
CASES = {
    "load outside": _refused("WINDOW", 0x9000, mem=0x9000),
    "load partly outside": _refused("WINDOW", 0x8ff0, mem=0x8ff0, run=2),
    "load over two windows": _refused("WINDOW", 0x7ff0, mem=0x7ff0, run=2),
    "load behind the last address": _refused("WINDOW", (1 << 40) - 16, mem=(1 << 40) - 16, run=2),
    "load strides out": _refused("WINDOW", 0x2000, count2=3, mem_stride2=0x3800),
    "load strides far": _refused("WINDOW", 0x2000, count1=0xffff, mem_stride1=0xffff_fffc),
    "store outside": _refused("WINDOW", TARGET - 16, store=True, mem=TARGET - 16),
    "store partly outside": _refused("WINDOW", 0x7ff0, store=True, mem=0x7ff0, run=2),
    "store where one may read": _refused("WINDOW", 0x8000, store=True, tier=0, mem=0x8000),
    "misaligned load": _refused("ALIGNMENT", 0x2002, mem=0x2002),
    "misaligned store": _refused("ALIGNMENT", TARGET + 1, store=True, mem=TARGET + 1),
    "misaligned stride": _refused("ALIGNMENT", 0x2000, count0=2, mem_stride0=6),
    "load of nothing": _refused("COUNT", 0x2000, run=0),
    "store of no runs": _refused("COUNT", TARGET, store=True, count1=0),
    "unknown kind": _refused("KIND", 0x2000, kind=5),
    "unknown codec": _refused("CODEC", TARGET, store=True, codec=1),
    "zero": _illegal(bytes(INSTRUCTION_BYTES)),
    "unknown opcode": _illegal(_flip(_load(), 7)),
    "reserved bit of the header": _illegal(_flip(_matmul(), 50)),
    "last bit": _illegal(_flip(_load(), 511)),
    "load waits for itself": _illegal(_load(wait=token(Queue.LOAD))),
    "vector posts to itself": _illegal(_vector(post=token(Queue.VECTOR, 1))),
    "queue that does not exist": _illegal(_store(wait=token(Queue.LINK_IN))),
    "loop of nothing": _illegal(encode(Opcode.LOOP)),
    "halt with a semaphore": _illegal(_flip(HALT, 8)),
    "too many loops": Case("LOOP", None, [LOOP] * (LOOPS + 1), LOOPS),
    "next without loop": Case("LOOP", None, [LOOP, NEXT, NEXT], 2),
    "load of a row too many": _range(Queue.LOAD, _load(op0=LAST_ACC, run=2), LAST_ACC + 1),
    "load of masks": _range(Queue.LOAD, _load(kind=Kind.MASK, op0=LAST_MASK + 1), LAST_MASK + 1),
    "store of rows": _range(Queue.STORE, _store(kind=Kind.BFP, op0=LAST_TENSOR, run=2),
                            LAST_TENSOR + 1),
    "product": _range(Queue.MATRIX, _matmul(op2=LAST_ACC + 1), LAST_ACC + 1),
    "rows of a product": _range(Queue.MATRIX, _matmul(op0=LAST_TENSOR + 1), LAST_TENSOR + 1),
    "weights": _range(Queue.MATRIX, _matmul(op1=LAST_TENSOR + 1)),
    "vector source": _range(Queue.VECTOR, _vector(op0=0xffff), 0xffff),
    "vector result": _range(Queue.VECTOR, _vector(op2=LAST_ACC + 1, write_acc=1), LAST_ACC + 1),
    "vector mask": _range(Queue.VECTOR, _vector(op4=LAST_MASK + 1, write_mask=1), LAST_MASK + 1),
    "product that outlasts the reset": _range(
        Queue.MATRIX, _matmul(m=0xf000, op0=LAST_TENSOR + 1), None),
    "weights of the second product": Case(
        "RANGE", Queue.MATRIX, [SLOW_MATMUL, _matmul(op1=LAST_TENSOR + 1)], 1, None),
    "rows of the third product": Case(
        "RANGE", Queue.MATRIX, [SLOW_MATMUL, _matmul(m=1), _matmul(op0=LAST_TENSOR + 1)], 2, None),
    "weights of the third product": Case(
        "RANGE", Queue.MATRIX, [SLOW_MATMUL, _matmul(m=1), _matmul(op1=LAST_TENSOR + 1)], 2, None),
    "rows of a product after the weights of the next": Case(
        "RANGE", Queue.MATRIX, [_matmul(m=64, a_stride_m=NANO.n, op0=NANO.tensor_rows - 56),
                                _matmul(op1=LAST_TENSOR + 1)], 0, None),
    "rows of the third store": Case(
        "RANGE", Queue.STORE, [_store(run=8), _store(), _store(op0=LAST_ACC + 1)], 2,
        LAST_ACC + 1),
    "rows of the second store": Case(
        "RANGE", Queue.STORE, [_store(run=8), _store(op0=LAST_ACC + 1)], 1, LAST_ACC + 1),
    "rows of the second load": Case(
        "RANGE", Queue.LOAD, [_load(run=8), _load(op0=LAST_ACC + 1)], 1, LAST_ACC + 1),
    "copy from outside": Case("WINDOW", Queue.COPY, [_copy(mem=0x9000)], address=0x9000),
    "copy to outside": Case("WINDOW", Queue.COPY, [_copy(target=TARGET - 16)],
                            address=TARGET - 16),
    "copy to where one may read": Case(
        "WINDOW", Queue.COPY, [_copy(target_tier=0, target=0x8000)], address=0x8000),
    "copy strides out": Case("WINDOW", Queue.COPY, [_copy(count=9, target_stride=0x800)],
                             address=TARGET),
    "misaligned copy": Case("ALIGNMENT", Queue.COPY, [_copy(target_stride=2)], address=TARGET),
    "copy of nothing": Case("COUNT", Queue.COPY, [_copy(run=0)], address=0x2000),
    "copy of an unknown kind": Case("KIND", Queue.COPY, [_copy(kind=6)], address=0x2000),
    "copy that nobody wakes": Case("WATCHDOG", Queue.COPY, [_copy(wait=token(Queue.LOAD))]),
    "load that nobody wakes": Case("WATCHDOG", Queue.LOAD, [_load(wait=token(Queue.VECTOR, 1))]),
    "store behind it": Case("WATCHDOG", Queue.VECTOR, [
        _vector(wait=token(Queue.MATRIX), post=token(Queue.LOAD)),
        _load(wait=token(Queue.VECTOR), post=token(Queue.STORE)), _store(wait=token(Queue.LOAD))]),
    "semaphore overflow": Case("SEMAPHORE_OVERFLOW", Queue.VECTOR, [
        encode(Opcode.LOOP, count=SEMAPHORE_MAX + 1), _vector(post=token(Queue.LOAD)), NEXT], 1),
}


def _grant(device, windows):
    for tier, granted in windows.items():
        for k in range(2):
            base, limit, read, write = granted[k] if k < len(granted) else (0, 0, 0, 0)
            name = f"{tier.name.lower()}_window{k}"
            device.write_pair(f"{name}_base", base)
            device.write_pair(f"{name}_limit", limit)
            device.write_register(f"{name}_control", read=read, write=write)


def _memories(device):
    return [device.read_memory(tier, 0, device.size(tier)) for tier in Tier]


def _fill(device):
    """Known bytes everywhere."""
    rng = np.random.default_rng(2)
    for tier in Tier:
        device.write_memory(tier, 0, rng.integers(0, 256, device.size(tier), np.uint8))


def _prepare(device, words, at=PROGRAM):
    """A program among known bytes, with few windows; returns the memories."""
    _fill(device)
    device.write_memory(Tier.NEAR, at, b"".join(words))
    _grant(device, WINDOWS)
    return _memories(device)


def _fail(device, words, at=PROGRAM, start=None):
    """The error of a program and the memories it leaves; nothing outside windows has changed."""
    before = _prepare(device, words, at)
    with pytest.raises(gm.DeviceError) as caught:
        device.run(at if start is None else start, timeout_cycles=100_000)
    device.reset()
    after = _memories(device)
    _check_outside(before, after)
    return caught.value, after


def _check_outside(before, after):
    for tier, granted in WINDOWS.items():
        outside = np.ones(before[tier].size, bool)
        for base, limit, _, write in granted:
            outside[base:limit] &= not write
        assert (after[tier] == before[tier])[outside].all(), tier.name


def _good(device):
    """Memories after a program that uses all there is."""
    _fill(device)
    device.write_memory(Tier.NEAR, 0, training_like(NANO, 3).assemble())
    data = np.random.default_rng(9).normal(size=(3, 3 * NANO.n, NANO.n)).astype(np.float32)
    device.write_memory(Tier.NEAR, SAMPLES, data)
    _grant(device, WHOLE)
    device.run(0, scalars=[0.75], step=3, timeout_cycles=100_000)
    return _memories(device)


@pytest.fixture(scope="module")
def emulator():
    with gm.open("emulator", CONFIG, **SIZES) as device:
        yield device


@pytest.fixture(scope="module")
def expected(emulator):
    """What a good program leaves."""
    return _good(emulator)


@pytest.fixture(scope="module")
def boards():
    """RTL with a plain bus, and with one that stalls."""
    with (gm.open("verilator", CONFIG, **SIZES) as plain,
          gm.open("verilator", CONFIG, **SIZES, stall=0.5, outstanding=2) as stalling):
        yield plain, stalling


def _assert_good(board, expected):
    for tier, memory in zip(Tier, _good(board), strict=True):
        assert (memory == expected[tier]).all(), tier.name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_rtl_fails_like_the_emulator(boards, emulator, expected, case):
    words = [*BEFORE, *case.words, HALT]
    theirs, left = _fail(emulator, words)
    pc = PROGRAM + INSTRUCTION_BYTES * (len(BEFORE) + case.guilty)
    assert (theirs.error, theirs.queue) == (case.error, case.queue)
    assert theirs.instruction == gm.disassemble(words[len(BEFORE) + case.guilty], pc)
    for board in boards:
        ours, found = _fail(board, words)
        assert ours.error == theirs.error, ours
        assert ours.queue == theirs.queue, ours
        assert ours.instruction == theirs.instruction
        if case.address is not None:
            assert ours.address == theirs.address == case.address
        for line in str(theirs).splitlines()[1:]:
            assert line in str(ours).splitlines()
        if case.error != "RANGE":  # of a transfer, the rows that exist have moved
            for tier in Tier:
                assert (found[tier] == left[tier]).all()
        _assert_good(board, expected)


@pytest.mark.parametrize(("at", "words", "start"), [
    (0x9000 - INSTRUCTION_BYTES, [FENCE], None),
    (0x9000 - 2 * INSTRUCTION_BYTES, [LOOP, FENCE], None),
    (PROGRAM, [HALT], 0x9000),
    (PROGRAM, [HALT], NEAR_BYTES),
    (PROGRAM, [HALT], (1 << 40) - INSTRUCTION_BYTES),
], ids=["runs out", "runs out of a loop", "begins outside", "begins behind the memory", "far"])
def test_instructions_lie_in_a_window(boards, emulator, expected, at, words, start):
    theirs, _ = _fail(emulator, words, at, start)
    for board in boards:
        ours, _ = _fail(board, words, at, start)
        pc = 0x9000 if start is None else start
        assert ours.error == theirs.error == "FETCH"
        assert ours.queue is theirs.queue is None
        assert ours.instruction == theirs.instruction
        assert ours.instruction.startswith(f"{pc:#010x}")
        assert ours.address == theirs.address == 0
        _assert_good(board, expected)


@pytest.mark.parametrize("response", [2, 3], ids=["SLVERR", "DECERR"])
@pytest.mark.parametrize(("fault", "words", "error", "queue", "guilty", "address"), [
    (Fault(Tier.NEAR, 0x2104, 0x2104), [_load(run=4, count0=8, mem_stride0=0x80)], "BUS_READ",
     Queue.LOAD, 0, 0x2100),
    (Fault(Tier.FAR, 0x5000, 0x5fff), [_load(run=4), _load(tier=Tier.FAR, mem=0x5800, run=99)],
     "BUS_READ", Queue.LOAD, 1, 0x5800),
    (Fault(Tier.FAR, 0x5000, 0x5003, writes=True), [_store(mem=0x4f80, run=64)], "BUS_WRITE",
     Queue.STORE, 0, 0x4f80),
    (Fault(Tier.NEAR, 0x3100, 0x310f, writes=True),
     [_store(), _store(tier=Tier.NEAR, mem=0x3000, count1=3, mem_stride1=0x80), _load()],
     "BUS_WRITE", Queue.STORE, 1, 0x3100),
    (Fault(Tier.NEAR, 0x2104, 0x2104), [_copy(run=99)], "BUS_READ", Queue.COPY, 0, 0x2000),
    (Fault(Tier.FAR, 0x5000, 0x5003, writes=True), [_copy(), _copy(target=0x4f80, run=64)],
     "BUS_WRITE", Queue.COPY, 1, 0x4f80),
    (Fault(Tier.NEAR, PROGRAM + 5 * 64 + 60, PROGRAM + 5 * 64 + 60), [FENCE] * 4, "FETCH", None,
     2, 0),
], ids=["load", "far load", "store", "near store", "copy", "copy to far", "fetch"])
def test_the_bus_answers_with_an_error(boards, expected, response, fault, words, error, queue,
                                       guilty, address):
    pc = PROGRAM + INSTRUCTION_BYTES * (len(BEFORE) + guilty)
    for board in boards:
        board.inject(Fault(fault.tier, fault.first, fault.last, fault.writes, response))
        found, _ = _fail(board, [*BEFORE, *words, HALT])
        board.clear_faults()
        assert (found.error, found.queue, found.address) == (error, queue, address)
        assert found.instruction == gm.disassemble(words[guilty], pc)
        _assert_good(board, expected)


#: Keeps every queue busy for some thousand cycles.
BUSY = [
    _load(run=64, post=token(Queue.VECTOR)),
    encode(Opcode.LOOP, count=20),
    _load(op0=256, run=64, count0=2, mem_stride0=0x400, post=token(Queue.STORE)),
    _vector(rows=64, op2=128, op3=0, write_acc=1, write_tensor=1, post=token(Queue.MATRIX)),
    _matmul(m=64, k=8 * NANO.n, a_stride_m=NANO.n, op1=256, op2=64, wait=token(Queue.VECTOR)),
    _store(op0=256, run=64, wait=token(Queue.LOAD)),
    _store(kind=Kind.BFP, run=99, mem=0x6000),
    _copy(run=50, count=2, mem_stride=0x400, target_stride=0x400, target=0x7000),
    _copy(tier=Tier.FAR, mem=0x7000, target_tier=Tier.NEAR, target=0x4000, run=64),
    NEXT,
    HALT,
]


@pytest.mark.parametrize("cycles", [1, 17, 60, 101, 150, 222, 333, 500, 750, 1111, 1600, 2400])
def test_reset_in_the_middle(boards, expected, cycles):
    for board in boards:
        before = _prepare(board, BUSY)
        with pytest.raises(gm.DeviceTimeout, match=f"has not ended its program in {cycles} cycles"):
            board.run(PROGRAM, timeout_cycles=cycles)
        board.reset()
        after = _memories(board)
        _check_outside(before, after)
        board.idle(500)
        for tier, memory in zip(Tier, _memories(board), strict=True):
            assert (memory == after[tier]).all(), "written after the reset"
        _assert_good(board, expected)
