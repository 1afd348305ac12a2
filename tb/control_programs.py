"""Random programs for the control path."""

from gradmill_hw.isa import (
    BASES,
    INSTRUCTIONS,
    LOOPS,
    OPERANDS,
    TILE_QUEUES,
    Opcode,
    encode,
    legal_tokens,
    token,
)
from gradmill_hw.regs import ARGUMENTS


__all__ = [
    "COMMANDS",
    "command_bits",
    "random_chain",
    "random_command",
    "random_fields",
    "random_program",
]

#: Opcodes that a queue executes.
COMMANDS = [opcode for opcode in Opcode if opcode.queue in TILE_QUEUES]


def random_register(rng):
    """Number of a base register; some come often."""
    return rng.choice([0, 1, 1, 2, 2, BASES - 1, BASES - 1, rng.randrange(BASES)])


def random_fields(rng, opcode):
    """Legal random values for every field of ``opcode``."""
    fields = {}
    for field in INSTRUCTIONS[opcode].fields:
        if field.name.startswith("reserved") or field.name == "opcode":
            continue
        if field.name in ("wait", "post"):
            fields[field.name] = rng.getrandbits(field.width) & legal_tokens(opcode.queue)
        elif field.enum is not None:
            fields[field.name] = rng.choice([*field.enum])
        elif field.name.endswith("_base"):
            fields[field.name] = random_register(rng)
        else:
            fields[field.name] = rng.getrandbits(field.width)
    return fields


def random_command(rng):
    """One command with random semaphores, which need not be met."""
    opcode = rng.choice(COMMANDS)
    return [encode(opcode, **random_fields(rng, opcode))]


def random_chain(rng):
    """Commands of which each waits for the one before, of another queue."""
    lines, previous = [], None
    channel = rng.randrange(2)
    queues = [rng.choice(TILE_QUEUES)]
    for _ in range(rng.randrange(4)):
        queues.append(rng.choice([q for q in TILE_QUEUES if q != queues[-1]]))
    for place, queue in enumerate(queues):
        opcode = next(o for o in COMMANDS if o.queue == queue)
        fields = random_fields(rng, opcode)
        fields["wait"] = token(previous, channel) if place else 0
        fields["post"] = token(queues[place + 1], channel) if place + 1 < len(queues) else 0
        lines.append(encode(opcode, **fields))
        previous = queue
    return lines


def random_base(rng, depth):
    """A base register of any kind, mostly of a loop around or behind it."""
    fields = random_fields(rng, Opcode.BASE)
    fields.update(
        register=random_register(rng) or 1,
        level=min(LOOPS - 1, rng.choice([depth, max(0, depth - 1), rng.randrange(LOOPS)])),
        argument=rng.randrange(ARGUMENTS + 1),
        period=rng.choice([0, 1, 2, 3, 5, 0xFFFF]),
        wait=0,
        post=0,
    )
    return encode(Opcode.BASE, **fields)


def random_program(rng, *, length=12, command=random_command, iterations=3):
    """Instructions with loops up to four deep, ended by ``HALT``.

    ``command(rng)`` gives the raw instructions of one step.
    """

    def block(depth, length):
        lines = []
        for _ in range(rng.randrange(1, length + 1)):
            kind = rng.random()
            if kind < 0.2 and depth < LOOPS:
                count = rng.randrange(1, iterations + 1)
                lines += [
                    encode(Opcode.LOOP, count=count),
                    *block(depth + 1, length // 2 or 1),
                    encode(Opcode.NEXT),
                ]
            elif kind < 0.4:
                lines.append(random_base(rng, depth))
            elif kind < 0.45:
                lines.append(encode(Opcode.FENCE))
            else:
                lines += command(rng)
        return lines

    return [*block(0, length), encode(Opcode.HALT)]


def command_bits(command):
    """A command of the model as the bits of its ``command_layout``."""
    layout = INSTRUCTIONS[command.opcode]
    bits, lsb = 0, 0
    values = [
        (8, command.fields["layer"]),
        *((16, command.op[k]) for k in range(OPERANDS)),
        (40, command.mem),
        *((f.width, command.fields[f.name]) for f in layout.body),
    ]
    for width, value in values:
        bits |= int(value) << lsb
        lsb += width
    return bits
