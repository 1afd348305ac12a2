"""Gradients of a virtual minibatch as the device computes them, without an update."""

import numpy as np

from gradmill_hw.isa import Class

from .data import check_inputs, check_targets
from .lowering.probe import gradient_programs, gradient_regions


__all__ = ["gradients"]


def gradients(trainer, x, y, *, stash=None, number=0):
    """Mean gradients over the samples ``x`` with targets ``y``, and what their stash took.

    The device runs forward, backward and both levels of the reduction as in training, then stores
    the sums instead of using them. Parameters, momentum and position of the trainer stay.

    Parameters
    ----------
    trainer : Trainer
        Whose network and device.
    stash : Stash, optional
        How hidden activations are kept on the way; by default on chip, as they are.

    number : int
        Virtual minibatch whose random bits are used.

    Returns
    -------
    dict
        Name as in ``model.state_dict()`` -> float32 array.
    float or None
        Bits of a stashed value, by the device's counters.
    """
    model, device = trainer.model, trainer.device
    x, y = check_inputs(x, model.inputs), check_targets(y, len(x), model.outputs, trainer.loss)
    control = trainer.stashing
    regions = control.once("gradients", lambda: gradient_regions(
        model.stages, device.config, device.heap.allocate))
    before = control.stored()
    with control.using(stash):
        trainer.run_batches("gradients", x, y, len(x), number, lambda _: gradient_programs(
            trainer._lowering, len(x), regions, trainer._losses_at))
    values, nbytes = np.subtract(control.stored(), before).tolist()
    found = {}
    for s, stage in enumerate(model.stages):
        for name, region in regions[s].items():
            key = f"{stage.index}.{name}"
            found[key] = trainer._parameters.read(region, model.state_dict()[key].shape,
                                                   Class.GRADIENT)
    return found, 8 * nbytes / values if values else None
