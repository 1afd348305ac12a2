"""Rows from a neighbour to the memories of a tile."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode, Peer
from ..isa_layout import command_layout
from ..memory.ports import BfpRow, WritePort, mask_row
from ..regs import Error
from .row import LinkRow, LinkTag, tag_of
from .walk import LinkWalk


__all__ = ["Receive"]


class Receive(wiring.Component):
    """Executes ``RECEIVE``: writes the rows that a neighbour sends.

    The rows go where :class:`LinkWalk` says, in its order. One row per cycle as long as rows come
    and banks are free; a row is offered to the memories in the cycle after it was taken. Two
    cycles are lost between two commands.

    Each row must have the tag of the command, and ``last`` must come with the last row of the walk
    and no other. The first row that is not so is not written, nor is any later one: the unit does
    nothing until reset. The same holds after a command without rows.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.RECEIVE)))
        Commands.
    previous, next : In(stream.Signature(LinkRow(config)))
        Links from the neighbours. Rows wait there for a command that names the neighbour.
    tensor_write : Out(WritePort(BfpRow(config)))
        Tensor memory.
    mask_write : Out(WritePort(mask_row(config)))
        Mask memory.
    done : Out(1)
        Every row of the command has been written, or the command has failed; for one cycle.
    error : Out(Error)
        With ``done``, and from then on unless ``NONE``.
    busy : Out(1)
        A command is in the unit.
    row : Out(1)
        A row is taken from a link, and is as expected.
    stall : Out(1)
        A row is wanted and the neighbour has sent none.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "cmd":          In(stream.Signature(command_layout(Opcode.RECEIVE))),
            "previous":     In(stream.Signature(LinkRow(config))),
            "next":         In(stream.Signature(LinkRow(config))),
            "tensor_write": Out(WritePort(BfpRow(config))),
            "mask_write":   Out(WritePort(mask_row(config))),
            "done":         Out(1),
            "error":        Out(Error),
            "busy":         Out(1),
            "row":          Out(1),
            "stall":        Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        cmd = self.cmd.payload
        m.submodules.walk = walk = LinkWalk(self.config)

        # Command.
        accept = self.cmd.valid & self.cmd.ready
        source = Signal(Peer)
        tag    = Signal(LinkTag())
        m.d.comb += [
            walk.cmd.eq(cmd),
            walk.start.eq(accept),
            self.cmd.ready.eq(~self.busy & (self.error == Error.NONE)),
        ]
        with m.If(accept):
            m.d.sync += [
                source.eq(cmd.peer),
                *(tag[name].eq(value) for name, value in tag_of(cmd).items()),
            ]

        # A row is taken when the one before has been written, or is being written. Tags are
        # compared before the neighbour is chosen: that is smaller than to choose between tags.
        tensor_write, mask_write = self.tensor_write, self.mask_write
        row     = Signal(BfpRow(self.config))
        mask    = Signal(mask_row(self.config))
        wanted  = walk.active & self.busy
        offered = Signal()
        fits    = Signal()
        free    = Signal()
        taken   = Signal()
        with m.Switch(source):
            for peer, link in ((Peer.PREVIOUS, self.previous), (Peer.NEXT, self.next)):
                with m.Case(peer):
                    m.d.comb += [
                        offered.eq(link.valid),
                        fits.eq((link.p.tag == tag) & (link.p.last == walk.last)),
                        row.eq(link.p.row),
                        mask.eq(link.p.mask),
                        link.ready.eq(wanted & free),
                    ]
        m.d.comb += [
            free.eq((~tensor_write.valid | tensor_write.ready)
                    & (~mask_write.valid | mask_write.ready)),
            taken.eq(wanted & free & offered),
            walk.next.eq(taken),
            self.row.eq(taken & fits),
            self.stall.eq(wanted & ~offered),
        ]

        # Each memory takes the row when it can.
        final = Signal()
        with m.If(tensor_write.ready):
            m.d.sync += tensor_write.valid.eq(0)
        with m.If(mask_write.ready):
            m.d.sync += mask_write.valid.eq(0)
        with m.If(free):
            m.d.sync += final.eq(0)
        with m.If(taken & fits):
            m.d.sync += [
                tensor_write.valid.eq(1),
                tensor_write.addr.eq(walk.tensor_addr),
                tensor_write.data.eq(row),
                mask_write.valid.eq(walk.masked),
                mask_write.addr.eq(walk.mask_addr),
                mask_write.data.eq(mask),
                final.eq(walk.last),
            ]

        # End, good or bad.
        m.d.sync += self.done.eq(0)
        with m.If(accept):
            m.d.sync += self.busy.eq(1)
        with m.If(final & free):
            m.d.sync += [self.done.eq(1), self.busy.eq(0)]
        with m.If(taken & ~fits):
            m.d.sync += [self.done.eq(1), self.busy.eq(0), self.error.eq(Error.LINK)]
        with m.If(accept & walk.empty):
            m.d.sync += [self.done.eq(1), self.busy.eq(0), self.error.eq(Error.COUNT)]
        return m
