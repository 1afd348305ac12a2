"""The register map of a tile: the only place where an address, a bit or a reset value is written.

Every tile has a window of :data:`TILE_BYTES`; address bits above it select the tile. Values wider
than a word are pairs ``<name>_lo``, ``<name>_hi``; of a counter, reading ``lo`` freezes ``hi``
until the next ``lo``.
"""

from dataclasses import dataclass
from enum import IntEnum

from .isa import Class, Queue
from .regmap import Access, Field, Register, RegisterMap
from .stash.formats import SLOTS


__all__ = [
    "ARGUMENTS", "COUNTERS", "COUNTER_INDEX", "COUNTER_OFFSET", "MAGIC", "REGS", "SCALARS",
    "SEMAPHORE_MAX", "SEQUENCER", "TILE_BYTES", "UNLOCKED", "VERSION", "WINDOWS",
    "Counter", "Error", "Tier", "byte_counter",
]

#: Bytes of a tile's registers.
TILE_BYTES = 0x1000
#: "GRML".
MAGIC = 0x4c4d_5247
#: Of the register map and the instruction set; the driver refuses another one.
VERSION = 3
#: Registers that the host writes for ``BASE``.
ARGUMENTS = 8
#: Registers that the host writes for ``VECTOR``.
SCALARS = 8
#: Windows per memory tier.
WINDOWS = 4
#: Value of ``window_lock`` that leaves the windows writable; every other value locks them.
UNLOCKED = 0x5a
#: Most tokens that a semaphore holds.
SEMAPHORE_MAX = 255
#: Byte address of the first counter; all registers behind it are counters.
COUNTER_OFFSET = 0x400
#: Queue number in ``error`` when the sequencer itself failed.
SEQUENCER = 15


class Tier(IntEnum):
    """Memory tiers."""
    NEAR = 0
    FAR  = 1


class Error(IntEnum):
    """What stopped a tile; ``doc`` says it in words."""
    NONE                = 0,  "no error"
    ILLEGAL_INSTRUCTION = 1,  "unknown opcode, reserved bits, field or semaphore that cannot be"
    WINDOW              = 2,  "a byte outside the windows granted for the tier"
    ALIGNMENT           = 3,  "memory address or stride that is not a whole beat"
    COUNT               = 4,  "a count of zero"
    KIND                = 5,  "unknown row format"
    CODEC               = 6,  "stash format that is unknown, not built, or not for these rows"
    BUS_READ            = 7,  "error response to a read"
    BUS_WRITE           = 8,  "error response to a write"
    RANGE               = 9,  "row address beyond an on-chip memory"
    SEMAPHORE_OVERFLOW  = 10, "post to a semaphore that is full"
    WATCHDOG            = 11, "no progress for `watchdog` cycles"
    LOOP                = 12, "more than four nested loops, or `NEXT` without `LOOP`"
    FETCH               = 13, "instruction outside the near windows, or error response to it"
    LINK                = 14, "a row of a link that was not expected: its tag, number or credit"
    STASH               = 15, "a stash block with an unknown tag, or cut short"

    def __new__(cls, value, doc):
        self = int.__new__(cls, value)
        self._value_ = value
        self.doc = doc
        return self


@dataclass(frozen=True)
class Counter:
    """A 64-bit counter. ``timing``: depends on the clock, so that only RTL has it."""
    index:  int
    name:   str
    doc:    str
    timing: bool = False


def byte_counter(tier, write, cls):
    """Index of the counter of bytes in one direction and traffic class."""
    return 64 + 16 * tier + 8 * bool(write) + cls


def _counters():
    events = [
        ("cycles",               "cycles from start to done or error", True),
        ("macs",                 "multiply-accumulates of finished products: m·k·c each", False),
        ("array_rows",           "rows that entered the array", False),
        ("matrix_stall",         "cycles in which the matrix unit had work but took no row", True),
        ("matrix_stall_weights", "those of them spent waiting for weights", True),
        ("vector_rows",          "rows that entered the vector pipeline", False),
        ("vector_stall",         "cycles in which the vector unit had work but took no row", True),
    ]
    for queue in Queue:
        events.append((f"instructions_{queue.name.lower()}", "completed instructions", False))
    for queue in Queue:
        events.append((f"busy_{queue.name.lower()}", "cycles with an instruction in execution",
                       True))
    for queue in Queue:
        events.append((f"wait_{queue.name.lower()}",
                       "cycles in which the head of the queue waited for semaphores", True))
    events += [
        ("fetch_stall",    "cycles in which the sequencer waited for an instruction", True),
        ("link_in_rows",   "rows received from neighbours", False),
        ("link_in_stall",  "cycles in which a receive waited for its neighbour", True),
        ("link_out_rows",  "rows sent to neighbours", False),
        ("link_out_stall", "cycles in which a send waited for memory or its neighbour", True),
        ("stash_rows",     "rows that were stored in a stash format", False),
        ("stash_saturated", "outliers that found no room in their block", False),
    ]
    for index, event in enumerate(events):
        yield Counter(index, *event)
    for tier in Tier:
        for write, direction in enumerate(("read", "write")):
            for cls in Class:
                yield Counter(byte_counter(tier, write, cls),
                              f"{tier.name}_{direction}_{cls.name}_bytes".lower(),
                              f"bytes of {cls.name.lower()} in whole beats, {tier.name.lower()} "
                              f"memory, {direction}")


