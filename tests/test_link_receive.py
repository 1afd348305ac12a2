"""Receive unit: every write against the model, each once, and every way to be wrong."""

from collections import deque

import numpy as np
import pytest
from amaranth import ResetInserter, Signal
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, TILE
from gradmill_hw.isa import Peer
from gradmill_hw.link.link_model import send
from gradmill_hw.link.receive import Receive
from gradmill_hw.link.row import LinkRow
from gradmill_hw.regs import Error
from tb.link_cases import link_bits, new_tile, op_of, random_receive, random_send, row_bits
from tests.axi_memory import serve_writes
from tests.link_bench import feed


class Writes(list):
    """(address, bits) in the order of the writes."""

    def __setitem__(self, address, bits):
        self.append((address, bits))


class Bench:
    """Runs commands through the unit. Commands, both links and memories run freely.

    After :meth:`run`: ``tensor`` and ``masks`` hold the writes, ``results`` what came with each
    ``done`` and how many writes there had been before, ``left`` the commands, and the rows by peer,
    that were not taken, ``rows`` and ``stalls`` the events counted, ``cycles`` those from the first
    command to the last ``done``.
    """

    def __init__(self, config, *, seed=0, stall=0.0, refuse=(0.0, 0.0)):
        print(f"{seed=}")
        self.config = config
        self.seed, self.stall, self.refuse = seed, stall, refuse
        self.reset = Signal()
        self.unit = Receive(config)
        self.tensor, self.masks = Writes(), Writes()
        self.results = []
        self.rows = self.stalls = self.cycles = 0

    def run(self, commands, rows, *, limit=20_000, then=None):
        """Ends when all commands have ended, or at the first error.

        ``rows`` are bits of rows by peer. ``then``, commands and rows, follow after a reset.
        """
        unit, pending = self.unit, deque(commands)
        shape = LinkRow(self.config)
        links = {peer: deque(map(shape.from_bits, rows[peer])) for peer in Peer}

        async def watch(ctx):
            await self._watch(ctx, len(commands), limit)
            self.left = len(pending), {peer: len(link) for peer, link in links.items()}
            if then is not None:
                pending.clear()
                ctx.set(self.reset, 1)
                await ctx.tick()
                ctx.set(self.reset, 0)
                for words in (self.results, self.tensor, self.masks, *links.values()):
                    words.clear()
                self.rows = 0
                pending.extend(then[0])
                for peer, link in links.items():
                    link.extend(map(shape.from_bits, then[1][peer]))
                await self._watch(ctx, len(then[0]), limit)

        sim = Simulator(ResetInserter(self.reset)(unit))
        sim.add_clock(1e-6)
        tensor, masks = self.refuse
        benches = [
            feed(unit.cmd, pending, seed=self.seed, stall=self.stall),
            feed(unit.previous, links[Peer.PREVIOUS], seed=self.seed + 1, stall=self.stall),
            feed(unit.next, links[Peer.NEXT], seed=self.seed + 2, stall=self.stall),
            serve_writes(unit.tensor_write, self.tensor, seed=self.seed + 3, stall=tensor),
            serve_writes(unit.mask_write, self.masks, seed=self.seed + 4, stall=masks),
        ]
        for bench in benches:
            sim.add_testbench(bench, background=True)
        sim.add_testbench(watch)
        sim.run()
        return self

    async def _watch(self, ctx, count, limit):
        began = False
        self.cycles = 0
        while len(self.results) < count:
            began |= ctx.get(self.unit.cmd.valid)
            assert self.cycles < limit, "no end"
            self.cycles += began
            await self._step(ctx)
            if self.results and self.results[-1][0]:
                break
        # Nothing follows, and an error has stopped the unit for good.
        ends, rows, writes = len(self.results), self.rows, (len(self.tensor), len(self.masks))
        for _ in range(50):
            busy = await self._step(ctx)
        assert not busy
        assert (ends, rows) == (len(self.results), self.rows)
        assert writes == (len(self.tensor), len(self.masks))

    async def _step(self, ctx):
        """One cycle; returns whether the unit was busy."""
        unit = self.unit
        writes = len(self.tensor), len(self.masks)
        _, _, done, error, busy, row, stall = await ctx.tick().sample(
            unit.done, unit.error, unit.busy, unit.row, unit.stall
        )
        if done:
            self.results.append((Error(error), *writes))
        self.rows += row
        self.stalls += stall
        return busy


