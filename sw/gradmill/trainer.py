"""Training with virtual minibatches: the host feeds data and rings the doorbell."""

import warnings
from dataclasses import asdict, dataclass, field

import numpy as np

from gradmill_hw.isa import Class
from gradmill_hw.regs import Tier

from .checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from .data import (check_inputs, check_targets, epoch_order, minibatch_sizes, one_hot,
                   positive)
from .lowering.layout import (blocks, pack_batches, pack_rows, parameter_regions, place_region,
                              unpack_rows)
from .lowering.optimizer import LEARNING_RATE, MOMENTUM
from .lowering.pipeline import RANDOM_STEP, Lowering
from .lowering.stash import stash_places
from .nn import MSE, SGD, CrossEntropy, Sequential
from .planning import plan
from .stash import Stash


__all__ = ["History", "Trainer"]

_LOSSES = {"CrossEntropy": CrossEntropy, "MSE": MSE}
_LEVEL1 = ("fp32", "bf16")
_ROUNDING = ("nearest", "stochastic")
#: Most virtual minibatches that one start of the device trains.
_AT_ONCE = 16


@dataclass
class History:
    """What happened, epoch by epoch.

    Members
    -------
    train_loss : list of float
        Mean loss over the epoch's virtual minibatches, weighted by their samples, as the device
        computed it while training.
    validation : list of dict
        :meth:`Trainer.evaluate` after each epoch, if there was validation data.
    """

    train_loss: list = field(default_factory=list)
    validation: list = field(default_factory=list)


