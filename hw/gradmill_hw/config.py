"""Build-time configuration: the only source of sizes for RTL, models, driver and tests."""

import json
import tomllib
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path

from .isa import CHAIN_QUEUES, INSTRUCTION_BYTES, TILE_QUEUES, Queue
from .stash.formats import from_tag


__all__ = ["CARD", "CONFIGS", "EDGE", "NANO", "SIM", "TILE", "Config", "ConfigError", "derive",
           "get_config"]


class ConfigError(ValueError):
    """A configuration that cannot be built, or work that does not fit one."""


def _require(ok, message):
    if not ok:
        raise ConfigError(message)


def _is_power_of_two(value):
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of one accelerator. Rows are rows of ``n`` elements throughout.

    Parameters
    ----------
    name : str
        Shown in messages and reports.
    n : int
        Rows and columns of the PE array, elements of a row, vector lanes. 4, 8, 16 or 32.
    tiles : int
        Tiles in the chain, 1 to 64.
    mantissa_bits : int
        Bits of a block-floating-point mantissa including its sign, 4 to 9.
    tensor_rows, acc_rows, mask_rows : int
        Depth of the three on-chip memories of a tile, in rows; powers of two.
    banks : int
        Single-read, single-write banks of the tensor memory and of the accumulators. The bank is
        the top bits of the row address, so that a program places what must not collide.
    bus_bits : int
        AXI4 data width of both memory tiers, 8 to 32 bits per lane.
    address_bits : int
        AXI4 address width, 32 to 40.
    burst_beats : int
        Longest burst, in beats; a power of two up to 256.
    reads_in_flight : int
        Read bursts that a tier may have outstanding.
    queue_depth : int
        Commands that each queue buffers.
    lanes_per_function : int
        Vector lanes that share a unit for exponential, reciprocal and the like: rows on which an
        instruction applies a function come at one per so many cycles. A power of two up to ``n``.
    copy : bool
        Tiles have a unit that copies between the memory tiers.
    stash : bool
        Whether stores and loads have the stash codec, see ``docs/stash-formats.md``; not for n=32.
    """

    name:            str = "custom"
    n:               int = 8
    tiles:           int = 1
    mantissa_bits:   int = 9
    tensor_rows:     int = 8192
    acc_rows:        int = 4096
    mask_rows:       int = 2048
    banks:           int = 4
    bus_bits:        int = 256
    address_bits:    int = 40
    burst_beats:     int = 64
    reads_in_flight: int = 8
    queue_depth:     int = 8
    lanes_per_function: int = 4
    copy:            bool = False
    stash:           bool = False

    def __new__(cls, **sizes):
        names = [field.name for field in fields(cls)]
        unknown = sorted(sizes.keys() - set(names))
        _require(not unknown, f"{', '.join(unknown)} is no size of a Config: choose from "
                              f"{', '.join(names)}")
        return super().__new__(cls)

    def __post_init__(self):
        _require(isinstance(self.name, str) and self.name,
                 f"name={self.name!r}: write a name, as text")
        for field in fields(self):
            if field.type is int:
                value = getattr(self, field.name)
                _require(isinstance(value, Integral) and not isinstance(value, bool),
                         f"{field.name}={value!r}: write a whole number")
        _require(self.n in (4, 8, 16, 32), f"n={self.n} is not built: choose 4, 8, 16 or 32")
        _require(1 <= self.tiles <= 64, f"tiles={self.tiles}: choose 1 to 64")
        _require(4 <= self.mantissa_bits <= 9,
                 f"mantissa_bits={self.mantissa_bits}: choose 4 to 9")
        _require(self.banks in (2, 4, 8), f"banks={self.banks}: choose 2, 4 or 8")
        for name in ("tensor_rows", "acc_rows", "mask_rows"):
            rows = getattr(self, name)
            _require(_is_power_of_two(rows) and self.banks * self.n <= rows <= 1 << 16,
                     f"{name}={rows}: choose a power of two from banks*n = "
                     f"{self.banks * self.n} to {1 << 16}")
        _require(_is_power_of_two(self.bus_bits)
                 and 8 * self.n <= self.bus_bits <= min(32 * self.n, 1024),
                 f"bus_bits={self.bus_bits}: choose a power of two from 8n = {8 * self.n} to "
                 f"{min(32 * self.n, 1024)}")
        _require(32 <= self.address_bits <= 40,
                 f"address_bits={self.address_bits}: choose 32 to 40")
        _require(_is_power_of_two(self.burst_beats) and self.burst_beats <= 256,
                 f"burst_beats={self.burst_beats}: choose a power of two up to 256")
        _require(self.burst_beats * self.beat_bytes <= 4096,
                 f"burst_beats={self.burst_beats}: a burst of {self.beat_bytes}-byte beats is "
                 f"longer than 4096 bytes; choose at most {4096 // self.beat_bytes}")
        _require(_is_power_of_two(self.reads_in_flight) and self.reads_in_flight <= 64,
                 f"reads_in_flight={self.reads_in_flight}: choose a power of two up to 64")
        _require(_is_power_of_two(self.queue_depth) and 2 <= self.queue_depth <= 64,
                 f"queue_depth={self.queue_depth}: choose a power of two from 2 to 64")
        _require(_is_power_of_two(self.lanes_per_function) and self.lanes_per_function <= self.n,
                 f"lanes_per_function={self.lanes_per_function}: choose a power of two up to "
                 f"n={self.n}")
        for name in ("copy", "stash"):
            _require(isinstance(getattr(self, name), bool),
                     f"{name}={getattr(self, name)!r}: choose True or False")
        _require(not self.stash or self.n <= 16,
                 f"stash=True: stash formats are defined for n = 4, 8 or 16, not {self.n}")

    def replace(self, **changes):
        """A copy with ``changes``; without a ``name`` among them it is called after this one and
        what is different, as in ``sim with n=4``."""
        return replace(self, **{"name": self._name_with(changes), **changes})

    def _name_with(self, changes):
        base, _, earlier = self.name.partition(" with ")
        if "=" not in earlier:
            base, earlier = self.name, ""
        different = dict(change.split("=", 1) for change in earlier.split(", ") if "=" in change)
        different |= {name: value for name, value in changes.items()
                      if value != getattr(self, name, None)}
        if base == "custom" or not different:
            return self.name
        return f"{base} with " + ", ".join(f"{name}={value}" for name, value in different.items())

    @property
    def queues(self):
        """Queues of each tile."""
        return ((CHAIN_QUEUES if self.tiles > 1 else TILE_QUEUES)
                + ((Queue.COPY,) if self.copy else ()))

    @property
    def lane_bits(self):
        """log2(n)."""
        return self.n.bit_length() - 1

    @property
    def beat_bytes(self):
        """Bytes of one bus beat."""
        return self.bus_bits // 8

    @property
    def beat_granules(self):
        """Granules of ``n`` bits in one beat; rows in memory are whole granules."""
        return self.bus_bits // self.n

    @property
    def fetch_ahead(self):
        """Instructions that are requested before the sequencer needs them."""
        return 16 if self.beat_bytes * 2 >= INSTRUCTION_BYTES else 8

    @property
    def bfp_granules(self):
        """Granules of a stored BFP row: ``mantissa_bits`` for mantissas, the rest for exponent."""
        return self.mantissa_bits + -(-8 // self.n)

    @property
    def memory_bytes(self):
        """Bytes of the three on-chip memories of a tile; a BFP row has an exponent of 8 bits."""
        bits = (self.tensor_rows * (self.n * self.mantissa_bits + 8)
                + self.acc_rows * 32 * self.n + self.mask_rows * self.n)
        return bits // 8

    def row_granules(self, kind):
        """Granules of a stored row of ``kind``: ``"mask"``, ``"bfp"`` or ``"fp32"``."""
        return {"mask": 1, "bfp": self.bfp_granules, "fp32": 32}[kind]

    def run_bytes(self, kind, rows, codec=0):
        """Bytes on the bus of ``rows`` contiguous rows, padded to whole beats; with the tag of a
        stash format, of the longest such run."""
        if codec:
            granules = from_tag(codec).granules(rows, self.n)[1]
        else:
            granules = rows * self.row_granules(kind)
        return -(-granules // self.beat_granules) * self.beat_bytes


#: Smallest array that exercises every path: unit tests and proofs.
NANO = Config(name="nano", n=4, tensor_rows=1024, acc_rows=512, mask_rows=256, bus_bits=32,
              burst_beats=16, reads_in_flight=4, queue_depth=4)

#: Fits an ECP5-85F.
EDGE = Config(name="edge", n=8, tensor_rows=4096, acc_rows=1024, mask_rows=1024, bus_bits=64,
              address_bits=32)

#: One tile of ``sim``.
TILE = Config(name="tile", n=8)

#: What ``make sim`` trains on: a chain of four tiles.
SIM = TILE.replace(name="sim", tiles=4)

#: A large FPGA.
CARD = Config(name="card", n=16, tensor_rows=16384, acc_rows=4096, mask_rows=4096,
              bus_bits=512, stash=True, copy=True)

CONFIGS = {config.name: config for config in (NANO, EDGE, TILE, SIM, CARD)}


def get_config(config):
    """``config`` itself, the named configuration, or that of a TOML or JSON file.

    A file holds fields of :class:`Config`, and with ``base`` the name of the configuration that
    the other fields are taken from; without, they have the defaults of :class:`Config`.
    """
    if isinstance(config, Config):
        return config
    if str(config) in CONFIGS:
        return CONFIGS[str(config)]
    path = Path(str(config))
    if path.suffix in _READERS:
        return _read(path)
    raise ConfigError(f"unknown configuration {config!r}: choose one of {', '.join(CONFIGS)}, a "
                      ".toml or .json file with sizes, or in Python a gradmill.Config")


def derive(base, sizes):
    """``base`` with other ``sizes``, named after them: a dictionary of fields of :class:`Config`.

    With another ``n`` the bus keeps its bits per lane, unless ``bus_bits`` is given too.
    """
    names = [field.name for field in fields(Config)]
    for name in sizes:
        if name not in names:
            near = get_close_matches(name, names, 1)
            raise ConfigError(f"a configuration has no {name!r}"
                              + (f", did you mean {near[0]!r}?" if near else ":")
                              + f" Choose among {', '.join(names)}")
    follows = {"name": base._name_with(sizes)}
    if isinstance(sizes.get("n"), Integral) and "bus_bits" not in sizes:
        follows["bus_bits"] = min(base.bus_bits // base.n * sizes["n"], 1024)
    return base.replace(**{**follows, **sizes})


_READERS = {".toml": tomllib.loads, ".json": json.loads}


def _read(path):
    """The configuration in a file, which has the name of the file unless the file has another."""
    try:
        sizes = _READERS[path.suffix](path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"configuration {path} is not {path.suffix[1:].upper()}: "
                          f"{error}") from None
    if not isinstance(sizes, dict):
        raise ConfigError(f"configuration {path}: write fields of a Config, as in "
                          '{"base": "sim", "n": 4}')
    base = sizes.pop("base", None)
    if base is not None and base not in CONFIGS:
        raise ConfigError(f"configuration {path}: base={base!r}: choose one of "
                          f"{', '.join(CONFIGS)}")
    try:
        return derive(Config() if base is None else CONFIGS[base], {"name": path.stem, **sizes})
    except ConfigError as error:
        raise ConfigError(f"configuration {path}: {error}") from None
