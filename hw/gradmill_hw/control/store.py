"""Storage of commands: one memory for all queues, and their head registers."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..isa import COMMON, INSTRUCTIONS, OPERANDS, TILE_QUEUES, Opcode, numbers
from ..isa_layout import command_layout


__all__ = ["PC_BITS", "QUEUE_OPCODES", "CommandStore", "StoredCommand"]

#: Opcode that each queue executes.
QUEUE_OPCODES = {opcode.queue: opcode for opcode in Opcode if opcode.queue is not None}
#: Bits of a program counter, in instructions.
PC_BITS = 34
_ROW_BITS, _MEM_BITS, _LAYER_BITS = (
    next(f.width for f in COMMON if f.name == name) for name in ("op0", "mem", "layer"))


def _body_bits(opcode):
    return sum(f.width for f in INSTRUCTIONS[opcode].body)


class StoredCommand(data.StructLayout):
    """What every queue stores of an instruction.

    Members
    -------
    layer, op, mem
        As in the instruction, relocated.
    body
        The opcode's own fields, from the low end.
    """

    def __init__(self):
        super().__init__({
            "layer": _LAYER_BITS,
            "op":    data.ArrayLayout(_ROW_BITS, OPERANDS),
            "mem":   _MEM_BITS,
            "body":  max(map(_body_bits, QUEUE_OPCODES.values())),
        })


class CommandStore(wiring.Component):
    """One write and one read per cycle serve all queues.

    That is enough: the sequencer writes at most one command a cycle, and a command takes more
    cycles than there are queues. Queues are served in the order of their numbers.

    Parameters
    ----------
    queues : tuple of Queue
        Queues of the tile; arrays are indexed by their numbers.
    depth : int
        Places of each queue.

    Members
    -------
    write : In(1)
        Store ``command`` and ``pc``.
    queue, place : In
        Where.
    command : In(StoredCommand())
        Command.
    pc : In(34)
        Its address, in instructions.
    fetch : In(1)[queue]
        The head register of a queue is to be loaded.
    fetch_place : In(range(depth))[queue]
        From there.
    fetched : Out(1)[queue]
        It is, at the end of this cycle.
    head_<queue> : Out(command_layout(opcode))
        Head registers.
    name_queue, name_place : In
        A place whose program counter is wanted.
    name_pc : Out(34)
        It, in the same cycle.
    """

    def __init__(self, queues=TILE_QUEUES, *, depth):
        self.queues, self.depth = queues, depth
        count = numbers(queues)
        super().__init__({
            "write":       In(1),
            "queue":       In(range(count)),
            "place":       In(range(depth)),
            "command":     In(StoredCommand()),
            "pc":          In(PC_BITS),
            "fetch":       In(1).array(count),
            "fetch_place": In(range(depth)).array(count),
            "fetched":     Out(1).array(count),
            **{f"head_{queue.name.lower()}": Out(command_layout(QUEUE_OPCODES[queue]))
               for queue in queues},
            "name_queue":  In(range(count)),
            "name_place":  In(range(depth)),
            "name_pc":     Out(PC_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        number = Shape.cast(range(numbers(self.queues))).width
        places = self.depth << number
        m.submodules.commands = commands = memory.Memory(shape=StoredCommand(), depth=places,
                                                         init=[])
        m.submodules.pcs = pcs = memory.Memory(shape=PC_BITS, depth=places, init=[])

        for cells, value in ((commands, self.command), (pcs, self.pc)):
            port = cells.write_port()
            m.d.comb += [
                port.en.eq(self.write),
                port.addr.eq(Cat(self.place, self.queue)),
                port.data.eq(value),
            ]

        read  = commands.read_port(domain="comb")
        for queue in reversed(self.queues):
            earlier = Cat(self.fetch[other] for other in self.queues if other < queue)
            m.d.comb += self.fetched[queue].eq(self.fetch[queue] & ~earlier.any())
            with m.If(self.fetch[queue]):
                m.d.comb += read.addr.eq(Cat(self.fetch_place[queue], C(queue, number)))
            common = Cat(read.data.layer, read.data.op, read.data.mem)
            with m.If(self.fetched[queue]):
                m.d.sync += getattr(self, f"head_{queue.name.lower()}").eq(
                    Cat(common, read.data.body))

        name = pcs.read_port(domain="comb")
        m.d.comb += [
            name.addr.eq(Cat(self.name_place, self.name_queue)),
            self.name_pc.eq(name.data),
        ]
        return m
