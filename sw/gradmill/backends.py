"""Opening a device by the name of its backend."""

from .errors import BackendError


__all__ = ["BACKENDS", "open_device"]

#: Backends and what they are.
BACKENDS = {
    "emulator": "exact NumPy models, no clock",
    "verilator": "the RTL, simulated in this process",
}

_DEVICE = ("near_bytes", "far_bytes", "seed", "watchdog")
_BOARD = ("latency", "bandwidth", "stall", "outstanding", "waveform", "progress", "verilog")


def open_device(backend, config="sim", **options):
    """Open a :class:`~gradmill.device.Device`.

    Parameters
    ----------
    backend : str
        ``"emulator"`` or ``"verilator"``.
    config : Config, str or Path
        Sizes of the accelerator: themselves, a name, or a TOML or JSON file.
    near_bytes, far_bytes, seed, watchdog
        See :class:`~gradmill.device.Device`.
    latency, bandwidth, stall, outstanding, waveform, progress, verilog
        Memory timing, outputs and source of the simulated board, see
        :class:`~gradmill.verilator.VerilatorDevice`; the emulator has no clock and ignores them.
    """
    unknown = sorted(options.keys() - {*_DEVICE, *_BOARD})
    if unknown:
        are = "are no options" if unknown[1:] else "is no option"
        raise BackendError(f"{', '.join(unknown)} {are} of open: choose from "
                           f"{', '.join((*_DEVICE, *_BOARD))}")
    if backend == "emulator":
        from .emulator import Emulator

        return Emulator(config, **{name: options[name] for name in _DEVICE if name in options})
    if backend == "verilator":
        from .verilator import VerilatorDevice

        return VerilatorDevice(config, **options)
    raise BackendError(f"there is no backend {backend!r}: choose one of {', '.join(BACKENDS)}")
