"""One tile: three memories, four engines, and the control path that feeds them."""


from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .control.control import ControlPath
from .control.ports import Activity
from .control.csr import ADDRESS_BITS
from .link.endpoints import LinkReceiver, LinkSender
from .link.receive import Receive
from .link.row import LinkPort
from .link.send import Send
from .isa import Queue
from .matrix.matrix import MatrixUnit
from .memory.axi import AxiLite
from .memory.axi_reader import ReadClient
from .memory.axi_writer import WriteClient
from .memory.banked import BankedMemory
from .memory.copy import Copy
from .memory.load import Load
from .memory.ports import fp32_row, mask_row
from .memory.store import Store
from .memory.tensor_memory import TensorMemory
from .regs import Error
from .vector.vector import VectorUnit


__all__ = ["Tile", "TilePorts"]


class TilePorts(wiring.Signature):
    """Ports of a tile.

    Members
    -------
    bus : In(AxiLite(12))
        Registers.
    irq : Out(1)
        An enabled event is pending.
    fetch, near_read, far_read : Out(ReadClient(config))
        Instructions from near memory; loads from both tiers.
    near_write, far_write : Out(WriteClient(config))
        Stores.
    copy_near_read, copy_far_read : Out(ReadClient(config))
    copy_near_write, copy_far_write : Out(WriteClient(config))
        Copies between the tiers, of a tile with a unit for them.
    activity : Out(Activity(config))
        What begins and ends, for a timeline.
    tile : In(8)
        Number of this tile in the chain.
    to_previous, to_next : Out(LinkPort(config)); from_previous, from_next : In(LinkPort(config))
        Links to the neighbours, of a tile in a chain; without neighbour the inputs are zero.
    resetting : Out(1)
        A soft reset is going on, of a tile in a chain.
    previous_resetting, next_resetting : In(1)
        The same of the neighbours: both ends of a link are reset together.
    """

    def __init__(self, config):
        chain = {
            "to_previous":        Out(LinkPort(config)),
            "to_next":            Out(LinkPort(config)),
            "from_previous":      In(LinkPort(config)),
            "from_next":          In(LinkPort(config)),
            "resetting":          Out(1),
            "previous_resetting": In(1),
            "next_resetting":     In(1),
        }
        copies = {
            "copy_near_read":  Out(ReadClient(config)),
            "copy_far_read":   Out(ReadClient(config)),
            "copy_near_write": Out(WriteClient(config)),
            "copy_far_write":  Out(WriteClient(config)),
        }
        super().__init__({
            "bus":        In(AxiLite(ADDRESS_BITS)),
            "irq":        Out(1),
            "fetch":      Out(ReadClient(config)),
            "near_read":  Out(ReadClient(config)),
            "far_read":   Out(ReadClient(config)),
            "near_write": Out(WriteClient(config)),
            "far_write":  Out(WriteClient(config)),
            "activity":      Out(Activity(config)),
            "tile":       In(8),
            **(chain if config.tiles > 1 else {}),
            **(copies if config.copy else {}),
        })


