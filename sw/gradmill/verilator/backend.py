"""Device whose hardware is the simulated RTL."""

import ctypes
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from gradmill_hw.isa import numbers

from gradmill_hw.config import get_config
from gradmill_hw.regs import Tier

from ..device import Device
from ..errors import BackendError, GradmillError
from .build import board_library, emit_verilog, fst_available


__all__ = ["CHANNELS", "BusRuleError", "Fault", "VerilatorDevice"]

#: Stall chances are given by these names.
CHANNELS = ("ar", "r", "aw", "w", "b")
#: Cycles between looks at the keyboard interrupt.
_SLICE = 1 << 18


class BusRuleError(GradmillError):
    """The RTL broke a rule of a bus: an error in the hardware, not in the program."""


@dataclass(frozen=True)
class Fault:
    """Bytes ``first`` to ``last`` of a tier answer reads (or ``writes``) with ``response``."""

    tier: Tier
    first: int
    last: int
    writes: bool = False
    response: int = 2


class _Timing(ctypes.Structure):
    _fields_ = [("read_latency", ctypes.c_uint32), ("write_latency", ctypes.c_uint32),
                ("beats", ctypes.c_uint32), ("cycles", ctypes.c_uint32),
                ("outstanding", ctypes.c_uint32), ("stall", ctypes.c_uint32 * len(CHANNELS)),
                ("seed", ctypes.c_uint64)]


class _Fault(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint64), ("last", ctypes.c_uint64),
                ("writes", ctypes.c_uint8), ("response", ctypes.c_uint8)]


class _Traffic(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in
                ("read_bytes", "write_bytes", "read_bursts", "write_bursts", "overlaps")]


