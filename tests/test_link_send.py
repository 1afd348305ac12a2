"""Send unit: every row, its mask, tag and end against the model, under stalls on every side."""

from collections import deque

import numpy as np
import pytest
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, TILE
from gradmill_hw.isa import Peer
from gradmill_hw.link.link_model import send
from gradmill_hw.link.send import Send
from gradmill_hw.regs import Error
from tb.link_cases import link_bits, new_tile, op_of, random_send, row_bits
from tests.axi_memory import serve_reads
from tests.link_bench import feed, take


class Rows:
    """Bits of memory rows by address; remembers which were read."""

    def __init__(self, bits):
        self.bits, self.read = bits, []

    def __getitem__(self, row):
        self.read.append(row)
        return self.bits(row)


class Bench:
    """Runs commands through the unit. Commands, memories and both links run freely.

    After :meth:`run`: ``sent`` holds the bits of the rows by peer, ``results`` what came with each
    ``done`` and how many rows had been sent before, ``tensor`` and ``masks`` the rows read,
    ``left`` the commands that were not taken, ``rows`` and ``stalls`` the events counted,
    ``cycles`` those from the first command to the last ``done``.
    """

    def __init__(self, config, tile, *, seed=0, stall=0.0, refuse=(0.0, 0.0)):
        print(f"{seed=}")
        self.seed, self.stall, self.refuse = seed, stall, refuse
        self.unit = Send(config)
        self.tensor = Rows(lambda row: row_bits(config, tile.mantissa[row], tile.exponent[row]))
        self.masks = Rows(lambda row: sum(int(bit) << k for k, bit in enumerate(tile.mask[row])))
        self.sent = {peer: [] for peer in Peer}
        self.results = []
        self.rows = self.stalls = self.cycles = 0

    def run(self, commands, *, limit=20_000):
        """Ends when all commands have ended, or at the first error."""
        unit, pending = self.unit, deque(commands)

        async def watch(ctx):
            began = False
            while len(self.results) < len(commands):
                began |= ctx.get(unit.cmd.valid)
                assert self.cycles < limit, "no end"
                self.cycles += began
                await self._step(ctx)
                if self.results and self.results[-1][0]:
                    break
            # Nothing follows, and an error has stopped the unit for good.
            ends, rows = len(self.results), self.rows
            for _ in range(50):
                busy = await self._step(ctx)
            assert not busy and (ends, rows) == (len(self.results), self.rows)

        sim = Simulator(unit)
        sim.add_clock(1e-6)
        tensor, masks = self.refuse
        benches = [
            serve_reads(
                unit.tensor_read, self.tensor, latency_cycles=2, seed=self.seed, stall=tensor
            ),
            serve_reads(
                unit.mask_read, self.masks, latency_cycles=2, seed=self.seed + 1, stall=masks
            ),
            feed(unit.cmd, pending, seed=self.seed + 2, stall=self.stall),
            take(unit.previous, self.sent[Peer.PREVIOUS], seed=self.seed + 3, stall=self.stall),
            take(unit.next, self.sent[Peer.NEXT], seed=self.seed + 4, stall=self.stall),
        ]
        for bench in benches:
            sim.add_testbench(bench, background=True)
        sim.add_testbench(watch)
        sim.run()
        self.left = len(pending)
        return self

    async def _step(self, ctx):
        """One cycle; returns whether the unit was busy."""
        unit = self.unit
        _, _, done, error, busy, row, stall, transposed = await ctx.tick().sample(
            unit.done, unit.error, unit.busy, unit.row, unit.stall, unit.tensor_read.transpose
        )
        assert not transposed
        if done:
            self.results.append((Error(error), self.rows))
        self.rows += row
        self.stalls += stall
        return busy


def expected(config, commands, tile):
    """Bits of the rows by peer, and how each command ends: error, rows sent until then."""
    sent, ends, count = {peer: [] for peer in Peer}, [], 0
    for fields in commands:
        bits = link_bits(
            config, send(fields, op_of(fields), tile.mantissa, tile.exponent, tile.mask, config)
        )
        sent[fields["peer"]] += bits
        count += len(bits)
        ends.append((Error.NONE, count))
    return sent, ends


