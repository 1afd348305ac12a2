"""What the driver needs of an accelerator, whichever backend it is."""

from abc import ABC, abstractmethod

import numpy as np

from gradmill_hw.config import get_config
from gradmill_hw.isa import INSTRUCTION_BYTES, Class, Queue, decode
from gradmill_hw.regs import (
    ARGUMENTS,
    COUNTERS,
    MAGIC,
    REGS,
    SCALARS,
    SEQUENCER,
    TILE_BYTES,
    VERSION,
    Error,
    Tier,
)
from gradmill_hw.stash.formats import SLOTS
from gradmill_hw.stash.tables import STEPS, all_tables

from .errors import BackendError, DeviceError, DeviceTimeout
from .heap import Heap
from .program import disassemble, token_names


__all__ = ["DEFAULT_BYTES", "Device"]

#: Queues whose instructions have a side in a memory tier.
_TRANSFERS = Queue.LOAD, Queue.STORE, Queue.COPY
#: Bytes of a memory tier unless the caller says otherwise.
DEFAULT_BYTES = 1 << 26


class Device(ABC):
    """One accelerator with its two memories.

    A context manager: ``with gradmill.open("emulator") as device: ...``.

    Parameters
    ----------
    config : Config or str
        Sizes of the accelerator; the hardware must have the same.
    near_bytes, far_bytes : int
        Memory that the program may use, from address 0 up; the windows grant all of it.
    seed : int
        Key of the random numbers.
    watchdog : int
        Cycles without progress that are an error.
    """

    def __init__(self, config, *, near_bytes=DEFAULT_BYTES, far_bytes=DEFAULT_BYTES, seed=0,
                 watchdog=1_000_000):
        self.config = get_config(config)
        self._sizes = {Tier.NEAR: near_bytes, Tier.FAR: far_bytes}
        for tier, size in self._sizes.items():
            name = f"{tier.name.lower()}_bytes"
            if size <= 0 or size % 4096 or size > 1 << self.config.address_bits:
                raise BackendError(f"{name}={size}: choose a multiple of 4096 up to "
                                   f"2**{self.config.address_bits}")
        self._host = {}
        self.seed, self.watchdog = seed, watchdog
        #: Room in near memory; programs and their data live in pieces of it.
        self.heap = Heap("near", near_bytes)
        #: Room in far memory.
        self.far_heap = Heap("far", far_bytes)
        #: Beats per cycle of far memory, both directions together, if known.
        self.far_beats = None
        self._resident = None
        self._tables = None
        #: Called with the program addresses of each run, before it starts, if set.
        self.on_run = None

    # what a backend provides ------------------------------------------------------------------

    @abstractmethod
    def _read_word(self, offset):
        """Word of the register at byte ``offset``."""

    @abstractmethod
    def _write_word(self, offset, value):
        """Write the register at byte ``offset``."""

    @abstractmethod
    def _read_bytes(self, tier, address, count):
        """``count`` bytes of memory as uint8, not shared with the memory."""

    @abstractmethod
    def _write_bytes(self, tier, address, data):
        """Write uint8 ``data`` to memory."""

    @abstractmethod
    def _wait(self, timeout_cycles):
        """Whether the interrupt came within ``timeout_cycles``."""

    @abstractmethod
    def close(self):
        """Release the backend; a second call does nothing."""

    # registers --------------------------------------------------------------------------------

    @property
    def tiles(self):
        """Numbers of the tiles."""
        return range(self.config.tiles)

    def read_register(self, name, tile=0):
        """Fields of a register of a tile by name, as ``{field: value}``."""
        register = REGS[name]
        return register.unpack(self._read_word(tile * TILE_BYTES + register.offset))

    def write_register(self, name, tile=0, **fields):
        """Write a register of a tile; fields that are not named are written as 0."""
        register = REGS[name]
        self._write_word(tile * TILE_BYTES + register.offset, register.pack(**fields))

    def read_pair(self, name, tile=0):
        """Value of the registers ``<name>_lo`` and ``<name>_hi`` of a tile."""
        low = self.read_register(f"{name}_lo", tile)["value"]
        return low | self.read_register(f"{name}_hi", tile)["value"] << 32

    def write_pair(self, name, value, tile=0):
        """Write the registers ``<name>_lo`` and ``<name>_hi`` of a tile."""
        self.write_register(f"{name}_lo", tile, value=value & 0xffff_ffff)
        self.write_register(f"{name}_hi", tile, value=value >> 32)

    def _refused(self, what, offset):
        """The exception for a register access that was answered with an error."""
        names = [register.name for register in REGS if register.offset == offset % TILE_BYTES]
        return BackendError(f"the device refuses to {what} {names[0] if names else 'a register'} "
                            f"at {offset:#x}; while it is busy or its windows are locked, some "
                            "registers are frozen")

    # memories ---------------------------------------------------------------------------------

    def size(self, tier):
        """Bytes of a memory tier."""
        return self._sizes[Tier(tier)]

    def write_memory(self, tier, address, array, *, cls=Class.DATA):
        """Copy an array, or bytes, to a memory tier; ``cls`` says what it is, for the account."""
        if isinstance(array, bytes | bytearray | memoryview):
            array = np.frombuffer(array, np.uint8)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._account(tier, address, data.size, "write", cls)
        self._write_bytes(Tier(tier), address, data)

    def read_memory(self, tier, address, shape, dtype=np.uint8, *, cls=Class.RESULT):
        """A copy of the array of ``shape`` and ``dtype`` that lies at ``address``."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._account(tier, address, count, "read", cls)
        return self._read_bytes(Tier(tier), address, count).view(dtype).reshape(shape)

    def _account(self, tier, address, count, direction, cls):
        tier = Tier(tier)
        if address < 0 or address + count > self._sizes[tier]:
            raise BackendError(f"{direction} of {count} bytes at {address:#x}: the {tier.name} "
                               f"memory ends at {self._sizes[tier]:#x}")
        name = f"host_{direction}_{Class(cls).name}_bytes".lower()
        self._host[name] = self._host.get(name, 0) + count

    def host_bytes(self):
        """Bytes that the host moved over its own link, by direction and traffic class."""
        return {f"host_{direction}_{cls.name}_bytes".lower():
                self._host.get(f"host_{direction}_{cls.name}_bytes".lower(), 0)
                for direction in ("read", "write") for cls in Class}

    def claim(self, owner):
        """Make ``owner`` the one whose data is in the on-chip memories; whether it was already."""
        was, self._resident = self._resident is owner and owner is not None, owner
        return was

    # jobs -------------------------------------------------------------------------------------

    def _start_up(self):
        """Check that the hardware is the one expected, grant the windows, set seed and watchdog."""
        found = self.read_register("id")["value"], self.read_register("version")["value"]
        if found != (MAGIC, VERSION):
            raise BackendError(f"there is no Gradmill of version {VERSION} here: id and version "
                               f"read {found[0]:#x} and {found[1]}")
        for name in ("config_array", "config_bus", "config_depth", "config_tensor_rows",
                     "config_acc_rows", "config_mask_rows"):
            expected = REGS[name].unpack(REGS[name].reset(self.config))
            found = self.read_register(name)
            if found != expected:
                raise BackendError(f"the hardware is not of configuration {self.config.name!r}: "
                                   f"{name} reads {found}, not {expected}")
        for tile in self.tiles:
            for tier, size in self._sizes.items():
                window = f"{tier.name.lower()}_window0"
                self.write_pair(f"{window}_base", 0, tile)
                self.write_pair(f"{window}_limit", size, tile)
                self.write_register(f"{window}_control", tile, read=1, write=1)
            self.write_register("seed", tile, value=self.seed)
            self.write_register("watchdog", tile, value=self.watchdog)
            self.write_register("irq_enable", tile, done=1, error=1)
        self.write_tables()

    def write_tables(self, tables=()):
        """Let the stash codecs of all tiles hold the presets of ``nonuniform``, with ``tables``
        (slot -> Table) in their place; what they hold already is not written."""
        wanted = all_tables(tables)
        if not self.config.stash or wanted == self._tables:
            return
        for tile in self.tiles:
            for step in range(STEPS):
                codes = {slot: table.codes[step] for slot, table in wanted.items()}
                self.write_register("stash_encode", tile, step=step, **codes, write=1)
            for number, slot in enumerate(SLOTS):
                bins = zip(wanted[slot].low, wanted[slot].spread, strict=True)
                for code, (low, spread) in enumerate(bins):
                    self.write_register("stash_decode", tile, code=code, slot=number, low=low,
                                        spread=spread, write=1)
        self._tables = wanted

    def run(self, programs, arguments=(), scalars=(), *, step=None, timeout_cycles=10**9):
        """Run one program on each tile to its end.

        Parameters
        ----------
        programs : int or sequence of int
            Address in near memory of the program of tile 0, or of each tile from 0 up; the tiles
            behind stay idle.
        arguments : sequence of int
            Argument registers from 0 up.
        scalars : sequence of float
            Scalar registers from 0 up.
        step : int or None
            Training step, key of the random numbers; ``None`` leaves it.
        timeout_cycles : int
            Cycles after which to give up.

        Raises
        ------
        DeviceError
            The device stopped with an error. It stays stopped until :meth:`reset`.
        DeviceTimeout
            It is still running.
        """
        if len(arguments) > ARGUMENTS or len(scalars) > SCALARS:
            raise ValueError(f"{len(arguments)} arguments and {len(scalars)} scalars: there are "
                             f"{ARGUMENTS} and {SCALARS} registers")
        programs = [programs] if isinstance(programs, int | np.integer) else list(programs)
        if not 1 <= len(programs) <= len(self.tiles):
            raise ValueError(f"{len(programs)} programs: the device has {len(self.tiles)} tiles")
        for program in programs:
            if program % INSTRUCTION_BYTES:
                raise ValueError(f"a program starts at a multiple of {INSTRUCTION_BYTES}, not at "
                                 f"{program:#x}")
        if self.on_run is not None:
            self.on_run(programs)
        scalars = np.array(scalars, np.float32).view(np.uint32)
        for tile, program in enumerate(programs):
            for k, value in enumerate(arguments):
                self.write_pair(f"argument{k}", value, tile)
            for k, bits in enumerate(scalars):
                self.write_register(f"scalar{k}", tile, value=bits)
            if step is not None:
                self.write_register("step", tile, value=step)
            self.write_pair("program", program, tile)
            self.write_register("status", tile, done=1)
        for tile in self.tiles:  # also of those that stay idle: they share the interrupt
            self.write_register("irq_status", tile, done=1, error=1)
        for tile in range(len(programs)):
            self.write_register("ctrl", tile, start=1)
        self._finish(set(range(len(programs))), timeout_cycles)

    def _finish(self, running, timeout_cycles):
        """Wait until every tile of ``running`` has ended its program."""
        while running:
            if not self._wait(timeout_cycles):
                tile = min(running)
                text = f"tile {tile} has not ended its program in {timeout_cycles} cycles"
                raise DeviceTimeout("\n  ".join([text, *self._waiting(tile)]))
            events = {tile: self.read_register("irq_status", tile) for tile in sorted(running)}
            if not any(event["done"] or event["error"] for event in events.values()):
                raise BackendError("interrupt without an event of a running tile: reset the device")
            failed = [tile for tile in sorted(running) if events[tile]["error"]]
            if failed:
                raise self._error(self._culprit(failed))
            for tile, event in events.items():
                if event["done"]:
                    running.discard(tile)
                    if running:
                        self.write_register("irq_status", tile, done=1)

    def _culprit(self, failed):
        """Of the tiles that failed, the first one that did not just wait for another."""
        codes = {tile: self.read_register("error", tile)["code"] for tile in failed}
        return min(failed, key=lambda tile: (codes[tile] == Error.WATCHDOG, tile))

    def _error(self, tile):
        """The exception for the error that the registers of a tile describe."""
        fields = self.read_register("error", tile)
        error = Error(fields["code"]).name
        queue = None if fields["queue"] == SEQUENCER else Queue(fields["queue"])
        pc, address = self.read_pair("error_pc", tile), self.read_pair("error_address", tile)
        if fields["code"] == Error.WATCHDOG:
            pc, queue = min(self._blocked(tile), default=(pc, queue))
        instruction = self._instruction(pc)
        where = "sequencer" if queue is None else f"{queue.name.lower()} queue"
        if len(self.tiles) > 1:
            where += f" of tile {tile}"
        place = f", address {address:#x}" if address else ""
        text = f"{error} in the {where}{place}: {instruction}"
        text = "\n  ".join([text, *self._waiting(tile)])
        return DeviceError(text, error=error, tile=tile, queue=queue, instruction=instruction,
                           address=address, far=queue in _TRANSFERS and self._uses_far(pc))

    def _uses_far(self, pc):
        """Whether the transfer at ``pc`` has a side in far memory."""
        _, fields = decode(self._read_bytes(Tier.NEAR, pc, INSTRUCTION_BYTES).tobytes())
        return Tier.FAR in (fields["tier"], fields.get("target_tier"))

    def _instruction(self, pc):
        if pc + INSTRUCTION_BYTES > self._sizes[Tier.NEAR]:
            return f"{pc:#010x}  (outside near memory)"
        return disassemble(self._read_bytes(Tier.NEAR, pc, INSTRUCTION_BYTES).tobytes(), pc)

    def _blocked(self, tile):
        """Program counter and queue of each instruction that waits for semaphores, or for a
        neighbour."""
        for queue in self.config.queues:
            name = f"waiting_{queue.name.lower()}"
            state = self.read_register(name, tile)
            linked = state["started"] and queue in (Queue.LINK_IN, Queue.LINK_OUT)
            if state["valid"] and (linked or (not state["started"] and state["missing"])):
                yield self.read_pair(f"{name}_pc", tile), queue

    def _waiting(self, tile):
        """One line for each queue of a tile that has an unfinished instruction."""
        for queue in self.config.queues:
            name = queue.name.lower()
            state = self.read_register(f"waiting_{name}", tile)
            if not state["valid"]:
                continue
            if state["started"]:
                what = "executes"
            elif state["missing"]:
                what = f"waits for {token_names(state['missing'])} before"
            else:
                what = "is about to execute"
            pc = self.read_pair(f"waiting_{name}_pc", tile)
            yield f"{name} queue {what} {self._instruction(pc)}"

    def counters(self, tile=None):
        """Counters by name, see :data:`gradmill_hw.regs.COUNTERS`: of one tile, or summed over all
        (``cycles``: of the tile that ran longest).

        Those with ``timing`` set are 0 on the emulator, which has no clock.
        """
        if tile is not None:
            return {c.name: self.read_pair(f"counter_{c.name}", tile) for c in COUNTERS}
        each = [self.counters(tile) for tile in self.tiles]
        total = {name: sum(counters[name] for counters in each) for name in each[0]}
        return {**total, "cycles": max(counters["cycles"] for counters in each)}

    def stash(self, tile=0):
        """Sets of activations that a tile keeps for backward: ``(now, most)``."""
        fields = self.read_register("stash", tile)
        return fields["sets"], fields["highest"]

    def clear_counters(self):
        """Set the counters of the device and of the host link to zero."""
        for tile in self.tiles:
            self.write_register("ctrl", tile, clear_counters=1)
        self._host.clear()

    def flags(self, *, clear=True):
        """Names of the sticky flags that a tile has set, see register ``flags``; clears them."""
        names = set()
        for tile in self.tiles:
            found = {name for name, value in self.read_register("flags", tile).items() if value}
            if clear:
                self.write_register("flags", tile, **dict.fromkeys(found, 1))
            names |= found
        return names

    def reset(self, *, timeout_cycles=10**6):
        """Soft reset: stop, drain the bus, return to the initial state. Memories keep."""
        for tile in self.tiles:
            self.write_register("ctrl", tile, soft_reset=1)
        waiting = set(self.tiles)
        for _ in range(timeout_cycles // 10):
            for tile in sorted(waiting):
                status = self.read_register("status", tile)
                if not (status["resetting"] or status["busy"] or status["error"]):
                    waiting.discard(tile)
            if not waiting:
                return
        raise DeviceTimeout(f"the soft reset is not finished after {timeout_cycles} cycles")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
