"""MNIST-1D: ten shapes of twelve points, distorted at random so that they are hard to tell apart.

The procedure and its constants are those of Greydanus and Kobak, "Scaling down deep learning with
MNIST-1D", ICML 2024, over all samples at once and with NumPy's generator, so that 24,000 samples
take less than a second; the samples are therefore not those of the authors' file.
"""

import numpy as np

from .errors import BackendError


__all__ = ["LENGTH", "generate"]

#: Points of a sample.
LENGTH = 40

_TEMPLATES = np.array([
    [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
    [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
    [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
    [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
    [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
    [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
    [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
    [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
])
_LEAST_PADDING, _MOST_PADDING = 36, 60
_SCALE, _TRANSLATION, _SHEAR = 0.4, 48, 0.75
_CORRELATED_NOISE, _CORRELATION, _NOISE = 0.25, 2, 0.02
#: Keeps points of a shape apart from padding, which is exactly zero.
_NOT_ZERO = 1e-8


def generate(count, seed):
    """``count`` samples, float32 ``(count, 40)`` with mean 0 and standard deviation 1, and their
    labels; every class equally often, in random order."""
    try:
        from scipy.ndimage import gaussian_filter1d
    except ImportError:
        raise BackendError("mnist1d needs scipy: pip install 'gradmill[train]'") from None
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    x = _padded()[labels, rng.integers(0, _MOST_PADDING - _LEAST_PADDING + 1, count)]
    width = x.shape[1]
    x *= 1 + _SCALE * (rng.random((count, 1)) - 0.5)
    shift = rng.integers(0, _TRANSLATION, (count, 1))
    x = np.take_along_axis(x, (np.arange(width) - shift) % width, axis=1)
    noise = gaussian_filter1d(_CORRELATED_NOISE * rng.standard_normal(x.shape), _CORRELATION)
    x = np.where(x == 0, noise, x) + _NOISE * rng.standard_normal(x.shape)
    x -= _SHEAR * (rng.random((count, 1)) - 0.5) * np.linspace(-0.5, 0.5, width)
    x = _resampled(x, LENGTH)
    return ((x - x.mean()) / x.std()).astype(np.float32), labels


def _padded():
    """Shapes by class and padding, stretched to one length."""
    shapes = _TEMPLATES - _TEMPLATES.mean(axis=1, keepdims=True)
    shapes /= shapes.std(axis=1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6 + _NOT_ZERO
    length = shapes.shape[1]
    return np.stack([_resampled(np.pad(shapes, ((0, 0), (0, padding))), length + _MOST_PADDING)
                     for padding in range(_LEAST_PADDING, _MOST_PADDING + 1)], axis=1)


def _resampled(x, length):
    """Rows of ``x`` at ``length`` places from the first to the last, by linear interpolation."""
    places = np.linspace(0, x.shape[1] - 1, length)
    left = np.minimum(places.astype(int), x.shape[1] - 2)
    part = places - left
    return (1 - part) * x[:, left] + part * x[:, left + 1]
