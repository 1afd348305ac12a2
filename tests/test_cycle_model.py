"""The cycle model: its latencies are those of the circuits, its predictions those of the RTL."""

import numpy as np
import pytest
from amaranth.hdl import Fragment

import gradmill as gm
from gradmill.cycle_model import predict
from gradmill.unit_times import UNITS, Memory, quantiser_cycles, vector_cycles
from gradmill_hw.config import NANO, TILE
from gradmill_hw.control.fetch import GROUP
from gradmill_hw.control.semaphores import TOKENS
from gradmill_hw.isa import AddOp, AddSource, FunctionOp, Kind, MulSource, Queue, Space
from gradmill_hw.link.endpoints import LINK_CREDITS
from gradmill_hw.matrix.accumulate import turnaround
from gradmill_hw.memory.load import BEATS_BUFFERED, RUNS_QUEUED
from gradmill_hw.memory.store import ROWS_BUFFERED
from gradmill_hw.memory.write_share import REQUESTS_LISTED
from gradmill_hw.stash.formats import Format
from gradmill_hw.vector.vector import VectorUnit
from tests.test_pipeline import CHAIN, network


@pytest.mark.parametrize("n", [4, 8, 16])
def test_vector_cycles_are_those_of_the_unit(n):
    unit = VectorUnit(TILE.replace(n=n, bus_bits=32 * n))
    Fragment.get(unit, None)  # amaranth complains of circuits that nobody uses
    for a_space in Space:
        for mul in MulSource:
            for add_source, add_op in ((AddSource.NONE, AddOp.ADD),
                                       *((AddSource.SCALAR, op) for op in AddOp)):
                for function in (FunctionOp.NONE, FunctionOp.EXP):
                    for write in ("write_acc", "write_tensor", "write_mask", None):
                        fields = {"rows": 5, "blocks": 3, "a_space": a_space, "mul": mul,
                                  "add_source": add_source, "add_op": add_op,
                                  "function": function, "write_acc": 0, "write_tensor": 0,
                                  "write_mask": 0}
                        if write:
                            fields[write] = 1
                        rows, latency = vector_cycles(fields, unit.config)
                        assert latency == unit.overhead(fields)
                        padded = -(-5 // n) * n if write == "write_tensor" else 5
                        assert rows == (3 * padded - 1) * unit.interval(fields) + 1
    assert quantiser_cycles(n) == unit._tensor.latency


def test_other_latencies_are_those_of_the_units():
    assert UNITS.turnaround == turnaround()
    assert UNITS.credits == LINK_CREDITS
    assert UNITS.fetch_group == GROUP
    assert UNITS.asked == RUNS_QUEUED and UNITS.listed == REQUESTS_LISTED
    assert UNITS.buffered == BEATS_BUFFERED and UNITS.rows_ahead == ROWS_BUFFERED
    assert TOKENS == 16


def test_every_instruction_is_followed():
    config = TILE.replace(tiles=2)
    with gm.open("emulator", config) as device:
        trainer = gm.Trainer(network((9, 12, 5)), device, optimizer=gm.SGD(lr=0.1),
                             virtual_minibatch=12, sub_minibatch=3)
        programs = trainer._lowering.train(12, 6, (4096, 512), trainer._regions,
                                           trainer._losses_at)
    found = predict(programs, config, spans=True)
    for program, spans in zip(programs, found.spans, strict=True):
        once = sum(line.opcode.queue is not None for line in program.lines)
        assert len(spans) > once, "loops are unrolled"
        for queue in Queue:
            ends = [end for q, _, end, _, _ in spans if q == queue]
            assert ends == sorted(ends), "queues are in order"
    assert found.cycles == max(found.tile_cycles)


def test_programs_that_cannot_end_are_refused():
    """A semaphore that nobody posts; a transfer without its other half."""
    config = TILE.replace(tiles=2)
    ends, waits, sends = (gm.Program(config) for _ in range(3))
    for program in (ends, waits, sends):
        program.vector(rows=8, cols=8, write_acc=1, post=[Queue.LINK_OUT])
    waits.vector(rows=8, cols=8, write_acc=1, wait=[Queue.MATRIX])
    sends.send(rows=8, blocks=1, wait=[Queue.VECTOR])
    for program in (ends, waits, sends):
        program.halt()
    assert predict([ends, ends], config).cycles > 0
    for program, opcode in ((waits, "VECTOR"), (sends, "SEND")):
        with pytest.raises(gm.ProgramError, match=f"tile 1 .* {opcode} waits for ever") as caught:
            predict([ends, program], config)
        assert caught.value.index == 1


def busy_vector(bank, *, first):
    """Cycles that a vector instruction on ``bank`` of the accumulators takes beside a product into
    bank 0, which is dispatched before or after it."""
    program = gm.Program(TILE)

    def product():
        program.matmul(m=64, k=64, c=64, op0=0, a_stride_m=8, a_stride_k=64, op1=2048,
                       w_stride_k=64, w_stride_c=8, op2=0, d_stride_c=64)

    if first:
        product()
    program.vector(rows=64, cols=8, op0=bank * 1024 + 512, op2=3 * 1024, write_acc=1)
    if not first:
        product()
    program.halt()
    (spans,) = predict([program.assemble()], TILE, spans=True).spans
    return next(end - start for queue, start, end, _, _ in spans if queue is Queue.VECTOR)


@pytest.mark.parametrize("first", [False, True])
def test_the_vector_unit_waits_for_the_bank_of_a_product(first):
    alone = sum(vector_cycles({"rows": 64, "blocks": 1, "a_space": 0, "mul": 0, "add_source": 0,
                               "add_op": 0, "function": 0, "write_acc": 1, "write_tensor": 0,
                               "write_mask": 0}, TILE))
    assert busy_vector(1, first=first) == alone
    assert busy_vector(0, first=first) > 5 * alone


@pytest.mark.rtl
@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize(("widths", "size", "sub"), [((16, 12, 16, 8), 24, 4),
                                                     ((20, 16, 12, 6), 16, 8)])
def test_predictions_are_those_of_the_rtl(widths, size, sub, tiles):
    """Networks of three layers, without a memory that stalls."""
    check_training(CHAIN, widths, size, sub, tiles=tiles)


@pytest.mark.rtl
@pytest.mark.parametrize("text", ["ubfp(1)/128", "mx6/64", "mask+bfp(2)/64"])
def test_predictions_with_a_stash_are_those_of_the_rtl(text):
    check_training(NANO.replace(stash=True, acc_rows=2048), (16, 12, 16, 8), 24, 4,
                   stash=gm.Stash(text))


def check_training(config, widths, size, sub, **options):
    """The RTL takes the predicted cycles for four virtual minibatches, within 5 %."""
    x = np.random.default_rng(1).standard_normal((4 * size, widths[0])).astype(np.float32)
    with gm.open("verilator", config, watchdog=100_000) as device:
        trainer = gm.Trainer(network(widths), device, virtual_minibatch=size, sub_minibatch=sub,
                             optimizer=gm.SGD(lr=0.1, momentum=0.9), **options)
        trainer.fit(x, np.arange(len(x)) % widths[-1], epochs=1)
        measured = device.counters()["cycles"]
        startup = predict(trainer._lowering.startup(trainer._regions), config).cycles
        programs = trainer._lowering.train(size, 4, (8192, 1024), trainer._regions,
                                           trainer._losses_at)
    expected = startup + predict(programs, config).cycles
    assert abs(expected / measured - 1) < 0.05, f"{expected} predicted, {measured} measured"


def assert_predicted(found):
    """``found``: by case the cycles on the RTL, and the expected ones."""
    for case, (measured, expected) in found.items():
        assert abs(measured - expected) < 25, (case, measured, expected)


@pytest.mark.rtl
def test_a_store_waits_for_the_bank_of_a_product():
    """Products take a row of A in every cycle, one of W in n of m cycles, also those that begin
    after the store; a load follows the store."""
    config, added = NANO.replace(stash=True, acc_rows=2048), {}
    bank = config.tensor_rows // config.banks
    product = {"m": 16, "k": 32, "c": 4, "op0": bank, "a_stride_m": 4, "a_stride_k": 16,
               "op1": 2 * bank, "w_stride_k": 32, "w_stride_c": 4, "d_stride_c": 16}
    with gm.open("verilator", config) as device:
        for place in (0, bank, 2 * bank):
            rows = {"kind": Kind.BFP, "run": 64, "op0": place, "mem": 0x4000}
            program = gm.Program(config)
            for _ in range(3):
                program.matmul(**product)
            program.store(**rows, post=[Queue.LOAD])
            program.load(**rows, wait=[Queue.STORE])
            added[place] = run(device, program)
    assert_predicted(added)
    assert added[bank][0] > added[0][0] + 200


@pytest.mark.rtl
def test_a_store_waits_for_the_vector_unit_in_its_bank():
    """Also for an instruction that begins after it."""
    added, bank = {}, NANO.acc_rows // NANO.banks
    with gm.open("verilator", NANO) as device:
        for place in (0, bank):
            program = gm.Program(NANO)
            program.store(kind=Kind.FP32, run=16, op0=place, mem=0x4000, post=[Queue.LOAD])
            program.vector(rows=bank, cols=4, op0=0, a_stride=1, op2=2 * bank, d_stride=1,
                           write_acc=1)
            program.load(kind=Kind.FP32, run=16, op0=3 * bank, mem=0x4000, wait=[Queue.STORE])
            added[place] = run(device, program)
    assert_predicted(added)
    assert added[0][0] > added[bank][0] + 60


@pytest.mark.rtl
def test_a_load_that_waits_for_a_bank_holds_up_instructions():
    """Its beats are taken when its rows are written; instructions come behind them."""
    added, bank = {}, NANO.acc_rows // NANO.banks
    with gm.open("verilator", NANO) as device:
        for place in (0, bank):
            program = gm.Program(NANO)
            program.matmul(m=8, k=32, c=32, op0=0, a_stride_m=4, a_stride_k=8,
                           op1=NANO.tensor_rows // NANO.banks, w_stride_k=32, w_stride_c=4,
                           op2=0, d_stride_c=8)
            program.load(kind=Kind.FP32, run=48, op0=place, mem=0x4000)
            for _ in range(16):
                program.vector(rows=4, cols=4, op0=2 * bank, op2=3 * bank, write_acc=1)
            added[place] = run(device, program)
    assert_predicted(added)
    assert added[0][0] > added[bank][0] + 200


@pytest.mark.rtl
def test_a_function_needs_its_bank_once_in_several_cycles():
    """Rows of EXP from the bank into which products are added: half of its cycles are enough for
    them, an eighth is not."""
    added = {}
    with gm.open("verilator", NANO) as device:
        bank = NANO.acc_rows // NANO.banks
        for k, c in ((8, 32), (32, 8)):
            for place in (0, bank):
                program = gm.Program(NANO)
                program.matmul(m=16, k=k, c=c, op0=0, a_stride_m=4, a_stride_k=16,
                               op1=NANO.tensor_rows // NANO.banks, w_stride_k=c, w_stride_c=4,
                               d_stride_c=16)
                program.vector(rows=120, cols=4, op0=place, a_stride=1, function=FunctionOp.EXP,
                               op2=2 * bank, d_stride=1, write_acc=1)
                added[k, place] = run(device, program)
    assert_predicted(added)
    assert abs(added[8, 0][0] - added[8, bank][0]) < 10
    assert added[32, 0][0] > added[32, bank][0] + 100


@pytest.mark.rtl
@pytest.mark.parametrize("text", ["ubfp(1)/128", "ubfp(1)/16", "mx4/64"])
def test_the_codec_delays_what_it_moves(text):
    """A store and a load on their own: what the codec adds to their cycles."""
    config, added = NANO.replace(stash=True, acc_rows=2048), {}
    with gm.open("verilator", config) as device:
        for name in ("store", "load"):
            for codec in (Format.parse("bfp(2)/16").tag, Format.parse(text).tag):
                fields = {"kind": Kind.BFP, "run": 128, "codec": codec, "op0": 0, "mem": 0x4000}
                program = gm.Program(config)
                program.store(**fields, post=[Queue.LOAD] if name == "load" else [])
                if name == "load":
                    program.load(**fields, wait=[Queue.STORE])
                measured, predicted = run(device, program)
                added.setdefault(name, []).append(measured - predicted)
    for name, (first, second) in added.items():
        assert abs(first) < 25 and abs(second - first) < 16, (name, first, second)


@pytest.mark.rtl
@pytest.mark.parametrize("name", ["load", "store"])
@pytest.mark.parametrize("kind", [Kind.BFP, Kind.FP32])
def test_transfers_of_both_memories_share_a_unit(name, kind):
    """Eight transfers of 64 rows, near and far memory in turn: beats and rows pass the unit in
    order, so the second bus does not help."""
    config = NANO.replace(stash=True, acc_rows=2048)
    with gm.open("verilator", config) as device:
        program = gm.Program(config)
        for k in range(8):
            getattr(program, name)(kind=kind, run=64, op0=64 * k, mem=0x4000 + 0x1000 * k,
                                   tier=gm.Tier(k % 2))
        measured, predicted = run(device, program)
    assert abs(predicted / measured - 1) < 0.05, f"{predicted} predicted, {measured} measured"


@pytest.mark.rtl
@pytest.mark.parametrize("beats", [1, 0.1])
def test_copies_to_a_slow_memory_follow_each_other(beats):
    config = NANO.replace(copy=True)
    with gm.open("verilator", config, bandwidth=(None, beats)) as device:
        program = gm.Program(config)
        for k in range(12):
            program.copy(kind=Kind.BFP, run=16, mem=0x4000 + 0x100 * k, target_tier=gm.Tier.FAR,
                         target=0x100 * k)
        measured, predicted = run(device, program, far=Memory(beats=beats))
    assert abs(predicted / measured - 1) < 0.05, f"{predicted} predicted, {measured} measured"


def run(device, program, **memories):
    """Cycles of a program on the RTL, and those that are expected."""
    program.halt()
    raw = program.assemble()
    device.write_memory(gm.Tier.NEAR, 0, np.frombuffer(raw, np.uint8))
    device.clear_counters()
    device.run(0)
    return device.counters()["cycles"], predict([raw], device.config, **memories).cycles
