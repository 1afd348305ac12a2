"""Requests the rows of A and says where each row of the product goes."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode
from ..isa_layout import command_layout
from ..memory.ports import READ_LATENCY, ROW_ADDRESS_BITS, TensorReadPort
from .delay import delay
from .weight_fetch import WeightTile


__all__ = ["RowIssue", "RowTag"]


class RowTag(data.StructLayout):
    """What travels beside a row through the array.

    ``valid``: there is a row; ``last``: an instruction ends here, with or without a row;
    ``address`` accumulator row of the product; ``overwrite``: do not add what is there;
    ``narrow``: round to bfloat16.
    """

    def __init__(self):
        super().__init__({
            "valid":     1,
            "last":      1,
            "address":   ROW_ADDRESS_BITS,
            "overwrite": 1,
            "narrow":    1,
        })


class RowIssue(wiring.Component):
    """Streams the rows of A through each weight tile, one row per cycle::

        for every weight tile (cb, kb):
            for r in range(m):
                read op0 + (r div n)·a_stride_m + (r mod n) + kb·a_stride_k
                tag  op2 + cb·d_stride_c + r

    The first row is requested in the cycle after its tile was taken, a tile is taken with the last
    row of the tile before: no cycle is lost between tiles or instructions if tiles are ready.

    A row is read from the accumulators, changed and written back in `turnaround` cycles. A row of
    a tile is requested at least that long after the same row of the tile before, and an
    instruction with ``accumulate`` that long after the last row of its predecessor.

    Parameters
    ----------
    config : Config
        Gives ``n``.
    turnaround : int
        Cycles between the requests of two rows that add to the same accumulator row.

    Members
    -------
    tile : In(stream.Signature(WeightTile(config)))
        Weight tiles.
    command : In(command_layout(Opcode.MATMUL))
        Instruction of a first tile.
    port : Out(TensorReadPort(config))
        Rows of A.
    swap : Out(1)
        The rows that stand on ``port.data`` from the next cycle on belong to the next tile.
    tag : Out(RowTag())
        Of the row granted in the cycle before.
    macs : Out(2 * log2(n) + 1)
        Multiplications without padding in the row granted two cycles before, otherwise zero.
    active : Out(1)
        Rows of the tile remain to be requested.
    """

    def __init__(self, config, *, turnaround):
        self.config = config
        self.turnaround = turnaround
        super().__init__({
            "tile":    In(stream.Signature(WeightTile(config))),
            "command": In(command_layout(Opcode.MATMUL)),
            "port":    Out(TensorReadPort(config)),
            "swap":    Out(1),
            "tag":     Out(RowTag()),
            "macs":    Out(2 * config.lane_bits + 1),
            "active":  Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        n, lane_bits = self.config.n, self.config.lane_bits
        tile, port, command, active = self.tile, self.port, self.command, self.active

        # What remains of the instruction after its first tile.
        own = Signal(command_layout(Opcode.MATMUL))

        rows_left = Signal.like(own.m)
        row       = Signal(lane_bits)         # modulo n
        address   = Signal(ROW_ADDRESS_BITS)
        k_address = Signal(ROW_ADDRESS_BITS)  # of row 0 in this tile
        d_address = Signal(ROW_ADDRESS_BITS)
        d_column  = Signal(ROW_ADDRESS_BITS)  # of row 0 in this column block

        granted = Signal()
        at_end  = Signal()
        take    = Signal()
        m.d.comb += [
            granted.eq(port.valid & port.ready),
            at_end.eq(rows_left == 1),
            tile.ready.eq(~active | (granted & at_end)),
            take.eq(tile.valid & tile.ready),
        ]

        # Rows of the tile before may still be on the way to the accumulators.
        wait    = Signal(range(self.turnaround))
        head    = Signal()  # the next row is the first of its tile
        drain   = Signal()
        blocked = Signal()
        m.d.comb += blocked.eq(head & Mux(drain, wait != 0, wait >= own.m))
        with m.If(granted):
            m.d.sync += [wait.eq(self.turnaround - 1), head.eq(0)]
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)

        m.d.comb += [
            port.valid.eq(active & ~blocked),
            port.addr.eq(address),
            port.transpose.eq(own.a_transpose),
        ]

        with m.If(granted):
            m.d.sync += [
                row.eq(row + 1),
                rows_left.eq(rows_left - 1),
                d_address.eq(d_address + 1),
                address.eq(address + Mux(row == n - 1, own.a_stride_m - (n - 1), 1)),
            ]
            with m.If(at_end):
                m.d.sync += active.eq(0)

        # First row of the next tile.
        a_next = Signal(ROW_ADDRESS_BITS)
        d_next = Signal(ROW_ADDRESS_BITS)
        with m.If(tile.p.first):
            m.d.comb += [a_next.eq(command.op0), d_next.eq(command.op2)]
        with m.Elif(tile.p.k_first):
            m.d.comb += [a_next.eq(own.op0), d_next.eq(d_column + own.d_stride_c)]
        with m.Else():
            m.d.comb += [a_next.eq(k_address + own.a_stride_k), d_next.eq(d_column)]

        overwrite, last = Signal(), Signal()
        with m.If(take):
            m.d.sync += [
                active.eq(~tile.p.empty),
                head.eq(1),
                drain.eq(tile.p.first & command.accumulate),
                row.eq(0),
                rows_left.eq(Mux(tile.p.first, command.m, own.m)),
                address.eq(a_next),
                k_address.eq(a_next),
                d_address.eq(d_next),
                d_column.eq(d_next),
                overwrite.eq(tile.p.k_first
                             & ~Mux(tile.p.first, command.accumulate, own.accumulate)),
                last.eq(tile.p.last),
            ]
            with m.If(tile.p.first):
                m.d.sync += own.eq(command)
        m.d.comb += self.swap.eq(delay(m, take, READ_LATENCY, reset=True, name="swap"))

        # No row is granted in the cycle after an empty tile: its mark finds a free place there.
        emptied = delay(m, take & tile.p.empty, 1, reset=True, name="emptied")
        m.d.sync += [
            self.tag.valid.eq(granted),
            self.tag.last.eq((granted & at_end & last) | emptied),
            self.tag.address.eq(d_address),
            self.tag.overwrite.eq(overwrite),
            self.tag.narrow.eq(own.narrow),
        ]

        k_lanes = Signal.like(tile.p.k_lanes)
        c_lanes = Signal.like(tile.p.c_lanes)
        product = Signal.like(self.macs)
        with m.If(take):
            m.d.sync += [k_lanes.eq(tile.p.k_lanes), c_lanes.eq(tile.p.c_lanes)]
        # Not written as a product, which would take a multiplier away from the array.
        m.d.sync += product.eq(sum(Mux(k_lanes[b], c_lanes << b, 0) for b in range(len(k_lanes))))
        m.d.sync += self.macs.eq(Mux(self.tag.valid, product, 0))

        return m
