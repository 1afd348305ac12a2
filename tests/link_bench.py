"""What the benches of the link units share: a link with its wires, streams that run freely."""

import random

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.link.endpoints import LINK_CREDITS, LinkReceiver, LinkSender
from gradmill_hw.link.row import LinkRow


__all__ = ["Link", "feed", "held", "take"]


class Link(wiring.Component):
    """Both ends of a link, ``there`` and ``back`` register stages apart, and what may befall it.

    Members
    -------
    i : In(stream.Signature(LinkRow(config)))
        Rows at the near end.
    o : Out(stream.Signature(LinkRow(config)))
        Rows at the far end.
    lose : In(1)
        The credit that reaches the near end in this cycle is lost.
    credit, row : In(1)
        One that was never sent reaches the near, the far end.
    in_hand : Out
        Of the sender.
    sender_error, receiver_error : Out(1)
        Of the ends.
    """

    def __init__(self, config, *, credits=LINK_CREDITS, there=0, back=0):
        self.config, self.credits = config, credits
        self.there, self.back = there, back
        super().__init__(
            {
                "i": In(stream.Signature(LinkRow(config))),
                "o": Out(stream.Signature(LinkRow(config))),
                "lose": In(1),
                "credit": In(1),
                "row": In(1),
                "in_hand": Out(range(credits + 1)),
                "sender_error": Out(1),
                "receiver_error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.sender = sender = LinkSender(self.config, self.credits)
        m.submodules.receiver = receiver = LinkReceiver(self.config, self.credits)
        wiring.connect(m, wiring.flipped(self.i), sender.i)
        wiring.connect(m, receiver.o, wiring.flipped(self.o))

        forth = [Cat(sender.port.valid, sender.port.payload)]
        for k in range(self.there):
            forth.append(Signal(len(forth[0]), name=f"there{k}"))
            m.d.sync += forth[k + 1].eq(forth[k])
        credits = [receiver.port.credit]
        for k in range(self.back):
            credits.append(Signal(name=f"back{k}"))
            m.d.sync += credits[k + 1].eq(credits[k])
        m.d.comb += [
            receiver.port.valid.eq(forth[-1][0] | self.row),
            receiver.port.payload.eq(forth[-1][1:]),
            sender.port.credit.eq(credits[-1] & ~self.lose | self.credit),
            self.in_hand.eq(sender.in_hand),
            self.sender_error.eq(sender.error),
            self.receiver_error.eq(receiver.error),
        ]
        return m


def held(name):
    """A function that checks that an offer stands unchanged until taken; tells if it is taken."""
    waiting = None

    def check(valid, ready, payload):
        nonlocal waiting
        if waiting is not None:
            assert valid, f"{name}: valid fell before ready"
            assert payload == waiting, f"{name}: payload changed before ready"
        waiting = payload if valid and not ready else None
        return valid and ready

    return check


def feed(port, words, *, seed=0, stall=0.0):
    """Offers the first of ``words``, a deque, to a stream until it is taken; noise otherwise."""
    rng = random.Random(seed)
    payload = Value.cast(port.payload)

    async def bench(ctx):
        standing = False
        while True:
            standing = bool(words) and (standing or rng.random() >= stall)
            ctx.set(port.valid, standing)
            if standing:
                ctx.set(port.payload, words[0])
            else:
                ctx.set(payload, rng.getrandbits(len(payload)))
            _, _, ready = await ctx.tick().sample(port.ready)
            if standing and ready:
                standing = False
                words.popleft()

    return bench


def take(port, words, *, seed=0, stall=0.0):
    """Appends what a stream gives to ``words``."""
    rng = random.Random(seed)
    payload = Value.cast(port.payload)
    check = held("stream")

    async def bench(ctx):
        while True:
            ready = rng.random() >= stall
            ctx.set(port.ready, ready)
            _, _, valid, word = await ctx.tick().sample(port.valid, payload)
            if check(valid, ready, word):
                words.append(word)

    return bench