def _load(path):
    """The library with its functions typed."""
    library = ctypes.CDLL(str(path))
    board, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    signatures = {
        "board_beat_bytes": (u32, []),
        "board_new": (board, [ctypes.c_void_p, u64, ctypes.c_void_p, u64, ctypes.c_char_p]),
        "board_free": (None, [board]),
        "board_reset": (None, [board]),
        "board_timing": (None, [board, ctypes.c_int, ctypes.POINTER(_Timing)]),
        "board_fault": (ctypes.c_int, [board, ctypes.c_int, ctypes.POINTER(_Fault)]),
        "board_clear_faults": (None, [board]),
        "board_write": (ctypes.c_int, [board, u32, u32]),
        "board_read": (ctypes.c_int, [board, u32, ctypes.POINTER(u32)]),
        "board_run": (u64, [board, u64]),
        "board_idle": (None, [board, u64]),
        "board_record": (None, [board, ctypes.c_int]),
        "board_event_count": (u64, [board]),
        "board_take_events": (None, [board, ctypes.c_void_p]),
        "board_irq": (ctypes.c_int, [board]),
        "board_cycles": (u64, [board]),
        "board_traffic": (None, [board, ctypes.c_int, ctypes.POINTER(_Traffic)]),
        "board_verdict": (ctypes.c_char_p, [board]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


#: What the board records: bits of the port ``activity`` from bit 32 * index up.
_EVENT = np.dtype([("cycle", "<u8"), ("index", "<u4"), ("bits", "<u4")])


def _per_tier(**options):
    """Options of the near and of the far memory."""
    for name, value in options.items():
        if isinstance(value, tuple) and len(value) != len(Tier):
            raise BackendError(f"{name}={value}: give one value, or a pair for near and far memory")
    return [{name: value[tier] if isinstance(value, tuple) else value
             for name, value in options.items()} for tier in Tier]


def _timing(*, latency, bandwidth, stall, outstanding, seed):
    if not isinstance(latency, int) or not 1 <= latency < 1 << 20:
        raise BackendError(f"latency={latency}: choose 1 to {(1 << 20) - 1} cycles")
    if not isinstance(outstanding, int) or not 1 <= outstanding <= 256:
        raise BackendError(f"outstanding={outstanding}: choose 1 to 256 bursts")
    beats = cycles = 0
    if bandwidth is not None:
        ratio = Fraction(bandwidth).limit_denominator(1000) if np.isfinite(bandwidth) else 0
        if not 0 < ratio <= 2:
            raise BackendError(f"bandwidth={bandwidth}: choose a number above 0 up to 2 beats per "
                               "cycle, or None for no limit")
        beats, cycles = ratio.numerator, ratio.denominator
    chances = stall if isinstance(stall, dict) else dict.fromkeys(CHANNELS, stall)
    if not set(chances) <= set(CHANNELS) or not all(0 <= c <= 1 for c in chances.values()):
        raise BackendError(f"stall={stall}: give a chance from 0 to 1, or a dictionary of such by "
                           f"{', '.join(CHANNELS)}")
    steps = [round(4096 * chances.get(channel, 0)) for channel in CHANNELS]
    return _Timing(latency, latency, beats, cycles, outstanding,
                   (ctypes.c_uint32 * len(CHANNELS))(*steps), seed)


class VerilatorDevice(Device):
    """The RTL under Verilator, with both memories and a bus monitor, in this process.

    The first use of a configuration builds its simulator, which takes minutes; it is kept
    in ``build/board`` of a checkout, or in the user's cache. Where an option takes a value, a pair
    of values sets the near and the far memory apart.

    Parameters
    ----------
    latency : int
        Cycles from the address of a read to its first beat, and from the last beat of a write to
        its response.
    bandwidth : float or None
        Beats per cycle, both directions together; ``None`` for no limit.
    stall : float or dict
        Chance that a channel pauses for a cycle, or chances by channel: ``ar r aw w b``.
    outstanding : int
        Bursts that the memory accepts before their data, in each direction.
    waveform : path-like or None
        File for a waveform, ``.vcd`` or ``.fst``.
    verilog : Path or None
        Verilog with the top module ``gradmill``; by default that of ``config``.
    progress : bool
        Whether to say when a simulator is built.
    start : bool
        Whether to check the hardware and to set its windows.
    """

    def __init__(self, config, *, latency=16, bandwidth=None, stall=0.0, outstanding=16,
                 waveform=None, verilog=None, progress=True, start=True, **options):
        self._board = None
        config = get_config(config)
        super().__init__(config, **options)
        each = _per_tier(latency=latency, bandwidth=bandwidth, stall=stall,
                         outstanding=outstanding)
        timings = [_timing(**each[tier], seed=2 * self.seed + tier) for tier in Tier]
        self.waveform = self._waveform(waveform)
        verilog = verilog or emit_verilog(config, progress=progress)
        wave = self.waveform and self.waveform.suffix[1:]
        self._library = _load(board_library(Path(verilog), wave=wave, progress=progress,
                                            name=f"configuration {config.name!r}"))
        found = self._library.board_beat_bytes()
        if found != config.beat_bytes:
            raise BackendError(f"the Verilog has beats of {found} bytes, configuration "
                               f"{config.name!r} of {config.beat_bytes}")
        self.memories = [np.zeros(self.size(tier), np.uint8) for tier in Tier]
        pointers = [part for memory in self.memories for part in (memory.ctypes.data, memory.size)]
        self._board = self._library.board_new(
            *pointers, str(self.waveform).encode() if self.waveform else None)
        for tier in Tier:
            self._library.board_timing(self._board, tier, timings[tier])
        self.hard_reset()  # a board that was never reset cannot be released
        far = each[Tier.FAR]["bandwidth"]
        self.far_beats = far
        if start:
            self._start_up()

    @staticmethod
    def _waveform(path):
        if path is None:
            return None
        path = Path(path)
        if path.suffix not in (".vcd", ".fst"):
            raise BackendError(f"waveform={str(path)!r}: the name must end in .vcd or .fst")
        if path.suffix == ".fst" and not fst_available():
            print("gradmill: FST waveforms need the headers of lz4 and zlib (Debian: liblz4-dev "
                  "zlib1g-dev); writing VCD")
            path = path.with_suffix(".vcd")
        return path

    def _judge(self):
        verdict = self._library.board_verdict(self._board)
        if verdict:
            raise BusRuleError(verdict.decode())

    def _read_word(self, offset):
        value = ctypes.c_uint32()
        self._answer("read", offset, self._library.board_read(self._board, offset, value))
        return value.value

    def _write_word(self, offset, value):
        self._answer("write", offset, self._library.board_write(self._board, offset, value))

    def _answer(self, what, offset, answer):
        self._judge()
        if answer < 0:
            raise BusRuleError(f"no answer to the {what} of the register at {offset:#x}")
        if answer:
            raise self._refused(what, offset)

    def _read_bytes(self, tier, address, count):
        return self.memories[tier][address:address + count].copy()

    def _write_bytes(self, tier, address, data):
        self.memories[tier][address:address + data.size] = data

    def _wait(self, timeout_cycles):
        while timeout_cycles > 0 and not self._library.board_irq(self._board):
            timeout_cycles -= self._library.board_run(self._board, min(timeout_cycles, _SLICE))
            self._judge()
        return bool(self._library.board_irq(self._board))

    # what only a simulated board has ----------------------------------------------------------

    @property
    def cycles(self):
        """Clock cycles since the board exists."""
        return self._library.board_cycles(self._board)

    def record_activity(self, on=True):
        """Record what begins and ends in every tile from now on, or no longer."""
        self._library.board_record(self._board, on)

    def take_activity(self):
        """What was recorded, and forget it: array of ``(cycle, tile, queue, begins)``."""
        events = np.zeros(self._library.board_event_count(self._board), _EVENT)
        self._library.board_take_events(self._board, events.ctypes.data)
        event, bit = np.nonzero(events["bits"][:, None] >> np.arange(32, dtype=np.uint32) & 1)
        position = events["index"][event].astype(np.int64) * 32 + bit
        tile, rest = np.divmod(position, 2 * numbers(self.config.queues))
        ends, queue = np.divmod(rest, numbers(self.config.queues))
        return np.rec.fromarrays([events["cycle"][event].astype(np.int64), tile, queue, ends == 0],
                                 names="cycle,tile,queue,begins")

    def idle(self, cycles):
        """Let the clock run."""
        self._library.board_idle(self._board, cycles)
        self._judge()

    def hard_reset(self):
        """Reset pin of the device and of both memories; their contents stay."""
        self._library.board_reset(self._board)

    def inject(self, fault):
        """Add a :class:`Fault`, at most eight a tier."""
        data = _Fault(fault.first, fault.last, fault.writes, fault.response)
        if self._library.board_fault(self._board, fault.tier, data):
            raise BackendError("a tier takes at most eight faults")

    def clear_faults(self):
        """Memories answer without errors again."""
        self._library.board_clear_faults(self._board)

    def traffic(self):
        """What the bus monitors saw since the board exists.

        By tier: bytes read in whole beats, bytes written as strobes count them, bursts of each
        direction, and bursts that overlap an unfinished one of the other direction.
        """
        result = {}
        for tier in Tier:
            traffic = _Traffic()
            self._library.board_traffic(self._board, tier, traffic)
            result |= {f"{tier.name.lower()}_{name}": getattr(traffic, name)
                       for name, _ in _Traffic._fields_}
        return result

    def close(self):
        if self._board is not None:
            self._library.board_free(self._board)
            self._board = None

    def __del__(self):
        self.close()
