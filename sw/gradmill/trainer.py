"""Training with virtual minibatches: the host feeds data and rings the doorbell."""

import warnings
from contextlib import contextmanager, nullcontext

import numpy as np

from gradmill_hw.isa import Class
from gradmill_hw.regs import Tier

from .checkpoint import check_place, read_checkpoint, write_checkpoint
from .data import (check_device, check_inputs, check_layer_to_layer, check_pair, check_prediction,
                   check_room, check_settings, check_targets, epoch_order, minibatch_sizes, one_hot,
                   positive, scores)
from .errors import FarMemoryError
from .history import History
from .lowering.layerwise import LayerLowering
from .lowering.layout import blocks, pack_batches, place_region, unpack_batches
from .lowering.optimizer import scalar_values
from .lowering.pipeline import RANDOM_STEP
from .memory import FastMemory
from .memory.activations import activation_memory, record
from .nn import MSE, CrossEntropy
from .planning import lower, one_tile, plan
from .program_store import ProgramStore
from .stash import POLICIES, Stash, StashControl
from .training_state import (check_same_data, identity, last_epoch, restore, settings,
                             training_state)
from .versions import place_parameters


__all__ = ["Trainer"]


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
    stash : Stash, AdaptiveStash or AutoStash
        How hidden activations are kept for the weight gradients; by default on chip, as they are.
    fast_memory : FastMemory, int or str
        Near memory for hidden activations, which then leave the chip, as bytes or as a percentage
        of them all, as in ``"20%"``. What does not fit goes to far memory and comes back in time,
        or is computed again; the result does not depend on it. By default they stay on chip.
    tiles : int
        Tiles to use; by default all of the device, at most one for each ``Linear``.
    schedule : str
        Order in which the tiles work, see :func:`gradmill.plan`; the weights do not depend on it,
        unless it is ``"no-drain"``: gradients are then one update late.
    predict_weights : bool
        With ``"no-drain"``: forward and backward use weights as they would be if the last update
        were made once more.
    layer_to_layer : bool
        Whether one tile executes layer after layer with weights from far memory, for networks that
        do not fit it; the weights end with the same bits.
    boundaries : str
        Where layer-to-layer execution keeps what passes between layers, ``"near"`` or ``"far"``.
    seed : int
        Key of the order in which samples are visited.
    """

    def __init__(self, model, device, *, loss=None, optimizer, virtual_minibatch, sub_minibatch,
                 level1="fp32", rounding="nearest", stash=None, fast_memory=None, tiles=None,
                 schedule=None, predict_weights=False, layer_to_layer=False, boundaries="near",
                 seed=0):
        self.loss = CrossEntropy() if loss is None else loss
        check_device(device, seed)
        check_settings(model, self.loss, optimizer, level1, rounding)
        if predict_weights:
            check_prediction(schedule, optimizer.momentum)
        if stash is not None and not isinstance(stash, POLICIES):
            raise ValueError(f"stash={stash!r}; use Stash(format, ...), AdaptiveStash(...), "
                             "AutoStash(...) or None")
        if fast_memory is not None and stash is not None and not isinstance(stash, Stash):
            raise ValueError(f"stash={stash!r} with fast_memory: formats of activations that move "
                             "between memories are fixed; use Stash(format, ...)")
        sizes = minibatch_sizes(virtual_minibatch, sub_minibatch)
        check_room(*sizes, model.inputs, device)
        self.virtual_minibatch, self.sub_minibatch = sizes
        self.model, self.device, self.optimizer = model, device, optimizer
        self.level1, self.rounding, self.stash, self.seed = level1, rounding, stash, seed
        self.fast_memory, self.predict_weights = FastMemory.of(fast_memory), predict_weights
        passing = fast_memory is not None
        self.epoch = self.step = 0
        self.history = History()
        self._target = 0         # epoch at which the current fit ends
        self._data = None        # what its samples are, see training_state.identity
        self._losses = []        # (samples, loss) of the current epoch
        self._programs = ProgramStore(device)
        self.layer_to_layer, self.boundaries = layer_to_layer, boundaries
        how = {"narrow": level1 == "bf16", "stochastic": rounding == "stochastic"}
        if layer_to_layer:
            check_layer_to_layer(boundaries, tiles=tiles, schedule=schedule, stash=stash,
                                 fast_memory=fast_memory)
            self.plan = one_tile(model, *sizes)
            self._lowering = LayerLowering(device, model.stages, *sizes, self.loss, optimizer,
                                           boundaries=boundaries, **how)
        else:
            self.plan = plan(model, device.config, virtual_minibatch=self.virtual_minibatch,
                             sub_minibatch=self.sub_minibatch, tiles=tiles, schedule=schedule,
                             loss=self.loss, optimizer=optimizer, passing=passing)
            self._lowering = lower(self.plan, model, device.config, self.loss, optimizer,
                                   predict_weights=predict_weights, passing=passing,
                                   stashed=stash is not None, **how)
        self._parameters = place_parameters(model, device, optimizer, self._lowering)
        self._losses_at = place_region(1, device.config.n, device.config,
                                       lambda nbytes: device.heap.allocate(nbytes, "losses"),
                                       copies=self._lowering.at_once)
        self.stashing = StashControl(None if passing else stash, self._lowering, device)
        if passing:
            self._lowering.activations = activation_memory(self.fast_memory, stash,
                                                           self._lowering, device)
        self._parameters.upload()

    def __repr__(self):
        widths = [self.model.inputs, *(stage.linear.outputs for stage in self.model.stages)]
        tiles = len(self.plan.spans)
        return (f"<Trainer: {'-'.join(map(str, widths))} on {tiles} tile{'s' * (tiles > 1)}, "
                f"B = {self.virtual_minibatch}, M = {self.sub_minibatch}, at epoch "
                f"{self.epoch}, step {self.step}>")

    @property
    def _regions(self):
        return self._parameters.places

    @property
    def memory(self):
        """The :class:`~gradmill.memory.Manager` of the fast memory; ``None`` without one."""
        return self.activations and self.activations.manager

    @property
    def activations(self):
        """The :class:`~gradmill.lowering.passing.ActivationMemory`; ``None`` without one."""
        return self._lowering.activations

    # running --------------------------------------------------------------------------------

    def _run(self, key, compile_programs, *arguments, step=None):
        """Run the programs called ``key``, which are compiled at their first use."""
        stash = self.stashing.current or self.stash
        self.device.write_tables(stash.tables if isinstance(stash, Stash) else ())
        self._parameters.put_back()
        with self._boundary(key[0]):
            scalars = self._scalars()
            owner, startup = self._parameters.startup(key[0], self._lowering)
            if not self.device.claim(owner):
                which = owner is self._parameters, self._parameters.parity
                self._programs.run(("startup", *which), startup, scalars=scalars)
            if key[0] == "train" and self._unknown:
                record(self._lowering, self.device, key[1], self._regions, self._losses_at,
                       arguments=arguments, scalars=scalars, step=step)
            else:
                self._programs.run(key, compile_programs, arguments=arguments, scalars=scalars,
                                   step=step)

    def _boundary(self, kind):
        """Where a run with programs of this ``kind`` stops if far memory fails."""
        trains = kind == "train"
        if self.layer_to_layer or (trains and self.memory is not None):
            return self._parameters.kept(change=trains)
        return nullcontext()

    @property
    def _unknown(self):
        """The memory manager has not seen the network yet."""
        return self.memory is not None and not self.memory.learned

    def _scalars(self):
        return scalar_values(self.optimizer.rate(self.epoch), self.optimizer.momentum,
                             self._parameters.rates)

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
        target = self.epoch + positive("epochs", epochs)
        return self._fit(x, y, validation_data, shuffle, checkpoint, checkpoint_every, on_step,
                         target)

    def resume(self, x, y, *, epochs=None, validation_data=None, shuffle=True, checkpoint=None,
               checkpoint_every=None, on_step=None):
        """Finish the :meth:`fit` that was interrupted after the checkpoint this trainer was
        loaded from, with the same bits as if nothing had happened; without anything left to do,
        nothing is done. Other data is refused. ``epochs``, in all, lets the run go on beyond those
        of that fit, as if they had been given to it."""
        return self._fit(x, y, validation_data, shuffle, checkpoint, checkpoint_every, on_step,
                         last_epoch(self._target, epochs), self._data)

    def _fit(self, x, y, validation_data, shuffle, checkpoint, checkpoint_every, on_step, target,
             began_with=None):
        x = check_inputs(x, self.model.inputs)
        y = check_targets(y, len(x), self.model.outputs, self.loss)
        if validation_data is not None:
            validation_data = check_pair(validation_data, self.model.inputs, self.model.outputs,
                                         self.loss)
        if len(x) < self.virtual_minibatch:
            warnings.warn(f"virtual_minibatch={self.virtual_minibatch}, but there are {len(x)} "
                          "samples: every epoch is one virtual minibatch of all of them",
                          UserWarning, stacklevel=3)
        data = identity(x, y, shuffle)
        check_same_data(began_with, data)
        if checkpoint is not None:
            check_place(checkpoint)
        batches = -(-len(x) // self.virtual_minibatch)
        every = batches if checkpoint_every is None else positive("checkpoint_every",
                                                                  checkpoint_every)
        if checkpoint_every is not None and checkpoint is None:
            raise ValueError(f"checkpoint_every={checkpoint_every} without checkpoint: say where "
                             "to write, fit(..., checkpoint=path)")
        self._target, self._data = target, data
        while self.epoch < self._target:
            self.stashing.begin(self, x, y, shuffle)
            with self._saved(checkpoint):
                for batch, loss in self._train_epoch(x, y, shuffle, self.step, every):
                    self._losses.append(loss)
                    self.step = batch + 1
                    self.stashing.trained(batch, batches, self._number(len(x), batch + 1), *loss)
                    if on_step is not None:
                        on_step(self, batch, batches)
                    if checkpoint is not None and self.step % every == 0 and self.step < batches:
                        self.save(checkpoint)
                self._end_epoch(x, validation_data)
            self.stashing.validated(self._number(len(x), 0), self.history.validation)
            if checkpoint is not None:
                self.save(checkpoint)
        self._parameters.download()
        return self.history

    def _number(self, samples, batch):
        """Number of ``batch`` of this epoch among all virtual minibatches."""
        return self.epoch * -(-samples // self.virtual_minibatch) + batch

    @contextmanager
    def _saved(self, checkpoint):
        """A checkpoint if far memory fails within."""
        try:
            yield
        except FarMemoryError:
            self._parameters.download()
            if checkpoint is not None:
                self.save(checkpoint)
            raise

    def _end_epoch(self, x, validation_data):
        overflows = {"matrix_nonfinite", "vector_nonfinite"} & self.device.flags()
        if overflows:
            warnings.warn(f"epoch {self.epoch + 1} produced infinities or NaNs on the device "
                          f"({', '.join(sorted(overflows))}): lower the learning rate, or scale "
                          f"the samples, whose largest magnitude is {np.abs(x).max():.3g}",
                          RuntimeWarning, stacklevel=4)
        # What can fail comes first, so that an epoch that is ended again has the same history.
        found = [] if validation_data is None else [self.evaluate(*validation_data)]
        samples = sum(n for n, _ in self._losses)
        self.history.train_loss.append(sum(n * loss for n, loss in self._losses) / samples)
        self.history.validation += found
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
        fit = max(1, min(self._lowering.at_once, self.device.heap.largest // 2 // each))
        while first < whole:
            stop = min(first + (1 if self._unknown else fit), whole, (first // every + 1) * every,
                       self.stashing.boundary(first))
            yield first, stop
            first = stop

    def _train_batches(self, x, y, order, size, first):
        count, number = len(order) // size, self._number(len(x), first)
        with self.stashing.counting(number + count):
            losses = self.run_batches(
                "train", x[order], y[order], size, number, lambda strides: self._lowering.train(
                    size, count, strides, self._regions, self._losses_at))
        yield from ((first + i, (size, float(loss))) for i, loss in enumerate(losses))

    def run_batches(self, kind, x, y, size, number, programs):
        """Mean losses of virtual minibatches of ``size`` samples, the first one with the random
        bits of ``number``; ``programs(strides)`` makes the programs, unless those of this kind,
        size and stash have been made before."""
        data = self._pack(x.reshape(-1, size, x.shape[1]))
        labels = y if isinstance(self.loss, MSE) else one_hot(y, self.model.outputs)
        labels = self._pack(labels.reshape(-1, size, self.model.outputs))
        with self.device.heap.scratch(data.nbytes, "samples") as data_at, \
                self.device.heap.scratch(labels.nbytes, "labels") as labels_at:
            self.device.write_memory(Tier.NEAR, data_at, data, cls=Class.DATA)
            self.device.write_memory(Tier.NEAR, labels_at, labels, cls=Class.MASK)
            count, strides, result = len(data), (data.shape[1], labels.shape[1]), self._losses_at
            self._run((kind, size, count, self.stashing.current, self._parameters.parity),
                      lambda: programs(strides), data_at, labels_at, result.address,
                      number % (1 << 16) * RANDOM_STEP, number % (1 << 16), step=number >> 16)
            if kind == "train":
                self._parameters.trained(count, self.optimizer.rate(self.epoch))
            return self.device.read_memory(Tier.NEAR, result.address, (count, result.stride // 4),
                                           np.float32)[:, 0]

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
        config, outputs = self.device.config, self.model.outputs
        data, rows = self._pack(x[None]), self._lowering.batch("predict", len(x)).rows
        size = sum(blocks(outputs, config.n) * config.run_bytes("fp32", m) for m in rows)
        with self.device.heap.scratch(data.nbytes, "samples") as data_at, \
                self.device.heap.scratch(size, "outputs") as outputs_at:
            self.device.write_memory(Tier.NEAR, data_at, data, cls=Class.DATA)
            self._run(("predict", len(x)), lambda: self._lowering.predict(len(x)), data_at,
                      outputs_at)
            raw = self.device.read_memory(Tier.NEAR, outputs_at, size)
        return unpack_batches(raw, rows, outputs, config)

    def evaluate(self, x, y):
        """``{"loss": ..., "accuracy": ...}`` over samples; no accuracy for ``MSE``."""
        y = check_targets(y, len(x), self.model.outputs, self.loss)
        return scores(self.predict(x), y, self.loss)

    # checkpoints ----------------------------------------------------------------------------

    def save(self, path):
        """Write a checkpoint; the one that stood at ``path`` stays until this one is whole."""
        self._parameters.download()
        write_checkpoint(path, *training_state(self))

    @classmethod
    def load(cls, path, device, **execution):
        """The trainer that :meth:`save` wrote, on any device with the same ``n`` and
        ``mantissa_bits``; ``fast_memory``, ``tiles``, ``schedule``, ``layer_to_layer`` and
        ``boundaries`` are chosen anew, but for ``"no-drain"``, which a run keeps."""
        arrays, state = read_checkpoint(path)
        trainer = cls(device=device, **settings(path, arrays, state, device, execution))
        restore(trainer, arrays, state)
        return trainer
