"""What the units of a tile tell its control path, and what it tells of them."""

from amaranth.lib import data
from amaranth.lib.wiring import Out, Signature

from ..isa import numbers
from ..regs import Error
from ..stash.quantise import EncodeEntry
from ..stash.widen import DecodeEntry


__all__ = ["Activity", "End", "TableWrites", "UnitEvents"]


class End(Signature):
    """How a unit ends its commands, seen from the unit.

    Members
    -------
    done : Out(1)
        The oldest command has completed, for one cycle.
    error : Out(Error)
        Not ``NONE``: the oldest command has failed, with or without ``done``.
    address : Out(40)
        Memory address or on-chip row that an error is about.
    """

    def __init__(self):
        super().__init__({"done": Out(1), "error": Out(Error), "address": Out(40)})


class TableWrites(Signature):
    """Entries of the codec's tables, seen from the registers.

    Members
    -------
    encode_valid, decode_valid : Out(1)
        Write one.
    encode : Out(EncodeEntry())
    decode : Out(DecodeEntry())
    """

    def __init__(self):
        super().__init__({"encode_valid": Out(1), "encode": Out(EncodeEntry()),
                          "decode_valid": Out(1), "decode": Out(DecodeEntry())})


class Activity(data.StructLayout):
    """Commands that a unit took, and commands that ended, in the last cycle; one bit a
    number of a queue."""

    def __init__(self, config):
        super().__init__({"begin": numbers(config.queues), "end": numbers(config.queues)})


class UnitEvents(data.Struct):
    """What the units tell: counters, by the names of :mod:`~gradmill_hw.regs`, and flags."""
    array_rows:           1
    matrix_stall:         1
    matrix_stall_weights: 1
    vector_rows:          1
    vector_stall:         1
    link_in_rows:         1
    link_in_stall:        1
    link_out_rows:        1
    link_out_stall:       1
    matrix_nonfinite:     1
    vector_nonfinite:     1
    saturated:            1
    stash_rows:           1
    stash_saturated:      5
