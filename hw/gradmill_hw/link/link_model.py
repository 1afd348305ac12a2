"""Exact model of :mod:`send` and :mod:`receive`. NumPy only, vectorised.

For block ``b`` in ``0..blocks-1`` and row ``r`` in ``0..R-1``, R being ``rows`` rounded up to a
multiple of ``n``, all modulo 2^16: the next row of the transfer is tensor row
``op0 + b·t_stride + r`` with, if ``masked`` and ``r < rows``, mask row ``op4 + b·k_stride + r``.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..regs import Error


__all__ = ["LinkFault", "Transfer", "receive", "send"]

#: Fields that must be equal at both ends.
_TAG = ("sub", "last_sub", "gradient", "version")
#: Row addresses wrap at this number.
_ADDRESSES = 1 << 16


class LinkFault(Exception):
    """A command that the unit refuses, or rows that it did not expect.

    Attributes
    ----------
    error : Error
        Which of the two.
    rows : int
        Rows that were written before.
    """

    def __init__(self, error, message, rows=0):
        super().__init__(message)
        self.error = error
        self.rows = rows


@dataclass(frozen=True, eq=False)
class Transfer:
    """Rows of one ``SEND`` in order; the last of them is marked as such.

    Attributes
    ----------
    mantissa : array of int16, shape (rows, n)
    exponent : array of uint8, shape (rows,)
    mask : array of bool, shape (rows, n)
    tag : dict
        Fields of the command that the command of the receiver must repeat.
    """

    mantissa: np.ndarray
    exponent: np.ndarray
    mask:     np.ndarray
    tag:      dict


def send(fields, op, tensor_mantissa, tensor_exponent, mask, config):
    """Execute ``SEND``.

    Parameters
    ----------
    fields : dict
        Fields of the instruction.
    op : sequence of int
        Row addresses of its operands, base registers added.
    tensor_mantissa : array of int16, shape (tensor_rows, n)
    tensor_exponent : array of uint8, shape (tensor_rows,)
    mask : array of bool, shape (mask_rows, n)
    config : Config

    Returns
    -------
    Transfer

    Raises
    ------
    LinkFault
        ``COUNT`` if there is no row.
    """
    tensor_rows, mask_rows, masked = _walk(fields, op, config)
    bits = np.zeros((len(tensor_rows), config.n), bool)
    bits[masked] = mask[mask_rows[masked]]
    return Transfer(tensor_mantissa[tensor_rows], tensor_exponent[tensor_rows], bits,
                    {name: fields[name] for name in _TAG})


def receive(fields, op, transfer, tensor_mantissa, tensor_exponent, mask, config):
    """Execute ``RECEIVE`` on the next transfer that came from its neighbour.

    Parameters
    ----------
    transfer : Transfer
    fields, op, tensor_mantissa, tensor_exponent, mask, config
        As for :func:`send`; the memories are changed in place. Where rows coincide, the last one
        stays.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    LinkFault
        ``COUNT`` if there is no row; ``LINK`` if the tag or the number of rows differs. The rows
        before the one that shows it have been written.
    """
    tensor_rows, mask_rows, masked = _walk(fields, op, config)
    came, wanted = len(transfer.exponent), len(tensor_rows)
    tag = {name: fields[name] for name in _TAG}
    written = wanted
    if transfer.tag != tag:
        written = 0
    elif came != wanted:
        written = min(came, wanted) - 1  # the next one is marked as the last, or should be

    tensor_mantissa[tensor_rows[:written]] = transfer.mantissa[:written]
    tensor_exponent[tensor_rows[:written]] = transfer.exponent[:written]
    masked = masked[masked < written]
    mask[mask_rows[masked]] = transfer.mask[masked]
    if transfer.tag != tag:
        raise LinkFault(Error.LINK, f"rows came with {transfer.tag}, expected was {tag}")
    if came != wanted:
        raise LinkFault(Error.LINK, f"{came} rows came, expected were {wanted}", written)
    return written


def _walk(fields, op, config):
    """Tensor row and mask row of every row, and the indices of those that have a mask row."""
    if not fields["rows"] or not fields["blocks"]:
        raise LinkFault(Error.COUNT, f"rows={fields['rows']}, blocks={fields['blocks']}: "
                                     f"both must be positive")
    tensor_rows, mask_rows, masked = _offsets(
        fields["rows"], fields["blocks"], fields["t_stride"], fields["k_stride"], config.n)
    return ((tensor_rows + op[0]) % _ADDRESSES, (mask_rows + op[4]) % _ADDRESSES,
            masked if fields["masked"] else masked[:0])


@lru_cache(maxsize=4096)
def _offsets(rows, blocks, t_stride, k_stride, n):
    row = np.arange(-(-rows // n) * n)
    block = np.arange(blocks)[:, None]
    inside = np.flatnonzero(np.tile(row < rows, blocks))
    return (block * t_stride + row).ravel(), (block * k_stride + row).ravel(), inside
