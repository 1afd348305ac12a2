"""Fast and far memory for the activations of one network on one device."""

from contextlib import contextmanager

import numpy as np

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Class
from gradmill_hw.regs import Tier

from ..cycle_model import predict
from ..errors import DeviceError, FarMemoryError
from ..lowering.layout import blocks
from ..lowering.passing import POISON, ActivationMemory, runs_of
from ..lowering.recorder import Recorder
from .manager import Manager
from .recompute import every, optimal, store_all, stored_at


__all__ = ["activation_memory", "boundary", "record"]


def activation_memory(options, stash, lowering, device):
    """The :class:`ActivationMemory` for a network of one tile, with room in both tiers.

    Parameters
    ----------
    options : FastMemory
        What the user wants.
    stash : Stash or None
        Formats of stored activations.
    """
    config, buffers, stages = lowering.config, lowering.buffers[0], lowering.stages
    if len(stages) < 2:
        raise ConfigError("fast_memory: the network has no hidden activations; give it more "
                          "layers, or leave fast_memory out")
    formats = stash.formats(stages, config) if stash else {}
    runs = {s: runs_of(buffers.x[0][s], lowering.sub, config, formats.get(s))
            for s in range(1, len(stages))}
    place = max(runs_of(buffers.x[0][s], m, config, formats.get(s)).nbytes
                for s in runs for m in range(1, lowering.sub + 1))
    footprint = place * sum(run.count for run in runs.values())
    largest = max(run.count for run in runs.values())
    count = options.places(footprint, place)
    plan = _plan(options, stages, int(options.high * count) // largest, config)
    if options.recompute is None and int(options.high * count) * place < footprint:
        _check_far(options, device, footprint, count, place)
    elif options.recompute is not None:
        _check_fits(options, plan, runs, count, place)

    def more_far(places):
        address = device.far_heap.allocate(places * place, "evicted activations")
        return range(address, address + places * place, place)

    base = device.heap.allocate(count * place, "fast memory for activations")
    manager = Manager(base=base, place=place, count=count, more_far=more_far, high=options.high,
                      low=options.low)
    return ActivationMemory(
        manager, plan, formats, poison=_poison(options, device, place),
        stochastic=bool(stash) and stash.rounding == "stochastic", draws=bool(stash) and stash.draw)


def _plan(options, stages, places, config):
    """What is stored and what computed again; costs in tiles of the array."""
    how, count = options.recompute, len(stages)
    if how is None:
        return store_all(count)
    if how == "optimal":
        return optimal([blocks(stage.linear.inputs, config.n) * blocks(stage.linear.outputs,
                                                                       config.n)
                        for stage in stages], places)
    return every(count, how) if isinstance(how, int) else stored_at(count, how)


def _check_far(options, device, footprint, count, place):
    if not device.config.copy:
        raise ConfigError(f"configuration {device.config.name!r} has no unit that copies between "
                          "the memories: use one with copy=True, fast_memory='100%', or "
                          "FastMemory(..., recompute='optimal')")
    need = footprint - int(options.low * count) * place
    if device.far_heap.largest < need:
        raise ConfigError(f"far memory has {device.far_heap.largest} bytes free in one piece, but "
                          f"up to {need} bytes of activations leave the fast memory: open the "
                          "device with larger far_bytes, or give more fast_memory")


def _check_fits(options, plan, runs, count, place):
    most = plan.most
    need = most * max(run.count for run in runs.values())
    if need > int(options.high * count):
        raise ConfigError(f"recompute={options.recompute!r} keeps up to {most} activations at a "
                          f"time, {need * place} bytes, but fast_memory={options.size!r} has "
                          f"{int(options.high * count) * place}: use recompute='optimal', or give "
                          "more")


def _poison(options, device, place):
    if not options.poison:
        return None
    if not device.config.copy:
        raise ConfigError(f"poison: configuration {device.config.name!r} has no copy unit; use one "
                          "with copy=True")
    address = device.heap.allocate(place, "poison")
    device.write_memory(Tier.NEAR, address, np.full(place, POISON, np.uint8))
    return address


def record(lowering, device, size, regions, result, **run):
    """Train a first virtual minibatch of ``size`` samples on ``device`` and learn from it; ``run``:
    options of :meth:`Device.run`."""

    def execute(program):
        words = program.assemble()
        with device.heap.scratch(len(words), "a piece of a program") as address:
            device.write_memory(Tier.NEAR, address, words, cls=Class.COMMAND)
            before = device.counters()["cycles"]
            device.run([address], **run)
            cycles = device.counters()["cycles"] - before
        return cycles or predict([program], device.config).cycles

    lowering.record(size, regions, result, Recorder(lowering, execute))


@contextmanager
def boundary(device, regions):
    """If far memory fails within, the device is as before: ``regions`` hold what they held, and no
    on-chip memory is taken to be loaded."""
    kept = [(region, device.read_memory(region.tier, region.address, region.nbytes,
                                        cls=Class.WEIGHT))
            for stage in regions.values() for region in stage.values()]
    try:
        yield
    except DeviceError as error:
        if not error.far:
            raise
        device.reset()
        device.claim(None)
        for region, raw in kept:
            device.write_memory(region.tier, region.address, raw, cls=Class.WEIGHT)
        raise FarMemoryError(
            f"far memory failed, and training stopped; parameters and position are those before "
            f"it: go on with Trainer.resume once the memory works, or from the checkpoint on "
            f"another device or without far memory. {error}",
            error=error.error, tile=error.tile, queue=error.queue,
            instruction=error.instruction, address=error.address, far=True) from error
