"""Addresses of the rows of a transfer between tiles."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode
from ..isa_layout import command_layout
from ..memory.ports import ROW_ADDRESS_BITS


__all__ = ["LinkWalk"]


class LinkWalk(wiring.Component):
    """Tensor rows and mask rows of a ``SEND`` or ``RECEIVE``, whose fields are the same.

    For block ``b`` in ``0..blocks-1`` and row ``r`` in ``0..R-1``, R being ``rows`` rounded up to
    a multiple of ``n``, all modulo 2^16::

        tensor_addr = op0 + b·t_stride + r
        mask_addr   = op4 + b·k_stride + r
        masked      = cmd.masked and r < rows

    The first row stands one cycle after ``start``, each further one the cycle after ``next``.

    Parameters
    ----------
    config : Config
        ``n``.

    Members
    -------
    cmd : In(command_layout(Opcode.SEND))
        Command, looked at with ``start`` only.
    empty : Out(1)
        ``cmd`` has no row; combinational.
    start : In(1)
        Begins the walk of ``cmd`` unless it is ``empty``; only while not ``active``.
    next : In(1)
        The row is done with; only while ``active``.
    active : Out(1)
        There is a row.
    tensor_addr, mask_addr : Out(16)
        Its addresses; zero while not ``active``.
    masked : Out(1)
        It has a mask row.
    last : Out(1)
        It is the last one.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "cmd":         In(command_layout(Opcode.SEND)),
            "empty":       Out(1),
            "start":       In(1),
            "next":        In(1),
            "active":      Out(1),
            "tensor_addr": Out(ROW_ADDRESS_BITS),
            "mask_addr":   Out(ROW_ADDRESS_BITS),
            "masked":      Out(1),
            "last":        Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        cmd, lane_bits = self.cmd, self.config.lane_bits
        start = Signal()
        m.d.comb += [
            self.empty.eq((cmd.rows == 0) | (cmd.blocks == 0)),
            start.eq(self.start & ~self.empty),
        ]

        # Extent. A block ends with the last lane of its final tile, masks with the final lane.
        highest     = Signal.like(cmd.rows)
        final_tile  = Signal(len(cmd.rows) - lane_bits)
        final_lane  = Signal(lane_bits)
        final_block = Signal.like(cmd.blocks)
        with_masks  = Signal()
        m.d.comb += highest.eq(cmd.rows - 1)
        with m.If(start):
            m.d.sync += [
                Cat(final_lane, final_tile).eq(highest),
                final_block.eq(cmd.blocks),
                with_masks.eq(cmd.masked),
            ]

        row      = Signal.like(cmd.rows)
        block    = Signal.like(cmd.blocks)  # counted from 1
        in_final = Signal()
        turn     = Signal()
        m.d.comb += [
            in_final.eq(row[lane_bits:] == final_tile),
            turn.eq(in_final & row[:lane_bits].all()),
            self.last.eq(turn & (block == final_block)),
        ]
        with m.If(self.next):
            m.d.sync += row.eq(row + 1)
            with m.If(in_final & (row[:lane_bits] == final_lane)):
                m.d.sync += self.masked.eq(0)
            with m.If(turn):
                m.d.sync += [row.eq(0), block.eq(block + 1), self.masked.eq(with_masks)]
            with m.If(self.last):
                m.d.sync += self.active.eq(0)
        with m.If(start):
            m.d.sync += [self.active.eq(1), block.eq(1), self.masked.eq(cmd.masked)]

        # One adder sets an address, which is zero between walks, moves it to the next row, and from
        # the first row of a block to that of the next.
        for addr, base, stride in ((self.tensor_addr, cmd.op0, cmd.t_stride),
                                   (self.mask_addr, cmd.op4, cmd.k_stride)):
            held  = Signal.like(stride)
            first = Signal.like(addr)
            moved = Signal.like(addr)
            m.d.comb += moved.eq(Mux(turn, first, addr) + Mux(start, base, Mux(turn, held, 1)))
            with m.If(start):
                m.d.sync += held.eq(stride)
            with m.If(start | self.next & turn):
                m.d.sync += first.eq(moved)
            with m.If(start | self.next):
                m.d.sync += addr.eq(moved)
            with m.If(self.next & self.last):
                m.d.sync += addr.eq(0)
        return m
