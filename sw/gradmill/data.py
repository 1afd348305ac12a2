"""Checks of what the user passes in, and the order in which samples are visited."""

import numpy as np

from gradmill_hw.regs import Tier

from .device import Device
from .lowering.layout import blocks
from .nn import MSE, SGD, CrossEntropy, Sequential


__all__ = ["LOSSES", "check_device", "check_inputs", "check_layer_to_layer", "check_pair",
           "check_room", "check_settings", "check_targets", "epoch_order",
           "minibatch_sizes", "one_hot", "positive", "scores"]

#: Losses by name.
LOSSES = {"CrossEntropy": CrossEntropy, "MSE": MSE}
_LEVEL1 = ("fp32", "bf16")
_ROUNDING = ("nearest", "stochastic")


def positive(name, value):
    """``value`` as an int, which must be at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}; give an integer of at least 1")
    return int(value)


def minibatch_sizes(virtual_minibatch, sub_minibatch):
    """B and M as ints, ``1 <= M <= B``."""
    size = positive("virtual_minibatch", virtual_minibatch)
    sub = positive("sub_minibatch", sub_minibatch)
    if sub > size:
        raise ValueError(f"sub_minibatch={sub} is larger than virtual_minibatch={size}; use "
                         "1 <= sub_minibatch <= virtual_minibatch")
    return size, sub


def check_settings(model, loss, optimizer, level1, rounding):
    """Refuse what a trainer cannot train with."""
    if type(loss).__name__ not in LOSSES:
        raise ValueError(f"loss={loss!r}; use CrossEntropy() or MSE()")
    if not isinstance(optimizer, SGD):
        raise ValueError(f"optimizer={optimizer!r}; use SGD(lr=..., momentum=...)")
    if not isinstance(model, Sequential) or model.stages[-1].relu:
        raise ValueError("model must be a Sequential whose last layer is a Linear")
    if level1 not in _LEVEL1:
        raise ValueError(f"level1={level1!r}; use one of {', '.join(_LEVEL1)}")
    if rounding not in _ROUNDING:
        raise ValueError(f"rounding={rounding!r}; use one of {', '.join(_ROUNDING)}")


def check_device(device, seed):
    """Refuse what is no device, and keys that are none."""
    if not isinstance(device, Device):
        raise ValueError(f"device={device!r}; open one: gm.open('emulator') or "
                         "gm.open('verilator')")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r}; give an integer of at least 0")


def check_room(size, sub, inputs, device):
    """Refuse a virtual minibatch whose samples do not fit near memory."""
    each = blocks(inputs, device.config.n) * device.config.run_bytes("fp32", sub)
    room = device.size(Tier.NEAR)
    if -(-size // sub) * each > room:
        raise ValueError(f"virtual_minibatch={size}: it takes {-(-size // sub) * each:,} bytes, "
                         f"near memory has {room:,}; use at most {room // each * sub}, or a device "
                         "with larger near_bytes")


def check_prediction(schedule, momentum):
    """Refuse to predict weights where that means nothing."""
    if schedule != "no-drain":
        raise ValueError(f"predict_weights=True with schedule={schedule!r}: only 'no-drain' uses "
                         "weights that are not the newest; leave predict_weights out, or use "
                         "schedule='no-drain'")
    if not momentum:
        raise ValueError("predict_weights=True with momentum=0: weights are predicted from the "
                         "momentum; use SGD(lr=..., momentum=0.9)")


def check_layer_to_layer(boundaries, **others):
    """What layer-to-layer execution cannot be combined with."""
    if boundaries not in ("near", "far"):
        raise ValueError(f"boundaries={boundaries!r}; use near or far")
    for name, value in others.items():
        if value not in {"tiles": (None, 1), "schedule": (None, "sequential")}.get(name, (None,)):
            given = f"={value!r}" if isinstance(value, int | str) else ""
            raise ValueError(f"{name}{given} with layer_to_layer=True: one tile executes all "
                             f"layers and keeps their inputs as they are; leave {name} out")


def check_inputs(x, features):
    """``x`` as an array: float32, ``(samples, features)``, finite."""
    x = np.asarray(x)
    if x.dtype != np.float32:
        raise ValueError(f"x has dtype {x.dtype}; pass float32 (x.astype(numpy.float32))")
    if x.ndim != 2 or x.shape[1] != features or not len(x):
        raise ValueError(f"x has shape {x.shape}; the network takes (samples, {features}) with at "
                         "least one sample")
    _finite("x", x)
    return x


def check_targets(y, samples, outputs, loss):
    """``y`` as the loss needs it: float32 targets or integer labels."""
    y = np.asarray(y)
    if isinstance(loss, MSE):
        if y.dtype != np.float32 or y.shape != (samples, outputs):
            raise ValueError(f"y is {y.dtype} {y.shape}; MSE takes float32 ({samples}, {outputs})")
        _finite("y", y)
        return y
    if not np.issubdtype(y.dtype, np.integer) or y.shape != (samples,):
        raise ValueError(f"y is {y.dtype} {y.shape}; CrossEntropy takes integer labels of shape "
                         f"({samples},)")
    if y.min() < 0 or y.max() >= outputs:
        raise ValueError(f"y has labels {y.min()} to {y.max()}; the network has outputs 0 to "
                         f"{outputs - 1}")
    return y


def check_pair(pair, features, outputs, loss):
    """Validation data ``(x, y)`` as a network and a loss need it."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"validation_data: give a pair (x, y), not {type(pair).__name__}"
                         + (f" of {len(pair)}" if isinstance(pair, tuple | list) else ""))
    try:
        x = check_inputs(pair[0], features)
        return x, check_targets(pair[1], len(x), outputs, loss)
    except ValueError as error:
        raise ValueError(f"validation_data: {error}") from None


def scores(outputs, y, loss):
    """``{"loss": ..., "accuracy": ...}`` of a network's outputs; no accuracy for ``MSE``."""
    z = outputs.astype(np.float64)
    if isinstance(loss, MSE):
        return {"loss": float(np.mean((z - y) ** 2))}
    z -= z.max(axis=1, keepdims=True)
    chosen = z[np.arange(len(y)), y]
    surprise = np.log(np.exp(z).sum(axis=1)) - chosen
    return {"loss": float(surprise.mean()), "accuracy": float(np.mean(z.argmax(axis=1) == y))}


def _finite(name, array):
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name}{list(where)} is {array[where]}; remove NaN and infinity "
                         "(numpy.isfinite) before training")


def one_hot(labels, outputs):
    """Integer labels ``(...)`` as bits ``(..., outputs)``."""
    return labels[..., None] == np.arange(outputs)


def epoch_order(seed, epoch, samples, *, shuffle):
    """Sample numbers in the order of one epoch; depends on nothing but the arguments."""
    if not shuffle:
        return np.arange(samples)
    return np.random.default_rng((seed, epoch)).permutation(samples)
