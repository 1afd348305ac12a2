"""Everything the driver raises on its own account."""


__all__ = ["BackendError", "DeviceError", "DeviceTimeout", "FarMemoryError", "GradmillError",
           "ProgramError"]


class GradmillError(Exception):
    """Base of all errors of the driver."""


class ProgramError(GradmillError):
    """A program that the device would refuse or that could hang.

    ``index`` is the number of the offending instruction, ``None`` if the whole program is meant.
    """

    def __init__(self, message, index=None):
        self.index = index
        super().__init__(message if index is None else f"instruction {index}: {message}")


class BackendError(GradmillError):
    """A backend that does not exist or whose tools are missing."""


class DeviceTimeout(GradmillError):
    """The device did not finish in the time that was allowed."""


class DeviceError(GradmillError):
    """The device stopped with an error.

    ``error`` is its name, ``tile`` the number of the tile, ``queue`` the
    :class:`~gradmill_hw.isa.Queue` it happened in (``None`` for the sequencer), ``instruction`` the
    disassembled instruction and ``address`` the program counter, row or byte address that the
    device recorded; ``far`` is whether the instruction moves something to or from far memory.
    """

    def __init__(self, message, *, error, tile=0, queue=None, instruction="", address=0,
                 far=False):
        self.error, self.tile, self.queue = error, tile, queue
        self.instruction, self.address, self.far = instruction, address, far
        super().__init__(message)


class FarMemoryError(DeviceError):
    """Far memory failed. Parameters, momentum and position are those of the boundary before the
    virtual minibatches of that start, or of the end of the epoch if it was validated, so that
    training can go on."""
