"""What travels between neighbouring tiles, and the wires it travels on."""

from amaranth.lib import data
from amaranth.lib.wiring import In, Out, Signature

from ..isa import INSTRUCTIONS, Opcode
from ..memory.ports import BfpRow, mask_row


__all__ = ["LinkPort", "LinkRow", "LinkTag", "tag_of"]

_NAMES = ("sub", "last_sub", "gradient", "version")


class LinkTag(data.StructLayout):
    """The fields of ``SEND`` and ``RECEIVE`` that must be equal at both ends."""

    def __init__(self):
        widths = {field.name: field.width for field in INSTRUCTIONS[Opcode.SEND].body}
        super().__init__({name: widths[name] for name in _NAMES})


def tag_of(command):
    """The :class:`LinkTag` in a ``SEND`` or ``RECEIVE`` command, by field."""
    return {name: command[name] for name in _NAMES}


class LinkRow(data.StructLayout):
    """One row of a transfer.

    Members
    -------
    row : BfpRow(config)
        Row of the tensor memory.
    mask : mask_row(config)
        Row of the mask memory; zero where none was read.
    tag : LinkTag
        Of the command that sends; the same on every row of a transfer.
    last : 1
        Last row of the transfer.
    """

    def __init__(self, config):
        super().__init__({
            "row":  BfpRow(config),
            "mask": mask_row(config),
            "tag":  LinkTag(),
            "last": 1,
        })


class LinkPort(Signature):
    """Wires between two tiles in one direction, seen from the sender.

    A row is on its way in every cycle with ``valid``; there is no ready. Each wire comes straight
    from a register, and nothing depends on when it arrives: any number of register stages may lie
    between, not necessarily as many on the way back.

    Members
    -------
    valid : Out(1)
        A row is on ``payload``; sent only for a credit.
    payload : Out(LinkRow(config))
        Row; undefined without ``valid``.
    credit : In(1)
        One place at the other end has become free.
    """

    def __init__(self, config):
        super().__init__({
            "valid":   Out(1),
            "payload": Out(LinkRow(config)),
            "credit":  In(1),
        })
