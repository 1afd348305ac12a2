"""Fake units around the control path: they take commands when they like and end them in time."""

import random
from collections import Counter

from amaranth.sim import Simulator
from gradmill_hw.config import NANO
from gradmill_hw.control.control import ControlPath
from gradmill_hw.isa import INSTRUCTION_BYTES, TILE_QUEUES
from gradmill_hw.regs import (
    ARGUMENTS,
    Error,
)
from gradmill_hw.sequencer_model import commands

from tb.control_programs import command_bits
from tests.control_bench import Host, queue_name, serve_reads


CONFIG = NANO.replace(bus_bits=128, queue_depth=4)


class Bench:
    """Control path with units that take commands when they like and end them when they like.

    ``fail`` maps ``(queue, number)`` to the error with which that command ends.
    """

    def __init__(self, seed, program, *, origin=0, stall=0.3, slow=12, fail=None, hang=()):
        self.rng = random.Random(seed)
        self.dut = ControlPath(CONFIG)
        self.memory = bytes(origin) + b"".join(program)
        self.memory += bytes(8 * INSTRUCTION_BYTES)
        self.origin, self.stall, self.slow = origin, stall, slow
        self.fail, self.hang = fail or {}, hang
        self.taken = {queue: [] for queue in TILE_QUEUES}
        self.ended = Counter()
        self.running = Counter()
        self.tokens = Counter()
        self.masks = {queue: [] for queue in TILE_QUEUES}
        self.resets = 0

    def expect(self, arguments=(0,) * ARGUMENTS):
        """Commands of each queue by the model; remembers their semaphores."""
        want = {queue: [] for queue in TILE_QUEUES}
        for command in commands(self.memory[self.origin :], arguments, self.origin):
            want[command.opcode.queue].append((command.pc, command_bits(command)))
            self.masks[command.opcode.queue].append(
                (command.fields["wait"], command.fields["post"])
            )
        return want

    async def unit(self, ctx, queue):
        """Takes up to three commands at a time and ends them in order."""
        cmd = getattr(self.dut, f"{queue_name(queue)}_cmd")
        end = getattr(self.dut, f"{queue_name(queue)}_end")
        rng, left, number = self.rng, [], 0
        while True:
            ready = len(left) < 3 and rng.random() >= self.stall
            ctx.set(cmd.ready, ready)
            left = [max(0, k - 1) for k in left]
            done = bool(left) and left[0] == 0 and (queue, number) not in self.hang
            error = self.fail.get((queue, number), Error.NONE) if done else Error.NONE
            ctx.set(end.done, done)
            ctx.set(end.error, error)
            ctx.set(end.address, 0x12_3456_7890 if error else 0)
            _, _, valid, payload, abort = await ctx.tick().sample(
                cmd.valid, cmd.payload, self.dut.abort
            )
            if done:
                left.pop(0)
                self.running[queue] -= 1
                if not error:
                    self.ended[queue] += 1
                    if self.masks[queue]:
                        self.post(queue, number)
                number += 1
            if valid and ready:
                if self.masks[queue]:
                    self.take(queue, len(self.taken[queue]))
                self.taken[queue].append(payload.as_bits())
                left.append(rng.randrange(1, self.slow))
                self.running[queue] += 1
            if abort:
                left, number = [], 0
                self.running[queue] = 0
                self.taken[queue].clear()

    def take(self, queue, number):
        wait = self.masks[queue][number][0]
        for bit in range(16):
            if wait >> bit & 1:
                self.tokens[bit // 2, queue, bit % 2] -= 1
                assert self.tokens[bit // 2, queue, bit % 2] >= 0

    def post(self, queue, number):
        post = self.masks[queue][number][1]
        for bit in range(16):
            if post >> bit & 1:
                self.tokens[queue, bit // 2, bit % 2] += 1

    async def near(self, ctx):
        await serve_reads(
            ctx,
            self.dut.fetch,
            self.memory,
            self.rng,
            stall=self.stall,
            beat_bytes=CONFIG.beat_bytes,
        )

    async def set_up(self, host):
        await host.write_pair("near_window0_base", 0)
        await host.write_pair("near_window0_limit", len(self.memory))
        await host.write("near_window0_control", read=1)
        await host.write_pair("program", self.origin)
        await host.write("irq_enable", done=1, error=1)

    async def until_irq(self, ctx, cycles=20000):
        for _ in range(cycles):
            if ctx.get(self.dut.irq):
                return
            await ctx.tick()
        raise AssertionError(f"no interrupt in {cycles} cycles")

    def run(self, scenario):
        """Run ``scenario(ctx, host)`` to its end."""

        async def main(ctx):
            await scenario(ctx, Host(ctx, self.dut.bus, self.rng))

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(main)
        sim.add_testbench(self.near, background=True)
        for queue in TILE_QUEUES:

            async def unit(ctx, queue=queue):
                await self.unit(ctx, queue)

            sim.add_testbench(unit, background=True)
        sim.run()

    def check(self, want):
        for queue in TILE_QUEUES:
            got = self.taken[queue]
            for one, (_, bits) in zip(got, want[queue], strict=True):
                assert one == bits
