"""Bench for the control path: a host, a memory and four units that take their time.

Every job is a random program; some end with the error of a random command, some with a reset at a
random moment. Order, contents and semaphores of all commands are those of the model.
"""

import random

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp
from gradmill_hw.config import get_config
from gradmill_hw.isa import INSTRUCTION_BYTES, TILE_QUEUES
from gradmill_hw.regs import ARGUMENTS, REGS, Error
from gradmill_hw.sequencer_model import commands

from tb.control_programs import command_bits, random_chain, random_program
from tb.stream import start


class Memory:
    """Near memory behind a ``ReadClient``: requests in order, late and with pauses."""

    def __init__(self, dut, config, stall):
        self.dut, self.config, self.stall = dut, config, stall
        self.data = b""
        cocotb.start_soon(self._run())

    async def _run(self):
        dut, step = self.dut, self.config.beat_bytes
        edge, queue, now, offered = RisingEdge(dut.clk), [], 0, False
        address_bits = self.config.address_bits
        dut.fetch__data__valid.value = 0
        dut.fetch__request__ready.value = 0
        while True:
            ready = random.random() >= self.stall
            dut.fetch__request__ready.value = ready
            await edge
            now += 1
            if ready and dut.fetch__request__valid.value:
                bits = int(dut.fetch__request__payload.value)
                address, beats = bits & (1 << address_bits) - 1, bits >> address_bits
                assert address % step == 0 and beats
                assert address + beats * step <= len(self.data)
                late = now + random.randrange(3, 40)
                queue += [(late, address + k * step, k == beats - 1) for k in range(beats)]
            if offered and dut.fetch__data__ready.value:
                offered = False
            if not offered and queue and queue[0][0] <= now and random.random() >= self.stall:
                _, address, last = queue.pop(0)
                word = int.from_bytes(self.data[address : address + step], "little")
                dut.fetch__data__payload.value = word | last << 8 * step
                offered = True
            dut.fetch__data__valid.value = offered


class Unit:
    """Takes up to three commands at a time and ends them in order, the one at ``fail`` badly."""

    def __init__(self, bench, queue):
        self.bench, self.queue = bench, queue
        self.taken, self.ended, self.fail, self.running = [], 0, None, []
        cocotb.start_soon(self._run())

    async def _run(self):
        bench, dut, name = self.bench, self.bench.dut, self.queue.name.lower()
        cmd = [getattr(dut, f"{name}_cmd__{part}") for part in ("valid", "ready", "payload")]
        done, error = (getattr(dut, f"{name}_end__{part}") for part in ("done", "error"))
        getattr(dut, f"{name}_end__address").value = self.queue
        edge = RisingEdge(dut.clk)
        while True:
            ready = len(self.running) < 3 and random.random() >= bench.stall
            self.running = [max(0, left - 1) for left in self.running]
            end = bool(self.running) and self.running[0] == 0
            bad = end and self.ended == self.fail
            cmd[1].value = ready
            done.value = end
            error.value = Error.BUS_READ if bad else Error.NONE
            await edge
            if end:
                self.running.pop(0)
                if not bad:
                    bench.post(self.queue, self.ended)
                self.ended += 1
            if ready and cmd[0].value:
                bench.take(self.queue, len(self.taken))
                self.taken.append(int(cmd[2].value))
                self.running.append(random.randrange(1, 30))
            if dut.abort.value:
                self.running, self.ended = [], 0
                self.taken.clear()