#: In the order of their indices.
COUNTERS = tuple(_counters())
COUNTER_INDEX = {counter.name: counter.index for counter in COUNTERS}


def _field(name, width, access, doc, **init):
    return Field(name, width, Access(access), doc, **init)


def _word(offset, name, access, doc, **options):
    init = {key: options.pop(key) for key in ("init", "size") if key in options}
    return Register(offset, name, doc, (_field("value", 32, access, doc, **init),), **options)


def _pair(offset, name, access, doc, bits=40, **options):
    """A value of two words."""
    high = f"bits {bits - 1} to 32"
    yield _word(offset, f"{name}_lo", access, f"{doc}: bits 31 to 0", **options)
    yield Register(offset + 4, f"{name}_hi", f"{doc}: {high}",
                   (_field("value", bits - 32, access, high),), **options)


def _identity():
    yield _word(0x00, "id", "const", "says that the device is there", init=MAGIC)
    yield _word(0x04, "version", "const", "of the registers and instructions", init=VERSION)
    yield Register(0x08, "config_array", "sizes of the array", (
        _field("n",             8, "const", "rows and columns of the array", size="n"),
        _field("tiles",         8, "const", "tiles in the chain", size="tiles"),
        _field("mantissa_bits", 8, "const", "bits of a mantissa", size="mantissa_bits"),
        _field("banks",         8, "const", "banks of a memory", size="banks"),
    ))
    yield Register(0x0c, "config_bus", "sizes of the buses", (
        _field("bus_bits",     16, "const", "width of a beat, in bits", size="bus_bits"),
        _field("burst_beats",  16, "const", "longest burst, in beats", size="burst_beats"),
    ))
    yield Register(0x10, "config_depth", "sizes of the queues", (
        _field("address_bits",    8, "const", "width of an address", size="address_bits"),
        _field("reads_in_flight", 8, "const", "outstanding read bursts", size="reads_in_flight"),
        _field("queue_depth",     8, "const", "commands of a queue", size="queue_depth"),
        _field("stash",           1, "const", "the stash codec is built", size="stash"),
    ))
    for offset, memory in ((0x14, "tensor_rows"), (0x18, "acc_rows"), (0x1c, "mask_rows")):
        yield _word(offset, f"config_{memory}", "const", f"rows of the {memory[:-5]} memory",
                    size=memory)
    yield _word(0x20, "tile", "ro", "number of this tile in the chain")


def _job():
    yield Register(0x40, "ctrl", "commands to the tile", (
        _field("start",          1, "w1p", "runs the program; ignored while busy or in error"),
        _field("soft_reset",     1, "w1p", "drains the bus, then returns to the initial state; "
                                           "registers that software owns and counters keep"),
        _field("clear_counters", 1, "w1p", "sets every counter to zero"),
    ))
    yield Register(0x44, "status", "state of the tile", (
        _field("busy",      1, "ro",   "a program runs, or an error or reset is being settled"),
        _field("done",      1, "rw1c", "a program has reached its end"),
        _field("error",     1, "ro",   "a program was stopped; only a soft reset clears it"),
        _field("resetting", 1, "ro",   "a soft reset waits for the bus"),
        _field("locked",    1, "ro",   "the windows cannot be written"),
    ))
    yield Register(0x48, "irq_enable", "which events raise the interrupt", (
        _field("done",  1, "rw", "program at its end"),
        _field("error", 1, "rw", "program stopped"),
    ))
    yield Register(0x4c, "irq_status", "events; write 1 to clear", (
        _field("done",  1, "rw1c", "program at its end"),
        _field("error", 1, "rw1c", "program stopped"),
    ))
    yield from _pair(0x50, "program", "rw", "byte address of the first instruction in near "
                     "memory, a multiple of 64", when="idle")
    yield _word(0x58, "seed", "rw", "key of the random numbers", when="idle")
    yield _word(0x5c, "step", "rw", "training step, key of the random numbers", when="idle")
    yield _word(0x60, "watchdog", "rw", "cycles without progress that are an error; 0 never",
                when="idle")
    yield Register(0x64, "window_lock", "lock of the windows", (
        _field("value", 8, "rw", f"any value but 0x{UNLOCKED:02x} locks until reset",
               init=UNLOCKED),
    ), when="unlocked")
    yield Register(0x68, "flags", "events since last cleared; write 1 to clear", (
        _field("matrix_nonfinite", 1, "rw1c", "the matrix unit wrote an infinity or a NaN"),
        _field("vector_nonfinite", 1, "rw1c", "the vector unit wrote an infinity or a NaN"),
        _field("saturated",        1, "rw1c", "the quantiser saturated a mantissa"),
    ))
    yield Register(0x6c, "stash", "sets of activations that instructions `hold` and `release`", (
        _field("sets",    16, "ro", "now"),
        _field("highest", 16, "ro", "most since the counters were cleared"),
    ))
    yield from _tables()
    yield Register(0x80, "error", "first error since reset", (
        _field("code",  8, "ro", "an `Error`"),
        _field("queue", 8, "ro", f"queue of the instruction, {SEQUENCER} for the sequencer"),
    ))
    yield from _pair(0x84, "error_pc", "ro", "byte address of the instruction")
    yield from _pair(0x8c, "error_address", "ro", "memory address that was refused or failed; "
                     "on-chip row for a range error")


