"""Golden model of block floating point. NumPy only, vectorised, bit-exact.

A tile is n rows of n elements with one biased exponent E. With P mantissa bits an element is
``m * 2**-(P - 2) * 2**(E - 127)``, m in [-(2**(P - 1) - 1), 2**(P - 1) - 1]; E = 255 makes every
element NaN.
"""

import numpy as np


__all__ = ["dequantise", "dequantize", "quantise_events", "quantise_tiles", "quantize",
           "random_bits"]

#: Exponent of a tile with a NaN or an infinity.
NONFINITE = 255
CANONICAL_NAN = 0x7fc00000

_SMALLEST_NORMAL = np.float32(2.0**-126)
_MANTISSA_BITS = range(4, 10)


def random_bits(mantissa_bits):
    """Random bits R that stochastic rounding takes for one element."""
    return 17 - mantissa_bits


def _check_mantissa_bits(mantissa_bits):
    if mantissa_bits not in _MANTISSA_BITS:
        raise ValueError(f"mantissa_bits={mantissa_bits!r}: choose 4 to 9")


def _scale_table(mantissa_bits):
    """Factor from an element to its mantissa by E; 0 where every mantissa is 0."""
    table = 2.0**(mantissa_bits - 2 + 127.0 - np.arange(256))
    table[[0, NONFINITE]] = 0
    return table


def _unit_table(mantissa_bits):
    """Value of mantissa 1 by E."""
    table = np.ldexp(np.float32(1), np.arange(256) - 127 - (mantissa_bits - 2))
    table[NONFINITE] = np.nan
    return table


_SCALE = {bits: _scale_table(bits) for bits in _MANTISSA_BITS}
_UNIT = {bits: _unit_table(bits) for bits in _MANTISSA_BITS}


def _float_bits(rows):
    """``rows`` as contiguous uint32 storage bits."""
    if rows.dtype == np.float32:
        rows = rows.view(np.uint32)
    elif rows.dtype != np.uint32:
        raise ValueError(f"rows are {rows.dtype}: give float32, or uint32 storage bits")
    return np.ascontiguousarray(rows)


def quantise_events(rows, n, mantissa_bits, stochastic=False, random=None):
    """Quantise tiles of ``n`` rows and report what happened.

    Subnormals read as zero. E is the largest exponent field of the tile. Each mantissa is
    ``x * 2**(P - 2) / 2**(E - 127)``, rounded to nearest even, or stochastically: with R random
    bits r the magnitude becomes ``floor(magnitude + r / 2**R)``, magnitude bits below ``2**-R``
    being dropped. Beyond the largest mantissa it saturates. A tile with a NaN or an infinity has
    E = 255 and zero mantissas.

    Parameters
    ----------
    rows : array of float32, or uint32 storage bits, shape (tiles * n, n)
    n : int
        Rows of a tile.
    mantissa_bits : int
        P.
    stochastic : bool
        Round stochastically.
    random : array of unsigned integers, same shape as ``rows``
        Numbers below ``2**random_bits(P)``; only for stochastic rounding.

    Returns
    -------
    mantissa : array of int16, same shape as ``rows``
    exponent : array of uint8, one for each row
    saturated, nonfinite : bool
        Whether any element saturated; whether any tile held a NaN or an infinity.
    """
    bits = _float_bits(rows)
    tiles = bits.reshape(-1, n * n)
    top = (tiles & 0x7fffffff).max(axis=1) >> 23
    if tiles.size:
        lowest, highest = int(top.min()), int(top.max())
    else:
        lowest, highest = 1, 1
    nonfinite = highest == NONFINITE

    values = tiles.view(np.float32)
    if nonfinite:
        values = np.where((top == NONFINITE)[:, None], np.float32(0), values)
    if lowest <= 16:
        # Only next to so small an exponent could a subnormal reach what is kept of a magnitude.
        values = np.where(np.abs(values) < _SMALLEST_NORMAL, np.float32(0), values)
    scaled = values * _SCALE[mantissa_bits][top, None]

    if stochastic:
        shift = random_bits(mantissa_bits)
        fixed = np.abs(scaled) * (1 << shift)
        fixed = fixed.astype(np.int32)
        fixed += random.reshape(fixed.shape)
        fixed >>= shift
        rounded = np.copysign(fixed, scaled)
    else:
        rounded = np.rint(scaled, out=scaled)

    limit = (1 << mantissa_bits - 1) - 1
    saturated = bool(rounded.max(initial=0) > limit or rounded.min(initial=0) < -limit)
    if saturated:
        np.clip(rounded, -limit, limit, out=rounded)
    mantissa = rounded.astype(np.int16).reshape(bits.shape)
    return mantissa, top.astype(np.uint8).repeat(n), saturated, nonfinite