class Case:
    """Commands and the transfers that they expect."""

    def __init__(self, config, rng, count, **options):
        self.config = config
        far = new_tile(config, rng)
        self.commands, self.transfers = [], []
        for _ in range(count):
            sent = random_send(config, rng, **options)
            self.commands.append(random_receive(config, rng, sent))
            self.transfers.append(
                send(sent, op_of(sent), far.mantissa, far.exponent, far.mask, config)
            )

    def rows(self, spoilt=None):
        """Bits of the rows by peer. ``spoilt`` maps numbers of commands to what comes instead."""
        rows = {peer: [] for peer in Peer}
        for number, (command, transfer) in enumerate(
            zip(self.commands, self.transfers, strict=True)
        ):
            bits = (spoilt or {}).get(number) or link_bits(self.config, transfer)
            rows[command["peer"]] += bits
        return rows

    def writes(self, count=None, rows=0):
        """What the first ``count`` commands, and ``rows`` of the next, write; how each ends."""
        config, tensor, masks, ends = self.config, [], [], []
        cases = list(zip(self.commands, self.transfers, strict=True))
        count = len(cases) if count is None else count
        for number, (fields, transfer) in enumerate(cases[: count + bool(rows)]):
            padded = -(-fields["rows"] // config.n) * config.n
            for index in range(len(transfer.exponent) if number < count else rows):
                block, row = divmod(index, padded)
                address = fields["op0"] + block * fields["t_stride"] + row
                bits = row_bits(config, transfer.mantissa[index], transfer.exponent[index])
                tensor.append((address % (1 << 16), bits))
                if fields["masked"] and row < fields["rows"]:
                    address = fields["op4"] + block * fields["k_stride"] + row
                    bits = sum(int(bit) << k for k, bit in enumerate(transfer.mask[index]))
                    masks.append((address % (1 << 16), bits))
            if number < count:
                ends.append((Error.NONE, len(tensor), len(masks)))
        return tensor, masks, ends


@pytest.mark.parametrize(
    ("stall", "refuse"),
    [(0, (0, 0)), (0.5, (0, 0)), (0, (0.5, 0.5)), (0.3, (0.3, 0.3)), (0.1, (0.9, 0.9)),
     (0.2, (0.8, 0)), (0.2, (0, 0.8))],
)  # fmt: skip
@pytest.mark.parametrize("config", [NANO, TILE], ids=lambda config: config.name)
def test_random_commands(config, stall, refuse):
    case = Case(config, np.random.default_rng(23), 8, largest=20)
    bench = Bench(config, seed=6, stall=stall, refuse=refuse).run(case.commands, case.rows())
    tensor, masks, ends = case.writes()
    assert bench.tensor == tensor
    assert bench.masks == masks
    assert bench.results == ends
    assert bench.rows == len(tensor)
    assert bench.left == (0, {Peer.PREVIOUS: 0, Peer.NEXT: 0})


def test_full_rate():
    """A row per cycle; one cycle before the first, two between commands, two to the report."""
    case = Case(NANO, np.random.default_rng(1), 6)
    bench = Bench(NANO).run(case.commands, case.rows())
    assert (bench.tensor, bench.masks, bench.results) == case.writes()
    assert bench.cycles == bench.rows + 1 + 2 * (len(case.commands) - 1) + 2
    assert bench.stalls == 0


def test_stalls_are_counted():
    case = Case(NANO, np.random.default_rng(2), 1)
    quiet = Bench(NANO).run(case.commands, case.rows())
    slow = Bench(NANO, stall=0.5).run(case.commands, case.rows())
    assert slow.stalls > 0 and slow.stalls == slow.cycles - quiet.cycles
    refused = Bench(NANO, refuse=(0.5, 0.5)).run(case.commands, case.rows())
    assert refused.cycles > quiet.cycles and refused.stalls == 0


def check_fault(case, victim, rows, good, *, error=Error.LINK):
    """Command ``victim`` gets ``rows`` and fails after ``good`` of them; a reset mends it."""
    tensor, masks, ends = case.writes(victim, good)
    fresh = Case(NANO, np.random.default_rng(good), 3)
    for stall in (0.0, 0.4):
        bench = Bench(NANO, seed=good, stall=stall, refuse=(stall, stall))
        bench.run(case.commands, case.rows({victim: rows}))
        assert (bench.tensor, bench.masks) == (tensor, masks)
        assert bench.results == [*ends, (error, len(tensor), len(masks))]
        assert bench.rows == len(tensor)
        assert bench.left[0] == len(case.commands) - victim - 1
    bench = Bench(NANO, seed=good, stall=0.2)
    bench.run(case.commands, case.rows({victim: rows}), then=(fresh.commands, fresh.rows()))
    assert (bench.tensor, bench.masks, bench.results) == fresh.writes()


def flipped(case, victim, row, bit):
    """Rows of a command with one ``bit``, counted from the end of the mask, wrong in one row."""
    rows = link_bits(NANO, case.transfers[victim])
    rows[row] ^= 1 << NANO.n * NANO.mantissa_bits + 8 + NANO.n + bit
    return rows


@pytest.mark.parametrize("bit", [0, 15, 16, 17, 18, 25])
def test_other_tag(bit):
    """In any row, whatever field it is."""
    case = Case(NANO, np.random.default_rng(30 + bit), 4, largest=12)
    row = bit % len(case.transfers[2].exponent)
    check_fault(case, 2, flipped(case, 2, row, bit), row)


@pytest.mark.parametrize("row", [0, 1, 5, -2])
def test_last_too_early(row):
    case = Case(NANO, np.random.default_rng(40), 3)
    row %= len(case.transfers[1].exponent)
    check_fault(case, 1, flipped(case, 1, row, 26), row)


def test_last_does_not_come():
    case = Case(NANO, np.random.default_rng(41), 3)
    row = len(case.transfers[1].exponent) - 1
    check_fault(case, 1, flipped(case, 1, row, 26), row)


@pytest.mark.parametrize("lost", [0, 3, -1])
def test_row_lost_on_the_way(lost):
    """The transfer is one row short, or what follows has another tag."""
    case = Case(NANO, np.random.default_rng(42), 3)
    for command in case.commands:
        command["peer"] = Peer.NEXT
    rows = link_bits(NANO, case.transfers[1])
    lost %= len(rows)
    del rows[lost]
    bench = Bench(NANO).run(case.commands, case.rows({1: rows}))
    assert [error for error, *_ in bench.results] == [Error.NONE, Error.LINK]


@pytest.mark.parametrize("name", ["rows", "blocks"])
def test_no_rows(name):
    case = Case(NANO, np.random.default_rng(43), 3)
    case.commands[1] |= {name: 0}
    check_fault(case, 1, None, 0, error=Error.COUNT)
