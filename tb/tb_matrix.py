"""cocotb bench of the matrix unit: long random programs, A refused and instructions held off."""

import random
from collections import Counter

import cocotb
from cocotb.triggers import RisingEdge, Timer
from cocotb.utils import get_sim_time

from gradmill_hw.config import TILE
from gradmill_hw.isa import Opcode
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.matrix.matrix import MatrixEvents
from gradmill_hw.matrix.matrix_model import TURNAROUND, cycles, matmul
from tb.matrix_cases import EXPONENTS, Memories, random_command, random_memories, traffic
from tb.stream import Source, stalls, start, unpack


PERIOD_NS = 10
COMMAND = command_layout(Opcode.MATMUL)
COUNTERS = {"macs": "macs", "row": "rows", "nonfinite": "nonfinite"}


class Bench:
    """The unit with its memories, its model and a log of what it did."""

    def __init__(self, dut, *, refuse=0.0, hold=0.0, exponents="usual", special=0.1):
        self.dut = dut
        self.config = TILE.replace(
            n=int(cocotb.plusargs["n"]),
            mantissa_bits=int(cocotb.plusargs["mantissa_bits"]),
            bus_bits=64,
            tensor_rows=2048,
            acc_rows=512,
        )
        self.rng = random.Random(random.getrandbits(32))
        self.refuse, self.hold = stalls(refuse), stalls(hold)
        memories = random_memories(self.rng, self.config, EXPONENTS[exponents], special=special)
        self.memories = Memories(self.config, *memories, self.rng)
        self.events, self.expected = Counter(), Counter()
        self.accepted, self.done = [], []

    async def serve(self):
        """Grant what is asked for, at random for A."""
        dut = self.dut
        ports = dut.a__data, dut.w__data, dut.acc_read__data
        for name in ("a", "w", "acc_read", "acc_write"):
            getattr(dut, f"{name}__ready").value = 1
        ready, refused = True, None
        shape = MatrixEvents(self.config)
        edge = RisingEdge(dut.clk)
        while True:
            await edge
            now = round(get_sim_time("ns") / PERIOD_NS)
            request = self.request("a", "transpose")
            assert refused in (None, request), "a refused request changed"
            refused = None if ready else request
            rows = self.memories.cycle(
                request if ready else None,
                self.request("w", "transpose"),
                self.request("acc_read"),
                self.request("acc_write", "data"),
            )
            events = unpack(shape, int(dut.events.value))
            for name in shape.members:
                self.events[name] += events[name]
            if dut.cmd__valid.value and dut.cmd__ready.value:
                self.accepted.append(now)
            if dut.done.value:
                self.done.append(now)
            for port, row in zip(ports, rows, strict=True):
                port.value = row
            ready = not self.refuse()
            dut.a__ready.value = ready

    def request(self, name, extra=None):
        """What port ``name`` asks for in this cycle, or None."""
        if not getattr(self.dut, f"{name}__valid").value:
            return None
        address = int(getattr(self.dut, f"{name}__addr").value)
        if extra is None:
            return address
        return address, int(getattr(self.dut, f"{name}__{extra}").value)

    async def execute(self, commands):
        """Run ``commands`` on circuit and model, then compare accumulators and counters."""
        dut, memories = self.dut, self.memories
        source = Source(dut, "cmd", COMMAND, self.hold)
        await start(dut, period_ns=PERIOD_NS)
        cocotb.start_soon(self.serve())
        expected = memories.acc.copy()
        for command in commands:
            self.expected.update(
                matmul(command, memories.mantissa, memories.exponent, expected, self.config)
            )
        source.put(*commands)
        while len(self.done) < len(commands):
            await RisingEdge(dut.clk)
        await Timer(20 * PERIOD_NS, "ns")

        assert len(self.done) == len(self.accepted) == len(commands)
        assert not dut.busy.value
        wrong = (memories.acc != expected).any(axis=1).nonzero()[0]
        assert not len(wrong), f"rows {wrong.tolist()} differ"
        assert memories.traffic == traffic(commands, self.config)
        for event, counter in COUNTERS.items():
            assert self.events[event] == self.expected[counter], event


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(
    refuse=[0.0, 0.7], hold=[0.0, 0.95], exponents=["usual", "small", "large", "any"]
)
async def matches_model(dut, refuse, hold, exponents):
    bench = Bench(dut, refuse=refuse, hold=hold, exponents=exponents)
    await bench.execute([random_command(bench.rng, bench.config, largest=30) for _ in range(15)])


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(refuse=[0.0, 0.4])
async def short_tiles(dut, refuse):
    """Few rows through many blocks: the accumulators are read as early as is allowed."""
    bench = Bench(dut, refuse=refuse, special=0.0)
    shared = {"c": 8, "d_stride_c": 16, "op2": 7}
    await bench.execute(
        [
            random_command(bench.rng, bench.config, m=bench.rng.randint(1, 12), k=60, **shared)
            for _ in range(15)
        ]
    )


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(
    (("a_transpose", "w_transpose"), [(0, 0), (0, 1), (1, 0), (1, 1)]), rows=["n", "2n + 3"]
)
async def takes_no_cycle_too_many(dut, a_transpose, w_transpose, rows):
    """Products of every orientation run back to back at the stated speed."""
    bench = Bench(dut)
    n = bench.config.n
    m = {"n": n, "2n + 3": 2 * n + 3}[rows]
    assert m >= TURNAROUND
    await bench.execute(
        [
            random_command(
                bench.rng,
                bench.config,
                m=m,
                k=3 * n,
                c=2 * n,
                accumulate=0,
                a_transpose=a_transpose,
                w_transpose=w_transpose,
            )
            for _ in range(5)
        ]
    )
    one = cycles({"m": m, "k": 3 * n, "c": 2 * n}, bench.config)
    assert one <= 6 * max(m, n) + 2 * n + 16
    ends = [bench.accepted[0] + one + 6 * m * at for at in range(5)]
    assert bench.done == ends