def quantise_tiles(rows, n, mantissa_bits, stochastic=False, random=None):
    """Mantissas and row exponents of :func:`quantise_events`."""
    return quantise_events(rows, n, mantissa_bits, stochastic, random)[:2]


def dequantise(mantissa, exponent, mantissa_bits):
    """Rows of mantissas with one exponent each as float32.

    Exact, but for magnitudes below ``2**-126``, which become zero of the same sign. E = 255 gives
    the canonical NaN 0x7fc00000.
    """
    exponent = np.asarray(exponent)
    values = mantissa.astype(np.float32)
    values *= _UNIT[mantissa_bits][exponent][..., None]
    if exponent.size:
        if exponent.min() < mantissa_bits:
            small = np.abs(values) < _SMALLEST_NORMAL
            values[small] = np.copysign(np.float32(0), values[small])
        if exponent.max() == NONFINITE:
            values.view(np.uint32)[exponent == NONFINITE] = CANONICAL_NAN
    return values


def _check_array(name, array, dtypes, shape=None):
    if not isinstance(array, np.ndarray) or array.dtype not in dtypes:
        allowed = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise ValueError(f"{name} is {getattr(array, 'dtype', type(array).__name__)}: "
                         f"give a NumPy array of {allowed}")
    if array.ndim != 2:
        raise ValueError(f"{name} has {array.ndim} dimensions: give 2")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}: one exponent for each "
                         f"tile of n x n mantissas")


def _check_n(n):
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n={n!r}: give a positive integer")


def _tile_rows(array, n):
    """Rows of ``n`` of zero-padded ``array``, tile after tile, and the shape of the tile grid."""
    grid = tuple(-(-size // n) for size in array.shape)
    padded = np.zeros((grid[0] * n, grid[1] * n), array.dtype)
    padded[:array.shape[0], :array.shape[1]] = array
    tiles = padded.reshape(grid[0], n, grid[1], n).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, n), grid


def _untile(rows, grid, n, shape):
    """The inverse of :func:`_tile_rows`."""
    tiles = rows.reshape(*grid, n, n).transpose(0, 2, 1, 3)
    return tiles.reshape(grid[0] * n, grid[1] * n)[:shape[0], :shape[1]].copy()


def quantize(a, n=8, mantissa_bits=9):
    """Quantise a matrix to nearest even, by tiles of ``n`` x ``n``; edges are padded with zeros.

    Parameters
    ----------
    a : array of float32, shape (rows, columns)
    n : int
        Rows and columns of a tile.
    mantissa_bits : int
        Bits of a mantissa with its sign, 4 to 9.

    Returns
    -------
    mantissa : array of int16, same shape as ``a``
    exponent : array of uint8, shape (ceil(rows / n), ceil(columns / n))
        Biased exponent of each tile; 255 if it held a NaN or an infinity.
    """
    _check_mantissa_bits(mantissa_bits)
    _check_n(n)
    _check_array("a", a, (np.float32,))
    rows, grid = _tile_rows(a, n)
    mantissa, exponent = quantise_tiles(rows, n, mantissa_bits)
    return _untile(mantissa, grid, n, a.shape), exponent[::n].reshape(grid).copy()


def dequantize(mantissa, exponent, mantissa_bits=9, n=8):
    """The matrix that :func:`quantize` stands for, as float32; see :func:`dequantise`.

    Parameters
    ----------
    mantissa : array of int16, shape (rows, columns)
    exponent : array of uint8, shape (ceil(rows / n), ceil(columns / n))
    mantissa_bits, n : int
        As in :func:`quantize`.
    """
    _check_mantissa_bits(mantissa_bits)
    _check_n(n)
    _check_array("mantissa", mantissa, (np.int16,))
    grid = tuple(-(-size // n) for size in mantissa.shape)
    _check_array("exponent", exponent, (np.uint8,), grid)
    limit = (1 << mantissa_bits - 1) - 1
    if mantissa.size and not -limit <= mantissa.min() <= mantissa.max() <= limit:
        raise ValueError(f"mantissas from {mantissa.min()} to {mantissa.max()}: mantissa_bits="
                         f"{mantissa_bits} allows {-limit} to {limit}")
    rows, grid = _tile_rows(mantissa, n)
    values = dequantise(rows, exponent.reshape(-1).repeat(n), mantissa_bits)
    return _untile(values, grid, n, mantissa.shape)
