"""What a training run did, as plain data: report.json."""

import json
from pathlib import Path

from gradmill_hw.isa import Class
from gradmill_hw.regs import COUNTERS, Tier, byte_counter

from ..forecast import forecast, forecast_layers, one_tile_cycles
from ..stash import describe_policy
from .tiers import measured


__all__ = ["differences", "expectation", "layer_names", "parameters", "performance", "pipeline",
           "speedup", "stashing", "training", "write_report"]


def performance(counters, config):
    """Utilisation and traffic from a device's counters.

    ``utilisation`` is useful MACs / (n · n · tiles · cycles), ``None`` without a clock.
    """
    names = {counter.index: counter.name for counter in COUNTERS}
    cycles = counters["cycles"]
    peak = config.n * config.n * config.tiles * cycles
    return {
        "cycles": cycles,
        "macs": counters["macs"],
        "utilisation": counters["macs"] / peak if cycles else None,
        "stash": _stash(counters, config),
        "bytes": {tier.name.lower(): {
            cls.name.lower(): {direction: counters[names[byte_counter(tier, write, cls)]]
                               for write, direction in enumerate(("read", "write"))}
            for cls in Class} for tier in Tier},
    }


def _stash(counters, config):
    """What was encoded, in values of whole rows; ``None`` if nothing was."""
    values = counters["stash_rows"] * config.n
    written = sum(counters[f"{tier.name.lower()}_write_stash_bytes"] for tier in Tier)
    return {"values": values, "bytes": written, "bits_per_value": 8 * written / values,
            "saturated_outliers": counters["stash_saturated"]} if values else None


def stashing(trainer):
    """The policy of a trainer's stash and what came of it; ``None`` without one.

    ``switches``: since which virtual minibatch which formats, and why. ``bits``: virtual
    minibatches trained, values and bytes stored by each start of the device. ``measured``: what an
    :class:`AutoStash` saw.
    """
    control = trainer.stashing
    if trainer.stash is None:
        return None
    return {"policy": describe_policy(trainer.stash), "switches": control.switches,
            "bits": control.bits, "measured": control.measured}


def differences(trainer, reference):
    """Names of weights and clock-less counters in which two trained devices differ, by bits."""
    ours, theirs = trainer.model.state_dict(), reference.model.state_dict()
    weights = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    ours, theirs = trainer.device.counters(), reference.device.counters()
    return weights + [counter.name for counter in COUNTERS
                      if not counter.timing and ours[counter.name] != theirs[counter.name]]


def write_report(directory, report):
    """``report.json`` in ``directory``; returns its path."""
    path = Path(directory) / "report.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def expectation(trainer):
    """``(forecast, cycles on one tile)`` of a virtual minibatch of ``trainer``, by the cycle model;
    ``None`` cycles if the network does not fit one tile."""
    made = trainer.plan
    rest = trainer.model, trainer.device.config, trainer.loss, trainer.optimizer
    rounding = {"narrow": trainer.level1 == "bf16",
                "stochastic": trainer.rounding == "stochastic"}
    placed = (trainer._lowering, trainer._regions, trainer._losses_at) if trainer.memory else None
    resident = not trainer.layer_to_layer
    expected = (forecast(made, *rest, placed=placed, predict_weights=trainer.predict_weights,
                         **rounding) if resident else
                forecast_layers(trainer))
    alone = expected.cycles if resident and len(made.spans) == 1 else one_tile_cycles(
        *rest, virtual_minibatch=made.virtual_minibatch, sub_minibatch=made.sub_minibatch,
        **rounding)
    return expected, alone


def pipeline(trainer, expectations, timeline=None):
    """What each tile was to do and did: the ``pipeline`` of report.json.

    Parameters
    ----------
    trainer : Trainer
        After training.
    expectations : (Forecast, float or None)
        Of the same training, by :func:`expectation`.
    timeline : Timeline or None
        The first start of the device in that training; without one nothing is measured.
    """
    made, (expected, alone) = trainer.plan, expectations
    period = timeline and timeline.period(made.schedule.sub_minibatches)
    return {
        **made.as_dict(),
        "cycles_per_virtual_minibatch": {"predicted": expected.cycles, "measured": period},
        "speedup": speedup(alone, expected.cycles, period),
        "training": training(trainer, period),
        "tiles": [_tile(trainer, tile, expected) for tile in range(len(made.spans))],
        "fast_memory": _fast_memory(trainer, timeline),
    }


def _fast_memory(trainer, timeline):
    """What the memory manager learned and decided, and what came of it."""
    if trainer.memory is None:
        return None
    choice = trainer.activations.choice
    return {**trainer.memory.describe(), "decisions": choice and choice.words,
            "measured": measured(timeline)}


def speedup(alone, predicted, measured):
    """Virtual minibatches per cycle relative to one tile; names say where both numbers are from."""
    return {
        "one_tile_cycles_predicted": alone,
        "measured_over_one_tile_predicted": alone / measured if alone and measured else None,
        "predicted_over_one_tile_predicted": alone / predicted if alone else None,
    }


def training(trainer, period):
    """Useful MACs of a virtual minibatch, none computed twice, and their share of the peak in the
    ``period`` of cycles from one update to the next, ``None`` without one."""
    layers = [stage.linear.inputs * stage.linear.outputs for stage in trainer.model.stages]
    macs = trainer.virtual_minibatch * (3 * sum(layers) - layers[0])  # samples have no gradient
    config = trainer.device.config
    peak = config.n ** 2 * config.tiles
    return {"macs": macs, "utilisation": macs / (peak * period) if period else None}


def layer_names(model, first, last):
    """Layers of one tile, in words."""
    return [f"{stage.linear.inputs} \u2192 {stage.linear.outputs}{' ReLU' * stage.relu}"
            for stage in model.stages[first:last + 1]]


def parameters(model, first, last):
    """Weights and biases of one tile."""
    return sum(stage.linear.outputs * (stage.linear.inputs + stage.linear.bias)
               for stage in model.stages[first:last + 1])


def _tile(trainer, tile, expected):
    first, last = trainer.plan.spans[tile]
    device = trainer.device
    counters = device.counters(tile)
    cycles = counters["cycles"]

    def share(name):
        return counters[name] / cycles if cycles else None

    return {
        "stages": [first, last], "layers": layer_names(trainer.model, first, last),
        "parameters": parameters(trainer.model, first, last),
        "macs": counters["macs"], "cycles": cycles,
        "utilisation": counters["macs"] / (device.config.n ** 2 * cycles) if cycles else None,
        "array": {name: share(name)
                  for name in ("array_rows", "matrix_stall", "matrix_stall_weights")},
        "units": {queue.name.lower(): {
            "busy": share(f"busy_{queue.name.lower()}"),
            "waits": share(f"wait_{queue.name.lower()}"),
            "busy_predicted": expected.busy[tile][queue.name.lower()],
        } for queue in device.config.queues},
        "stalls": {name: share(name) for name in ("vector_stall", "fetch_stall", "link_in_stall",
                                                  "link_out_stall")},
        "sets": device.stash(tile)[1], "memory": expected.memory[tile],
    }
