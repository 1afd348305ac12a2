"""Register map description: plain data shared by RTL, driver, emulator and manual."""

from dataclasses import dataclass
from enum import Enum


__all__ = ["Access", "Field", "Register", "RegisterMap"]


class Access(Enum):
    """How software and hardware share a field."""
    CONST = "const"  # fixed at build time; reads ``init`` or a size of the configuration
    RO    = "ro"     # hardware drives, software reads
    RW    = "rw"     # software owns
    RW1C  = "rw1c"   # hardware sets, software clears by writing 1
    W1P   = "w1p"    # hardware sees what software writes for one cycle; reads 0


@dataclass(frozen=True)
class Field:
    """``width`` bits of a register.

    ``init`` is the value after reset; a ``CONST`` field may name an attribute of
    :class:`~gradmill_hw.config.Config` in ``size`` instead.
    """
    name:   str
    width:  int
    access: Access
    doc:    str
    init:   int = 0
    size:   str | None = None

    def value(self, config):
        """Value after reset on a device of ``config``."""
        return self.init if self.size is None else getattr(config, self.size)


@dataclass(frozen=True)
class Register:
    """32 bits at byte address ``offset``.

    ``when`` says when a write takes effect: ``"always"``, ``"idle"`` (refused while the tile is
    busy) or ``"unlocked"`` (refused while the tile is busy or its windows are locked).
    """
    offset: int
    name:   str
    doc:    str
    fields: tuple[Field, ...]
    when:   str = "always"

    def __post_init__(self):
        if sum(f.width for f in self.fields) > 32:
            raise ValueError(f"register {self.name} is wider than 32 bits")
        if self.when not in ("always", "idle", "unlocked"):
            raise ValueError(f"register {self.name}: when={self.when!r}")
        if self.offset % 4:
            raise ValueError(f"register {self.name}: offset 0x{self.offset:x} is not a word's")

    def items(self):
        """Yield ``(lsb, field)`` from bit 0 up."""
        lsb = 0
        for field in self.fields:
            yield lsb, field
            lsb += field.width

    @property
    def writable(self):
        """Some field takes what software writes."""
        return any(f.access in (Access.RW, Access.RW1C, Access.W1P) for f in self.fields)

    @property
    def stored(self):
        """Every field is software's own."""
        return all(f.access is Access.RW for f in self.fields)

    def pack(self, **values):
        """The word with the named fields; the others are 0."""
        word = 0
        for lsb, field in self.items():
            value = int(values.pop(field.name, 0))
            if not 0 <= value < 1 << field.width:
                raise ValueError(f"{self.name}.{field.name} = {value} does not fit in "
                                 f"{field.width} bits")
            word |= value << lsb
        if values:
            raise ValueError(f"{self.name} has no field {', '.join(sorted(values))}")
        return word

    def unpack(self, word):
        """``{field: value}`` of a word."""
        return {f.name: word >> lsb & (1 << f.width) - 1 for lsb, f in self.items()}

    def reset(self, config):
        """The word after reset on a device of ``config``."""
        return self.pack(**{f.name: f.value(config) for f in self.fields})


class RegisterMap:
    """Registers by name (``regs["status"]``) and in address order (iteration)."""

    def __init__(self, registers):
        self._registers = tuple(sorted(registers, key=lambda reg: reg.offset))
        self._by_name   = {reg.name: reg for reg in self._registers}
        offsets = {reg.offset for reg in self._registers}
        if not len(offsets) == len(self._by_name) == len(self._registers):
            raise ValueError("two registers share a name or an address")

    def __iter__(self):
        return iter(self._registers)

    def __getitem__(self, name):
        return self._by_name[name]

    def __contains__(self, name):
        return name in self._by_name
