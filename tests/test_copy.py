"""Copy unit between two tiers: contents, bounds, stalls, errors, aborts, against its model; in
Amaranth's simulator and under Verilator."""

import random
from collections import deque

import pytest
from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from gradmill_hw.config import get_config
from gradmill_hw.isa import Opcode
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.memory import copy_model
from gradmill_hw.memory.axi import Axi4, join
from gradmill_hw.memory.axi_reader import AxiReader
from gradmill_hw.memory.axi_writer import AxiWriter
from gradmill_hw.memory.copy import Copy
from gradmill_hw.memory.transfer_model import TransferError
from gradmill_hw.memory.window import windows_layout
from gradmill_hw.regs import Error, Tier
from tb.run import run_bench
from tb.transfers import CONFIGS, MEMORY_BYTES, OPEN, copy_command, new_memory, random_copy
from tests.axi_memory import AxiMemory


class CopyBetweenTiers(wiring.Component):
    """A copy unit and the bus sides of both tiers."""

    def __init__(self, config):
        self.unit = Copy(config)
        self.readers = [AxiReader(config, clients=1) for _ in Tier]
        self.writers = [AxiWriter(config) for _ in Tier]
        axi = Axi4(config.address_bits, config.bus_bits)
        super().__init__({
            "cmd": In(stream.Signature(command_layout(Opcode.COPY))),
            "windows": In(windows_layout(config)),
            "near": Out(axi),
            "far": Out(axi),
            "done": Out(1),
            "error": Out(Error),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = self.unit
        wiring.connect(m, wiring.flipped(self.cmd), unit.cmd)
        m.d.comb += [
            unit.windows.eq(self.windows),
            self.done.eq(unit.done),
            self.error.eq(unit.error),
        ]
        for tier, reader, writer in zip(Tier, self.readers, self.writers, strict=True):
            name = tier.name.lower()
            m.submodules[f"{name}_reader"] = reader
            m.submodules[f"{name}_writer"] = writer
            wiring.connect(m, getattr(unit, f"{name}_read"), reader.clients[0])
            wiring.connect(m, getattr(unit, f"{name}_write"), writer.client)
            join(m, getattr(self, name), reader.axi, writer.axi)
        return m


def run(config, commands, memory, *, windows=OPEN, seed=0, stall=0.0, far_stall=None, latency=6,
        bad=((), ()), abort_at=None, then=(), limit=20_000):
    """Ends of the commands, bytes by (direction, tier, class), cycles, and beats of each tier.

    Ends at the first error. In cycle ``abort_at`` the unit is aborted; ``ends`` are then those of
    the commands that follow once it has drained.
    """
    machine, rng = CopyBetweenTiers(config), random.Random(seed)
    unit = machine.unit
    stalls = stall, stall if far_stall is None else far_stall
    tiers = [AxiMemory(config, data, seed=seed + k, stall=stalls[k], latency_cycles=latency,
                       bad=bad[k]) for k, data in enumerate(memory)]
    sim = Simulator(machine)
    sim.add_clock(1e-6)
    for tier, axi in zip(tiers, (machine.near, machine.far), strict=True):
        sim.add_testbench(tier.reader(axi), background=True)
        sim.add_testbench(tier.writer(axi), background=True)
    ends, traffic, cycles = [], {}, 0
    pending = deque(commands)

    async def bench(ctx):
        nonlocal cycles
        for tier in Tier:
            for k, (base, end, read, write) in enumerate(windows[tier]):
                ctx.set(machine.windows[tier][k],
                        {"base": base, "limit": end, "read": read, "write": write})
        standing, quiet, aborted = False, 0, abort_at is None
        while quiet < 40:
            if cycles == abort_at:
                pending.clear()
                standing = False
            ctx.set(unit.abort, cycles == abort_at)
            standing = bool(pending) and (standing or rng.random() >= stall)
            ctx.set(machine.cmd.valid, standing)
            if standing:
                ctx.set(machine.cmd.payload, pending[0])
            sampled = await ctx.tick().sample(
                unit.cmd.ready, unit.done, unit.error, unit.error_mem, unit.busy,
                *(getattr(events, name) for events in (unit.read, unit.written)
                  for name in ("bytes", "tier", "cls")))
            ready, done, error, mem, busy = sampled[2:7]
            for direction, (size, tier, cls) in (("read", sampled[7:10]), ("write", sampled[10:])):
                if size:
                    key = direction, tier, cls
                    traffic[key] = traffic.get(key, 0) + size
            if standing and ready:
                standing = False
                pending.popleft()
            if done:
                ends.append((Error(error), mem))
            cycles += 1
            assert cycles < limit, "no end"
            if not aborted and cycles > abort_at + 1 and not busy:
                aborted = True
                ends.clear()
                pending.extend(then)
            still = not (busy or done or pending) or (ends and ends[-1][0])
            quiet = quiet + 1 if aborted and still else 0

    sim.add_testbench(bench)
    sim.run()
    return ends, traffic, cycles - quiet_cycles(), tiers


def quiet_cycles():
    """Cycles that :func:`run` looks on after the last end."""
    return 40


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_copies(name, stall):
    config, rng = CONFIGS[name], random.Random(f"{name} {stall}")
    memory = new_memory(rng)
    expected = [tier.copy() for tier in memory]
    commands = [random_copy(config, rng) for _ in range(8)]
    ends, traffic, _, tiers = run(config, commands, memory, seed=1, stall=stall)
    sizes = {}
    for fields in commands:
        size = copy_model.copy(config, fields, expected, OPEN)
        for key in (("read", fields["tier"], fields["cls"]),
                    ("write", fields["target_tier"], fields["cls"])):
            sizes[key] = sizes.get(key, 0) + size
    assert [error for error, _ in ends] == [Error.NONE] * len(commands)
    assert traffic == sizes
    for tier in Tier:
        assert (memory[tier] == expected[tier]).all(), tier
        moved = {way: sum(size for key, size in sizes.items() if key[:2] == (way, tier))
                 for way in ("read", "write")}
        assert tiers[tier].read_beats * config.beat_bytes == moved["read"]
        assert tiers[tier].write_beats * config.beat_bytes == moved["write"]


@pytest.mark.parametrize("name", ["nano", "edge", "sim"])
def test_blocks_of_256_bytes_use_the_bus(name):
    """Scattered blocks leave at most a tenth of the cycles of a tier unused."""
    config = CONFIGS[name]
    memory = new_memory(random.Random(0))
    beats = 256 // config.beat_bytes
    rows = 256 // config.run_bytes("fp32", 1)
    fields = copy_command(run=rows, count=30, mem_stride=256, target_stride=512)
    ends, _, cycles, _ = run(config, [fields], memory)
    assert [error for error, _ in ends] == [Error.NONE]
    assert beats * 30 / (cycles - 40) > 0.9  # 40 cycles to check and to fill the way


@pytest.mark.parametrize("back", [False, True])
def test_a_slow_tier_loses_nothing(back):
    """The buffer fills when the target is slow, and runs empty when the source is."""
    config = CONFIGS["nano"]
    memory = new_memory(random.Random(4))
    expected = [tier.copy() for tier in memory]
    fields = copy_command(run=300, tier=Tier(back), target_tier=Tier(not back))
    ends, *_ = run(config, [fields], memory, far_stall=0.8)
    copy_model.copy(config, fields, expected)
    assert [error for error, _ in ends] == [Error.NONE]
    assert all((a == b).all() for a, b in zip(expected, memory, strict=True))


#: Near memory may be read, far memory written.
ONE_WAY = [[(0, MEMORY_BYTES, 1, 0)] + [(0, 0, 0, 0)] * 3,
           [(0, MEMORY_BYTES, 0, 1)] + [(0, 0, 0, 0)] * 3]


def test_each_side_asks_for_what_it_needs():
    config = CONFIGS["nano"]
    memory = new_memory(random.Random(5))
    expected = [tier.copy() for tier in memory]
    ends, *_ = run(config, [copy_command()], memory, windows=ONE_WAY)
    copy_model.copy(config, copy_command(), expected, ONE_WAY)
    assert [error for error, _ in ends] == [Error.NONE]
    assert all((a == b).all() for a, b in zip(expected, memory, strict=True))


def refused(config):
    half, step = MEMORY_BYTES // 2, config.beat_bytes
    return {
        "source outside": ({"mem": MEMORY_BYTES}, Error.WINDOW, MEMORY_BYTES),
        "source partly outside": ({"mem": MEMORY_BYTES - step, "run": 40}, Error.WINDOW,
                                  MEMORY_BYTES - step),
        "target outside": ({"target": MEMORY_BYTES}, Error.WINDOW, MEMORY_BYTES),
        "target strides out": ({"count": 3, "target_stride": half}, Error.WINDOW, half),
        "source may not be read": ({"tier": Tier.FAR}, Error.WINDOW, 0),
        "target may not be written": ({"target_tier": Tier.NEAR}, Error.WINDOW, half),
        "nothing": ({"run": 0}, Error.COUNT, 0),
        "no runs": ({"count": 0}, Error.COUNT, 0),
        "odd target": ({"target": half + 1}, Error.ALIGNMENT, half + 1),
        "odd stride": ({"count": 2, "mem_stride": step + 1}, Error.ALIGNMENT, 0),
        "kind": ({"kind": 5}, Error.KIND, 0),
        "codec": ({"codec": 0xff}, Error.CODEC, 0),
    }


@pytest.mark.parametrize("case", refused(CONFIGS["nano"]))
def test_refused(case):
    config = CONFIGS["nano"]
    fields, error, mem = refused(config)[case]
    memory = new_memory(random.Random(1))
    before = [tier.copy() for tier in memory]
    bad = copy_command(**fields)
    with pytest.raises(TransferError) as caught:
        copy_model.copy(config, bad, memory, ONE_WAY)
    assert (caught.value.error, caught.value.mem) == (error, mem)
    ends, traffic, _, _ = run(config, [bad, copy_command()], memory, windows=ONE_WAY)
    assert ends == [(error, mem)]
    assert not traffic
    assert all((a == b).all() for a, b in zip(before, memory, strict=True))


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("write", [False, True])
def test_bus_error(write, stall):
    """A bad beat is not written, nor is any that follows it; nothing else is touched."""
    config, step = CONFIGS["nano"], CONFIGS["nano"].beat_bytes
    memory = new_memory(random.Random(2))
    before = [tier.copy() for tier in memory]
    fields = copy_command(run=100, count=3, mem_stride=2048, target_stride=2048)
    place = 2048 + 40 * step
    bad = ((), (fields["target"] + place,)) if write else ((place,), ())
    ends, _, _, _ = run(config, [fields, copy_command(target=0)], memory, bad=bad, stall=stall)
    assert ends == [(Error.BUS_WRITE, fields["target"]) if write else (Error.BUS_READ, 0)]
    assert (memory[Tier.NEAR] == before[Tier.NEAR]).all()
    copied = [tier.copy() for tier in before]
    copy_model.copy(config, fields, copied)
    far, start = memory[Tier.FAR], fields["target"]
    same = (far == before[Tier.FAR]) | (far == copied[Tier.FAR])
    assert same.all()
    if not write:
        assert (far[start + place:] == before[Tier.FAR][start + place:]).all()


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_a_copy_reads_what_the_one_before_wrote(stall):
    config, half = CONFIGS["nano"], MEMORY_BYTES // 2
    memory = new_memory(random.Random(8))
    expected = [tier.copy() for tier in memory]
    there = copy_command(run=15)
    last = half + config.run_bytes("fp32", 14)  # which is written last
    back = copy_command(run=1, mem=last, tier=Tier.FAR, target=4096, target_tier=Tier.NEAR)
    again = copy_command(run=1, mem=4096, target=half + 8192)
    commands = [there, back, again]
    ends, *_ = run(config, commands, memory, stall=stall, far_stall=0.8)
    for command in commands:
        copy_model.copy(config, command, expected)
    assert [error for error, _ in ends] == [Error.NONE] * 3
    assert all((a == b).all() for a, b in zip(expected, memory, strict=True))


def three_copies(config):
    """Of twenty runs of a row, from near to far memory."""
    step = 2 * config.run_bytes("fp32", 1)
    return [copy_command(run=1, count=20, mem=4096 * k, mem_stride=step, target=4096 * (4 + k),
                         target_stride=step) for k in range(3)]


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("case", ["read", "write", "write, then read", "refused"])
def test_an_error_is_that_of_its_own_instruction(case, stall):
    """The instruction before ends well, the one after does nothing, whatever is in flight."""
    config = CONFIGS["nano"]
    commands = three_copies(config)
    place = 10 * commands[1]["target_stride"]
    memory = new_memory(random.Random(6))
    before = memory[Tier.FAR].copy()
    bad, (first, wrong, last) = ((), ()), commands
    untouched = wrong["target"] + place
    if case == "read":
        bad, expected = ((wrong["mem"] + place,), ()), (Error.BUS_READ, wrong["mem"])
    elif case != "refused":  # what has been asked for before the answer is written
        bad, expected = ((), (untouched,)), (Error.BUS_WRITE, wrong["target"])
        untouched = last["target"]
        if case == "write, then read":  # which is seen first
            bad = (last["mem"],), bad[1]
    else:
        untouched = wrong["target"]
        wrong["target"] = MEMORY_BYTES - config.beat_bytes
        expected = Error.WINDOW, wrong["target"]
    ends, *_ = run(config, commands, memory, bad=bad, stall=stall, far_stall=0.9)
    assert ends == [(Error.NONE, ends[0][1]), expected]
    copied = before.copy()
    copy_model.copy(config, first, [memory[Tier.NEAR], copied])
    far, end = memory[Tier.FAR], first["target"] + 4096
    assert (far[:end] == copied[:end]).all()
    assert (far[untouched:] == before[untouched:]).all()


@pytest.mark.parametrize("back", [False, True])
def test_short_copies_follow_each_other(back):
    """Checks, latencies and the filling of the buffer hide behind the copy before."""
    config = CONFIGS["nano"]
    run_rows = 16 * config.beat_bytes // config.run_bytes("fp32", 1)
    commands = [copy_command(run=run_rows, mem=1024 * k, target=MEMORY_BYTES // 2 + 1024 * k,
                             tier=Tier(back), target_tier=Tier(not back)) for k in range(6)]
    memory = new_memory(random.Random(7))
    ends, _, cycles, _ = run(config, commands, memory, latency=16, far_stall=0.7)
    assert [error for error, _ in ends] == [Error.NONE] * 6
    alone = [run(config, [command], memory, latency=16, far_stall=0.7)[2] for command in commands]
    assert cycles < 0.8 * sum(alone), (cycles, alone)


@pytest.mark.parametrize("abort_at", [1, 5, 14, 20, 30, 33, 40, 57, 80, 200, 450])
def test_abort(abort_at):
    config = CONFIGS["nano"]
    memory = new_memory(random.Random(3))
    fields = copy_command(run=60, count=3, mem_stride=2048, target_stride=2048)
    again = copy_command(mem=64, target=MEMORY_BYTES - 4096, run=50)
    ends, _, _, _ = run(config, [fields] * 2, memory, stall=0.3, abort_at=abort_at,
                        then=[again, again], seed=abort_at)
    assert [error for error, _ in ends] == [Error.NONE] * 2
    size = config.run_bytes("fp32", 50)
    far = memory[Tier.FAR][again["target"]:][:size]
    assert (far == memory[Tier.NEAR][64:64 + size]).all()


@pytest.mark.rtl
@pytest.mark.parametrize("config", ["nano", pytest.param("tile", marks=pytest.mark.long)])
def test_rtl(tmp_path, config):
    run_bench(CopyBetweenTiers(get_config(config)), "tb.tb_copy", tmp_path, config=config)
