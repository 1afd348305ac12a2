"""Gradmill: train neural networks on an open training accelerator.

>>> import gradmill as gm
>>> device = gm.open("emulator", config="sim")
>>> model = gm.Sequential(gm.Linear(64, 128), gm.ReLU(), gm.Linear(128, 10), seed=0)
>>> trainer = gm.Trainer(model, device, loss=gm.CrossEntropy(),
...                      optimizer=gm.SGD(lr=0.1, momentum=0.9),
...                      virtual_minibatch=64, sub_minibatch=16)

Names are imported at their first use, so that importing the package costs nothing.
"""

from importlib import import_module


_HOMES = {
    "gradmill_hw.config": ("CONFIGS", "Config", "ConfigError", "get_config"),
    "gradmill_hw.isa": ("Class", "Kind", "Queue"),
    "gradmill_hw.numeric.bfp_model": ("dequantize", "quantize"),
    "gradmill_hw.regs": ("Tier",),
    ".backends": ("open_device",),
    ".checkpoint": ("CheckpointError",),
    ".device": ("Device",),
    ".errors": ("BackendError", "DeviceError", "DeviceTimeout", "FarMemoryError", "GradmillError",
                "ProgramError"),
    ".history": ("History",),
    ".memory": ("FastMemory",),
    ".nn": ("MSE", "SGD", "CrossEntropy", "Linear", "ReLU", "Sequential"),
    ".planning": ("plan",),
    ".gradient_probe": ("gradients",),
    ".stash": ("AdaptiveStash", "AutoStash", "Stash"),
    ".program": ("Program", "Scalar", "disassemble"),
    ".trainer": ("Trainer",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("codec", "ops", "timeline")

__all__ = sorted({"open", *_HOME, *_MODULES} - {"open_device"})


def __getattr__(name):
    if name == "open":
        value = __getattr__("open_device")
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    elif name in _HOME:
        value = getattr(import_module(_HOME[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return __all__
