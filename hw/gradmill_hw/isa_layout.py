"""Amaranth views of :mod:`gradmill_hw.isa`: instruction words and the commands units receive."""

from amaranth.lib import data

from .isa import COMMON, INSTRUCTIONS, OPERANDS


__all__ = ["command_layout", "instruction_layout"]


def instruction_layout(opcode):
    """All 512 bits of ``opcode`` as they lie in memory."""
    return data.StructLayout({f.name: f.width for f in INSTRUCTIONS[opcode].fields})


def command_layout(opcode):
    """What a unit needs of ``opcode``: relocated operands, layer and the opcode's own fields.

    Base registers are already added: ``op0`` to ``op4`` and ``mem`` are final addresses.
    """
    common = {f.name: f.width for f in COMMON if f.name in
              ("layer", "mem", *(f"op{k}" for k in range(OPERANDS)))}
    return data.StructLayout({**common, **{f.name: f.width for f in INSTRUCTIONS[opcode].body}})