class Bench:
    """Everything around the control path, and what it ought to do."""

    def __init__(self, dut, config, stall):
        self.dut, self.config, self.stall = dut, config, stall
        dut.bus_busy.value = 0
        dut.events.value = 0
        dut.macs.value = 0
        for name in ("read", "write"):
            getattr(dut, f"{name}_traffic__0").value = 0
        self.host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus_"), dut.clk, dut.rst)
        self.memory = Memory(dut, config, stall)
        self.units = {queue: Unit(self, queue) for queue in TILE_QUEUES}

    def new_job(self, fail):
        """A random program and, if ``fail``, a command that fails; returns arguments and pc."""
        self.memory.data = b"".join(random_program(random, command=random_chain, length=24))
        self.memory.data += bytes(8 * INSTRUCTION_BYTES)
        arguments = [random.getrandbits(40) for _ in range(ARGUMENTS)]
        self.want = {queue: [] for queue in TILE_QUEUES}
        for command in commands(self.memory.data, arguments):
            self.want[command.opcode.queue].append(command)
        self.tokens = {}
        for unit in self.units.values():
            unit.taken.clear()
            unit.ended, unit.fail = 0, None
        queue = random.choice(TILE_QUEUES)
        if not fail or not self.want[queue]:
            return arguments, None
        self.units[queue].fail = random.randrange(len(self.want[queue]))
        return arguments, (queue, self.want[queue][self.units[queue].fail].pc)

    def take(self, queue, number):
        wait = self.want[queue][number].fields["wait"]
        for bit in range(16):
            if wait >> bit & 1:
                self.tokens[bit // 2, queue, bit % 2] -= 1
                assert self.tokens[bit // 2, queue, bit % 2] >= 0

    def post(self, queue, number):
        post = self.want[queue][number].fields["post"]
        for bit in range(16):
            if post >> bit & 1:
                key = queue, bit // 2, bit % 2
                self.tokens[key] = self.tokens.get(key, 0) + 1

    def check(self, whole):
        for queue, unit in self.units.items():
            want = [command_bits(command) for command in self.want[queue]]
            assert unit.taken == (want if whole else want[: len(unit.taken)])

    async def write(self, name, value):
        answer = await self.host.write(REGS[name].offset, value.to_bytes(4, "little"))
        assert answer.resp == AxiResp.OKAY, name

    async def write_pair(self, name, value):
        await self.write(f"{name}_lo", value & 0xFFFF_FFFF)
        await self.write(f"{name}_hi", value >> 32)

    async def read(self, name):
        answer = await self.host.read(REGS[name].offset, 4)
        assert answer.resp == AxiResp.OKAY, name
        return REGS[name].unpack(int.from_bytes(answer.data, "little"))

    async def read_pair(self, name):
        low = (await self.read(f"{name}_lo"))["value"]
        return low | (await self.read(f"{name}_hi"))["value"] << 32

    async def reset(self):
        await self.write("ctrl", REGS["ctrl"].pack(soft_reset=1))
        while (await self.read("status"))["busy"]:
            pass

    async def start(self, arguments):
        await self.write_pair("near_window0_limit", len(self.memory.data))
        for k, value in enumerate(arguments):
            await self.write_pair(f"argument{k}", value)
        await self.write("ctrl", REGS["ctrl"].pack(start=1))

    async def end(self):
        while not self.dut.irq.value:
            await RisingEdge(self.dut.clk)
        status = await self.read("irq_status")
        await self.write("irq_status", REGS["irq_status"].pack(done=1, error=1))
        return status


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def random_jobs(dut, stall):
    config = get_config(cocotb.plusargs["config"])
    bench = Bench(dut, config, stall)
    await start(dut)
    await bench.write("near_window0_control", 1)
    await bench.write("irq_enable", 3)
    for job in range(int(cocotb.plusargs["jobs"])):
        arguments, failure = bench.new_job(fail=job % 3 == 1)
        await bench.start(arguments)
        if job % 3 == 2:
            await ClockCycles(dut.clk, random.randrange(400))
            bench.check(whole=False)
            await bench.reset()
            await bench.write("irq_status", 3)
            continue
        ended = await bench.end()
        if failure is None:
            assert ended == {"done": 1, "error": 0}
            bench.check(whole=True)
            assert not any(bench.tokens.values())
        else:
            assert ended == {"done": 0, "error": 1}
            queue, pc = failure
            assert await bench.read("error") == {"code": Error.BUS_READ, "queue": queue}
            assert await bench.read_pair("error_pc") == pc
            assert await bench.read_pair("error_address") == queue
            assert not any(unit.running for unit in bench.units.values() if unit.queue != queue)
            bench.check(whole=False)
            await bench.reset()
