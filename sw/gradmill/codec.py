"""The stash formats on the host: arrays to the bytes that the device would store, and back.

>>> stored = gm.codec.encode("mask+bfp", x, bits=2, block=64)
>>> stored.bits / x.size
>>> y = gm.codec.decode(stored)

These are the models that the circuit is checked against. What the device stores is computed from
its block floating point rows (:func:`encode_rows`); :func:`encode` starts from float32 itself.
"""

from dataclasses import dataclass

import numpy as np

from gradmill_hw.stash import codec_model
from gradmill_hw.stash.codec_model import CodecError
from gradmill_hw.stash.elements_model import (
    CODE_BITS,
    exponents,
    from_float,
    from_rows,
    quantise,
    shared_exponent,
    to_float,
    to_rows,
)
from gradmill_hw.stash.formats import Format, FormatError
from gradmill_hw.stash.tables import Table, all_tables, fit

from .stash.fixed import name_table


__all__ = [
    "CodecError",
    "Format",
    "FormatError",
    "Stored",
    "Table",
    "decode",
    "decode_rows",
    "encode",
    "encode_rows",
    "fit_table",
]


@dataclass(frozen=True)
class Stored:
    """An array in a stash format.

    ``raw`` are its bytes, ``bits`` its exact size with tags, exponents, lists and padding within
    blocks; ``dropped`` counts the outliers that found no room.
    """

    raw: np.ndarray
    bits: int
    dropped: int
    format: Format
    shape: tuple
    n: int
    tables: dict

    @property
    def bits_per_value(self):
        """Bits divided by the number of values."""
        return self.bits / max(1, int(np.prod(self.shape)))


def encode(format, array, *, n=8, seed=None, tables=None, **parameters):
    """Store float32 values, in C order, as rows of ``n``; the last row is filled with zeros.

    Parameters
    ----------
    format : str or Format
        ``"bfp"``, ``"ubfp"``, ``"mask"``, ``"mask+bfp"``, ``"mx9"``, ``"mx6"``, ``"mx4"``,
        ``"outlier"``, ``"nonuniform"``, a whole text such as ``"bfp(4)/64"``, or a Format.
    array : array of float32
        Finite values; subnormals count as zeros. A NaN or an infinity makes its block NaN.
    n : int
        Values of a row: 4, 8 or 16. The bits of a format depend on it.
    seed : int, optional
        Round stochastically with the random bits of this seed.
    tables : dict of str to Table, optional
        Tables of ``nonuniform`` that replace the presets of their slots.
    parameters
        ``bits``, ``block``, ``outliers``, ``table``, ``pack`` of :class:`Format`; ``table`` may be
        a :class:`Table` itself.
    """
    entry, tables = _format(format, parameters, tables)
    array = np.asarray(array)
    if array.dtype != np.float32:
        raise FormatError(f"array is {array.dtype}: give float32")
    entry.rows(n)
    rows = np.zeros((-(-array.size // n), n), np.float32)
    rows.reshape(-1)[: array.size] = array.reshape(-1)
    return _stored(entry, from_float(rows), array.shape, n, seed, tables)


def decode(stored, *, seed=None):
    """The float32 array that ``stored`` stands for.

    With ``seed``, values of ``nonuniform`` are drawn at random from their bins.
    """
    rows = -(-int(np.prod(stored.shape)) // stored.n)
    values = codec_model.decode(stored.raw, rows, stored.n, key=_key(seed), tables=stored.tables)
    flat = to_float(values).reshape(-1)
    return flat[: int(np.prod(stored.shape))].reshape(stored.shape)


def encode_rows(
    format, mantissa, exponent, *, mantissa_bits=9, seed=None, tables=None, **parameters
):
    """Store rows of block floating point, bit for bit as the device does.

    Parameters
    ----------
    format, seed, tables, parameters
        As for :func:`encode`.
    mantissa : array of int16, shape (rows, n)
    exponent : array of uint8, one for each row
    mantissa_bits : int
        Bits of a mantissa with its sign.
    """
    entry, tables = _format(format, parameters, tables)
    mantissa, exponent = np.asarray(mantissa), np.asarray(exponent)
    if mantissa.ndim != 2 or mantissa.dtype != np.int16:
        raise FormatError(f"mantissa is {mantissa.dtype} {mantissa.shape}: give int16 (rows, n)")
    if exponent.shape != mantissa.shape[:1] or exponent.dtype != np.uint8:
        raise FormatError(
            f"exponent is {exponent.dtype} {exponent.shape}: give uint8, one for "
            f"each of the {len(mantissa)} rows"
        )
    n = mantissa.shape[1]
    entry.rows(n)
    elements = from_rows(mantissa, exponent, mantissa_bits)
    return _stored(entry, elements, mantissa.shape, n, seed, tables)


def decode_rows(stored, *, mantissa_bits=9, seed=None):
    """Mantissas (int16) and exponents (uint8) of the rows, as the device reads them."""
    rows = int(np.prod(stored.shape)) // stored.n
    values = codec_model.decode(stored.raw, rows, stored.n, key=_key(seed), tables=stored.tables)
    return to_rows(values, mantissa_bits)


def fit_table(values, bits, *, block=64):
    """Table of ``nonuniform`` for values like these: least squared error of what is not drawn.

    Parameters
    ----------
    values : array of float32
        Samples, in C order as they are stored.
    bits : int
        Bits of a code without its sign, 1 to 3: the table goes where ``aggressive``, ``normal`` or
        ``lite`` was.
    block : int
        Values that share an exponent.
    """
    values = np.asarray(values)
    if values.dtype != np.float32 or not values.size or not np.isfinite(values).all():
        raise FormatError(f"values are {values.dtype} {values.shape}: give some float32, finite")
    blocks = np.zeros((-(-values.size // block), block), np.float32)
    blocks.reshape(-1)[: values.size] = values.reshape(-1)
    elements = from_float(blocks)
    exponent = shared_exponent(exponents(elements).max(axis=1), elements.bad)
    units = quantise(elements, exponent[:, None], CODE_BITS)
    return fit(units.reshape(-1)[: values.size], bits)


def _format(format, parameters, tables):
    """The :class:`Format` and all tables."""
    parameters, tables = name_table(parameters, tables or {})
    return _entry(format, parameters), all_tables(tables)


def _entry(format, parameters):
    if isinstance(format, Format):
        if parameters:
            raise FormatError(f"{format} is complete: {', '.join(parameters)} cannot be given")
        return format
    known = set(Format.__dataclass_fields__) - {"name"}
    for name in parameters:
        if name not in known:
            raise FormatError(
                f"{name} is no parameter of a format: choose from {', '.join(sorted(known))}"
            )
    return Format(format, **parameters) if parameters else Format.parse(format)


def _key(seed):
    return None if seed is None else (int(seed), 0, 0)


def _stored(entry, elements, shape, n, seed, tables):
    found = codec_model.encode(entry, elements, key=_key(seed), tables=tables)
    return Stored(found.raw, found.bits, found.dropped, entry, shape, n, tables)
