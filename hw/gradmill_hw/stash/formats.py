"""The table of stash formats: names, tags, parameters and sizes.

A tag is one byte: ``log2(block / 16)`` in the upper two bits, the code of the format in the lower
six. Tag 0 means that rows are stored as they are and never stands in a block.
"""

import re
from dataclasses import dataclass


__all__ = ["BLOCKS", "GROUP", "HIGH_BITS", "INDEX_BITS", "KINDS", "READ_BEATS", "ROW_NUMBERS",
           "SLOTS", "WRITE_BEATS", "Format", "FormatError", "Kind", "from_tag", "piece_granules"]

#: Values of a block.
BLOCKS = (16, 32, 64, 128)
#: Values that share an exponent in the hierarchical formats.
GROUP = 16
#: Bits of an outlier's position in its block, and of its second mantissa.
INDEX_BITS = 7
HIGH_BITS = 3
#: Numbers of rows, the key of random bits, are modulo this.
ROW_NUMBERS = 1 << 38
#: Beats of a run that are written at a time, and that are read at a time where its length depends
#: on the values.
WRITE_BEATS = 16
READ_BEATS = 4
#: Table slots of the non-uniform format and the magnitude bits of their codes.
SLOTS = {"lite": 3, "normal": 2, "aggressive": 1}


class FormatError(ValueError):
    """A stash format that does not exist or has other parameters."""


@dataclass(frozen=True)
class Kind:
    """One line of the table.

    ``codes`` lists (code, bits, outliers, slot) of all variants, ``packed`` the offset in code of
    the variants with zero packing, ``None`` if there are none.
    """
    name:     str
    codes:    tuple
    packed:   int | None = None
    signed:   bool = True   # a plane of signs before the magnitude planes
    exponent: bool = True   # a shared exponent in the header
    bitmap:   bool = False  # always a bitmap with packed codes
    bits_are: str = "magnitude bits"


def _codes(first, bits):
    return tuple((first + k, k, 0, None) for k in bits)


_MX = {"mx4": 2, "mx6": 4, "mx9": 7}

#: The table. Magnitude bits are what ``codes`` holds; ``bfp`` counts its sign to its bits.
KINDS = {kind.name: kind for kind in (
    Kind("bfp", _codes(0, range(1, 8)), packed=8, bits_are="bits with the sign"),
    Kind("ubfp", _codes(16, range(1, 8)), packed=8, signed=False),
    Kind("mask", _codes(16, (0,)), signed=False, exponent=False),
    Kind("mask+bfp", _codes(32, range(1, 8)), signed=False, bitmap=True),
    *(Kind(name, ((40 + k, bits, 0, None),))
      for k, (name, bits) in enumerate(_MX.items())),
    Kind("outlier", tuple((48 + 4 * (t == 4) + m - 1, m, t, None)
                          for t in (2, 4) for m in range(1, 5))),
    Kind("nonuniform", tuple((56 + k, bits, 0, slot)
                             for k, (slot, bits) in enumerate(SLOTS.items())), packed=4),
)}


