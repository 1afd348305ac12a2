"""The sequencer: checks instructions, runs loops, adds base registers, fills the queues."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import (
    COMMON, INSTRUCTIONS, LOOPS, OPERANDS, TILE_QUEUES, Opcode, Queue, legal_tokens,
)
from ..isa_layout import instruction_layout
from ..regs import ARGUMENTS, REGS, Error
from .bases import BaseRegisters
from .csr import StoredWrite
from .fetch import Fetched, Jump
from .semaphores import TOKENS
from .store import PC_BITS, StoredCommand


__all__ = ["Dispatch", "Sequencer", "illegal"]

_COMMON_BITS = sum(field.width for field in COMMON)


class Dispatch(data.StructLayout):
    """A command for a queue, its semaphore masks, ``hold`` and ``release``, and the address of its
    instruction."""

    def __init__(self):
        super().__init__({
            "queue":   range(len(Queue)),
            "wait":    TOKENS,
            "post":    TOKENS,
            "keeps":   2,
            "pc":      PC_BITS,
            "command": StoredCommand(),
        })


def illegal(word, queues):
    """Value that is 1 for instructions that :mod:`~gradmill_hw.sequencer_model` calls illegal."""
    legal = []
    for opcode, layout in INSTRUCTIONS.items():
        if opcode.queue is not None and opcode.queue not in queues:
            continue
        view  = data.View(instruction_layout(opcode), word)
        wrong = [view[f.name].any() for f in layout.fields if f.name.startswith("reserved")]
        foreign = ~C(legal_tokens(opcode.queue, queues), TOKENS)
        wrong += [(view.wait & foreign).any(), (view.post & foreign).any()]
        match opcode:
            case Opcode.LOOP:
                wrong.append(view.count == 0)
            case Opcode.BASE:
                wrong += [view.register == 0, view.argument > ARGUMENTS]
            case Opcode.VECTOR:
                wrong += [view[f.name] > max(f.enum) for f in layout.body
                          if f.enum is not None and max(f.enum) + 1 < 1 << f.width]
        legal.append((word[:8] == opcode) & ~Cat(wrong).any())
    return ~Cat(legal).any()


class Sequencer(wiring.Component):
    """Executes a program as :func:`~gradmill_hw.sequencer_model.commands` does.

    Two stages: the first adds base registers and judges, the second hands the command to its
    queue or executes an instruction of the sequencer itself. One command per cycle; ``BASE`` takes
    two cycles, ``LOOP`` and ``NEXT`` four more than the number of the highest base register in use;
    ``NEXT`` also empties the prefetched instructions.

    Parameters
    ----------
    queues : tuple of Queue
        Queues of the tile.

    Members
    -------
    start : In(1)
        Run the program at instruction ``program``.
    program : In(34)
        Address in instructions.
    stop : In(1)
        Begin no further instruction.
    i : In(stream.Signature(Fetched()))
        Instructions in sequence.
    jump : Out(Jump())
        Where they continue.
    o : Out(stream.Signature(Dispatch()))
        Commands.
    queues_empty : In(1)
        Every command handed out before this cycle has completed.
    arguments : In(StoredWrite())
        Writes to registers; the argument registers are kept here.
    done : Out(1)
        ``HALT`` was executed; one cycle.
    fault : Out(Error)
        Why the instruction at ``pc`` is refused; stays until reset.
    pc : Out(34)
        Instruction being executed.
    executed : Out(1)
        An instruction was executed, whatever its kind; one cycle each.
    starved : Out(1)
        There is no instruction to execute.
    """

    def __init__(self, queues=TILE_QUEUES):
        self.queues = queues
        super().__init__({
            "start":        In(1),
            "program":      In(PC_BITS),
            "stop":         In(1),
            "i":            In(stream.Signature(Fetched())),
            "jump":         Out(Jump()),
            "o":            Out(stream.Signature(Dispatch())),
            "queues_empty": In(1),
            "arguments":    In(StoredWrite()),
            "done":         Out(1),
            "fault":        Out(Error),
            "pc":           Out(PC_BITS),
            "executed":     Out(1),
            "starved":      Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.bases = bases = BaseRegisters()
        m.submodules.bodies = bodies = memory.Memory(shape=PC_BITS, depth=LOOPS, init=[])
        m.submodules.lefts  = lefts  = memory.Memory(shape=32, depth=LOOPS, init=[])

        running = Signal()
        next_pc = Signal(PC_BITS)
        full    = Signal()  # the second stage holds an instruction
        leave   = Signal()  # it is executed in this cycle
        take    = Signal()  # the first stage passes one on

        # First stage: operands and judgement.
        raw     = self.i.p.word
        common  = data.View(instruction_layout(Opcode.LOAD), raw)
        opcode  = Signal(8)
        local   = Signal()  # for the sequencer itself
        wrong   = Signal()
        failed  = Signal()
        command = self.o.p.command
        body    = Signal(len(raw) - _COMMON_BITS)
        m.d.comb += [
            bases.mem_index.eq(common.mem_base),
            *(bases.row_index[k].eq(common[f"op{k}_base"]) for k in range(OPERANDS)),
            take.eq(self.i.valid & running & ~self.stop & ~bases.busy
                    & (~full | leave & ~local)),
            self.i.ready.eq(take),
            self.starved.eq(running & ~full & ~bases.busy & ~self.i.valid),
        ]
        with m.If(take):
            m.d.sync += [
                opcode.eq(common.opcode),
                local.eq(common.opcode[4:] == 0),
                wrong.eq(illegal(raw, self.queues)),
                failed.eq(self.i.p.error),
                body.eq(raw[_COMMON_BITS:]),
                self.o.p.queue.eq(common.opcode[4:] - 1),
                self.o.p.wait.eq(common.wait),
                self.o.p.post.eq(common.post),
                self.o.p.keeps.eq(Cat(common.hold, common.release)),
                command.layer.eq(common.layer),
                *(command.op[k].eq(common[f"op{k}"] + bases.row[k]) for k in range(OPERANDS)),
                command.mem.eq(common.mem + bases.mem),
                self.pc.eq(next_pc),
                next_pc.eq(next_pc + 1),
            ]
        m.d.sync += full.eq(take | full & ~leave)
        m.d.comb += [command.body.eq(body), self.o.p.pc.eq(self.pc)]

        # Second stage. A program refused, stopped or finished stays where it is.
        ready  = full & running & ~self.stop & ~wrong & ~failed & (self.fault == Error.NONE)
        depth  = Signal(range(LOOPS + 1))
        inner  = Signal(range(LOOPS))
        begin, target = bodies.write_port(), bodies.read_port(domain="comb")
        count, left   = lefts.write_port(), lefts.read_port(domain="comb")
        level  = Signal(range(LOOPS))  # of the loop that begins or goes on
        base   = data.View(instruction_layout(Opcode.BASE), Cat(C(0, _COMMON_BITS), body))
        again  = left.data != 1
        refuse = Signal(Error)
        m.d.comb += [
            inner.eq(depth - 1),
            target.addr.eq(inner),
            left.addr.eq(inner),
            begin.addr.eq(depth),
            begin.data.eq(next_pc),
            bases.index.eq(base.register),
            bases.setting.start.eq(command.mem + self._argument(m, base.argument)),
            bases.setting.level.eq(base.level),
            bases.setting.step.eq(base.step),
            bases.setting.period.eq(base.period),
            count.addr.eq(Mux(begin.en, depth, inner)),
            count.data.eq(Mux(begin.en, body, left.data - 1)),
            bases.level.eq(level),
        ]
        with m.If(full & running & failed):
            m.d.comb += refuse.eq(Error.FETCH)
        with m.Elif(full & running & wrong):
            m.d.comb += refuse.eq(Error.ILLEGAL_INSTRUCTION)
        with m.Elif(ready & ~local):
            m.d.comb += [self.o.valid.eq(1), leave.eq(self.o.ready)]
        with m.Elif(ready):
            with m.Switch(opcode[:4]):
                with m.Case(Opcode.LOOP):
                    with m.If(depth == LOOPS):
                        m.d.comb += refuse.eq(Error.LOOP)
                    with m.Else():
                        m.d.comb += [leave.eq(1), begin.en.eq(1), count.en.eq(1),
                                     bases.restart.eq(1)]
                        m.d.sync += [depth.eq(depth + 1), level.eq(depth)]
                with m.Case(Opcode.NEXT):
                    with m.If(depth == 0):
                        m.d.comb += refuse.eq(Error.LOOP)
                    with m.Else():
                        m.d.comb += [leave.eq(1), count.en.eq(1)]
                        m.d.sync += level.eq(inner)
                        with m.If(again):
                            m.d.comb += [bases.advance.eq(1), self.jump.valid.eq(1)]
                        with m.Else():
                            m.d.sync += depth.eq(inner)
                with m.Case(Opcode.BASE):
                    m.d.comb += [leave.eq(1), bases.set.eq(1)]
                with m.Case(Opcode.FENCE):
                    m.d.comb += leave.eq(self.queues_empty)
                with m.Case(Opcode.HALT):
                    m.d.comb += [leave.eq(self.queues_empty), self.done.eq(self.queues_empty)]
                    with m.If(self.queues_empty):
                        m.d.sync += running.eq(0)
        with m.If((refuse != Error.NONE) & (self.fault == Error.NONE) & ~self.stop):
            m.d.sync += self.fault.eq(refuse)

        m.d.comb += [
            self.jump.target.eq(Mux(self.start, self.program, target.data)),
            self.executed.eq(leave),
        ]
        with m.If(self.start):
            m.d.comb += [bases.clear.eq(1), self.jump.valid.eq(1), self.jump.first.eq(1)]
            m.d.sync += [running.eq(1), depth.eq(0)]
        with m.If(self.jump.valid):
            m.d.sync += next_pc.eq(self.jump.target)
        return m

    def _argument(self, m, number):
        """Value of argument register ``number - 1``, zero for number 0."""
        write = self.arguments
        first = REGS["argument0_lo"].offset // 4
        mine  = Signal()
        m.d.comb += mine.eq(write.valid & (write.addr >= first)
                            & (write.addr < first + 2 * ARGUMENTS))
        value = Signal(data.ArrayLayout(32, 2))
        for half, width in enumerate((32, 8)):
            cells = memory.Memory(shape=width, depth=ARGUMENTS, init=[])
            m.submodules[f"arguments{half}"] = cells
            port, read = cells.write_port(), cells.read_port(domain="comb")
            m.d.comb += [
                port.en.eq(mine & (write.addr[0] == first % 2 ^ half)),
                port.addr.eq((write.addr - first)[1:]),
                port.data.eq(write.data),
                read.addr.eq(number - 1),
            ]
            with m.If(number != 0):
                m.d.comb += value[half].eq(read.data)
        return value.as_value()
