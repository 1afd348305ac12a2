"""Random traffic on every port of a banked memory, checked cycle by cycle against a dictionary."""

import random

from amaranth import Cat, Signal, Value
from amaranth.sim import Simulator
from gradmill_hw.memory.ports import READ_LATENCY


__all__ = ["RowMemory", "TileMemory", "check_traffic"]


class RowMemory:
    """Rows by address, zero until written."""

    def __init__(self, width):
        self.width = width
        self.rows = {}

    def read(self, addr, transpose):
        return self.rows.get(addr, 0)

    def write(self, addr, row):
        self.rows[addr] = row


class TileMemory(RowMemory):
    """Rows of ``n`` mantissas and an exponent, read by row or by column."""

    def __init__(self, config):
        super().__init__(config.n * config.mantissa_bits + 8)
        self.n, self.bits = config.n, config.mantissa_bits

    def read(self, addr, transpose):
        if not transpose:
            return super().read(addr, False)
        first, column = addr - addr % self.n, addr % self.n
        tile = [self.rows.get(first + i, 0) for i in range(self.n)]
        row = tile[0] >> self.n * self.bits << self.n * self.bits
        for i, source in enumerate(tile):
            row |= (source >> column * self.bits) % (1 << self.bits) << i * self.bits
        return row


def check_traffic(
    dut, memory, *, paths, depth, banks, cycles, seed, busy=0.7, beyond=0.02, hot=0.7
):
    """Drive ``dut`` for ``cycles`` and compare grants, rows and faults in each cycle.

    Parameters
    ----------
    memory : RowMemory
        Expected contents.
    paths : tuple of int
        Paths of reads and of writes; clients beyond share the last one.
    busy : float
        Probability that a free port asks in a cycle.
    beyond : float
        Probability that a request is beyond the depth.
    hot : float
        Probability that a request is for one of few rows, two in each bank.

    Returns
    -------
    dict
        Counts of what happened.
    """
    print(f"seed={seed}")
    rng = random.Random(seed)
    hot_rows = [rng.randrange(depth // banks) + bank * (depth // banks) for bank in range(banks)]
    hot_rows += [row ^ 1 for row in hot_rows]
    readers = len(dut.read)
    ports = [*dut.read, *dut.write]
    extras = [getattr(port, "transpose", Signal()) for port in dut.read]
    extras += [Value.cast(port.data) for port in dut.write]
    requests = [None] * len(ports)
    seen = dict.fromkeys(("read", "write", "waited", "collided", "fault"), 0)

    # One access for all inputs and one for all outputs, as each settles the whole simulation.
    inputs = Cat(*(port.valid for port in ports), *(port.addr for port in ports), *extras)
    outputs = Cat(
        *(port.ready for port in ports), dut.fault, *(Value.cast(port.data) for port in dut.read)
    )

    def choose():
        if rng.random() < beyond:
            return rng.randrange(depth, 1 << 16)
        return rng.choice(hot_rows) if rng.random() < hot else rng.randrange(depth)

    def offer():
        """Inputs of this cycle, with noise on the ports that do not ask."""
        bits = 0
        at = 17 * len(ports)
        for number, extra in enumerate(extras):
            if requests[number] is None and rng.random() < busy:
                requests[number] = choose(), rng.getrandbits(len(extra))
            addr, value = requests[number] or (rng.getrandbits(16), rng.getrandbits(len(extra)))
            bits |= (requests[number] is not None) << number
            bits |= addr << len(ports) + 16 * number | value << at
            at += len(extra)
        return bits

    def granted(ready, numbers, paths):
        """Take the granted requests of one direction, after a check of every grant."""
        taken, banks_taken = [], set()
        shared_taken = False
        for number in numbers:
            if requests[number] is None:
                continue
            shares = number - numbers[0] >= paths - 1
            if shares and shared_taken:
                assert not ready >> number & 1, f"port {number}"
                seen["waited"] += 1
                continue
            shared_taken = shares
            bank = requests[number][0] % depth * banks // depth
            assert ready >> number & 1 == (bank not in banks_taken), f"port {number}"
            if bank in banks_taken:
                seen["waited"] += 1
            else:
                taken.append((number, *requests[number]))
                requests[number] = None
            banks_taken.add(bank)
        return taken

    async def testbench(ctx):
        expected = [{} for _ in range(READ_LATENCY)]
        fault = False
        for _ in range(cycles):
            ctx.set(inputs, offer())
            results = ctx.get(outputs)
            assert results >> len(ports) & 1 == fault
            for number, row in expected[0].items():
                data = results >> len(ports) + 1 + number * memory.width
                assert data % (1 << memory.width) == row, f"read port {number}"

            reads = granted(results, range(readers), paths[0])
            writes = granted(results, range(readers, len(ports)), paths[1])
            expected = [
                *expected[1:],
                {
                    number: memory.read(addr, transpose)
                    for number, addr, transpose in reads
                    if addr < depth
                },
            ]
            for _, addr, row in writes:
                if addr < depth:
                    memory.write(addr, row)
            fault = any(addr >= depth for _, addr, _ in (*reads, *writes))

            seen["read"] += len(reads)
            seen["write"] += len(writes)
            seen["fault"] += fault
            seen["collided"] += not {addr for _, addr, _ in reads}.isdisjoint(
                addr for _, addr, _ in writes
            )
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return seen