@dataclass(frozen=True)
class Format:
    """A stash format with all its parameters.

    Parameters
    ----------
    name : str
        A name in :data:`KINDS`.
    bits : int or None
        ``bfp``: bits of a value with its sign, 2 to 8. ``ubfp``, ``mask+bfp``: 1 to 7 bits of a
        magnitude. ``outlier``: 1 to 4 bits of a magnitude beside its sign. Otherwise given by the
        name.
    block : int
        Values of a block: 16, 32, 64 or 128.
    outliers : int
        Outliers of a block: 2 or 4; only for ``outlier``.
    table : str
        Table slot; only for ``nonuniform``: its name in :data:`SLOTS`.
    pack : bool
        Lossless second stage: a bitmap of the codes that are not zero, and those codes.
    """
    name:     str
    bits:     int | None = None
    block:    int = 64
    outliers: int | None = None
    table:    str | None = None
    pack:     bool = False

    def __post_init__(self):
        if self.name not in KINDS:
            raise FormatError(f"unknown stash format {self.name!r}: choose one of "
                              f"{', '.join(KINDS)}")
        if self.block not in BLOCKS:
            raise FormatError(f"{self.name}: block={self.block!r}: choose 16, 32, 64 or 128")
        if self.pack and self.kind.packed is None:
            raise FormatError(f"{self.name} has no zero packing: pack must be False")
        self._settle("bits", {self._shown(bits) for _, bits, _, _ in self.kind.codes})
        self._settle("outliers", {outliers or None for _, _, outliers, _ in self.kind.codes})
        self._settle("table", {slot for _, _, _, slot in self.kind.codes})
        self._variant()

    def _settle(self, name, allowed):
        """Check one parameter; what only one value is possible for may be left out."""
        value = getattr(self, name)
        if value is None and len(allowed) == 1:
            value = next(iter(allowed))
        if value is None and name == "outliers":
            value = max(allowed)
        if value is None and name == "bits" and self.kind.codes[0][3] is not None:
            table = self.table if self.table is not None else ""
            if table not in SLOTS:
                raise FormatError(f"{self.name}: table={self.table!r}: choose one of "
                                  f"{', '.join(SLOTS)}")
            value = SLOTS[table]
        if value not in allowed:
            choices = ", ".join(str(choice) for choice in sorted(allowed, key=str))
            raise FormatError(f"{self.name}: {name}={value!r}: choose one of {choices}")
        object.__setattr__(self, name, value)

    def _shown(self, bits):
        return bits + 1 if self.name == "bfp" else bits

    def _variant(self):
        for code, bits, outliers, slot in self.kind.codes:
            if (self._shown(bits), outliers or None, slot) == (self.bits, self.outliers,
                                                               self.table):
                return code + (self.kind.packed if self.pack else 0)
        raise FormatError(f"{self.name}: table {self.table!r} has codes of "
                          f"{SLOTS[self.table]} bits, not {self.bits}")

    @property
    def kind(self):
        """Line of the table."""
        return KINDS[self.name]

    @property
    def tag(self):
        """First byte of a block; also the ``codec`` field of an instruction."""
        return BLOCKS.index(self.block) << 6 | self._variant()

    @property
    def magnitude_bits(self):
        """Magnitude planes of a row; 0 for ``mask``."""
        return self.bits - 1 if self.name == "bfp" else self.bits

    @property
    def planes(self):
        """Bits of a code; ``mask`` has one."""
        return max(1, self.magnitude_bits) if not self.kind.signed else self.magnitude_bits + 1

    @property
    def packed(self):
        """Codes of zero are not stored: a bitmap stands before the codes."""
        return self.pack or self.kind.bitmap

    @property
    def hierarchical(self):
        """One exponent for each group of 16 values."""
        return self.name in _MX

    @property
    def slot(self):
        """Number of the table slot."""
        return list(SLOTS).index(self.table) if self.table else 0

    def rows(self, n):
        """Rows of a whole block."""
        if n not in (4, 8, 16):
            raise FormatError(f"n={n}: stash formats are defined for rows of 4, 8 or 16 values")
        return self.block // n

    @property
    def fields(self):
        """Widths of the fields of a prefix, without the tag."""
        if self.hierarchical:
            return 8, GROUP // 2
        if self.outliers:
            return 8, 8, *(INDEX_BITS, HIGH_BITS) * self.outliers
        return (8,) if self.kind.exponent else ()

    def prefix_granules(self, head, n):
        """Granules before the codes of a block's first row (``head``: with the tag), or of each
        other group of a hierarchical format."""
        return -(-(8 * head + sum(self.fields)) // n)

    def granules(self, rows, n):
        """Smallest and largest size of ``rows`` rows, in granules of ``n`` bits."""
        full, rest = divmod(rows, self.rows(n))
        blocks = full + (rest > 0)
        size = blocks * self.prefix_granules(True, n)
        if self.hierarchical:
            group = GROUP // n
            groups = full * (self.block // GROUP) + -(-rest // group)
            size += (groups - blocks) * self.prefix_granules(False, n)
        if self.packed:
            return size + rows, size + rows + rows * self.planes
        return size + rows * self.planes, size + rows * self.planes

    def __str__(self):
        text = self.name
        if self.table:
            text += f"-{self.table}"
        elif self.name not in _MX and self.bits:
            text += f"({self.bits}, {self.outliers})" if self.outliers else f"({self.bits})"
        return f"{text}{'+zeros' * self.pack}/{self.block}"

    @classmethod
    def parse(cls, text):
        """The format that ``str`` gives, for instance ``"bfp(4)/64"`` or ``"mask/128"``."""
        found = re.fullmatch(r"([a-z+]+?\d?)(?:-([a-z]+))?(?:\((\d+)(?:, ?(\d+))?\))?(\+zeros)?"
                             r"(?:/(\d+))?", text)
        if not found:
            raise FormatError(f"stash format {text!r}: write a name, perhaps (bits), perhaps "
                              f"/block, for instance bfp(4)/64")
        name, table, bits, outliers, zeros, block = found.groups()
        return cls(name, bits=bits and int(bits), block=int(block or 64), table=table,
                   outliers=outliers and int(outliers), pack=bool(zeros))


def _every_format():
    for kind in KINDS.values():
        for _, bits, outliers, slot in kind.codes:
            shown = bits + 1 if kind.name == "bfp" else bits
            for pack in (False, True)[:1 + (kind.packed is not None)]:
                for block in BLOCKS:
                    yield Format(kind.name, shown, block, outliers or None, slot, pack)


_BY_TAG = {entry.tag: entry for entry in _every_format()}


def from_tag(tag):
    """The format of a tag, ``None`` if there is none."""
    return _BY_TAG.get(tag)


def piece_granules(n):
    """Most granules that one row can take: with a prefix, a bitmap and all its codes."""
    return max(entry.prefix_granules(True, n) + entry.packed + entry.planes
               for entry in _BY_TAG.values())
