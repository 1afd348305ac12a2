"""Send, links and receive together: exact throughput, and under Verilator with stalls."""

from collections import deque

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from gradmill_hw.config import NANO, get_config
from gradmill_hw.isa import Opcode, Peer
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.link.receive import Receive
from gradmill_hw.link.send import Send
from gradmill_hw.memory.banked import BankedMemory
from gradmill_hw.memory.ports import BfpRow, ReadPort, TensorReadPort, WritePort, mask_row
from gradmill_hw.memory.tensor_memory import TensorMemory
from gradmill_hw.regs import Error
from tb.link_cases import random_receive, random_send
from tb.run import run_bench
from tests.link_bench import Link, feed


class Loop(wiring.Component):
    """A tile that is its own neighbour: what it sends to one side it receives from the other.

    Members
    -------
    fill_tensor, fill_mask, peek_tensor, peek_mask : In
        Further ports of the memories, served before the units.
    hold : In(4)
        Keeps the ports of the units waiting: reads of tensor and mask memory, writes of both.
    """

    def __init__(self, config, *, there=0, back=0):
        self.config, self.there, self.back = config, there, back
        super().__init__(
            {
                "send_cmd": In(stream.Signature(command_layout(Opcode.SEND))),
                "receive_cmd": In(stream.Signature(command_layout(Opcode.RECEIVE))),
                "send_done": Out(1),
                "send_error": Out(Error),
                "receive_done": Out(1),
                "receive_error": Out(Error),
                "link_error": Out(1),
                "fill_tensor": In(WritePort(BfpRow(config))),
                "fill_mask": In(WritePort(mask_row(config))),
                "peek_tensor": In(TensorReadPort(config)),
                "peek_mask": In(ReadPort(mask_row(config))),
                "hold": In(4),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.send = send = Send(config)
        m.submodules.receive = receive = Receive(config)
        m.submodules.tensor = tensor = TensorMemory(config, readers=2, writers=2)
        m.submodules.mask = mask = BankedMemory(
            mask_row(config), depth=config.mask_rows, banks=1, readers=2, writers=2
        )
        errors = []
        for near, far in ((Peer.NEXT, Peer.PREVIOUS), (Peer.PREVIOUS, Peer.NEXT)):
            link = Link(config, there=self.there, back=self.back)
            m.submodules[f"to_{near.name.lower()}"] = link
            wiring.connect(m, getattr(send, near.name.lower()), link.i)
            wiring.connect(m, link.o, getattr(receive, far.name.lower()))
            errors += [link.sender_error, link.receiver_error]
        m.d.comb += self.link_error.eq(Cat(errors).any())

        for name, memory in (("tensor", tensor), ("mask", mask)):
            wiring.connect(m, wiring.flipped(getattr(self, f"fill_{name}")), memory.write[0])
            wiring.connect(m, wiring.flipped(getattr(self, f"peek_{name}")), memory.read[0])
        for k, (port, served) in enumerate(
            [
                (send.tensor_read, tensor.read[1]),
                (send.mask_read, mask.read[1]),
                (receive.tensor_write, tensor.write[1]),
                (receive.mask_write, mask.write[1]),
            ]
        ):
            for name, member in port.signature.members.items():
                ours, theirs = getattr(port, name), getattr(served, name)
                m.d.comb += theirs.eq(ours) if member.flow is Out else ours.eq(theirs)
            with m.If(self.hold[k]):
                m.d.comb += [served.valid.eq(0), port.ready.eq(0)]
        for unit, name in ((send, "send"), (receive, "receive")):
            wiring.connect(m, wiring.flipped(getattr(self, f"{name}_cmd")), unit.cmd)
            m.d.comb += [
                getattr(self, f"{name}_done").eq(unit.done),
                getattr(self, f"{name}_error").eq(unit.error),
            ]
        return m


@pytest.mark.parametrize("stages", [(0, 0), (4, 4)])
def test_full_rate(stages):
    """From memory to memory a row per cycle; two cycles between commands."""
    rng = np.random.default_rng(3)
    sends = [random_send(NANO, rng) for _ in range(10)]
    receives = [random_receive(NANO, rng, sent) for sent in sends]
    for command in receives:
        command["peer"] = Peer(1 - command["peer"])
    dut = Loop(NANO, there=stages[0], back=stages[1])
    cycles = ends = 0

    async def watch(ctx):
        nonlocal cycles, ends
        while ends < len(receives):
            _, _, done, error = await ctx.tick().sample(dut.receive_done, dut.receive_error)
            assert error == Error.NONE
            ends += done
            cycles += 1
            assert cycles < 10_000, "no end"

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed(dut.send_cmd, deque(sends)), background=True)
    simulator.add_testbench(feed(dut.receive_cmd, deque(receives)), background=True)
    simulator.add_testbench(watch)
    simulator.run()
    rows = sum(-(-sent["rows"] // NANO.n) * NANO.n * sent["blocks"] for sent in sends)
    assert cycles == rows + 2 * (len(sends) - 1) + 9 + stages[0]


@pytest.mark.rtl
@pytest.mark.parametrize(("config", "stages"), [
    ("nano", (0, 0)), pytest.param("tile", (3, 1), marks=pytest.mark.long)])
def test_rtl(tmp_path, config, stages):
    dut = Loop(get_config(config), there=stages[0], back=stages[1])
    run_bench(dut, "tb.tb_link", tmp_path, config=config, phases=4)
