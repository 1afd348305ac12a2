"""Rows from the memories of a tile to a neighbour."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..isa import Opcode, Peer
from ..isa_layout import command_layout
from ..memory.ports import READ_LATENCY, BfpRow, ReadPort, TensorReadPort, mask_row
from ..regs import Error
from ..vector.credit_fifo import CreditFifo
from .row import LinkRow, LinkTag, tag_of
from .walk import LinkWalk


__all__ = ["ROWS_READ_AHEAD", "Send"]

#: Rows between the grant of their read and the link: 4 are on their way at one row per cycle, the
#: others bridge cycles in which a bank is taken.
ROWS_READ_AHEAD = 8


class Send(wiring.Component):
    """Executes ``SEND``: reads tensor rows and mask rows and hands them to a neighbour.

    The rows are those of :class:`LinkWalk`, in its order. One row per cycle as long as banks are
    free and the link takes them; the first row is offered 4 cycles after the command was taken.
    The rows of a command are read while those of the one before are sent, so that a cycle at most
    is lost between two commands. A command without rows is an error, after which the unit does
    nothing until reset.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    cmd : In(stream.Signature(command_layout(Opcode.SEND)))
        Commands.
    tensor_read : Out(TensorReadPort(config))
        Tensor memory; never transposed.
    mask_read : Out(ReadPort(mask_row(config)))
        Mask memory.
    previous, next : Out(stream.Signature(LinkRow(config)))
        Links to the neighbours.
    done : Out(1)
        The last row of the oldest command has been taken by the link, or the command has failed;
        for one cycle.
    error : Out(Error)
        With ``done``, and from then on unless ``NONE``.
    busy : Out(1)
        A command is in the unit.
    row : Out(1)
        A row is taken by a link.
    stall : Out(1)
        A read is wanted and a memory is taken, or a row is there and the link refuses it.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "cmd":         In(stream.Signature(command_layout(Opcode.SEND))),
            "tensor_read": Out(TensorReadPort(config)),
            "mask_read":   Out(ReadPort(mask_row(config))),
            "previous":    Out(stream.Signature(LinkRow(config))),
            "next":        Out(stream.Signature(LinkRow(config))),
            "done":        Out(1),
            "error":       Out(Error),
            "busy":        Out(1),
            "row":         Out(1),
            "stall":       Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        cmd = self.cmd.payload
        read_shape = data.StructLayout({"row": BfpRow(config), "masked": 1, "last": 1})
        m.submodules.walk  = walk  = LinkWalk(config)
        m.submodules.rows  = rows  = CreditFifo(read_shape, depth=ROWS_READ_AHEAD)
        m.submodules.masks = masks = CreditFifo(mask_row(config), depth=ROWS_READ_AHEAD)

        # A command is read, and sent when the one before has been sent.
        target_shape = data.StructLayout({"peer": 1, "tag": LinkTag()})
        accept  = self.cmd.valid & self.cmd.ready
        waiting = Signal()
        sending = Signal()
        empty   = Signal()
        coming  = Signal(target_shape)
        target  = Signal(target_shape)
        final   = Signal()
        m.d.comb += [
            walk.cmd.eq(cmd),
            walk.start.eq(accept),
            self.cmd.ready.eq(~(walk.active | waiting) & (self.error == Error.NONE)),
            self.busy.eq(waiting | sending),
        ]
        m.d.sync += self.done.eq(final)
        with m.If(accept):
            m.d.sync += [
                waiting.eq(1),
                empty.eq(walk.empty),
                coming.peer.eq(cmd.peer),
                *(coming.tag[name].eq(value) for name, value in tag_of(cmd).items()),
            ]
        with m.If(final):
            m.d.sync += sending.eq(0)
        with m.If(waiting & ~sending):
            m.d.sync += [waiting.eq(0), target.eq(coming)]
            with m.If(empty):
                m.d.sync += [self.done.eq(1), self.error.eq(Error.COUNT)]
            with m.Else():
                m.d.sync += sending.eq(1)

        # The two reads of a row are granted in any order. The place that is found for the tensor
        # row is also there for the mask row, as both leave together.
        tensor_read, mask_read = self.tensor_read, self.mask_read
        tensor_taken = Signal()
        mask_taken   = Signal()
        place          = rows.room | tensor_taken
        tensor_granted = tensor_read.valid & tensor_read.ready
        mask_granted   = mask_read.valid & mask_read.ready
        m.d.comb += [
            tensor_read.valid.eq(walk.active & rows.room & ~tensor_taken),
            tensor_read.addr.eq(walk.tensor_addr),
            mask_read.valid.eq(walk.active & place & walk.masked & ~mask_taken),
            mask_read.addr.eq(walk.mask_addr),
            rows.reserve.eq(tensor_granted),
            walk.next.eq((tensor_taken | tensor_granted)
                         & (mask_taken | mask_granted | ~walk.masked)),
        ]
        m.d.sync += [
            tensor_taken.eq((tensor_taken | tensor_granted) & ~walk.next),
            mask_taken.eq((mask_taken | mask_granted) & ~walk.next),
        ]

        # What is known of a row travels beside its reads.
        flight = Signal(data.ArrayLayout(
            data.StructLayout({"tensor": 1, "mask": 1, "masked": 1, "last": 1}), READ_LATENCY))
        arrived = flight[READ_LATENCY - 1]
        m.d.sync += [
            flight[0].tensor.eq(tensor_granted),
            flight[0].mask.eq(mask_granted),
            flight[0].masked.eq(walk.masked),
            flight[0].last.eq(walk.last),
            *(flight[k].eq(flight[k - 1]) for k in range(1, READ_LATENCY)),
        ]
        m.d.comb += [
            rows.valid.eq(arrived.tensor),
            rows.entry.row.eq(tensor_read.data),
            rows.entry.masked.eq(arrived.masked),
            rows.entry.last.eq(arrived.last),
            masks.valid.eq(arrived.mask),
            masks.entry.eq(mask_read.data),
        ]

        # Rows leave to the one neighbour or the other.
        complete = sending & rows.o.valid & (masks.o.valid | ~rows.o.p.masked)
        for peer, link in ((Peer.PREVIOUS, self.previous), (Peer.NEXT, self.next)):
            m.d.comb += [
                link.valid.eq(complete & (target.peer == peer)),
                link.p.row.eq(rows.o.p.row),
                link.p.mask.eq(Mux(rows.o.p.masked, masks.o.payload.as_value(), 0)),
                link.p.tag.eq(target.tag),
                link.p.last.eq(rows.o.p.last),
            ]
        m.d.comb += [
            self.row.eq(complete & Mux(target.peer, self.next.ready, self.previous.ready)),
            rows.o.ready.eq(self.row),
            masks.o.ready.eq(self.row & rows.o.p.masked),
            final.eq(self.row & rows.o.p.last),
            self.stall.eq((walk.active & place & ~walk.next) | (complete & ~self.row)),
        ]
        return m
