"""The assembler, its static check and the disassembler."""

import random

import pytest

from gradmill.check import check, extents
from gradmill.errors import ProgramError
from gradmill.program import Line, Program, Scalar, disassemble
from gradmill_hw.config import NANO
from gradmill_hw.isa import (
    CHANNELS,
    INSTRUCTION_BYTES,
    AddSource,
    Kind,
    MaskKind,
    MulSource,
    Opcode,
    Queue,
    Space,
    decode,
    token,
)
from gradmill_hw.sequencer_model import commands


def _load(program, **fields):
    program.load(**{"kind": Kind.FP32, "run": 4, **fields})


def _vector(program, **fields):
    program.vector(**{"rows": 4, "cols": 4, "write_acc": 1, **fields})


def _program(body):
    """A halted program whose instructions ``body(program)`` adds."""
    program = Program(NANO)
    body(program)
    program.halt()
    return program


def _fails(body, message):
    with pytest.raises(ProgramError, match=message) as caught:
        _program(body).assemble()
    return caught.value.index


def test_fields_semaphores_and_scalars():
    program = Program("nano")
    program.vector(rows=3, cols=4, mul=MulSource.SCALAR, scalar0=0.5, scalar1=Scalar(3),
                   wait=[Queue.LOAD, (Queue.MATRIX, 1)], post=token(Queue.STORE, 1))
    program.halt()
    opcode, fields = decode(bytes(program)[:INSTRUCTION_BYTES])
    assert opcode is Opcode.VECTOR
    assert fields["wait"] == token(Queue.LOAD) | token(Queue.MATRIX, 1)
    assert fields["post"] == token(Queue.STORE, 1)
    assert (fields["scalar0"], fields["scalar0_reg"]) == (0x3f00_0000, 0)
    assert (fields["scalar1"], fields["scalar1_reg"]) == (3, 1)
    assert fields["blocks"] == fields["a_step"] == fields["b_step"] == 1


@pytest.mark.parametrize("body, message", [
    (lambda p: p.load(kind=Kind.FP32, rnu=4), "no field rnu"),
    (lambda p: p.load(kind=Kind.FP32, run=1 << 16), "does not fit"),
    (lambda p: p.load(kind=5, run=1), "not a valid Kind"),
    (lambda p: p.load(kind=Kind.FP32, run=1, wait=[Queue.LOAD]), "no semaphore load.0: choose"),
    (lambda p: p.load(kind=Kind.FP32, run=1, post=[Queue.LOAD]), "no semaphore load.0"),
    (lambda p: p.load(kind=Kind.FP32, run=1, post=token(Queue.LOAD, 1)), "semaphore load.1"),
    (lambda p: p.load(kind=Kind.FP32, run=1, post=[(Queue.STORE, 2)]), "channel 2"),
    (lambda p: p.load(kind=Kind.FP32, run=1, post=[Queue.STORE, Queue.STORE]), "named twice"),
    (lambda p: p.load(kind=Kind.FP32, run=1, post=[Queue.LINK_IN]), "semaphore link_in.0"),
    (lambda p: p.emit(Opcode.FENCE, wait=[Queue.LOAD]), "no semaphores"),
    (lambda p: p.vector(rows=1, cols=1, scalar0=1), "give a float"),
    (lambda p: p.vector(rows=1, cols=1, scalar0=Scalar(8)), "scalar register 8"),
    (lambda p: p.base(0), "choose 1 to 15"),
    (lambda p: p.base(1, step=1 << 40), "40 bits"),
    (lambda p: p.base(1, argument=9), "argument = 9"),
    (lambda p: p.emit(Opcode.NEXT), "no loop to end"),
    (lambda p: p.emit(Opcode.LOOP, count=0), "at least once"),
    (lambda p: p.emit(Opcode.LOOP, count=1), "still open"),
    (lambda p: p.halt(), "nothing can follow"),
])
def test_what_cannot_be_encoded(body, message):
    with pytest.raises(ProgramError, match=message):
        _program(body)


