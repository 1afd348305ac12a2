"""One tile: three memories, four engines, and the control path that feeds them."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .control.control import ControlPath
from .control.csr import ADDRESS_BITS
from .matrix.matrix import MatrixUnit
from .memory.axi import AxiLite
from .memory.axi_reader import ReadClient
from .memory.axi_writer import WriteClient
from .memory.banked import BankedMemory
from .memory.load import Load
from .memory.ports import fp32_row, mask_row
from .memory.store import Store
from .memory.tensor_memory import TensorMemory
from .regs import Error
from .vector.vector import VectorUnit


__all__ = ["Tile"]


class Tile(wiring.Component):
    """Runs programs from near memory; see ``docs/architecture.md``.

    Parameters
    ----------
    config : Config
        Sizes.

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
    bus_busy : In(1)
        A request of this tile to a memory tier has not ended.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "bus":        In(AxiLite(ADDRESS_BITS)),
            "irq":        Out(1),
            "fetch":      Out(ReadClient(config)),
            "near_read":  Out(ReadClient(config)),
            "far_read":   Out(ReadClient(config)),
            "near_write": Out(WriteClient(config)),
            "far_write":  Out(WriteClient(config)),
            "bus_busy":   In(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.control = control = ControlPath(config)
        m.submodules.load    = load    = Load(config)
        m.submodules.store   = store   = Store(config)
        matrix, vector = MatrixUnit(config), VectorUnit(config)
        m.submodules.matrix = ResetInserter(control.soft_reset)(matrix)
        m.submodules.vector = ResetInserter(control.soft_reset)(vector)

        # Memories, their clients in order of priority.
        m.submodules.tensor = tensor = TensorMemory(config, readers=4, writers=2)
        m.submodules.acc = acc = BankedMemory(
            fp32_row(config), depth=config.acc_rows, banks=config.banks, readers=4, writers=3)
        m.submodules.mask = mask = BankedMemory(
            mask_row(config), depth=config.mask_rows, banks=1, readers=2, writers=2)
        clients = [
            (tensor.read,  config.tensor_rows, [(matrix, "w"), (matrix, "a"),
                                                (vector, "tensor_read"), (store, "tensor_read")]),
            (tensor.write, config.tensor_rows, [(vector, "tensor_write"), (load, "tensor_write")]),
            (acc.read,     config.acc_rows,    [(matrix, "acc_read"), (vector, "acc_a"),
                                                (vector, "acc_b"), (store, "acc_read")]),
            (acc.write,    config.acc_rows,    [(matrix, "acc_write"), (vector, "acc_write"),
                                                (load, "acc_write")]),
            (mask.read,    config.mask_rows,   [(vector, "mask_read"), (store, "mask_read")]),
            (mask.write,   config.mask_rows,   [(vector, "mask_write"), (load, "mask_write")]),
        ]
        ports = {load: [], matrix: [], vector: [], store: []}
        for memory, rows, users in clients:
            for served, (unit, name) in zip(memory, users, strict=True):
                port = getattr(unit, name)
                connect(m, port, served)
                ports[unit].append((port, rows))

        # Commands and how they end.
        for name, unit in (("load", load), ("matrix", matrix), ("vector", vector),
                           ("store", store)):
            connect(m, getattr(control, f"{name}_cmd"), unit.cmd)
            end = getattr(control, f"{name}_end")
            beyond, row = self._beyond(m, ports[unit], name, control.soft_reset)
            # A product is done in the cycle of its last row, which is judged one later.
            m.d["sync" if unit is matrix else "comb"] += end.done.eq(unit.done)
            if unit in (load, store):
                m.d.comb += [end.error.eq(unit.error), end.address.eq(unit.error_mem)]
            with m.If(beyond):
                m.d.comb += [end.error.eq(Error.RANGE), end.address.eq(row)]

        # Memory tiers and host.
        connect(m, flipped(self.bus), control.bus)
        connect(m, control.fetch, flipped(self.fetch))
        for tier in ("near", "far"):
            connect(m, getattr(load, tier), flipped(getattr(self, f"{tier}_read")))
            connect(m, getattr(store, tier), flipped(getattr(self, f"{tier}_write")))
        m.d.comb += [
            self.irq.eq(control.irq),
            load.windows.eq(control.windows),
            store.windows.eq(control.windows),
            load.abort.eq(control.abort),
            store.abort.eq(control.abort),
            control.bus_busy.eq(load.busy | store.busy | self.bus_busy),
            vector.scalars.eq(control.scalars),
            vector.seed.eq(control.seed),
            vector.step.eq(control.step),
        ]

        # What is counted.
        m.d.comb += [
            control.load_traffic.eq(load.traffic),
            control.store_traffic.eq(store.traffic),
            control.macs.eq(matrix.events.macs),
            control.events.array_rows.eq(matrix.events.row),
            control.events.matrix_stall.eq(matrix.events.stall | matrix.events.stall_weights),
            control.events.matrix_stall_weights.eq(matrix.events.stall_weights),
            control.events.matrix_nonfinite.eq(matrix.events.nonfinite),
            control.events.vector_rows.eq(vector.events.row),
            control.events.vector_stall.eq(vector.events.stall),
            control.events.vector_nonfinite.eq(vector.events.nonfinite),
            control.events.saturated.eq(vector.events.saturate),
        ]
        return m

    def _beyond(self, m, ports, name, reset):
        """Whether a unit was granted a row beyond a memory in the last cycle, and which.

        Weights, rows of products and rows of stores are read ahead: the queue may then name the
        instruction before the one to blame.
        """
        beyond = Signal(name=f"{name}_beyond")
        row    = Signal(16, name=f"{name}_beyond_row")
        hits   = []
        for port, rows in ports:
            bits = rows.bit_length() - 1
            if bits < len(port.addr):
                hits.append((port, port.valid & port.ready & port.addr[bits:].any()))
        m.d.sync += beyond.eq(reduce(or_, (hit for _, hit in hits), C(0)) & ~reset)
        for port, hit in hits:
            with m.If(hit):
                m.d.sync += row.eq(port.addr)
        return beyond, row
