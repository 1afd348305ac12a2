"""What training with a plan is expected to take, from its programs and the cycle model."""

from dataclasses import dataclass

from gradmill_hw.config import ConfigError

from .cycle_model import predict
from .lowering.layout import somewhere
from .planning import lower, plan
from .unit_times import Memory


__all__ = ["Forecast", "forecast", "forecast_layers", "one_tile_cycles"]

#: Virtual minibatches of the two programs whose difference is the period.
_FEW, _MANY = 2, 6


@dataclass(frozen=True)
class Forecast:
    """Expectations of the cycle model.

    Members
    -------
    cycles : float
        Cycles per virtual minibatch in steady state.
    busy : list of dict
        By tile: name of a queue -> share of the cycles with an instruction in execution.
    memory : list of dict
        By tile: name of an on-chip memory -> ``(rows used, rows)``.
    """

    cycles: float
    busy:   list
    memory: list


def forecast(made, model, config, loss, optimizer, *, placed=None, far=None, **options):
    """The :class:`Forecast` for a plan of ``model``; see :func:`gradmill.plan`, and
    :class:`gradmill.lowering.pipeline.Lowering` for ``options``.

    ``placed``: ``(lowering, regions, result)`` of a trainer whose programs depend on what a memory
    manager has learned; without it, those of a fresh one. ``far``: far memory; by default as fast
    as it was measured to be.
    """
    if placed is None:
        lowering = lower(made, model, config, loss, optimizer, **options)
        placed = lowering, *lowering.somewhere()
    lowering, regions, result = placed
    far = far or (lowering.activations and lowering.activations.far)
    batch = lowering.batch("train", made.virtual_minibatch)
    strides = len(batch.rows) * batch.data_bytes, len(batch.rows) * batch.label_bytes
    few, many = (predict(lowering.train(made.virtual_minibatch, count, strides, regions, result),
                         config, far=far) for count in (_FEW, _MANY))
    cycles = (many.cycles - few.cycles) / (_MANY - _FEW)
    busy = [{queue.name.lower(): (most[queue] - least[queue]) / (_MANY - _FEW) / cycles
             for queue in config.queues} for least, most in zip(few.busy, many.busy, strict=True)]
    return Forecast(cycles, busy, [buffers.usage() for buffers in lowering.buffers])


def forecast_layers(trainer):
    """The :class:`Forecast` for layer-to-layer execution: of a program, which trains one virtual
    minibatch."""
    lowering, config = trainer._lowering, trainer.device.config
    far = Memory(beats=trainer.device.far_beats or Memory.beats)
    _, result = somewhere(trainer.model.stages, config, trainer.optimizer)
    found = predict(lowering.train(trainer.virtual_minibatch, 1, (0, 0), lowering.regions, result),
                    config, far=far)
    busy = {queue.name.lower(): found.busy[0][queue] / found.cycles for queue in config.queues}
    return Forecast(found.cycles, [busy], [lowering.buffers[0].usage()])


def one_tile_cycles(model, config, loss, optimizer, *, virtual_minibatch, sub_minibatch,
                    **rounding):
    """Cycles per virtual minibatch on one tile, as the cycle model expects them; ``None`` if the
    network does not fit one."""
    config = config.replace(tiles=1)
    try:
        alone = plan(model, config, virtual_minibatch=virtual_minibatch,
                     sub_minibatch=sub_minibatch, loss=loss, optimizer=optimizer)
    except ConfigError:
        return None
    return forecast(alone, model, config, loss, optimizer, **rounding).cycles
