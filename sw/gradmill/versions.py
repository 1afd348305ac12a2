"""Two versions of the master parameters, for schedules that do not drain."""

from gradmill_hw.isa import Class

from .lowering.layout import parameter_regions
from .lowering.no_drain import Versions
from .parameters import Parameters


__all__ = ["VersionedParameters", "place_parameters"]


def place_parameters(model, device, optimizer, lowering):
    """Parameters of ``model`` where the programs of ``lowering`` find them."""
    if lowering.versions > 1:
        return VersionedParameters(model, device, optimizer.momentum, optimizer.rate(0))
    return Parameters(model, device, optimizer.momentum, lowering.regions)


class VersionedParameters(Parameters):
    """:class:`Parameters` in two versions, which updates make in turn.

    Parameters
    ----------
    model, device, momentum
        As of :class:`Parameters`.
    rate : float
        Learning rate of the first updates.

    Members
    -------
    parity : int
        Number of the newest version modulo 2: programs depend on it.
    rates : list of float
        Number of a version modulo 2 -> learning rate of the update that made it.
    """

    def __init__(self, model, device, momentum, rate):
        super().__init__(model, device, momentum)
        other = {s: parameter_regions(
            stage, device.config, momentum, lambda name, nbytes, s=s: device.heap.allocate(
                nbytes, f"other version of {name} {s}")) for s, stage in enumerate(model.stages)}
        self._versions, self.parity = (self.regions, other), 0
        self.rates = [rate, rate]

    @property
    def places(self):
        """:class:`Versions` for the programs."""
        return Versions(self._versions, self.parity)

    def startup(self, kind, lowering):
        """See :meth:`Parameters.startup`. Whatever does not train uses the newest weights."""
        if kind == "train":
            return self, lambda: lowering.startup(self.places)
        return self._versions, lambda: lowering.startup_newest(self.places)

    def trained(self, count, rate):
        """The device has made ``count`` updates with ``rate``."""
        self._select((self.parity + count) % 2)
        self.rates = [rate, rate] if count > 1 else [
            rate if k == self.parity else other for k, other in enumerate(self.rates)]

    def upload(self, momentum=None):
        """Both versions are the same."""
        for k in (1, 0):
            self._select(k)
            super().upload(momentum)

    def state(self):
        """Arrays and plain data of the version before the newest, for a checkpoint."""
        newest = self.parity
        self._select(1 - newest)
        arrays = {f"previous.{key}": self.read(region, shape, Class.WEIGHT)
                  for key, shape, region, _ in self}
        arrays |= {f"previous_momentum.{key}": values for key, values in self.momentum().items()}
        self._select(newest)
        return arrays, {"rates": [self.rates[newest], self.rates[1 - newest]]}

    def restore(self, arrays, state):
        """What :meth:`state` gave; the newest version has been uploaded."""
        newest = self.parity
        self._select(1 - newest)
        for key, _, region, velocity in self:
            self._write(region, arrays[f"previous.{key}"], Class.WEIGHT)
            if velocity is not None:
                self._write(velocity, arrays[f"previous_momentum.{key}"], Class.OPTIMIZER)
        self._select(newest)
        self.rates[newest], self.rates[1 - newest] = state["rates"]
        self._device.claim(None)

    def _select(self, version):
        """:attr:`regions` are those of ``version``."""
        self.parity, self.regions = version, self._versions[version]