class Tile(wiring.Component):
    """Runs programs from near memory; see ``docs/architecture.md``.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    As of :class:`TilePorts`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(TilePorts(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.control = control = ControlPath(config)
        m.submodules.load    = load    = Load(config)
        m.submodules.store   = store   = Store(config)
        matrix, vector = MatrixUnit(config), VectorUnit(config)
        m.submodules.matrix = ResetInserter(control.soft_reset)(matrix)
        m.submodules.vector = ResetInserter(control.soft_reset)(vector)

        units = {Queue.LOAD: load, Queue.MATRIX: matrix, Queue.VECTOR: vector, Queue.STORE: store}
        movers = [load, store]
        if config.copy:
            movers.append(self._copies(m, control))
            units[Queue.COPY] = movers[-1]
        receiving, sending, lost = [], [], {}
        if config.tiles > 1:
            chain, lost = self._links(m, control)
            units |= chain
            receiving, sending = [units[Queue.LINK_IN]], [units[Queue.LINK_OUT]]

        # Memories, their clients in order of priority.
        users = {
            "tensor_read":  [(matrix, "w"), (matrix, "a"), (vector, "tensor_read"),
                             *((unit, "tensor_read") for unit in sending), (store, "tensor_read")],
            "tensor_write": [(unit, "tensor_write") for unit in (vector, *receiving, load)],
            "acc_read":     [(matrix, "acc_read"), (vector, "acc_a"), (vector, "acc_b"),
                             (store, "acc_read")],
            "acc_write":    [(unit, "acc_write") for unit in (matrix, vector, load)],
            "mask_read":    [(unit, "mask_read") for unit in (vector, *sending, store)],
            "mask_write":   [(unit, "mask_write") for unit in (vector, *receiving, load)],
        }
        count = {name: len(clients) for name, clients in users.items()}
        m.submodules.tensor = tensor = TensorMemory(
            config, readers=count["tensor_read"], writers=count["tensor_write"])
        m.submodules.acc = acc = BankedMemory(
            fp32_row(config), depth=config.acc_rows, banks=config.banks,
            readers=count["acc_read"], writers=count["acc_write"])
        m.submodules.mask = mask = BankedMemory(
            mask_row(config), depth=config.mask_rows, banks=1,
            readers=count["mask_read"], writers=count["mask_write"])
        ports = {unit: [] for unit in units.values()}
        ahead = {(matrix, "a"): matrix.a_ahead, (matrix, "w"): matrix.w_ahead,
                 **{(store, f"{memory}_read"): store.read_ahead
                    for memory in ("tensor", "acc", "mask")}}
        for name, memory, rows in (
            ("tensor_read", tensor.read, config.tensor_rows),
            ("tensor_write", tensor.write, config.tensor_rows),
            ("acc_read", acc.read, config.acc_rows),
            ("acc_write", acc.write, config.acc_rows),
            ("mask_read", mask.read, config.mask_rows),
            ("mask_write", mask.write, config.mask_rows),
        ):
            for served, (unit, member) in zip(memory, users[name], strict=True):
                port = getattr(unit, member)
                connect(m, port, served)
                ports[unit].append((port, rows, ahead.get((unit, member), C(0))))

        # Commands and how they end.
        for queue, unit in units.items():
            name = queue.name.lower()
            connect(m, getattr(control, f"{name}_cmd"), unit.cmd)
            end = getattr(control, f"{name}_end")
            beyond, row = self._beyond(m, ports[unit], name, end.done, control.soft_reset)
            # A product is done in the cycle of its last row, which is judged one later.
            m.d["sync" if unit is matrix else "comb"] += end.done.eq(unit.done)
            if unit in movers:
                m.d.comb += end.address.eq(unit.error_mem)
            if unit not in (matrix, vector):
                m.d.comb += end.error.eq(unit.error)
            with m.If(beyond):
                m.d.comb += [end.error.eq(Error.RANGE), end.address.eq(row)]
            with m.If(lost.get(queue, C(0))):
                m.d.comb += end.error.eq(Error.LINK)

        # Memory tiers and host.
        connect(m, flipped(self.bus), control.bus)
        connect(m, control.fetch, flipped(self.fetch))
        for tier in ("near", "far"):
            connect(m, getattr(load, tier), flipped(getattr(self, f"{tier}_read")))
            connect(m, getattr(store, tier), flipped(getattr(self, f"{tier}_write")))
        m.d.comb += [
            self.irq.eq(control.irq),
            *(unit.windows.eq(control.windows) for unit in movers),
            *(unit.abort.eq(control.abort) for unit in movers),
            control.tile.eq(self.tile),
            self.activity.eq(control.activity),
            control.bus_busy.eq(Cat(unit.busy for unit in movers).any()),
            vector.scalars.eq(control.scalars),
            *(unit.seed.eq(control.seed) for unit in (load, store, vector)),
            *(unit.step.eq(control.step) for unit in (load, store, vector)),
            store.entry_valid.eq(control.tables.encode_valid),
            store.entry.eq(control.tables.encode),
            load.entry_valid.eq(control.tables.decode_valid),
            load.entry.eq(control.tables.decode),
        ]

        # What is counted.
        m.d.comb += [
            control.read_traffic[0].eq(load.traffic),
            control.write_traffic[0].eq(store.traffic),
            control.macs.eq(matrix.events.macs),
            control.events.array_rows.eq(matrix.events.row),
            control.events.matrix_stall.eq(matrix.events.stall | matrix.events.stall_weights),
            control.events.matrix_stall_weights.eq(matrix.events.stall_weights),
            control.events.matrix_nonfinite.eq(matrix.events.nonfinite),
            control.events.vector_rows.eq(vector.events.row),
            control.events.vector_stall.eq(vector.events.stall),
            control.events.vector_nonfinite.eq(vector.events.nonfinite),
            control.events.saturated.eq(vector.events.saturate),
            control.events.stash_rows.eq(store.encoded),
            control.events.stash_saturated.eq(store.saturated),
        ]
        return m

    def _copies(self, m, control):
        """The unit of the copy queue."""
        m.submodules.copy = copy = Copy(self.config)
        for name in ("near_read", "far_read", "near_write", "far_write"):
            connect(m, getattr(copy, name), flipped(getattr(self, f"copy_{name}")))
        m.d.comb += [
            control.read_traffic[1].eq(copy.read),
            control.write_traffic[1].eq(copy.written),
        ]
        return copy

    def _links(self, m, control):
        """The units of both link queues, whether a row or credit was lost on their links; the ends
        of the links to both neighbours."""
        config = self.config
        send, receive = Send(config), Receive(config)
        m.submodules.send    = ResetInserter(control.soft_reset)(send)
        m.submodules.receive = ResetInserter(control.soft_reset)(receive)
        lost = {Queue.LINK_IN: [], Queue.LINK_OUT: []}
        for side in ("previous", "next"):
            sender, receiver = LinkSender(config), LinkReceiver(config)
            reset = Signal(name=f"{side}_reset")
            m.d.comb += reset.eq(control.resetting | getattr(self, f"{side}_resetting"))
            m.submodules[f"to_{side}"]   = ResetInserter(reset)(sender)
            m.submodules[f"from_{side}"] = ResetInserter(reset)(receiver)
            connect(m, getattr(send, side), sender.i)
            connect(m, sender.port, flipped(getattr(self, f"to_{side}")))
            connect(m, flipped(getattr(self, f"from_{side}")), receiver.port)
            connect(m, receiver.o, getattr(receive, side))
            lost[Queue.LINK_OUT].append(sender.error)
            lost[Queue.LINK_IN].append(receiver.error)
        m.d.comb += [
            self.resetting.eq(control.resetting),
            control.events.link_in_rows.eq(receive.row),
            control.events.link_in_stall.eq(receive.stall),
            control.events.link_out_rows.eq(send.row),
            control.events.link_out_stall.eq(send.stall),
        ]
        return ({Queue.LINK_IN: receive, Queue.LINK_OUT: send},
                {queue: Cat(errors).any() for queue, errors in lost.items()})

    def _beyond(self, m, ports, name, done, reset):
        """Whether the oldest instruction of a unit was granted a row beyond a memory, and which.

        ``ports`` are pairs of port and rows, with the number of instructions that end before the
        one that asks. Rows of an instruction may be asked for ahead of its turn: it is blamed when
        it has become the oldest.
        """
        beyond = Signal(name=f"{name}_beyond")
        row    = Signal(16, name=f"{name}_beyond_row")
        before = Signal(range(self.config.queue_depth + 1), name=f"{name}_beyond_before")
        left   = Signal.like(before)
        m.d.comb += left.eq(before - (done & (before != 0)))
        m.d.sync += before.eq(left)
        for port, rows, ahead in ports:
            bits = rows.bit_length() - 1
            if bits == len(port.addr):
                continue
            hit = port.valid & port.ready & port.addr[bits:].any()
            with m.If(hit & (~beyond | (ahead < left))):
                m.d.sync += [beyond.eq(1), row.eq(port.addr), before.eq(ahead)]
        with m.If(reset):
            m.d.sync += beyond.eq(0)
        return beyond & (before == 0), row
