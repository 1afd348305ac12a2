"""Master weights and momentum between a model and the memories of a device."""

from contextlib import contextmanager

import numpy as np

from gradmill_hw.isa import Class

from .errors import DeviceError, FarMemoryError
from .lowering.layout import parameter_regions


__all__ = ["Parameters"]


class Parameters:
    """Parameters of ``model`` on ``device``.

    Parameters
    ----------
    model : Sequential
        Whose state they are.
    device : Device
        Where they live while it trains.
    momentum : bool
        Whether each parameter has a momentum.
    regions : dict or None
        Stage number -> its regions by name; by default they are placed in near memory.

    Members
    -------
    parity : None
        What programs depend on besides.
    rates : sequence of float
        Learning rates that programs need besides.
    """

    parity, rates = None, ()

    def __init__(self, model, device, momentum, regions=None):
        self._model, self._device = model, device
        self._kept = {}     # region -> what :meth:`kept` has seen there since :meth:`upload`
        self._away = False  # far memory has failed: that is what counts
        self.regions = regions or {s: parameter_regions(
            stage, device.config, momentum,
            lambda name, nbytes, s=s: device.heap.allocate(nbytes, f"{name} {s}"))
            for s, stage in enumerate(model.stages)}

    def __iter__(self):
        """Yield ``(state name, shape, region, momentum region or None)``."""
        state = self._model.state_dict()
        for s, stage in enumerate(self._model.stages):
            for name in ("weight", "bias")[:1 + stage.linear.bias]:
                key = f"{stage.index}.{name}"
                yield (key, state[key].shape, self.regions[s][name],
                       self.regions[s].get(f"{name}_momentum"))

    @property
    def places(self):
        """Where the programs find them."""
        return self.regions

    def startup(self, kind, lowering):
        """What stands for the on-chip memories of a program of this ``kind``, and what makes the
        programs that load them."""
        return self, lambda: lowering.startup(self.places)

    def trained(self, count, rate):
        """The device has made ``count`` updates with ``rate``."""

    def state(self):
        """Arrays and plain data for a checkpoint, besides parameters and momentum."""
        return {}, {}

    def restore(self, arrays, state):
        """What :meth:`state` gave."""

    def upload(self, momentum=None):
        """Master weights, and momentum (zero if not given), to the device."""
        state = self._model.state_dict()
        for key, shape, region, velocity in self:
            self._write(region, state[key], Class.WEIGHT)
            if velocity is not None:
                values = np.zeros(shape, np.float32) if momentum is None else momentum[key]
                self._write(velocity, values, Class.OPTIMIZER)
        self._kept, self._away = {}, False
        self._device.claim(None)

    def download(self):
        """Refresh the model's master weights from the device."""
        self._model.load_state_dict({key: self.read(region, shape, Class.WEIGHT)
                                     for key, shape, region, _ in self})

    def momentum(self):
        """State name -> momentum, from the device."""
        return {key: self.read(velocity, shape, Class.OPTIMIZER)
                for key, shape, _, velocity in self if velocity is not None}

    def read(self, region, shape, cls):
        """What stands in ``region``, an array of ``shape``; ``cls`` is the class of its bytes."""
        return region.unpack(self._read_raw(region, cls)).reshape(shape)

    @contextmanager
    def kept(self, *, change):
        """If far memory fails within, parameters and momentum are those before, which the host
        holds until :meth:`put_back`, and no on-chip memory is taken to be loaded. ``change``:
        whether what happens within is training, which changes them."""
        if not self._kept:
            self._kept = self._contents()
        try:
            yield
            if change:
                self._kept = self._contents()
        except DeviceError as error:
            if not error.far:
                raise
            self._away = True
            self._device.reset()
            self._device.claim(None)
            raise FarMemoryError(
                f"far memory failed, and {'training' if change else 'prediction'} stopped; "
                f"parameters and position are those before it: go on with Trainer.resume once the "
                f"memory works, or from the checkpoint on another device or without far memory. "
                f"{error}", error=error.error, tile=error.tile, queue=error.queue,
                instruction=error.instruction, address=error.address, far=True) from error

    def put_back(self):
        """What the host holds goes back to the memories."""
        if self._away:
            for region, raw in self._kept.items():
                self._device.write_memory(region.tier, region.address, raw, cls=Class.WEIGHT)
            self._away = False

    def _contents(self):
        """Raw bytes of each region."""
        return {region: self._read_raw(region, Class.WEIGHT)
                for stage in self.regions.values() for region in stage.values()}

    def _read_raw(self, region, cls):
        if self._away:
            return self._kept[region]
        return self._device.read_memory(region.tier, region.address, region.nbytes, cls=cls)

    def _write(self, region, values, cls):
        self._device.write_memory(region.tier, region.address, region.pack(values), cls=cls)
