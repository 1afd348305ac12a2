"""What a network costs on one tile, layer by layer."""

import json
from dataclasses import asdict, dataclass, fields
from numbers import Real

from ..data import positive


__all__ = ["LayerProfile", "Profile"]


def _count(owner, name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{owner}: {name}={value!r}; give an integer of at least 0")


@dataclass(frozen=True)
class LayerProfile:
    """One layer, for one sub-minibatch.

    Parameters
    ----------
    forward, backward, weight : int
        Cycles of the forward pass, of the data gradient (0 for the first layer, whose input needs
        none) and of the weight gradient: those of the matrix unit, behind which the vector unit
        works.
    update : int
        Cycles of the optimizer step; once a virtual minibatch.
    output_bytes : int
        Bytes of its output on a link; the gradient that comes back is as long.
    weight_bytes : int
        Bytes of its parameters.
    vector : int
        Cycles of the vector unit in all three. A tile is as fast as the unit that needs most.
    """

    forward:      int
    backward:     int
    weight:       int
    update:       int
    output_bytes: int
    weight_bytes: int
    vector:       int = 0

    def __post_init__(self):
        for field in fields(self):
            _count("LayerProfile", field.name, getattr(self, field.name))


@dataclass(frozen=True)
class Profile:
    """A network measured at one size of sub-minibatch.

    Parameters
    ----------
    layers : sequence of LayerProfile
        In the order of forward.
    sub_minibatch : int
        M, samples that the cycles and bytes are for.
    link_bytes_per_cycle : float
        What a link between neighbouring tiles carries in each direction.
    link_latency : int
        Cycles from the end of a transfer to its use by the neighbour.
    """

    layers:               tuple[LayerProfile, ...]
    sub_minibatch:        int
    link_bytes_per_cycle: float = 1.0
    link_latency:         int = 0

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("Profile: no layers; give at least one LayerProfile")
        positive("sub_minibatch", self.sub_minibatch)
        _count("Profile", "link_latency", self.link_latency)
        rate = self.link_bytes_per_cycle
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < float("inf"):
            raise ValueError(f"Profile: link_bytes_per_cycle={rate!r}; give a positive number")

    def as_dict(self):
        """Plain data, from which :meth:`from_dict` makes an equal profile."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data):
        """The profile that :meth:`as_dict` described."""
        _check_keys(cls, "profile", data)
        for index, entry in enumerate(data["layers"]):
            _check_keys(LayerProfile, f"layer {index}", entry)
        layers = tuple(LayerProfile(**entry) for entry in data["layers"])
        return cls(**{**data, "layers": layers})

    def to_json(self):
        """One JSON object."""
        return json.dumps(self.as_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text):
        """The profile that :meth:`to_json` wrote."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"profile is not JSON: {error}") from None
        return cls.from_dict(data)


def _check_keys(kind, owner, entry):
    names = sorted(field.name for field in fields(kind))
    if not isinstance(entry, dict) or sorted(entry) != names:
        raise ValueError(f"{owner} is {entry!r}; it must be an object with {', '.join(names)}")
