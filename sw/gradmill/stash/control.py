"""What a trainer stashes at any time: the policy's choice, its places in memory and its log."""

from contextlib import contextmanager
from dataclasses import asdict

from gradmill_hw.regs import Tier

from ..data import epoch_order
from ..lowering.stash import stash_places
from .fixed import Stash
from .adaptive import AdaptiveStash, AdaptiveState
from .auto import AutoStash


__all__ = ["POLICIES", "StashControl", "describe_policy", "policy_from_description"]

#: What a trainer's ``stash`` may be.
POLICIES = Stash, AdaptiveStash, AutoStash
_NAMES = {"fixed": Stash, "adaptive": AdaptiveStash, "auto": AutoStash}
_STORED = [f"{tier.name.lower()}_write_stash_bytes" for tier in Tier]


def describe_policy(policy):
    """Plain data of which :func:`policy_from_description` makes the same policy."""
    if policy is None:
        return None
    name = next(name for name, kind in _NAMES.items() if isinstance(policy, kind))
    return {"policy": name, **policy.describe()}


def policy_from_description(state):
    """The policy that ``state`` describes; ``None`` of ``None``."""
    return state and _NAMES[state["policy"]].from_description(
        {name: value for name, value in state.items() if name != "policy"})


class StashControl:
    """Follows a policy during training.

    A switch of formats is another program: compiled at its first use, kept for every later one.
    Formats change only between two starts of the device; starts end where a policy judges.

    Parameters
    ----------
    policy : Stash, AdaptiveStash, AutoStash or None
        Of the trainer.
    lowering : Lowering
        Whose ``stashes`` follow.
    device : Device
        Whose counters are read.

    Members
    -------
    current : Stash or None
        Formats in use.
    switches : list of dict
        ``virtual_minibatch`` (how many had been trained), ``formats`` (from then on, by layer),
        ``reason``; the first entry is the beginning.
    bits : list of [int, int, int]
        After each start of the device: virtual minibatches trained, values and bytes that this
        start has stored.
    measured : list of dict
        What an :class:`AutoStash` has measured.
    """

    def __init__(self, policy, lowering, device):
        self.policy, self._lowering, self._device = policy, lowering, device
        self.current, self.switches, self.bits, self.measured = None, [], [], []
        self._rungs, self._adaptive, self._window = [], AdaptiveState(), [0, 0.0]
        self._places, self._room, self._kept = {}, {}, {}
        if isinstance(policy, AdaptiveStash):
            self._rungs = policy.rungs(lowering.stages)
            for rung in self._rungs:
                rung.formats(lowering.stages, device.config)  # refused now rather than later
            self._switch(0, self._rungs[0], "the narrowest formats")
        elif isinstance(policy, AutoStash):
            for layer, entry in policy.candidates(lowering.stages):
                policy.only(layer, entry).formats(lowering.stages, device.config)
        else:
            self._switch(0, policy, "fixed")

    # what is in use ---------------------------------------------------------------------------

    def _use(self, stash):
        self.current = stash
        if stash not in self._places:
            self._places[stash] = stash_places(stash, self._lowering.stages,
                                               self._lowering.buffers, self._allocate)
        self._lowering.stashes = self._places[stash]

    def _allocate(self, nbytes, owner):
        """Room that all formats of an activation share, as far as it is large enough."""
        address, size = self._room.get(owner, (0, -1))
        if nbytes > size:
            address = self._device.heap.allocate(nbytes, owner)
            self._room[owner] = address, nbytes
        return address

    def _switch(self, number, stash, reason):
        self._use(stash)
        if stash is not None:
            formats = stash.formats(self._lowering.stages, self._device.config)
            self.switches.append({"virtual_minibatch": number, "reason": reason, "formats": {
                str(s): str(entry) for s, entry in formats.items()}})

    @contextmanager
    def using(self, stash):
        """Another stash for the time of a ``with`` block."""
        before = self.current
        self._use(stash)
        try:
            yield
        finally:
            self._use(before)

    def once(self, name, make):
        """``make()``, only the first time."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    # what happens -----------------------------------------------------------------------------

    def begin(self, trainer, x, y, shuffle):
        """Before an epoch: an :class:`AutoStash` measures and chooses."""
        if not isinstance(self.policy, AutoStash) or trainer.step:
            return
        if self.policy.due(trainer.epoch):
            size = trainer.virtual_minibatch
            order = epoch_order(trainer.seed, trainer.epoch, len(x), shuffle=shuffle)[:size]
            number = trainer.epoch * -(-len(x) // size)
            found = self.policy.measure(trainer, x[order], y[order])
            self.measured += [{"virtual_minibatch": number, **entry.describe()}
                              for entry in found]
            self._switch(number, self.policy.choose(found),
                         f"fewest bytes with a gradient error of at most {self.policy.error:g}")

    def boundary(self, batch):
        """Virtual minibatch of the epoch, behind ``batch``, at which a start has to end."""
        interval = getattr(self.policy, "interval", None)
        return (batch // interval + 1) * interval if interval else batch + (1 << 30)

    def stored(self):
        """Values and bytes that the device has stored so far."""
        device = self._device
        rows, *stored = (sum(device.read_pair(f"counter_{name}", tile) for tile in device.tiles)
                         for name in ("stash_rows", *_STORED))
        return rows * device.config.n, sum(stored)

    @contextmanager
    def counting(self, number):
        """Around a start that trains up to virtual minibatch ``number``."""
        if self.current is None:
            yield
            return
        before = self.stored()
        yield
        after = self.stored()
        self.bits.append([number, after[0] - before[0], after[1] - before[1]])

    def trained(self, batch, batches, number, samples, loss):
        """A virtual minibatch, ``batch`` of ``batches`` in its epoch and ``number`` in all."""
        if not isinstance(self.policy, AdaptiveStash) or self.policy.metric != "loss":
            return
        self._window = [self._window[0] + samples, self._window[1] + samples * loss]
        if batch + 1 == batches or batch + 1 == self.boundary(batch):
            (count, total), self._window = self._window, [0, 0.0]
            self._judge(number, total / count)

    def validated(self, number, validation):
        """After an epoch; ``validation`` holds the results of all evaluations so far."""
        if isinstance(self.policy, AdaptiveStash) and self.policy.metric == "accuracy":
            result = validation[-1] if validation else {}
            if "accuracy" not in result:
                raise ValueError("a stash that adapts to accuracy needs validation_data and a "
                                 "CrossEntropy loss: give them, or metric=\"loss\"")
            self._judge(number, 1 - result["accuracy"])

    def _judge(self, number, metric):
        if self.policy.judge(self._adaptive, metric, len(self._rungs)):
            self._switch(number, self._rungs[self._adaptive.rung],
                         f"{self.policy.metric} stalled, {metric:.4g}")

    # checkpoints ------------------------------------------------------------------------------

    def state(self):
        """Everything but the policy, as plain data."""
        return {"current": self.current and self.current.describe(), "switches": self.switches,
                "bits": self.bits, "measured": self.measured, "window": self._window,
                "adaptive": asdict(self._adaptive)}

    def restore(self, state):
        """Go on from :meth:`state`."""
        self.switches, self.bits = state["switches"], state["bits"]
        self.measured, self._window = state["measured"], state["window"]
        self._adaptive = AdaptiveState(**state["adaptive"])
        self._use(state["current"] and Stash.from_description(state["current"]))