def test_loops_nest_four_deep():
    program = Program(NANO)
    with program.loop(2), program.loop(2), program.loop(2), program.loop(2) as level:
        assert level == 3
        with pytest.raises(ProgramError, match="4 deep"), program.loop(2):
            pass
    program.halt()
    assert program.level == 0


def test_sequencer_model_reads_what_the_assembler_writes():
    program = Program(NANO)
    program.base(1, mem=8, level=1, step=-4, period=2)
    with program.loop(2), program.loop(3):
        program.vector(rows=1, cols=1, write_acc=1, op2=4, op2_base=1)
    program.halt()
    assert [c.op[2] for c in commands(program.assemble())] == [12, 8, 12] * 2


def test_disassembly():
    program = Program(NANO)
    program.base(1, mem=0x4000, step=-64)
    with program.loop(10):
        _load(program, mem_base=1, post=[Queue.VECTOR])
        _vector(program, a_step=0, mul=MulSource.SCALAR, scalar0=0.5, wait=[Queue.LOAD])
    program.halt()
    text = disassemble(program.assemble() + bytes([0xee]) + bytes(63), 0x100)
    assert text.splitlines() == [
        "0x00000100  BASE   mem=0x4000 register=1 step=-0x40",
        "0x00000140  LOOP   count=10",
        "0x00000180    LOAD   post=vector.0 mem_base=1 kind=fp32 run=4",
        ("0x000001c0    VECTOR wait=load.0 rows=4 cols=4 a_step=0 mul=scalar write_acc=1"
         " scalar0=0.5"),
        "0x00000200  NEXT",
        "0x00000240  HALT",
        "0x00000280  ?      ee00000000000000... (illegal opcode 0xee)",
    ]
    assert str(program) == disassemble(bytes(program))


def test_every_wait_is_met_earlier():
    def late(program):
        _vector(program, wait=[Queue.LOAD])
        _load(program, post=[Queue.VECTOR])

    assert _fails(late, "waits for 1 tokens more.*load to vector, channel 0") == 0

    def other_channel(program):
        _load(program, post=[(Queue.VECTOR, 1)])
        _vector(program, wait=[Queue.LOAD])

    assert _fails(other_channel, "channel 0") == 1


def test_tokens_are_counted_over_loops():
    def drains(program):
        with program.loop(3):
            _load(program, post=[Queue.VECTOR])
        with program.loop(4):
            _vector(program, wait=[Queue.LOAD])

    assert _fails(drains, "waits for 1 tokens more") == 4

    def left(program):
        with program.loop(3):
            _load(program, post=[Queue.VECTOR])
        with program.loop(2):
            _vector(program, wait=[Queue.LOAD])

    assert _fails(left, "1 tokens are left at the end") is None

    def exact(program):
        with program.loop(3), program.loop(2):
            _load(program, post=[Queue.VECTOR])
        with program.loop(6):
            _vector(program, wait=[Queue.LOAD])

    _program(exact).assemble()


def test_tokens_never_exceed_what_a_semaphore_holds():
    room = 255 - NANO.queue_depth - 1

    def burst(count):
        def body(program):
            with program.loop(count):
                _load(program, post=[Queue.VECTOR])
            with program.loop(count):
                _vector(program, wait=[Queue.LOAD])
        return body

    _program(burst(room)).assemble()
    _fails(burst(room + 1), f"up to {room + 1} tokens")


def _unrolled(lines):
    """Numbers of the instructions in the order in which they run."""
    loops, index = [], 0
    while lines[index].opcode is not Opcode.HALT:
        opcode, fields = lines[index]
        yield index
        if opcode is Opcode.LOOP:
            loops.append([index, fields["count"]])
        elif opcode is Opcode.NEXT:
            loops[-1][1] -= 1
            if loops[-1][1]:
                index = loops[-1][0]
            else:
                loops.pop()
        index += 1


