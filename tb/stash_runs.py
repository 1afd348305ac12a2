"""Runs of rows for the stash codec, easy and hard ones, and what must come of them."""

from dataclasses import dataclass

import numpy as np
from gradmill_hw.stash import codec_model
from gradmill_hw.stash.formats import from_tag
from gradmill_hw.stash.tables import PRESETS


SEED, STEP = 0x12345678, 77
EVERY = [entry for tag in range(256) if (entry := from_tag(tag))]


@dataclass
class Run:
    """Rows to encode, or granules to decode, and what must come of them."""

    entry: object
    mantissa: np.ndarray
    exponent: np.ndarray
    random: bool
    layer: int
    index: int

    def __len__(self):
        return len(self.mantissa)

    @property
    def _options(self):
        key = (SEED, STEP, self.layer) if self.random else None
        return {"key": key, "first_row": self.index}

    def to_encode(self, row):
        """Payload for the encoder."""
        return {
            "mantissa": self.mantissa[row].tolist(),
            "exponent": int(self.exponent[row]),
            "tag": self.entry.tag,
            "stochastic": self.random,
            "layer": self.layer,
            "index": self.index + row,
            "last": row == len(self) - 1,
        }

    def to_decode(self, row):
        """Payload for the decoder."""
        return {
            "draws": self.random,
            "layer": self.layer,
            "index": self.index + row,
            "last": row == len(self) - 1,
        }

    def encoded(self, config, tables=PRESETS, *, plain=False):
        """The model's encoding; ``plain`` to nearest."""
        options = {} if plain else self._options
        return codec_model.encode_rows(
            config, self.entry, self.mantissa, self.exponent, tables=tables, **options
        )

    def decoded(self, config, raw, tables=PRESETS):
        """The model's decoding of ``raw``."""
        return codec_model.decode_rows(config, raw, len(self), tables=tables, **self._options)


def random_runs(rng, config, entries, blocks=2):
    """A run of each of ``entries``, of up to ``blocks`` blocks and a tail."""
    runs = []
    for entry in entries:
        rows = int(rng.integers(1, blocks * entry.rows(config.n) + 2))
        mantissa, exponent = blocks_of_rows(rng, config.n, config.mantissa_bits, rows)
        runs.append(
            Run(
                entry,
                mantissa,
                exponent,
                bool(rng.integers(0, 2)),
                int(rng.integers(0, 256)),
                int(rng.integers(0, 1 << 30)),
            )
        )
    return runs


def blocks_of_rows(rng, n, mantissa_bits, rows):
    """Rows of block floating point of many kinds, tile after tile: int16 (rows, n), uint8."""
    limit = (1 << mantissa_bits - 1) - 1
    mantissa = np.zeros((rows + n, n), np.int16)
    exponent = np.zeros(rows + n, np.uint8)
    base = int(rng.integers(20, 230))
    for first in range(0, rows, n):
        tile = slice(first, first + n)
        kind = rng.integers(0, 10)
        noise = rng.normal(size=(n, n)) * limit / rng.choice([2, 4, 16, 64])
        if kind == 1:
            noise[:] = 0
        elif kind == 2:
            noise[:] = rng.integers(-limit, limit + 1)
        elif kind == 3:
            noise = np.where(rng.random((n, n)) < 0.1, limit, noise / 16)
        elif kind == 4:
            noise = rng.choice([-limit, limit, 0], (n, n))
        elif kind == 5:
            noise = rng.integers(-2, 3, (n, n))
        elif kind == 6:
            noise = np.maximum(noise, 0)
        elif kind == 7:
            noise = noise * 2.0 ** -rng.integers(0, 9, (n, 1))
        mantissa[tile] = np.clip(np.rint(noise), -limit, limit)
        jump = rng.choice([0, 0, 0, 1, -1, 3, -9, 30])
        exponent[tile] = np.clip(base + jump, 0, 254)
        if rng.random() < 0.04:
            exponent[tile] = rng.choice([0, 1, 5, 254])
        if rng.random() < 0.03:
            mantissa[tile], exponent[tile] = 0, 255
        if rng.random() < 0.03:  # rows that no quantiser wrote
            exponent[tile] = rng.integers(0, 256, n)
    return mantissa[:rows], exponent[:rows]
