"""Fast and far memory for the activations of one network on one device."""

import numpy as np

from gradmill_hw.config import ConfigError
from gradmill_hw.isa import Class
from gradmill_hw.regs import Tier

from ..cycle_model import predict
from ..lowering.layout import blocks
from ..lowering.passing import POISON, ActivationMemory, runs_of
from ..lowering.recorder import Recorder
from .chooser import Costs, Decision, choose
from .manager import Buffer, Manager
from .pools import Pools
from .recompute import again, every, optimal, store_all, stored_at


__all__ = ["activation_memory", "foresee", "record"]


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
    formats = stash.formats(stages, config) if stash else {}
    candidates, formats = (formats, {}) if options.policy == "chosen" else ({}, formats)
    # The last one is used as soon as forward has ended.
    waiting = range(1, len(stages) - (len(stages) - 1 not in formats))
    if not waiting:
        raise ConfigError("fast_memory: no hidden activation has to wait for backward while others "
                          "are computed; give the network more layers, or leave fast_memory out")
    if options.recompute is not None and any(s in formats for s in waiting):
        raise ConfigError(f"recompute={options.recompute!r} with a stash format: what is computed "
                          "again from coded activations has other bits than what forward had; "
                          "leave one of them out, or use policy='chosen', which computes again "
                          "from activations that are stored as they are only")
    runs = {s: runs_of(buffers.x[0][s], lowering.sub, config, formats.get(s)) for s in waiting}
    place = max(runs_of(buffers.x[0][s], m, config, formats.get(s)).nbytes
                for s in runs for m in range(1, lowering.sub + 1))
    footprint = place * sum(run.count for run in runs.values())
    largest = max(run.count for run in runs.values())
    count = options.places(footprint, place)
    plan = _plan(options, stages, waiting, int(options.high * count) // largest, config)
    coded = {s: coded_bytes(lowering, s, entry) for s, entry in candidates.items() if s in runs}
    if options.recompute is None and int(options.high * count) * place < footprint:
        _check_far(options, device, footprint, count, place, sum(coded.values()))
    elif options.recompute is not None:
        _check_fits(options, plan, runs, count, place)
    base = device.heap.allocate(count * place, "fast memory for activations")
    manager = Manager(base=base, place=place, count=count, more_far=_far_places(device, place),
                      high=options.high, low=options.low)
    memory = ActivationMemory(
        manager, plan, formats, poison=_poison(options, device, max([place, *coded.values()])),
        stochastic=bool(stash) and stash.rounding == "stochastic", draws=bool(stash) and stash.draw)
    if options.policy == "chosen":
        memory.chooser = _Chooser(lowering, {s: run.count for s, run in runs.items()}, coded,
                                  candidates, lambda place: _far_places(device, place))
    return memory


def coded_bytes(lowering, s, entry):
    """Bytes of the input of stage ``s`` in stash format ``entry``, at most."""
    x = lowering.buffers[0].x[0][s]
    return max(runs_of(x, m, lowering.config, entry).nbytes for m in range(1, lowering.sub + 1))


def _far_places(device, place):
    """A function that gives addresses of so many more places of ``place`` bytes in far memory."""
    def more_far(places):
        address = device.far_heap.allocate(places * place, "evicted activations")
        return range(address, address + places * place, place)

    return more_far


class _Chooser:
    """Decides what happens to each activation once costs have been measured.

    Parameters
    ----------
    lowering : Lowering
        Of the network.
    buffers : dict
        Activation -> buffers that it is stored in as it is.
    coded : dict
        Activation -> bytes in its stash format, of those that have one.
    formats : dict
        Activation -> that format.
    far_places : callable
        ``far_places(place)`` gives what hands out places of ``place`` bytes in far memory.

    Members
    -------
    choose : callable
        ``choose(costs, fast bytes)`` gives a :class:`Choice`.
    known : (Costs, int) or None
        What it was given.
    """

    def __init__(self, lowering, buffers, coded, formats, far_places):
        self.choose, self.known = choose, None
        self._lowering, self._buffers, self._coded = lowering, buffers, coded
        self._formats, self._far_places = formats, far_places

    def costs(self, overlap):
        """The :class:`Costs` that the manager has measured, stages taking the share ``overlap`` of
        the cycles that they took alone."""
        manager, stages = self._lowering.activations.manager, range(len(self._lowering.stages))
        far = self._lowering.activations.far or 0  # unknown: nothing had to leave
        return Costs(
            *(tuple(overlap * times[s] for s in stages)
              for times in (manager.forward, manager.backward)),
            {s: count * manager.place for s, count in self._buffers.items()}, self._coded,
            far and 1 / (min(1, far.beats) * self._lowering.config.beat_bytes), manager.place)

    def decide(self, overlap):
        """Choose, and let the next programs do so."""
        memory, stages = self._lowering.activations, len(self._lowering.stages)
        manager = memory.manager
        self.known = self.costs(overlap), manager.high * manager.place
        choice = memory.choice = self.choose(*self.known)
        by_way = {way: [s for s, own in choice.decisions.items() if own is way] for way in Decision}
        coded = by_way[Decision.compress]
        memory.formats = {s: self._formats[s] for s in coded}
        memory.plan = again(stages, by_way[Decision.recompute])
        nbytes = choice.coded_bytes(self._coded)
        base = manager.base + manager.count * manager.place - nbytes
        manager.adopt({s: self._buffers[s] for s in
                       sorted(by_way[Decision.keep] + by_way[Decision.offload])},
                      blocks(nbytes, manager.place))
        if any(s in choice.leaving for s in coded):
            place = max(self._coded[s] for s in coded)
            memory.manager = Pools(manager, coded, base=base, place=place, count=nbytes // place,
                                   more_far=self._far_places(place))
            return
        for s in coded:
            memory.coded[s] = Buffer(s, 0, 0, base)
            base += self._coded[s]


def _plan(options, stages, waiting, places, config):
    """What is stored and what computed again; costs in tiles of the array."""
    how, count = options.recompute, len(stages)
    if how is None:
        return store_all(count, last=count - 1 in waiting)
    if how == "optimal":
        return optimal([blocks(stage.linear.inputs, config.n) * blocks(stage.linear.outputs,
                                                                       config.n)
                        for stage in stages], places)
    return every(count, how) if isinstance(how, int) else stored_at(count, how)


def _check_far(options, device, footprint, count, place, coded):
    if not device.config.copy:
        raise ConfigError(f"configuration {device.config.name!r} has no unit that copies between "
                          "the memories: use one with copy=True, fast_memory='100%', or "
                          "FastMemory(..., recompute='optimal')")
    need = footprint - int(options.low * count) * place + coded
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
        return lowering.activations.clock(
            cycles or predict([program], device.config).cycles)

    _learn(lowering, execute, size, regions, result)


def foresee(lowering, size, regions, result, far):
    """Learn from a first virtual minibatch as the cycle model sees it, with a
    :class:`~gradmill.unit_times.Memory` ``far``; nothing is run."""
    _learn(lowering, lambda program: predict([program], lowering.config, far=far).cycles, size,
           regions, result)


def _learn(lowering, execute, size, regions, result):
    lowering.record(size, regions, result, Recorder(lowering, execute))
    if lowering.activations.chooser:
        lowering.activations.chooser.decide(_overlap(lowering, size, regions, result))
        lowering.forget()


def _overlap(lowering, size, regions, result):
    """Cycles of a sub-minibatch, as the cycle model expects them with memories that do not keep it
    waiting, over those that its pieces took one after the other."""
    manager = lowering.activations.manager
    (program,) = lowering.train(size, 1, (0, 0), regions, result)
    whole = predict([program], lowering.config).cycles / len(lowering.batch("train", size).rows)
    return min(1.0, whole / sum([*manager.forward.values(), *manager.backward.values()]))
