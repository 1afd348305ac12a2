"""What a tag means to the circuits."""

from amaranth import *
from amaranth.lib import data

from .formats import BLOCKS, from_tag


__all__ = ["TagInfo", "decode_tag", "last_place"]


class TagInfo(data.StructLayout):
    """Properties of a format, without its block size.

    Members
    -------
    legal : 1
        There is such a format; otherwise all other members are zero.
    signed, positive : 1
        Codes have signs; negative values count as zeros.
    exponent, hierarchical, outlier, nonuniform, mask : 1
        Kind of the format; ``exponent``: its prefix has a shared exponent.
    packed, between : 1
        A bitmap and the codes that it marks; codes mean the middle of their interval.
    four : 1
        Four outliers, not two.
    slot : 2
        Table.
    bits : 4
        Bits that a magnitude is rounded to.
    planes : 4
        Bits of a code.
    """

    def __init__(self):
        super().__init__({
            "legal": 1, "signed": 1, "positive": 1, "exponent": 1, "hierarchical": 1,
            "outlier": 1, "nonuniform": 1, "mask": 1, "packed": 1, "between": 1, "four": 1,
            "slot": 2, "bits": 4, "planes": 4,
        })


def _info(entry):
    return {
        "legal": 1,
        "signed": entry.kind.signed,
        "positive": not entry.kind.signed,
        "exponent": entry.kind.exponent,
        "hierarchical": entry.hierarchical,
        "outlier": bool(entry.outliers),
        "nonuniform": entry.table is not None,
        "mask": entry.magnitude_bits == 0,
        "packed": entry.packed,
        "between": entry.kind.bitmap,
        "four": entry.outliers == 4,
        "slot": entry.slot,
        "bits": 8 if entry.table is not None else entry.magnitude_bits,
        "planes": entry.planes,
    }


def decode_tag(m, tag, name):
    """:class:`TagInfo` of the 8-bit ``tag``: each of its bits is one LUT6."""
    layout = TagInfo()
    info = Signal(layout, name=name)
    with m.Switch(tag[:6]):
        for code in range(64):
            entry = from_tag(code)
            if entry is not None:
                with m.Case(code):
                    m.d.comb += info.eq(layout.const(_info(entry)))
    return info


def last_place(tag, n):
    """Number of the last row of a whole block."""
    choices = [block // n - 1 for block in BLOCKS]
    width = max(choices).bit_length()
    return Array(Const(choice, width) for choice in choices)[tag[6:8]]
