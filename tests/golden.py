"""An independent run of two-level virtual-minibatch SGD: loops over samples, no instructions.

It follows the arithmetic of the units in the order the driver promises, on whole matrices, and
knows nothing of memories, panels or programs.
"""

from dataclasses import dataclass

import numpy as np

from gradmill_hw.numeric.bfp_model import quantize
from gradmill_hw.numeric.fp32_model import add_f32, maximum_f32, mul_f32, round_bf16_f32
from gradmill_hw.numeric.functions_model import exp, log, recip


__all__ = ["Golden", "product"]


def _function(function, values):
    return function(values.view(np.uint32)).view(np.float32)


def product(left, right, config, *, narrow=False):
    """``left (m, k) · right (k, c)``: each an exact pair ``(mantissa, exponent)`` of
    :func:`gradmill.quantize`; blocks of n along k are added in ascending order."""
    (a, a_exponent), (b, b_exponent) = left, right
    n, total = config.n, None
    for kb in range(-(-a.shape[1] // n)):
        part = slice(kb * n, kb * n + n)
        integer = a[:, part].astype(np.int64) @ b[part].astype(np.int64)
        rows = a_exponent[:, kb].astype(int).repeat(n)[:len(a), None]
        cols = b_exponent[kb].astype(int).repeat(n)[None, :b.shape[1]]
        exact = np.ldexp(integer.astype(np.float64),
                         rows + cols - 254 - 2 * (config.mantissa_bits - 2))
        exact[np.abs(exact) < 2.0**-126] *= 0.0
        with np.errstate(over="ignore"):
            term = exact.astype(np.float32)
        total = term if total is None else add_f32(total, term)
        if narrow:
            total = round_bf16_f32(total)
    return total


def _turned(pair):
    return pair[0].T, pair[1].T


def _column_sums(rows):
    """Halves are added until one row is left."""
    while len(rows) > 1:
        half = (len(rows) + 1) // 2
        upper = rows[half:]
        rows = np.concatenate([add_f32(rows[:len(upper)], upper), rows[len(upper):half]])
    return rows[0]


def _across(values, n, combine, pad):
    """``combine`` over the columns of each row: blocks of n first, then lanes pairwise."""
    width = -(-values.shape[1] // n) * n
    padded = np.full((len(values), width), pad, np.float32)
    padded[:, :values.shape[1]] = values
    total = padded[:, :n]
    for start in range(n, width, n):
        total = combine(total, padded[:, start:start + n])
    while total.shape[1] > 1:
        total = combine(total[:, 0::2], total[:, 1::2])
    return total


@dataclass
class Golden:
    """Weights, momentum and one training step.

    Parameters
    ----------
    config : Config
        ``n`` and ``mantissa_bits`` count.
    layers : list of (weight, bias or None, relu)
        Float32 master weights ``(outputs, inputs)``; copied.
    lr, momentum : float
        Of SGD.
    mse : bool
        Loss; cross-entropy otherwise.
    sub : int
        M.
    narrow : bool
        Level 1 in bfloat16.
    recall : callable, optional
        ``recall(s, input, virtual minibatch, sub-minibatch)``: what the weight gradient of layer s
        gets to see of its quantised input.
    """

    config:   object
    layers:   list
    lr:       float
    momentum: float
    mse:      bool
    sub:      int
    narrow:   bool
    recall:   object = None
    steps:    int = 0

    def __post_init__(self):
        self.layers = [(w.copy(), None if b is None else b.copy(), relu)
                       for w, b, relu in self.layers]
        self.velocity = [[np.zeros_like(w), None if b is None else np.zeros_like(b)]
                         for w, b, _ in self.layers]

    def step(self, x, y):
        """One virtual minibatch; returns the mean loss."""
        total, loss = None, None
        for start in range(0, len(x), self.sub):
            part = slice(start, start + self.sub)
            gradients, part_loss = self._sub_minibatch(x[part], y[part], len(x),
                                                       start // self.sub)
            if total is None:
                total, loss = gradients, part_loss
                continue
            loss = add_f32(loss, part_loss)
            total = [tuple(g if g is None else add_f32(t, g) for t, g in zip(*pair, strict=True))
                     for pair in zip(total, gradients, strict=True)]
        for s, gradients in enumerate(total):
            self._update(s, gradients)
        self.steps += 1
        count = len(x) * (self.layers[-1][0].shape[0] if self.mse else 1)
        return float(mul_f32(loss, np.float32(1 / count)))

    def _quantize(self, values):
        return quantize(np.ascontiguousarray(values), self.config.n, self.config.mantissa_bits)

    def _dequantize(self, pair):
        """Float32 values, exactly; subnormals are flushed."""
        mantissa, exponent = pair
        n, p = self.config.n, self.config.mantissa_bits
        scale = exponent.astype(int).repeat(n, 0).repeat(n, 1)[:len(mantissa), :mantissa.shape[1]]
        values = np.ldexp(mantissa.astype(np.float64), scale - 127 - (p - 2))
        values[np.abs(values) < 2.0**-126] *= 0.0
        return values.astype(np.float32)

    def _sub_minibatch(self, x, y, batch, number):
        weights = [self._quantize(w) for w, _, _ in self.layers]
        inputs, masks, z = [], [], x
        for (_, bias, relu), weight in zip(self.layers, weights, strict=True):
            inputs.append(self._quantize(z))
            z = product(inputs[-1], _turned(weight), self.config)
            if bias is not None:
                z = add_f32(z, bias[None])
            masks.append(z > 0 if relu else None)
            if relu:
                z = np.where(z > 0, z, np.float32(0))
        delta, loss = (self._mse if self.mse else self._cross_entropy)(z, y, batch)

        gradients = []
        for s in reversed(range(len(self.layers))):
            narrow = self._quantize(delta)
            kept = inputs[s]
            if self.recall is not None:
                kept = self.recall(s, kept, self.steps, number)
            weight = product(_turned(narrow), kept, self.config, narrow=self.narrow)
            bias = None if self.layers[s][1] is None else _column_sums(self._dequantize(narrow))
            gradients.insert(0, (weight, bias))
            if s:
                delta = product(narrow, weights[s], self.config)
                if masks[s - 1] is not None:
                    delta = np.where(masks[s - 1], delta, np.float32(0))
        return gradients, loss

    def _cross_entropy(self, z, y, batch):
        n, label = self.config.n, np.arange(z.shape[1]) == y[:, None]
        largest = _across(z, n, maximum_f32, -np.inf)
        e = _function(exp, add_f32(z, -largest))
        total = _across(e, n, add_f32, 0)
        inverse = mul_f32(_function(recip, total), np.float32(1 / batch))
        delta = add_f32(mul_f32(e, inverse), np.where(label, np.float32(-1 / batch), np.float32(0)))
        chosen = _across(np.where(label, z, np.float32(0)), n, add_f32, 0)
        losses = add_f32(add_f32(_function(log, total), largest), -chosen)
        return delta, _column_sums(losses)[0]

    def _mse(self, z, t, batch):
        difference = add_f32(z, -t)
        delta = mul_f32(difference, np.float32(2 / (batch * z.shape[1])))
        squares = _across(mul_f32(difference, difference), self.config.n, add_f32, 0)
        return delta, _column_sums(squares)[0]

    def _update(self, s, gradients):
        weight, bias, relu = self.layers[s]
        values = []
        for k, (value, gradient) in enumerate(zip((weight, bias), gradients, strict=True)):
            if value is not None:
                if self.momentum:
                    gradient = add_f32(mul_f32(self.velocity[s][k], np.float32(self.momentum)),
                                       gradient)
                    self.velocity[s][k] = gradient
                value = add_f32(mul_f32(gradient, np.float32(-self.lr)), value)
            values.append(value)
        self.layers[s] = (*values, relu)
