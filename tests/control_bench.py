"""What the tests of the control path share: random programs, a memory, a host."""

from gradmill_hw.isa import BASES, INSTRUCTIONS, LOOPS, OPERANDS, Opcode, encode
from gradmill_hw.regs import ARGUMENTS, REGS, TILE_QUEUES
from gradmill_hw.sequencer_model import legal_tokens

COMMANDS = [opcode for opcode in Opcode if opcode.queue is not None]


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
        else:
            fields[field.name] = rng.getrandbits(field.width)
    return fields


def random_base(rng):
    fields = random_fields(rng, Opcode.BASE)
    fields.update(
        register=rng.randrange(1, BASES),
        argument=rng.randrange(ARGUMENTS + 1),
        period=rng.choice([0, 1, 2, 3, 5, 0xFFFF]),
    )
    return encode(Opcode.BASE, **fields)


def random_program(rng, *, length=12, command=None, iterations=3):
    """Instructions with loops up to four deep, ended by ``HALT``.

    ``command(rng)`` gives the raw instructions of one step; random commands unless given.
    """
    if command is None:

        def command(rng):
            opcode = rng.choice(COMMANDS)
            return [encode(opcode, **random_fields(rng, opcode))]

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
                lines.append(random_base(rng))
            elif kind < 0.45:
                lines.append(encode(Opcode.FENCE))
            else:
                lines += command(rng)
        return lines

    return [*block(0, length), encode(Opcode.HALT)]


def command_bits(command):
    """``command_layout`` of a command of the model, as a number."""
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


class Host:
    """AXI4-Lite manager in Amaranth's simulator; write channels may come apart."""

    def __init__(self, ctx, bus, rng=None):
        self.ctx, self.bus, self.rng = ctx, bus, rng

    async def _pause(self):
        if self.rng:
            await self.ctx.tick().repeat(self.rng.randrange(1, 4))

    async def write_address(self, address, word, strobe=0xF):
        """Returns the response."""
        ctx, bus = self.ctx, self.bus
        await self._pause()
        ctx.set(bus.awaddr, address)
        ctx.set(bus.awvalid, 1)
        if self.rng and self.rng.random() < 0.5:
            await self._pause()
        ctx.set(bus.wdata, word)
        ctx.set(bus.wstrb, strobe)
        ctx.set(bus.wvalid, 1)
        await ctx.tick().until(bus.awready & bus.wready)
        ctx.set(bus.awvalid, 0)
        ctx.set(bus.wvalid, 0)
        await self._pause()
        ctx.set(bus.bready, 1)
        (response,) = await ctx.tick().sample(bus.bresp).until(bus.bvalid)
        ctx.set(bus.bready, 0)
        return response

    async def read_address(self, address):
        """Returns the word and the response."""
        ctx, bus = self.ctx, self.bus
        await self._pause()
        ctx.set(bus.araddr, address)
        ctx.set(bus.arvalid, 1)
        await ctx.tick().until(bus.arready)
        ctx.set(bus.arvalid, 0)
        await self._pause()
        ctx.set(bus.rready, 1)
        word, response = await ctx.tick().sample(bus.rdata, bus.rresp).until(bus.rvalid)
        ctx.set(bus.rready, 0)
        return word, response

    async def write(self, name, **values):
        reg = REGS[name]
        assert await self.write_address(reg.offset, reg.pack(**values)) == 0, name

    async def write_pair(self, name, value):
        await self.write(f"{name}_lo", value=value & 0xFFFF_FFFF)
        await self.write(f"{name}_hi", value=value >> 32)

    async def read(self, name):
        word, response = await self.read_address(REGS[name].offset)
        assert response == 0, name
        return REGS[name].unpack(word)

    async def read_pair(self, name):
        low = (await self.read(f"{name}_lo"))["value"]
        return low | (await self.read(f"{name}_hi"))["value"] << 32


async def serve_reads(ctx, client, memory, rng, *, beat_bytes, latency=5, stall=0.0, bad=()):
    """Answers a ``ReadClient`` from ``memory`` (bytes), beat by beat, in order, for ever.

    Beats whose address is in ``bad`` are errors. Asserts that requests lie in the memory.
    """
    queue, now = [], 0
    ctx.set(client.request.ready, 1)
    while True:
        _, _, asked, request, ready, valid, taken = await ctx.tick().sample(
            client.request.valid,
            client.request.payload,
            client.request.ready,
            client.data.valid,
            client.data.ready,
        )
        now += 1
        if asked and ready:
            assert request.addr % beat_bytes == 0 and request.beats > 0
            assert request.addr + request.beats * beat_bytes <= len(memory), hex(request.addr)
            for k in range(request.beats):
                queue.append((now + latency, request.addr + k * beat_bytes, k == request.beats - 1))
        if valid and taken:
            valid = False
        if not valid and queue and queue[0][0] <= now and rng.random() >= stall:
            _, address, last = queue.pop(0)
            word = int.from_bytes(memory[address : address + beat_bytes], "little")
            ctx.set(client.data.p, {"data": word, "last": last, "error": address in bad})
            ctx.set(client.data.valid, 1)
        elif not valid:
            ctx.set(client.data.valid, 0)
        ctx.set(client.request.ready, rng.random() >= stall)


def queue_name(queue):
    return TILE_QUEUES[queue].name.lower()