def _tables():
    """Bits are those of the entries that the codec takes; ``write`` is the last of them."""
    kept = "of the stash format `nonuniform`; resets do not change them"
    yield Register(0x70, "stash_encode", f"writes an entry of the encoding tables {kept}", (
        _field("step", 6, "w1p", "magnitudes 4·`step` to 4·`step` + 3"),
        *(_field(slot, bits, "w1p", f"their code in table {slot}")
          for slot, bits in SLOTS.items()),
        _field("write", 1, "w1p", "must be 1"),
    ), when="idle")
    yield Register(0x74, "stash_decode", f"writes an entry of the decoding tables {kept}", (
        _field("code",   max(SLOTS.values()), "w1p", "code"),
        _field("slot",   2, "w1p", f"table: {', '.join(f'{k} {s}' for k, s in enumerate(SLOTS))}"),
        _field("low",    8, "w1p", "smallest magnitude that it reads as"),
        _field("spread", 3, "w1p", "binary logarithm of how many there are"),
        _field("write",  1, "w1p", "must be 1"),
    ), when="idle")


def _waiting():
    for queue in Queue:
        offset, name = 0x100 + 16 * queue, f"waiting_{queue.name.lower()}"
        yield from _pair(offset, f"{name}_pc", "ro", f"byte address of the oldest unfinished "
                         f"instruction of the {queue.name.lower()} queue")
        yield Register(offset + 8, name, f"what the {queue.name.lower()} queue waits for", (
            _field("missing", 16, "ro", "semaphores that the next instruction misses, as in "
                                        "`wait`"),
            _field("valid",    1, "ro", "there is an unfinished instruction"),
            _field("started",  1, "ro", "it is in execution"),
        ))


def _host_values():
    for k in range(ARGUMENTS):
        yield from _pair(0x180 + 8 * k, f"argument{k}", "rw", f"argument register {k}",
                         when="idle")
    for k in range(SCALARS):
        yield _word(0x1c0 + 4 * k, f"scalar{k}", "rw", f"scalar register {k}, binary32",
                    when="idle")
    for tier in Tier:
        for k in range(WINDOWS):
            offset, name = 0x200 + 0x80 * tier + 0x20 * k, f"{tier.name.lower()}_window{k}"
            yield from _pair(offset, f"{name}_base", "rw", "first byte granted", when="unlocked")
            yield from _pair(offset + 8, f"{name}_limit", "rw", "first byte behind; a window "
                             "that reaches behind the last address grants nothing", bits=41,
                             when="unlocked")
            yield Register(offset + 16, f"{name}_control", "what is granted", (
                _field("read",  1, "rw", "loads, and instruction fetch from near memory"),
                _field("write", 1, "rw", "stores"),
            ), when="unlocked")


def _counter_registers():
    for counter in COUNTERS:
        offset, name = COUNTER_OFFSET + 8 * counter.index, f"counter_{counter.name}"
        yield _word(offset, f"{name}_lo", "ro", f"{counter.doc}: bits 31 to 0")
        yield _word(offset + 4, f"{name}_hi", "ro", f"{counter.doc}: bits 63 to 32")


REGS = RegisterMap((*_identity(), *_job(), *_waiting(), *_host_values(), *_counter_registers()))
