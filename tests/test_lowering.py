"""Layouts, footprints and the semaphores that make a program free of races."""

import random
from itertools import pairwise

import numpy as np
import pytest

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.lowering import programs
from gradmill.lowering.footprint import footprint
from gradmill.lowering.gemm import Blocking, Stored, product_program, quantise_program
from gradmill.lowering.layout import Arena, Matrix, Region, pack_rows, unpack_rows
from gradmill.lowering.optimizer import _runs
from gradmill.lowering.programs import assemble
from gradmill_hw.config import EDGE, NANO, TILE, Config, ConfigError
from gradmill_hw.isa import (
    AddSource,
    Class,
    Kind,
    MaskKind,
    MulSource,
    Opcode,
    Queue,
    Space,
    token,
)
from gradmill_hw.sequencer_model import commands


TINY = Config(n=4, tensor_rows=64, acc_rows=32, mask_rows=16, bus_bits=32, burst_beats=16)
NEAR = 1 << 12

#: Register values that stand for the host's addresses.
ARGUMENTS = (1 << 20, 2 << 20, 3 << 20, 0, 0, 0, 0, 0)


# Which rows an instruction touches, one by one ---------------------------------------------------

def touched(opcode, f, config):
    """Sets ``(reads, writes)`` of ``(memory, row)``, and ``(tier, address)`` of every beat."""
    n, reads, writes = config.n, set(), set()

    def get(name):
        return f.get(name, 0)

    if opcode in (Opcode.LOAD, Opcode.STORE):
        kind = Kind(f["kind"])
        home = {Kind.MASK: "mask", Kind.BFP: "tensor", Kind.FP32: "acc"}[kind]
        nbytes = config.run_bytes(kind.name.lower(), f["run"])
        chip, memory = (writes, reads) if opcode is Opcode.LOAD else (reads, writes)
        for i in np.ndindex(f["count2"], f["count1"], f["count0"]):
            row = f["op0"] + sum(k * get(f"row_stride{d}") for d, k in enumerate(reversed(i)))
            at = f["mem"] + sum(k * get(f"mem_stride{d}") for d, k in enumerate(reversed(i)))
            chip.update((home, row + r) for r in range(f["run"]))
            memory.update((get("tier"), at + byte) for byte in range(0, nbytes, config.beat_bytes))
    elif opcode is Opcode.MATMUL:
        for kb in range(-(-f["k"] // n)):
            for r in range(-(-f["m"] // n) * n):
                reads.add(("tensor", f["op0"] + r // n * f["a_stride_m"] + r % n
                           + kb * f["a_stride_k"]))
            for cb in range(-(-f["c"] // n)):
                tile = f["op1"] + kb * f["w_stride_k"] + cb * f["w_stride_c"]
                reads.update(("tensor", tile + i) for i in range(n))
        for cb in range(-(-f["c"] // n)):
            writes.update(("acc", f["op2"] + cb * f["d_stride_c"] + r) for r in range(f["m"]))
    else:
        for b in range(f["blocks"]):
            for r in range(f["rows"]):
                source = "tensor" if get("a_space") == Space.TENSOR else "acc"
                reads.add((source, f["op0"] + b * get("a_stride") + r * get("a_step")))
                if MulSource.ROW == get("mul") or get("add_source") == AddSource.ROW:
                    reads.add(("acc", f["op1"] + b * get("b_stride") + r * get("b_step")))
                mask = "mask", get("op4") + b * get("k_stride") + r
                if get("mask") == MaskKind.MEMORY or get("add_source") == AddSource.MASKED:
                    reads.add(mask)
                if get("write_mask"):
                    writes.add(mask)
                if get("write_acc"):
                    writes.add(("acc", f["op2"] + b * get("d_stride") + r))
            if get("write_tensor"):
                writes.update(("tensor", f["op3"] + b * get("t_stride") + r)
                              for r in range(-(-f["rows"] // n) * n))
    return reads, writes


def _instruction(rng, config):
    """A random small instruction whose rows exist."""
    n, tiles = config.n, config.tensor_rows // config.n
    opcode = rng.choice([Opcode.LOAD, Opcode.MATMUL, Opcode.VECTOR, Opcode.STORE])
    if opcode in (Opcode.LOAD, Opcode.STORE):
        kind = rng.choice(list(Kind))
        fields = {"kind": kind, "run": rng.randrange(1, 4), "op0": rng.randrange(3),
                  "mem": rng.randrange(0, NEAR // 4, config.beat_bytes)}
        for d in range(3):
            fields |= {f"count{d}": rng.choice([1, 1, 2]), f"row_stride{d}": rng.randrange(4),
                       f"mem_stride{d}": config.beat_bytes * rng.randrange(12)}
        return opcode, fields
    if opcode is Opcode.MATMUL:
        names = ("op0", "a_stride_m", "a_stride_k", "op1", "w_stride_k", "w_stride_c")
        return opcode, {"m": rng.randrange(1, 2 * n), "k": rng.randrange(1, 2 * n),
                        "c": rng.randrange(1, 2 * n), "op2": rng.randrange(8),
                        "d_stride_c": rng.randrange(2 * n, 3 * n),
                        **{name: n * rng.randrange(tiles // 4) for name in names}}
    rows = rng.randrange(1, 4)
    fields = {"rows": rows, "blocks": rng.randrange(1, 3), "cols": n, "op0": rng.randrange(20),
              "a_step": 1, "b_step": rng.randrange(2), "op1": rng.randrange(20)}
    fields |= {name: rng.randrange(rows, 5) for name in ("a_stride", "b_stride", "d_stride",
                                                         "k_stride")}
    fields |= {name: rng.randrange(2) for name in ("write_acc", "write_mask", "write_tensor")}
    fields |= {"op2": rng.randrange(20), "op3": n * rng.randrange(tiles - 2), "t_stride": n,
               "op4": rng.randrange(8), "a_space": rng.choice(list(Space)),
               "mul": rng.choice(list(MulSource)), "add_source": rng.choice(list(AddSource)),
               "mask": rng.choice(list(MaskKind))}
    return opcode, fields


@pytest.mark.parametrize("config", [TINY, TILE], ids=["tiny", "sim"])
def test_footprint_is_that_of_the_addresses_one_by_one(config):
    rng = random.Random(31)
    for _ in range(300):
        opcode, fields = _instruction(rng, config)
        found = footprint(opcode, fields, config)
        for group, memory, expected in zip((found.reads, found.writes),
                                           (found.memory_reads, found.memory_writes),
                                           touched(opcode, fields, config), strict=True):
            rows = {(home, int(row)) for home, numbers in group.items() for row in numbers}
            assert rows == {place for place in expected if isinstance(place[0], str)}
            places = [at for home, at in expected if not isinstance(home, str)]
            if places:
                (_, start, end), = memory
                assert start == min(places) and end == max(places) + config.beat_bytes
            else:
                assert memory == []


# Order --------------------------------------------------------------------------------------------

def races(stream, config):
    """Conflicting pairs of ``[(opcode, fields), ...]`` on different queues that nothing orders.

    Instruction i is before j if a path of "same queue, earlier" and "i posts the token that j
    takes" leads from i to j.
    """
    before, posts, waits, last = [], {}, {}, {}
    queues = [opcode.queue for opcode, _ in stream]
    for index, (queue, (_, fields)) in enumerate(zip(queues, stream, strict=True)):
        known = 0
        if queue in last:
            known |= before[last[queue]] | 1 << last[queue]
        last[queue] = index
        for producer in Queue:
            for channel in range(2):
                if not fields["wait"] & token(producer, channel):
                    continue
                pair = producer, queue, channel
                taken = waits[pair] = waits.get(pair, 0) + 1
                assert len(posts.get(pair, ())) >= taken, f"{index} waits for a later token"
                source = posts[pair][taken - 1]
                known |= before[source] | 1 << source
        for consumer in Queue:
            for channel in range(2):
                if fields["post"] & token(consumer, channel):
                    posts.setdefault((queue, consumer, channel), []).append(index)
        before.append(known)
    assert {pair: len(indices) for pair, indices in posts.items()} == waits, "tokens are left"

    found, readers, writers = [], {}, {}
    for index, (opcode, fields) in enumerate(stream):
        reads, writes = touched(opcode, fields, config)
        others = {i for place in writes for i in readers.get(place, ())}
        others |= {i for place in reads | writes for i in writers.get(place, ())}
        found += [(i, index) for i in others
                  if queues[i] != queues[index] and not before[index] >> i & 1]
        for users, places in ((readers, reads), (writers, writes)):
            for place in places:
                users.setdefault(place, []).append(index)
    return found


def stream(program):
    """What the queues execute: ``[(opcode, fields), ...]`` with final addresses."""
    return [(command.opcode, {**command.fields, "mem": command.mem,
                              **{f"op{k}": op for k, op in enumerate(command.op)}})
            for command in commands(bytes(program), ARGUMENTS)]


@pytest.mark.parametrize("seed", range(30))
def test_random_programs_are_ordered(seed):
    rng = random.Random(seed)
    code = [_instruction(rng, TINY) for _ in range(60)]
    program = assemble(TINY, [code])
    program.check()
    executed = stream(program)
    assert [opcode for opcode, _ in executed] == [opcode for opcode, _ in code]
    assert races(executed, TINY) == []


def test_missing_tokens_are_races():
    """The check above sees most of them; the others' order is implied."""
    rng = random.Random(3)
    executed = stream(assemble(TINY, [[_instruction(rng, TINY) for _ in range(25)]]))
    tokens = missed = 0
    for index, (opcode, fields) in enumerate(executed):
        for producer in (q for q in Queue if fields["wait"] & token(q)):
            changed = [(o, dict(f)) for o, f in executed]
            changed[index][1]["wait"] &= ~token(producer)
            taken = sum(bool(f["wait"] & token(producer)) for o, f in executed[:index]
                        if o.queue == opcode.queue)
            source = [i for i, (o, f) in enumerate(executed)
                      if o.queue == producer and f["post"] & token(opcode.queue)][taken]
            changed[source][1]["post"] &= ~token(opcode.queue)
            tokens += 1
            missed += not races(changed, TINY)
    assert tokens > 10 and missed < tokens // 2


# Programs of the trainer --------------------------------------------------------------------------

CASES = [  # config, widths, B, M, loss, momentum
    (TILE, (9, 17, 5), 40, 3, gm.CrossEntropy(), 0.9),
    (TILE, (9, 17, 5), 36, 3, gm.MSE(), 0.0),
    (NANO, (6, 9, 7, 3), 21, 2, gm.CrossEntropy(), 0.9),
    (TILE, (70, 130, 20), 30, 4, gm.CrossEntropy(), 0.9),
    (TILE, (3, 2), 10, 10, gm.CrossEntropy(), 0.9),
    (TILE, (5, 4), 9, 5, gm.MSE(), 0.5),
    (TILE, (4, 4), 64, 1, gm.CrossEntropy(), 0.9),
]


def _trainer(device, widths, size, sub, loss, momentum):
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [gm.Linear(inputs, outputs), gm.ReLU()]
    return gm.Trainer(gm.Sequential(*layers[:-1]), device, loss=loss,
                      optimizer=gm.SGD(lr=0.1, momentum=momentum), virtual_minibatch=size,
                      sub_minibatch=sub)


def _compile(trainer, kind, size, count):
    """Programs for ``count`` virtual minibatches, or for as many samples to predict."""
    if kind == "predict":
        return trainer._lowering.predict(size)
    return trainer._lowering.train(size, count, (4096, 512), trainer._regions, trainer._losses_at)


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("kind", ["train", "predict"])
def test_loop_executes_the_unrolled_program_without_races(case, kind, monkeypatch):
    config, *rest = CASES[case]
    size = rest[1]
    with gm.open("emulator", config, near_bytes=1 << 20) as device:
        trainer = _trainer(device, *rest)
        looped, = _compile(trainer, kind, size, 7)
        monkeypatch.setattr(programs, "_UNROLLED", 1 << 20)
        unrolled, = _compile(trainer, kind, size, 7)
    for program in (looped, unrolled):
        program.check()
    executed = stream(looped)
    assert executed == stream(unrolled)
    assert Opcode.LOOP not in [line.opcode for line in unrolled.lines]
    if kind == "train":
        assert Opcode.LOOP in [line.opcode for line in looped.lines]
        assert len(looped) < len(unrolled)
    assert races(executed, config) == []


def test_length_of_a_program_does_not_grow_with_the_virtual_minibatches():
    lengths = set()
    with gm.open("emulator", TILE, near_bytes=1 << 20) as device:
        trainer = _trainer(device, (6, 5, 4), 12, 4, gm.CrossEntropy(), 0.9)
        for count in (5, 8, 300):
            program, = _compile(trainer, "train", 12, count)
            lengths.add(len(program))
    assert len(lengths) == 1


def test_startup_is_free_of_races():
    with gm.open("emulator", TILE, near_bytes=1 << 20) as device:
        trainer = _trainer(device, (70, 130, 20), 8, 4, gm.CrossEntropy(), 0.9)
        program, = trainer._lowering.startup(trainer._regions)
        assert races(stream(program), TILE) == []


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_are_free_of_races(turned):
    m, k, c = 50, 90, 45
    a = Stored(*((k, m) if turned[0] else (m, k)), 0, 1 << 16, NANO)
    b = Stored(*((c, k) if turned[1] else (k, c)), 1 << 17, 1 << 18, NANO)
    assert races(stream(quantise_program(NANO, [a, b])), NANO) == []
    program, _ = product_program(NANO, a, b, 1 << 19, (m, k, c), transpose_a=turned[0],
                                 transpose_b=turned[1])
    assert races(stream(program), NANO) == []


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("config", [NANO, EDGE, TILE], ids=lambda config: config.name)
def test_products_from_memory_keep_the_array_busy(config, turned):
    """Little is left to wait for before the first product and after the last."""
    stored = [Stored(128, 128, 0, k << 20, config) for k in (1, 2)]
    program, _ = product_program(config, *stored, 3 << 20, (128, 128, 128), transpose_a=turned[0],
                                 transpose_b=turned[1])
    assert 128**3 / config.n**2 > 0.96 * predict([program], config).cycles


@pytest.mark.parametrize("config", [NANO, EDGE, TILE, TILE.replace(banks=2), TILE.replace(banks=8)],
                         ids=["nano", "edge", "sim", "2 banks", "8 banks"])
@pytest.mark.parametrize("turn", [0, 1])
def test_last_block_of_a_product_is_stored_from_banks_that_nothing_else_uses(config, turn):
    size = Blocking(config)
    for rows in (1, 9, size.m // 2, size.m):
        for cols in (1, config.n + 1, size.c - config.n, size.c):
            pieces = size.last_pieces(rows, range(size.c, size.c + cols))
            assert [col for piece in pieces for col in piece] == [*range(size.c, size.c + cols)]
            assert all(piece.start % config.n == 0 for piece in pieces)
            used = [{(row + r) * config.banks // config.acc_rows
                     for r in range(-(-len(piece) // config.n) * rows)}
                    for row, piece in zip(size.targets(turn, rows, pieces), pieces, strict=True)]
            assert sum(map(len, used)) == len(set().union(*used) & set(range(config.banks)))
    assert 1 < len(pieces) <= config.banks


# Layout -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(10))
def test_arena_hands_out_each_row_once(seed):
    rng = random.Random(seed)
    arena, used = Arena("acc memory", 256, 4), set()
    with pytest.raises(ConfigError, match=r"acc memory has 256 rows, .*acc_rows"):
        while True:
            rows, align, bank = rng.randrange(1, 40), rng.choice([1, 4, 8]), rng.randrange(4)
            free = [start for start in range(0, 257 - rows, align)
                    if used.isdisjoint(range(start, start + rows))]
            start = arena.take(rows, f"piece {len(used)}", bank=bank, align=align)
            best = [place for place in free if place >= 64 * bank] or free
            assert start == best[0]
            used |= set(range(start, start + rows))
            assert arena.used == len(used)
    assert not free


def test_matrix_blocks():
    matrix = Matrix(base=100, rows=5, cols=19, stride=8, n=8)
    assert (matrix.blocks, matrix.extent) == (3, 24)
    assert matrix.from_block(1, 1) == Matrix(108, 5, 8, 8, 8)
    assert matrix.from_block(1, 2) == Matrix(108, 5, 11, 8, 8)
    assert matrix.from_block(0, 3) == matrix


@pytest.mark.parametrize(("rows", "runs"), [
    ([], []), ([7], [(0, 1, 1)]), ([8, 72, 136, 200], [(0, 4, 64)]),
    ([8, 72, 200, 328, 300, 364], [(0, 2, 64), (2, 2, 128), (4, 2, 64)]),
    ([90, 4], [(0, 1, 1), (1, 1, 1)])])
def test_rows_of_equal_distance_are_one_run(rows, runs):
    assert list(_runs(rows)) == runs


def test_an_update_is_stored_in_few_transfers():
    """Two for each weight (the second is its momentum), where the panels of its chunks are
    neighbours, and two for each bias: hardly more than a queue holds."""
    with gm.open("emulator", TILE) as device:
        model = gm.Sequential(gm.Linear(8, 64), gm.ReLU(), gm.Linear(64, 64), seed=0)
        trainer = gm.Trainer(model, device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                             virtual_minibatch=32, sub_minibatch=16)
        (program,) = trainer._lowering.train(32, 1, (1 << 16, 1 << 12), trainer._regions,
                                             trainer._losses_at)
    stores = [line for line in program.lines if line.opcode is Opcode.STORE
              and line.fields["cls"] in (Class.WEIGHT, Class.OPTIMIZER)]
    assert len(stores) <= TILE.queue_depth + 2
    assert sum(line.fields["count0"] for line in stores) == 2 * (1 + 8 + 8 + 8)


@pytest.mark.parametrize("config", [NANO, TILE, TINY.replace(bus_bits=128)],
                         ids=["nano", "sim", "wide"])
def test_packed_rows(config):
    rng, n = np.random.default_rng(8), config.n
    for rows, cols in ((1, 1), (3, n), (5, 2 * n + 3), (n + 1, 3 * n - 1)):
        values = rng.normal(size=(2, rows, cols)).astype(np.float32)
        packed = pack_rows(values, config)
        region = Region(0, Kind.FP32, rows, cols, config)
        assert packed.shape == (2, region.blocks, region.stride)
        assert region.nbytes == packed[0].size and region.stride % config.beat_bytes == 0
        expected = np.zeros_like(packed)
        for b, r, c in np.ndindex(values.shape):
            at = 4 * (r * n + c % n)
            expected[b, c // n, at:at + 4] = list(values[b, r, c].tobytes())
        assert (packed == expected).all()
        assert unpack_rows(packed, rows, cols, config).tobytes() == values.tobytes()

        bits = rng.random((2, rows, cols)) < 0.5
        packed = pack_rows(bits, config)
        expected = np.zeros_like(packed)
        for b, r, c in np.argwhere(bits):
            at = r * n + c % n
            expected[b, c // n, at // 8] |= 1 << at % 8
        assert packed.shape[-1] == config.run_bytes("mask", rows)
        assert (packed == expected).all()