@pytest.mark.parametrize(
    ("stall", "refuse"),
    [(0, (0, 0)), (0.5, (0, 0)), (0, (0.5, 0.5)), (0.3, (0.3, 0.3)), (0.9, (0.1, 0.1)),
     (0.5, (0.8, 0)), (0.5, (0, 0.8)), (0, (0.8, 0)), (0, (0, 0.8))],
)  # fmt: skip
@pytest.mark.parametrize("config", [NANO, TILE], ids=lambda config: config.name)
def test_random_commands(config, stall, refuse):
    rng = np.random.default_rng(17)
    tile = new_tile(config, rng)
    commands = [random_send(config, rng, largest=20) for _ in range(8)]
    bench = Bench(config, tile, seed=5, stall=stall, refuse=refuse).run(commands)
    sent, ends = expected(config, commands, tile)
    assert bench.sent == sent
    assert bench.results == ends
    assert bench.rows == ends[-1][1]
    # Each row is read once; the masks of rows that have none are not read at all.
    assert len(bench.tensor.read) == bench.rows
    assert len(bench.masks.read) == sum(c["masked"] * c["rows"] * c["blocks"] for c in commands)


@pytest.mark.parametrize("masked", [0, 1])
@pytest.mark.parametrize("peer", Peer)
def test_full_rate(peer, masked):
    """A row per cycle; four cycles before the first, one between commands, one to the report."""
    rng = np.random.default_rng(1)
    tile = new_tile(NANO, rng)
    commands = [
        random_send(NANO, rng) | {"rows": rows, "masked": masked, "peer": peer}
        for rows in (20, 4, 1, 3, 32)
    ]
    bench = Bench(NANO, tile).run(commands)
    sent, ends = expected(NANO, commands, tile)
    assert bench.sent == sent and bench.results == ends
    assert bench.cycles == bench.rows + 4 + (len(commands) - 1) + 1
    assert bench.stalls == 0


def test_stalls_are_counted():
    rng = np.random.default_rng(2)
    tile = new_tile(NANO, rng)
    command = random_send(NANO, rng) | {"rows": 100, "blocks": 1, "masked": 1}
    command |= {"op0": 0, "op4": 0}
    quiet = Bench(NANO, tile).run([command])
    slow = Bench(NANO, tile, stall=0.4).run([command])
    assert slow.stalls >= slow.cycles - quiet.cycles > 20
    refused = Bench(NANO, tile, refuse=(0.4, 0.0)).run([command])
    assert refused.stalls >= refused.cycles - quiet.cycles > 20


@pytest.mark.parametrize("name", ["rows", "blocks"])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_no_rows(stall, name):
    """The commands before it end well, those behind it are not taken."""
    rng = np.random.default_rng(8)
    tile = new_tile(NANO, rng)
    commands = [random_send(NANO, rng) for _ in range(5)]
    bench = Bench(NANO, tile, stall=stall, refuse=(stall, stall)).run(
        [*commands[:3], commands[3] | {name: 0}, commands[4]]
    )
    sent, ends = expected(NANO, commands[:3], tile)
    assert bench.sent == sent
    assert bench.results == [*ends, (Error.COUNT, ends[-1][1])]
    assert bench.left == 1


def test_addresses_wrap():
    """Rows behind the last address are those from address 0 on."""
    rng = np.random.default_rng(9)
    config = NANO.replace(tensor_rows=1 << 16, mask_rows=1 << 16)
    tile = new_tile(config, rng)
    fields = random_send(config, rng) | {
        "op0": 0xFFFE, "op4": 0xFFF9, "rows": 7, "blocks": 3, "t_stride": 9, "k_stride": 8,
        "masked": 1,
    }  # fmt: skip
    bench = Bench(config, tile).run([fields])
    assert bench.sent == expected(config, [fields], tile)[0]