def _simulate(lines, limit):
    """Whether every token is there when program order wants it, fits, and is used."""
    tokens = {}
    for index in _unrolled(lines):
        opcode, fields = lines[index]
        if opcode.queue is None:
            continue
        for bit in range(16):
            if fields["wait"] >> bit & 1:
                key = (bit // CHANNELS, int(opcode.queue), bit % CHANNELS)
                tokens[key] = tokens.get(key, 0) - 1
                if tokens[key] < 0:
                    return False
        for bit in range(16):
            if fields["post"] >> bit & 1:
                key = (int(opcode.queue), bit // CHANNELS, bit % CHANNELS)
                tokens[key] = tokens.get(key, 0) + 1
                if tokens[key] > limit:
                    return False
    return not any(tokens.values())


def test_token_check_equals_simulation():
    rng = random.Random(1)
    config = NANO.replace(queue_depth=64)
    verdicts = {True: 0, False: 0}

    def body(program, depth):
        for _ in range(rng.randint(1, 3)):
            if depth < 2 and rng.random() < 0.5:
                with program.loop(rng.choice([1, 2, 3, 70])):
                    body(program, depth + 1)
            elif rng.random() < 0.5:
                _load(program, post=rng.choice([[], [Queue.VECTOR]]),
                      wait=rng.choice([[], [], [Queue.VECTOR]]))
            else:
                _vector(program, wait=rng.choice([[], [Queue.LOAD]]),
                        post=rng.choice([[], [], [Queue.LOAD]]))

    for _ in range(1500):
        program = Program(config)
        body(program, 0)
        program.halt()
        expected = _simulate(program.lines, 255 - 64 - 1)
        try:
            program.check()
        except ProgramError:
            assert not expected, str(program)
        else:
            assert expected, str(program)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 100, verdicts


def _touched(opcode, f, n):
    """Rows an instruction touches, from the sentences of the manual: ``{(memory, row), ...}``."""
    rows = set()

    def add(memory, *address):
        rows.add((memory, sum(address) % (1 << 16)))

    if opcode is Opcode.MATMUL:
        for kb in range(-(-f["k"] // n)):
            for r in range(-(-f["m"] // n) * n if f["a_transpose"] else f["m"]):
                add("tensor", f["op0"], r // n * f["a_stride_m"], r % n, kb * f["a_stride_k"])
            for cb in range(-(-f["c"] // n)):
                for i in range(n):
                    add("tensor", f["op1"], kb * f["w_stride_k"], cb * f["w_stride_c"], i)
        for cb in range(-(-f["c"] // n)):
            for r in range(f["m"]):
                add("accumulator", f["op2"], cb * f["d_stride_c"], r)
    elif opcode is Opcode.VECTOR:
        for b in range(f["blocks"]):
            for r in range(f["rows"]):
                add("tensor" if f["a_space"] else "accumulator", f["op0"], b * f["a_stride"],
                    r * f["a_step"])
                if MulSource.ROW == f["mul"] or AddSource.ROW == f["add_source"]:
                    add("accumulator", f["op1"], b * f["b_stride"], r * f["b_step"])
                if f["write_acc"]:
                    add("accumulator", f["op2"], b * f["d_stride"], r)
                if (f["write_mask"] or f["mask"] == MaskKind.MEMORY
                        or f["add_source"] == AddSource.MASKED):
                    add("mask", f["op4"], b * f["k_stride"], r)
            for r in range(-(-f["rows"] // n) * n if f["write_tensor"] else 0):
                add("tensor", f["op3"], b * f["t_stride"], r)
    else:
        memory = {Kind.MASK: "mask", Kind.BFP: "tensor", Kind.FP32: "accumulator"}[f["kind"]]
        for i2 in range(f["count2"]):
            for i1 in range(f["count1"]):
                for i0 in range(f["count0"]):
                    for r in range(f["run"]):
                        add(memory, f["op0"], i0 * f["row_stride0"], i1 * f["row_stride1"],
                            i2 * f["row_stride2"], r)
    return rows


def _random_line(rng):
    """A random instruction whose operands lie near the ends of the memories."""
    opcode = rng.choice([Opcode.LOAD, Opcode.STORE, Opcode.MATMUL, Opcode.VECTOR])
    strides = [0, 1, 4, 8, 12, 24, (1 << 16) - 4, (1 << 16) - 8]
    fields = dict(decode(bytes([opcode]) + bytes(63))[1])
    for k in range(5):
        end = rng.choice([NANO.mask_rows, NANO.acc_rows, NANO.tensor_rows])
        fields[f"op{k}"] = rng.choice([0, 8, 100, end - rng.randint(1, 40)])
    for name in fields:
        if "_stride" in name and not name.startswith("mem"):
            fields[name] = rng.choice(strides)
    fields |= {name: rng.randint(1, 9) for name in ("m", "k", "c", "rows", "cols", "run")
               if name in fields}
    fields |= {name: rng.randint(1, 3) for name in ("blocks", "count0", "count1", "count2")
               if name in fields}
    fields |= {name: rng.randint(0, 1) for name in
               ("a_step", "b_step", "a_transpose", "write_acc", "write_tensor", "write_mask")
               if name in fields}
    choices = {"kind": Kind, "a_space": Space, "mul": MulSource, "add_source": AddSource,
               "mask": MaskKind}
    fields |= {name: rng.choice(list(enum)) for name, enum in choices.items() if name in fields}
    return Line(opcode, fields)


def test_extents_are_exact():
    rng = random.Random(2)
    sizes = {"tensor": NANO.tensor_rows, "accumulator": NANO.acc_rows, "mask": NANO.mask_rows}
    verdicts = {True: 0, False: 0}
    for _ in range(2000):
        line = _random_line(rng)
        touched = _touched(*line, NANO.n)
        inside = all(row < sizes[memory] for memory, row in touched)
        try:
            check([line, Line(Opcode.HALT, dict(decode(bytes([1]) + bytes(63))[1]))], NANO)
        except ProgramError:
            assert not inside, line
        else:
            assert inside, line
        verdicts[inside] += 1
        for memory, operand, (low, high) in extents(*line, NANO.n):
            for end in (low, high):
                assert (memory, (line.fields[f"op{operand}"] + end) % (1 << 16)) in touched
    assert min(verdicts.values()) > 200, verdicts


def test_a_tensor_result_is_padded_to_whole_tiles():
    def last_rows(rows, op3):
        return lambda p: p.vector(rows=rows, cols=4, op3=op3, write_tensor=1)

    _program(last_rows(3, NANO.tensor_rows - 4)).assemble()
    _fails(last_rows(3, NANO.tensor_rows - 3), "op3 touches rows 1021 to 1024 of the tensor")


def test_base_registers_are_taken_at_their_extremes():
    def walk(count, step, period=0, first=0):
        def body(program):
            program.base(2, mem=first, level=0, step=step, period=period)
            with program.loop(count):
                _load(program, op0=8, op0_base=2)
        return body

    last = (NANO.acc_rows - 12) // 4
    _program(walk(last + 1, 4)).assemble()
    assert _fails(walk(last + 2, 4), "touches rows 8 to 515 of the accumulator") == 2
    _program(walk(1000, 4, period=last + 1)).assemble()
    _fails(walk(1000, 4, period=last + 2), "touches rows")
    _program(walk(3, -4)).assemble()
    _fails(walk(4, -4), "touches rows -4")

    def chained(program):
        program.base(1, mem=NANO.acc_rows - 16, level=0)
        program.base(2, mem=0, mem_base=1, level=0, step=4)
        with program.loop(4):
            _load(program, op0=4, op0_base=2)

    _fails(chained, "touches rows 500 to 515")

    def from_host(program):
        program.base(2, mem=NANO.acc_rows, argument=1)
        _load(program, op0=8, op0_base=2)

    _program(from_host).assemble()
    assert _fails(lambda p: _load(p, op0_base=3), "base register 3, which is not set") == 0


def test_counts_alignment_and_end():
    assert _fails(lambda p: _load(p, run=0), "run must not be zero") == 0
    _fails(lambda p: p.matmul(m=1, k=1), "c must not be zero")
    _fails(lambda p: _load(p, mem=2), "mem = 0x2 is not a multiple of the 4-byte beat")
    _fails(lambda p: _load(p, mem_stride1=2), "mem_stride1")

    def step(program):
        program.base(1, step=2)
        _load(program, mem_base=1)

    _fails(step, "not multiples of the 4-byte beat")
    with pytest.raises(ProgramError, match="does not end with a halt"):
        Program(NANO).assemble()
