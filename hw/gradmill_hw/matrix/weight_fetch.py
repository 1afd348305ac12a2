"""Reads the weight tiles of matrix products, one tile ahead of the rows that use them."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode
from ..isa_layout import command_layout
from ..memory.ports import READ_LATENCY, ROW_ADDRESS_BITS, TensorReadPort
from .delay import delay


__all__ = ["WeightFetch", "WeightTile"]


class WeightTile(data.StructLayout):
    """Place of a weight tile in its instruction.

    ``first`` and ``last`` tile of the instruction; ``k_first`` tile of a column block; ``empty``
    tile of an instruction without work; ``k_lanes`` and ``c_lanes`` rows and columns of the tile
    that are not padding.
    """

    def __init__(self, config):
        super().__init__({
            "first":   1,
            "last":    1,
            "k_first": 1,
            "empty":   1,
            "k_lanes": config.lane_bits + 1,
            "c_lanes": config.lane_bits + 1,
        })


class WeightFetch(wiring.Component):
    """Walks over the weight tiles of an instruction, contraction first, and loads each::

        for cb in range(ceil(c / n)):
            for kb in range(ceil(k / n)):
                load rows op1 + kb·w_stride_k + cb·w_stride_c + 0 .. n-1

    A tile takes ``n`` consecutive cycles, because `port` is never refused. It is offered on `tile`
    in the cycle after its first row was requested; taking it swaps it into use, and the next
    one is begun in the following cycle. The next instruction is accepted with the last row of the
    last tile, as soon as the first tile was taken. An instruction in which ``m``, ``k`` or ``c``
    is zero yields one ``empty`` tile that is not read.

    Parameters
    ----------
    config : Config
        Gives ``n``.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.MATMUL)))
        Instructions.
    port : Out(TensorReadPort(config))
        Weight rows; ``ready`` must be 1 at all times.
    load, load_row : Out(1), Out(log2(n))
        Row `load_row` of a tile stands on ``port.data``.
    tile : Out(stream.Signature(WeightTile(config)))
        Tiles, in order.
    command : Out(command_layout(Opcode.MATMUL))
        Instruction of `tile`, if that is a first tile.
    fresh : Out(1)
        The first tile of `command` was not taken yet.
    busy : Out(1)
        Tiles remain to be read or taken.
    """

    def __init__(self, config):
        self.config = config
        command = command_layout(Opcode.MATMUL)
        super().__init__({
            "cmd":      In(stream.Signature(command)),
            "port":     Out(TensorReadPort(config)),
            "load":     Out(1),
            "load_row": Out(config.lane_bits),
            "tile":     Out(stream.Signature(WeightTile(config))),
            "command":  Out(command),
            "fresh":    Out(1),
            "busy":     Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        n, lane_bits = self.config.n, self.config.lane_bits
        cmd, tile, command, fresh = self.cmd, self.tile, self.command, self.fresh

        reading = Signal()             # rows remain to be requested
        row     = Signal(lane_bits)
        address = Signal(ROW_ADDRESS_BITS)
        column  = Signal(ROW_ADDRESS_BITS)  # first row of the column block
        first, k_first, empty = Signal(), Signal(), Signal()
        k_left  = Signal.like(command.k)
        c_left  = Signal.like(command.c)

        def block(left):
            """Whether the block is the last one, and how many of its lanes are in use."""
            blocks, lanes = left[lane_bits:], left[:lane_bits]
            last = empty | (blocks == 0) | ((blocks == 1) & (lanes == 0))
            return last, Mux(last & (lanes != 0), lanes, n)

        k_last, k_lanes = block(k_left)
        c_last, c_lanes = block(c_left)

        # The shadow weights are free when the tile before was taken.
        step     = Signal()
        last_row = Signal()
        m.d.comb += [
            step.eq(reading & ((row != 0) | ~tile.valid)),
            last_row.eq(step & (row == n - 1)),
        ]

        with m.If(tile.ready):
            m.d.sync += tile.valid.eq(0)
        with m.If(tile.valid & tile.ready & tile.p.first):
            m.d.sync += fresh.eq(0)

        with m.If(step):
            m.d.sync += [row.eq(row + 1), address.eq(address + 1)]
            with m.If(row == 0):
                m.d.sync += [
                    tile.valid.eq(1),
                    tile.p.first.eq(first),
                    tile.p.last.eq(k_last & c_last),
                    tile.p.k_first.eq(k_first),
                    tile.p.empty.eq(empty),
                    tile.p.k_lanes.eq(k_lanes),
                    tile.p.c_lanes.eq(c_lanes),
                ]

        next_column = Signal.like(column)
        m.d.comb += next_column.eq(column + command.w_stride_c)
        with m.If(last_row):
            m.d.sync += [first.eq(0), k_first.eq(k_last)]
            with m.If(k_last):
                m.d.sync += [
                    address.eq(next_column),
                    column.eq(next_column),
                    k_left.eq(command.k),
                    c_left.eq(c_left - n),
                    reading.eq(~c_last),
                ]
            with m.Else():
                m.d.sync += [
                    address.eq(address + command.w_stride_k - (n - 1)),
                    k_left.eq(k_left - n),
                ]

        m.d.comb += cmd.ready.eq(~fresh & (~reading | (last_row & k_last & c_last)))
        with m.If(cmd.valid & cmd.ready):
            m.d.sync += [
                command.eq(cmd.payload),
                reading.eq(1),
                fresh.eq(1),
                first.eq(1),
                k_first.eq(1),
                address.eq(cmd.p.op1),
                column.eq(cmd.p.op1),
                k_left.eq(cmd.p.k),
                c_left.eq(cmd.p.c),
                empty.eq((cmd.p.m == 0) | (cmd.p.k == 0) | (cmd.p.c == 0)),
            ]

        m.d.comb += [
            self.port.valid.eq(step & ~empty),
            self.port.addr.eq(address),
            self.port.transpose.eq(command.w_transpose),
            self.load.eq(delay(m, self.port.valid, READ_LATENCY, reset=True, name="load")),
            self.load_row.eq(delay(m, row, READ_LATENCY, name="load_row")),
            self.busy.eq(reading | tile.valid),
        ]

        return m