class Trainer:
    """Trains a :class:`Sequential` on a device.

    Weights, momentum, gradients and their two-level reduction live on the device; the host writes
    samples into near memory and starts a program for up to 16 virtual minibatches.

    Parameters
    ----------
    model : Sequential
        Ends with a ``Linear``.
    device : Device
        From :func:`gradmill.open`.
    loss : CrossEntropy or MSE
        What is minimised.
    optimizer : SGD
        How.
    virtual_minibatch : int
        B, samples between two updates. The last one of an epoch may be shorter.
    sub_minibatch : int
        M, samples whose gradients are reduced beside the MACs (level 1) before they are added to
        the virtual minibatch's sum in FP32 (level 2). The last one of a virtual minibatch may be
        shorter.
    level1 : str
        Format of level 1 of the weight gradients, ``"fp32"`` or ``"bf16"``.
    rounding : str
        How gradients are rounded to block floating point, ``"nearest"`` or ``"stochastic"``
        (random bits keyed by seed, step, layer and sub-minibatch: the same in every schedule).
    stash : Stash
        How hidden activations are kept for the weight gradients; by default on chip, as they are.
    tiles : int
        Tiles to use; by default all of the device, at most one for each ``Linear``.
    schedule : str
        Order in which the tiles work, see :func:`gradmill.plan`; the weights do not depend on it.
    seed : int
        Key of the order in which samples are visited.
    """

    def __init__(self, model, device, *, loss=None, optimizer, virtual_minibatch, sub_minibatch,
                 level1="fp32", rounding="nearest", stash=None, tiles=None, schedule=None,
                 seed=0):
        self.loss = CrossEntropy() if loss is None else loss
        if type(self.loss).__name__ not in _LOSSES:
            raise ValueError(f"loss={loss!r}; use CrossEntropy() or MSE()")
        if not isinstance(optimizer, SGD):
            raise ValueError(f"optimizer={optimizer!r}; use SGD(lr=..., momentum=...)")
        if not isinstance(model, Sequential) or model.stages[-1].relu:
            raise ValueError("model must be a Sequential whose last layer is a Linear")
        if level1 not in _LEVEL1:
            raise ValueError(f"level1={level1!r}; use one of {', '.join(_LEVEL1)}")
        if rounding not in _ROUNDING:
            raise ValueError(f"rounding={rounding!r}; use one of {', '.join(_ROUNDING)}")
        if stash is not None and not isinstance(stash, Stash):
            raise ValueError(f"stash={stash!r}; use Stash(format, ...) or None")
        self.virtual_minibatch, self.sub_minibatch = minibatch_sizes(virtual_minibatch,
                                                                     sub_minibatch)
        self.model, self.device, self.optimizer = model, device, optimizer
        self.level1, self.rounding, self.stash, self.seed = level1, rounding, stash, seed
        self.epoch = self.step = 0
        self.history = History()
        self._target = 0         # epoch at which the current fit ends
        self._losses = []        # (samples, loss) of the current epoch
        self._programs = {}      # (kind, samples, count) -> address of each tile's program
        self.plan = plan(model, device.config, virtual_minibatch=self.virtual_minibatch,
                         sub_minibatch=self.sub_minibatch, tiles=tiles, schedule=schedule,
                         loss=self.loss, optimizer=optimizer)
        self._lowering = Lowering(
            device.config, model.stages, self.plan.spans, self.plan.order, self.sub_minibatch,
            self.loss, optimizer, limits=self.plan.limits, narrow=level1 == "bf16",
            stochastic=rounding == "stochastic")
        self._place_parameters()
        self._lowering.stashes = stash_places(stash, model.stages, self._lowering.buffers,
                                              device.heap.allocate)
        self._upload()

    # parameters -----------------------------------------------------------------------------

    def _place_parameters(self):
        """Regions of master weights and momentum in near memory."""
        heap, config = self.device.heap, self.device.config
        self._regions = {s: parameter_regions(
            stage, config, self.optimizer.momentum,
            lambda name, nbytes, s=s: heap.allocate(nbytes, f"{name} {s}"))
            for s, stage in enumerate(self.model.stages)}
        self._losses_at = place_region(1, config.n, config,
                                       lambda nbytes: heap.allocate(nbytes, "losses"),
                                       copies=_AT_ONCE)

    def _write_region(self, region, values, cls):
        packed = pack_rows(np.ascontiguousarray(values, np.float32)
                           .reshape(region.rows, region.cols), self.device.config)
        self.device.write_memory(Tier.NEAR, region.address, packed, cls=cls)

    def _read_region(self, region, shape, cls):
        raw = self.device.read_memory(Tier.NEAR, region.address, region.nbytes, cls=cls)
        return unpack_rows(raw.reshape(region.blocks, -1), region.rows, region.cols,
                           self.device.config).reshape(shape)

    def _parameters(self):
        """Yield ``(state name, shape, region, momentum region or None)``."""
        state = self.model.state_dict()
        for s, stage in enumerate(self.model.stages):
            for name in ("weight", "bias")[:1 + stage.linear.bias]:
                key = f"{stage.index}.{name}"
                yield (key, state[key].shape, self._regions[s][name],
                       self._regions[s].get(f"{name}_momentum"))

    def _upload(self, momentum=None):
        """Master weights, and momentum (zero if not given), to the device."""
        state = self.model.state_dict()
        for key, shape, region, velocity in self._parameters():
            self._write_region(region, state[key], Class.WEIGHT)
            if velocity is not None:
                values = np.zeros(shape, np.float32) if momentum is None else momentum[key]
                self._write_region(velocity, values, Class.OPTIMIZER)
        self.device.claim(None)

    def _download(self):
        """Refresh the model's master weights from the device."""
        self.model.load_state_dict({key: self._read_region(region, shape, Class.WEIGHT)
                                    for key, shape, region, _ in self._parameters()})

    # running --------------------------------------------------------------------------------

    def _run(self, key, compile_programs, *arguments, step=None):
        """Run the programs called ``key``, which are compiled at their first use."""
        if not self.device.claim(self):
            self._start(("startup",), lambda: self._lowering.startup(self._regions), (), None)
        self._start(key, compile_programs, arguments, step)

    def _start(self, key, compile_programs, arguments, step):
        if key not in self._programs:
            self._programs[key] = [self._place(program.assemble(), f"{key[0]} program of tile {t}")
                                   for t, program in enumerate(compile_programs())]
        scalars = [0.0, 0.0]
        scalars[LEARNING_RATE.register] = -self.optimizer.rate(self.epoch)
        scalars[MOMENTUM.register] = self.optimizer.momentum
        self.device.run(self._programs[key], arguments=arguments, scalars=scalars, step=step)

    def _place(self, code, owner):
        address = self.device.heap.allocate(len(code), owner)
        self.device.write_memory(Tier.NEAR, address, np.frombuffer(code, np.uint8),
                                 cls=Class.COMMAND)
        return address

    def _pack(self, values):
        return pack_batches(values, self.sub_minibatch, self.device.config)

    # training -------------------------------------------------------------------------------

    def fit(self, x, y, *, epochs, validation_data=None, shuffle=True, checkpoint=None,
            checkpoint_every=None, on_step=None):
        """Train for ``epochs`` more epochs and return the :class:`History` so far.

        Parameters
        ----------
        x : array (samples, inputs), float32
            Inputs.
        y : array
            Integer labels ``(samples,)``, or float32 targets ``(samples, outputs)`` for ``MSE``.
        validation_data : (array, array), optional
            Evaluated after every epoch.
        shuffle : bool
            Whether each epoch visits the samples in a new order, fixed by ``seed``.
        checkpoint : path-like, optional
            Where to keep a checkpoint, written every ``checkpoint_every`` virtual minibatches
            (default: every epoch). :meth:`resume` continues from it, bit for bit.
        on_step : callable, optional
            Called as ``on_step(trainer, batch, batches)`` after each virtual minibatch.
        """
        self._target = self.epoch + positive("epochs", epochs)
        return self._fit(x, y, validation_data, shuffle, checkpoint, checkpoint_every, on_step)

    def resume(self, x, y, *, validation_data=None, shuffle=True, checkpoint=None,
               checkpoint_every=None, on_step=None):
        """Finish the :meth:`fit` that was interrupted after the checkpoint this trainer was
        loaded from; the same data gives the same bits as if nothing had happened."""
        return self._fit(x, y, validation_data, shuffle, checkpoint, checkpoint_every, on_step)

    def _fit(self, x, y, validation_data, shuffle, checkpoint, checkpoint_every, on_step):
        x = check_inputs(x, self.model.inputs)
        y = check_targets(y, len(x), self.model.outputs, self.loss)
        if validation_data is not None:
            xv = check_inputs(validation_data[0], self.model.inputs)
            validation_data = xv, check_targets(validation_data[1], len(xv), self.model.outputs,
                                                self.loss)
        batches = -(-len(x) // self.virtual_minibatch)
        every = batches if checkpoint_every is None else positive("checkpoint_every",
                                                                  checkpoint_every)
        while self.epoch < self._target:
            for batch, loss in self._train_epoch(x, y, shuffle, self.step, every):
                self._losses.append(loss)
                self.step = batch + 1
                if on_step is not None:
                    on_step(self, batch, batches)
                if self.step == batches:
                    self._end_epoch(validation_data)
                if checkpoint is not None and ((batch + 1) % every == 0 or batch + 1 == batches):
                    self.save(checkpoint)
        self._download()
        return self.history

    def _end_epoch(self, validation_data):
        overflows = {"matrix_nonfinite", "vector_nonfinite"} & self.device.flags()
        if overflows:
            warnings.warn(f"epoch {self.epoch + 1} produced infinities or NaNs on the device "
                          f"({', '.join(sorted(overflows))}): lower the learning rate",
                          RuntimeWarning, stacklevel=4)
        samples = sum(n for n, _ in self._losses)
        self.history.train_loss.append(sum(n * loss for n, loss in self._losses) / samples)
        if validation_data is not None:
            self.history.validation.append(self.evaluate(*validation_data))
        self.epoch, self.step, self._losses = self.epoch + 1, 0, []

    def _train_epoch(self, x, y, shuffle, first, every):
        """Yield ``(batch number, (samples, mean loss))`` from batch ``first`` on."""
        size = self.virtual_minibatch
        order = epoch_order(self.seed, self.epoch, len(x), shuffle=shuffle)
        whole = len(x) // size
        for start, stop in self._starts(first, whole, every):
            yield from self._train_batches(x, y, order[start * size:stop * size], size, start)
        if whole * size < len(x) and first <= whole:
            rest = order[whole * size:]
            yield from self._train_batches(x, y, rest, len(rest), whole)

    def _starts(self, first, whole, every):
        """Ranges of whole virtual minibatches that are trained at once: they fit in near memory,
        and checkpoints fall between them."""
        batch = self._lowering.batch("train", self.virtual_minibatch)
        each = len(batch.rows) * (batch.data_bytes + batch.label_bytes)
        fit = max(1, min(_AT_ONCE, self.device.heap.largest // 2 // each))
        while first < whole:
            stop = min(first + fit, whole, (first // every + 1) * every)
            yield first, stop
            first = stop

    def _train_batches(self, x, y, order, size, first):
        data = self._pack(x[order].reshape(-1, size, x.shape[1]))
        labels = y[order] if isinstance(self.loss, MSE) else one_hot(y[order], self.model.outputs)
        labels = self._pack(labels.reshape(-1, size, self.model.outputs))
        with self.device.heap.scratch(data.nbytes, "samples") as data_at, \
                self.device.heap.scratch(labels.nbytes, "labels") as labels_at:
            self.device.write_memory(Tier.NEAR, data_at, data, cls=Class.DATA)
            self.device.write_memory(Tier.NEAR, labels_at, labels, cls=Class.MASK)
            count, strides, result = len(data), (data.shape[1], labels.shape[1]), self._losses_at
            number = self.epoch * -(-len(x) // self.virtual_minibatch) + first
            self._run(("train", size, count), lambda: self._lowering.train(
                size, count, strides, self._regions, result), data_at, labels_at, result.address,
                number % (1 << 16) * RANDOM_STEP, number % (1 << 16), step=number >> 16)
            losses = self.device.read_memory(Tier.NEAR, result.address, (count, result.stride // 4),
                                             np.float32)[:, 0]
        yield from ((first + i, (size, float(loss))) for i, loss in enumerate(losses))

    # inference ------------------------------------------------------------------------------

    def predict(self, x):
        """Outputs of the network, ``(samples, outputs)`` float32."""
        x = check_inputs(x, self.model.inputs)
        batch = self._lowering.batch("predict", self.sub_minibatch)
        room = self.device.heap.largest // 2 // (batch.data_bytes + batch.label_bytes)
        most = max(1, room) * self.sub_minibatch
        return np.concatenate([self._predict(x[start:start + most])
                               for start in range(0, len(x), most)])

    def _predict(self, x):
        config, sub, outputs = self.device.config, self.sub_minibatch, self.model.outputs
        data, batch = self._pack(x[None]), self._lowering.batch("predict", len(x))
        rows = batch.rows
        sizes = [blocks(outputs, config.n) * config.run_bytes("fp32", m) for m in rows]
        with self.device.heap.scratch(data.nbytes, "samples") as data_at, \
                self.device.heap.scratch(sum(sizes), "outputs") as outputs_at:
            self.device.write_memory(Tier.NEAR, data_at, data, cls=Class.DATA)
            self._run(("predict", len(x)), lambda: self._lowering.predict(len(x)), data_at,
                      outputs_at)
            raw = self.device.read_memory(Tier.NEAR, outputs_at, sum(sizes))
        parts, whole = [], len(x) // sub
        if whole:
            parts.append(unpack_rows(raw[:whole * sizes[0]].reshape(
                whole, blocks(outputs, config.n), -1), sub, outputs, config))
        if whole < len(rows):
            parts.append(unpack_rows(raw[whole * sizes[0]:].reshape(
                blocks(outputs, config.n), -1), rows[-1], outputs, config))
        return np.concatenate([part.reshape(-1, outputs) for part in parts])

    def evaluate(self, x, y):
        """``{"loss": ..., "accuracy": ...}`` over samples; no accuracy for ``MSE``."""
        y = check_targets(y, len(x), self.model.outputs, self.loss)
        z = self.predict(x).astype(np.float64)
        if isinstance(self.loss, MSE):
            return {"loss": float(np.mean((z - y) ** 2))}
        z -= z.max(axis=1, keepdims=True)
        chosen = z[np.arange(len(y)), y]
        loss = np.log(np.exp(z).sum(axis=1)) - chosen
        return {"loss": float(loss.mean()), "accuracy": float(np.mean(z.argmax(axis=1) == y))}

    # checkpoints ----------------------------------------------------------------------------

    def save(self, path):
        """Write a checkpoint; the one that stood at ``path`` stays until this one is whole."""
        self._download()
        arrays = dict(self.model.state_dict())
        for key, shape, _, velocity in self._parameters():
            if velocity is not None:
                arrays[f"momentum.{key}"] = self._read_region(velocity, shape, Class.OPTIMIZER)
        write_checkpoint(path, arrays, {
            "numbers": self._numbers(self.device), "model": self.model.describe(),
            "loss": type(self.loss).__name__,
            "optimizer": asdict(self.optimizer), "virtual_minibatch": self.virtual_minibatch,
            "sub_minibatch": self.sub_minibatch, "level1": self.level1, "rounding": self.rounding,
            "stash": self.stash and self.stash.describe(), "seed": self.seed,
            "epoch": self.epoch, "step": self.step, "target": self._target,
            "losses": self._losses, "history": asdict(self.history)})

    @staticmethod
    def _numbers(device):
        """The sizes on which the bits of a result depend."""
        return {"n": device.config.n, "mantissa_bits": device.config.mantissa_bits}

    @classmethod
    def load(cls, path, device, *, tiles=None, schedule=None):
        """The trainer that :meth:`save` wrote, on any device with the same ``n`` and
        ``mantissa_bits``; tiles and schedule are chosen anew."""
        arrays, state = read_checkpoint(path)
        if state["numbers"] != cls._numbers(device):
            raise CheckpointError(f"{path} was trained with {state['numbers']}, this device has "
                                  f"{cls._numbers(device)}: the bits would differ; open a device "
                                  "with the same sizes")
        model = Sequential.from_description(state["model"])
        model.load_state_dict({k: v for k, v in arrays.items() if not k.startswith("momentum.")})
        trainer = cls(model, device, loss=_LOSSES[state["loss"]](),
                      optimizer=SGD(**state["optimizer"]),
                      virtual_minibatch=state["virtual_minibatch"],
                      sub_minibatch=state["sub_minibatch"], level1=state["level1"],
                      rounding=state["rounding"], tiles=tiles, schedule=schedule,
                      stash=Stash.from_description(state.get("stash")), seed=state["seed"])
        if trainer.optimizer.momentum:
            trainer._upload({k.removeprefix("momentum."): v for k, v in arrays.items()
                             if k.startswith("momentum.")})
        trainer.epoch, trainer.step = state["epoch"], state["step"]
        trainer._target = state["target"]
        trainer._losses = [tuple(entry) for entry in state["losses"]]
        trainer.history = History(**state["history"])
        return trainer
