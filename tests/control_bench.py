"""What the tests of the control path share: a memory and a host."""

from gradmill_hw.isa import TILE_QUEUES
from gradmill_hw.regs import REGS


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
