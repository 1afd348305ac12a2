"""From a network and a device to a :class:`~gradmill.planner.Plan` that fits."""

from gradmill_hw.config import ConfigError, get_config

from .data import minibatch_sizes
from .lowering.buffers import Part, TileBuffers
from .lowering.no_drain import NoDrainLowering
from .lowering.pipeline import Lowering, TileFull
from .nn import MSE, SGD, CrossEntropy
from .planner import Costs, Partition, Plan, bound, delay, make_plan, make_schedule
from .profiler import profile


__all__ = ["EXACT", "SCHEDULES", "lower", "one_tile", "plan"]

#: Schedules that drain at the end of a virtual minibatch, so that training is exact; all of them.
EXACT = ("sequential", "1f1b", "zero-bubble")
SCHEDULES = (*EXACT, "no-drain")


def plan(model, config="sim", *, virtual_minibatch, sub_minibatch, tiles=None, schedule=None,
         loss=None, optimizer=None, measured=None, passing=False):
    """The fastest :class:`~gradmill.planner.Plan` for training ``model`` that fits the tiles.

    Parameters
    ----------
    model : Sequential
        Network.
    config : Config or str
        Sizes of the device.
    virtual_minibatch, sub_minibatch : int
        B and M.
    tiles : int
        Tiles to use; by default all of the device, at most one for each ``Linear``.
    schedule : str
        ``"sequential"``, ``"1f1b"`` or ``"zero-bubble"`` (default with several tiles). The result
        of training is the same, bit for bit. ``"no-drain"``: gradients are one update late.
    measured : Profile
        Costs of the layers; by default those of the cycle model.
    passing : bool
        Whether activations leave the chip after forward, for ``fast_memory``; on one tile.
    """
    config = get_config(config)
    sizes = minibatch_sizes(virtual_minibatch, sub_minibatch)
    layers = len(model.stages)
    if tiles is None:
        tiles = 1 if passing else min(layers, config.tiles)
    schedule = schedule or ("zero-bubble" if tiles > 1 else "sequential")
    _check(layers, config, tiles, schedule)
    if passing and delay(schedule):
        raise ConfigError(f"fast_memory with schedule={schedule!r}: activations pass through fast "
                          "memory one sub-minibatch at a time; use schedule='sequential'")
    if passing and tiles > 1:
        raise ConfigError(f"fast_memory with tiles={tiles}: activations of one tile only pass "
                          "through fast memory; use tiles=1")
    rest = (loss or CrossEntropy(), optimizer or SGD(lr=0.1, momentum=0.9), measured, passing)
    try:
        return _plan(model, config, sizes, tiles, schedule, *rest)
    except ConfigError as error:
        found = _nearest(model, config, sizes, tiles, schedule, *rest)
        raise ConfigError(f"{error}. {found}") from None


def lower(made, model, config, loss, optimizer, *, predict_weights=False, **options):
    """The :class:`Lowering` that puts a plan into practice."""
    rest = (config, model.stages, made.spans, made.order, made.sub_minibatch, loss, optimizer)
    if made.delay:
        return NoDrainLowering(*rest, limits=made.limits, subs=made.schedule.sub_minibatches,
                               predict_weights=predict_weights, **options)
    return Lowering(*rest, limits=made.limits, **options)


def _check(layers, config, tiles, schedule):
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}; use one of {', '.join(SCHEDULES)}")
    most = config.tiles
    if not isinstance(tiles, int) or not 1 <= tiles <= most:
        raise ValueError(f"tiles={tiles!r}: configuration {config.name!r} has {most}; choose 1 to "
                         f"{min(layers, most)}, or a Config with more tiles")
    if tiles > layers:
        raise ConfigError(f"tiles={tiles}, but the network has only {layers} Linear layers, and a "
                          f"tile computes at least one; use tiles={layers} or fewer")


def _plan(model, config, sizes, tiles, schedule, loss, optimizer, measured, passing):
    """With as many activation sets as fit; :class:`ConfigError` if not even one does."""
    size, sub = sizes
    if tiles == 1 and (measured is None or passing):
        made = one_tile(model, size, sub, schedule)
        lower(made, model, config, loss, optimizer, passing=passing)
        return made

    def fits(first, last):
        try:
            TileBuffers(config, Part(tuple(model.stages), first, last), sub,
                        targets=isinstance(loss, MSE), versions=1 + delay(schedule))
        except ConfigError:
            return False
        return True

    measured = measured or profile(model, config, sub, loss, optimizer)
    limits = [bound(schedule, s, tiles) for s in range(tiles)]
    while True:
        made = make_plan(measured, tiles, schedule, virtual_minibatch=size, sub_minibatch=sub,
                         fits=fits, limits=limits)
        try:
            lower(made, model, config, loss, optimizer)
        except TileFull as full:
            if max(limits) == 1:
                raise
            _tighten(limits, full.tile, made.sets)
        else:
            return made


def _tighten(limits, tile, sets):
    """Fewer sets for ``tile``, which has no room for ``sets[tile]``; if it has one already, for its
    neighbours, which send it more than it takes."""
    if limits[tile] > 1:
        limits[tile] = max(1, min(limits[tile], sets[tile]) - 1)
        return
    for other, limit in enumerate(limits):
        limits[other] = max(1, min(limit, sets[other]) - 1)


def one_tile(model, size, sub, schedule="sequential"):
    """The plan of one tile that does everything in turn, whatever it costs."""
    stages = Partition(((0, len(model.stages) - 1),), (1,), (2 * -(-size // sub),))
    costs = Costs(forward=(1,), backward=(0,), weight=(1,))
    name = schedule if delay(schedule) else "sequential"
    order = make_schedule(name, costs, -(-size // sub), limits=[1])
    return Plan(stages, costs, order, size, sub, None)


def _nearest(model, config, sizes, tiles, schedule, loss, optimizer, measured, passing):
    """What would fit instead, in words."""
    size, sub = sizes
    others = range(1, 1 if passing else min(len(model.stages), config.tiles) + 1)
    nearby = sorted(set(others) - {tiles}, key=lambda other: (abs(other - tiles), other))
    tries = [(sub, other, schedule) for other in nearby]
    while measured is None and sub > 1:  # a profile is of one size
        sub //= 2
        tries.append((sub, tiles, schedule))
    if delay(schedule):  # one version of the weights takes less room
        tries.append((sizes[1], tiles, "zero-bubble"))
    for sub, other, name in tries:
        try:
            made = _plan(model, config, (size, sub), other, name, loss, optimizer, measured,
                         passing)
        except ConfigError:
            continue
        other_schedule = f"schedule={name!r}, " * (name != schedule)
        return f"What fits: {other_schedule}tiles={other}, sub_minibatch={sub} ({made.partition})"
    return (f"Nothing near fits a tile of configuration {config.name!r}: use larger memories, more "
            "tiles" + ("" if passing else ", or one tile layer after layer with weights from far "
                       "memory, layer_to_layer=True (--layer-to-layer)"))
