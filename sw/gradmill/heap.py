"""Room in a memory tier, by owner."""

from contextlib import contextmanager

from gradmill_hw.config import ConfigError


__all__ = ["Heap"]

#: Bytes that every piece is aligned to: no burst crosses such a border.
_ALIGN = 4096


class Heap:
    """First-fit allocation of a memory of ``size`` bytes.

    Parameters
    ----------
    name : str
        Of the memory, for messages.
    size : int
        Bytes.
    """

    def __init__(self, name, size):
        self.name, self.size = name, size
        self._pieces = {}  # address -> (end, owner)

    def _gaps(self):
        """Yield ``(start, end)`` of what is free."""
        start = 0
        for address in sorted(self._pieces):
            if address > start:
                yield start, address
            start = self._pieces[address][0]
        if self.size > start:
            yield start, self.size

    @property
    def largest(self):
        """Bytes of the largest free piece."""
        return max((end - start for start, end in self._gaps()), default=0)

    def allocate(self, nbytes, owner):
        """Address of ``nbytes`` bytes, aligned to 4096."""
        nbytes = -(-max(nbytes, 1) // _ALIGN) * _ALIGN
        for start, end in self._gaps():
            if end - start >= nbytes:
                self._pieces[start] = (start + nbytes, owner)
                return start
        raise ConfigError(f"{self.name} memory has {self.size} bytes, {self.largest} of them free "
                          f"in one piece, but {owner} needs {nbytes}: open the device with a "
                          f"larger {self.name}_bytes")

    def free(self, address):
        """Give a piece back."""
        del self._pieces[address]

    @contextmanager
    def scratch(self, nbytes, owner):
        """A piece for the time of a ``with`` block."""
        address = self.allocate(nbytes, owner)
        try:
            yield address
        finally:
            self.free(address)
