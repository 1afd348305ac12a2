"""Network descriptions: shapes and parameters, no arithmetic. The device computes."""

from dataclasses import dataclass, field
from numbers import Real

import numpy as np


__all__ = ["MSE", "SGD", "CrossEntropy", "Linear", "ReLU", "Sequential"]


@dataclass(frozen=True)
class Linear:
    """``y = x · weightᵀ + bias``; ``weight`` is ``(outputs, inputs)`` float32.

    Parameters
    ----------
    inputs, outputs : int
        Features in and out.
    bias : bool
        Whether there is a ``bias`` of shape ``(outputs,)``.
    """

    inputs:  int
    outputs: int
    bias:    bool = True

    def __post_init__(self):
        for name in ("inputs", "outputs"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or not 1 <= value <= 65535:
                raise ValueError(f"Linear: {name}={value!r}; give an integer from 1 to 65535")

    def initial(self, rng):
        """Parameters by name, uniform in ±1/sqrt(inputs)."""
        bound = 1 / np.sqrt(self.inputs)
        values = {"weight": rng.uniform(-bound, bound, (self.outputs, self.inputs))}
        if self.bias:
            values["bias"] = rng.uniform(-bound, bound, self.outputs)
        return {name: value.astype(np.float32) for name, value in values.items()}


@dataclass(frozen=True)
class ReLU:
    """``y = max(x, 0)``; only its sign bits are kept for backward."""


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax and mean cross-entropy over integer labels."""


@dataclass(frozen=True)
class MSE:
    """Mean of squared differences over samples and outputs."""


@dataclass(frozen=True)
class SGD:
    """``v = momentum·v + g; w = w - lr·v`` on float32 master weights.

    Parameters
    ----------
    lr : float
        Learning rate, positive and finite.
    momentum : float
        0 (no momentum buffer) up to, but excluding, 1.
    decay : float
        Factor of the learning rate from each epoch to the next, above 0 up to 1.
    """

    lr:       float
    momentum: float = 0.0
    decay:    float = 1.0

    def __post_init__(self):
        if not (isinstance(self.lr, Real) and np.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"SGD: lr={self.lr!r}; give a positive finite number")
        if not isinstance(self.momentum, Real) or not 0 <= self.momentum < 1:
            raise ValueError(f"SGD: momentum={self.momentum!r}; give 0 <= momentum < 1")
        if not isinstance(self.decay, Real) or not 0 < self.decay <= 1:
            raise ValueError(f"SGD: decay={self.decay!r}; give 0 < decay <= 1")

    def rate(self, epoch):
        """Learning rate of an epoch, counted from 0."""
        return self.lr * self.decay ** epoch


@dataclass(frozen=True)
class Stage:
    """A ``Linear`` and the activation that follows it."""
    index:  int
    linear: Linear
    relu:   bool


@dataclass(init=False)
class Sequential:
    """A chain of layers, with the float32 master weights as last read from the device.

    Parameters
    ----------
    *layers : Linear or ReLU
        ``Linear`` layers whose sizes meet, each optionally followed by one ``ReLU``.
    seed : int
        Key of the initial weights.
    """

    layers: tuple
    seed:   int
    _state: dict = field(repr=False)

    def __init__(self, *layers, seed=0):
        self.layers, self.seed = tuple(layers), seed
        self.stages = tuple(self._pair(layers))
        rng = np.random.default_rng(seed)
        self._state = {f"{stage.index}.{name}": value for stage in self.stages
                       for name, value in stage.linear.initial(rng).items()}

    @staticmethod
    def _pair(layers):
        if not layers or not isinstance(layers[0], Linear):
            raise ValueError("Sequential: the first layer must be a Linear; got "
                             f"{layers[0] if layers else 'no layers'}")
        width = None
        for index, layer in enumerate(layers):
            if isinstance(layer, Linear):
                if width not in (None, layer.inputs):
                    raise ValueError(f"Sequential: layer {index} takes {layer.inputs} inputs, but "
                                     f"the layer before it gives {width}")
                width = layer.outputs
                relu = index + 1 < len(layers) and isinstance(layers[index + 1], ReLU)
                yield Stage(index, layer, relu)
            elif not isinstance(layer, ReLU):
                raise ValueError(f"Sequential: layer {index} is {layer!r}; use Linear or ReLU")
            elif not isinstance(layers[index - 1], Linear):
                raise ValueError(f"Sequential: layer {index}: a ReLU must follow a Linear")

    @property
    def inputs(self):
        """Features of a sample."""
        return self.stages[0].linear.inputs

    @property
    def outputs(self):
        """Features of the result."""
        return self.stages[-1].linear.outputs

    def state_dict(self):
        """Copies of the master weights: name -> float32 array."""
        return {name: value.copy() for name, value in self._state.items()}

    def load_state_dict(self, state):
        """Replace the master weights; names and shapes must match exactly."""
        if set(state) != set(self._state):
            raise ValueError(f"state has {sorted(state)}; the model needs {sorted(self._state)}")
        for name, value in state.items():
            value = np.asarray(value)
            if value.shape != self._state[name].shape or value.dtype != np.float32:
                raise ValueError(f"{name}: got {value.dtype} {value.shape}; the model needs "
                                 f"float32 {self._state[name].shape}")
        self._state = {name: np.array(state[name]) for name in self._state}

    def describe(self):
        """Plain data from which :meth:`from_description` makes the same layers."""
        return {"seed": self.seed, "layers": [
            {"type": "Linear", "inputs": int(layer.inputs), "outputs": int(layer.outputs),
             "bias": layer.bias} if isinstance(layer, Linear) else {"type": "ReLU"}
            for layer in self.layers]}

    @classmethod
    def from_description(cls, description):
        """The network that :meth:`describe` described, with its initial weights."""
        kinds = {"Linear": Linear, "ReLU": ReLU}
        layers = [kinds[entry["type"]](**{k: v for k, v in entry.items() if k != "type"})
                  for entry in description["layers"]]
        return cls(*layers, seed=description["seed"])
