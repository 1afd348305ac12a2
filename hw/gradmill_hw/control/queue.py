"""One in-order command queue: its places, its semaphores, its unit."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..isa import TILE_QUEUES
from .semaphores import TOKENS, partners


__all__ = ["CommandQueue"]


class CommandQueue(wiring.Component):
    """Bookkeeping of a queue; the commands themselves lie in :class:`~.store.CommandStore`.

    A place holds a command from its push until it has completed, so that the oldest unfinished
    command can be named at any time. Three pointers go round: pushed, fetched (to the head
    register), completed. The head asks for its semaphores; once it has them, ``start`` is up until
    the unit takes the command. Completions come in order, any number of commands may be in
    execution. A start takes three cycles from the push of the command, two from the start before.

    After ``failed``, or with ``stop``, nothing more is started; what was offered stays offered.
    After ``failed`` completions are ignored and the pointer stays on the command that failed.

    Parameters
    ----------
    queue : Queue
        Which one it is; says which semaphores it has.
    queues : tuple of Queue
        Queues of the tile.
    depth : int
        Places, a power of two.

    Members
    -------
    push : In(1)
        A command was written to place ``push_place``; only while ``ready``.
    push_place : Out(range(depth))
        First free place.
    push_wait, push_post : In(16)
        Semaphore masks, with ``push``.
    push_keeps : In(2)
        ``hold`` and ``release`` of the command, with ``push``.
    ready : Out(1)
        A place is free.
    fetch : Out(1)
        The head register is to be loaded from place ``fetch_place``.
    fetch_place : Out(range(depth))
        Place of the next head.
    fetched : In(1)
        It is loaded at the end of this cycle.
    request : Out(1)
        The head waits for the semaphores of ``wait``.
    wait : Out(16)
        Mask of the head.
    granted : In(1)
        The semaphores are there; together with ``request`` they are taken.
    start : Out(1)
        The head is offered to the unit.
    accept : In(1)
        The unit takes it, if ``start``.
    done : In(1)
        The oldest command in execution has completed.
    failed : In(1)
        The oldest command has failed, whether done or not.
    post : Out(16)
        Mask of the command that completes in this cycle, otherwise zero; not changed by ``failed``,
        which may depend on it.
    keeps : Out(2)
        ``hold`` and ``release`` of the command that completes in this cycle.
    stop : In(1)
        Start nothing.
    executing : Out(1)
        A command was taken by the unit and has not completed.
    settled : Out(1)
        Nothing is offered or in execution, or the queue has failed.
    empty : Out(1)
        Every command pushed has completed.
    oldest : Out(range(depth))
        Place of the oldest command that has not completed.
    """

    def __init__(self, queue, queues=TILE_QUEUES, *, depth):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 2, not {depth}")
        self.queue, self.queues = queue, queues
        self.depth = depth
        super().__init__({
            "push":        In(1),
            "push_place":  Out(range(depth)),
            "push_wait":   In(TOKENS),
            "push_post":   In(TOKENS),
            "push_keeps":  In(2),
            "ready":       Out(1),
            "fetch":       Out(1),
            "fetch_place": Out(range(depth)),
            "fetched":     In(1),
            "request":     Out(1),
            "wait":        Out(TOKENS),
            "granted":     In(1),
            "start":       Out(1),
            "accept":      In(1),
            "done":        In(1),
            "failed":      In(1),
            "post":        Out(TOKENS),
            "keeps":       Out(2),
            "stop":        In(1),
            "executing":   Out(1),
            "settled":     Out(1),
            "empty":       Out(1),
            "oldest":      Out(range(depth)),
        })

    def elaborate(self, platform):
        m = Module()
        bits = [bit for bit, _, _ in partners(self.queue, self.queues)]
        m.submodules.waits = waits = memory.Memory(shape=len(bits), depth=self.depth, init=[])
        m.submodules.posts = posts = memory.Memory(shape=len(bits) + 2, depth=self.depth,
                                                   init=[])

        # One bit more than a place tells full from empty.
        pushed    = Signal(range(2 * self.depth))
        loaded    = Signal(range(2 * self.depth))
        completed = Signal(range(2 * self.depth))
        head      = Signal()  # the head register holds a command
        broken    = Signal()

        start    = self.request & self.granted
        taken    = self.start & self.accept
        complete = self.executing & self.done & ~broken

        m.d.comb += [
            self.push_place.eq(pushed),
            self.ready.eq(pushed != completed ^ self.depth),
            self.fetch.eq((pushed != loaded) & (~head | taken)),
            self.fetch_place.eq(loaded),
            self.request.eq(head & ~self.start & ~self.stop & ~broken),
            self.executing.eq((loaded - head)[:len(loaded)] != completed),
            self.settled.eq(broken | ~self.start & ~self.executing),
            self.empty.eq(pushed == completed),
            self.oldest.eq(completed),
        ]
        m.d.sync += [
            pushed.eq(pushed + self.push),
            loaded.eq(loaded + self.fetched),
            head.eq(self.fetched | head & ~taken),
            self.start.eq(start | self.start & ~taken),
            completed.eq(completed + (complete & ~self.failed)),
            broken.eq(broken | self.failed),
        ]

        # Semaphore masks keep only the bits that can be.
        for masks, pushed_mask, rest in ((waits, self.push_wait, C(0, 0)),
                                         (posts, self.push_post, self.push_keeps)):
            write = masks.write_port()
            m.d.comb += [
                write.en.eq(self.push),
                write.addr.eq(self.push_place),
                write.data.eq(Cat(*(pushed_mask[bit] for bit in bits), rest)),
            ]
        wait = waits.read_port(domain="comb")
        post = posts.read_port(domain="comb")
        head_wait = Signal(len(bits))
        m.d.comb += [wait.addr.eq(self.fetch_place), post.addr.eq(self.oldest)]
        with m.If(self.fetched):
            m.d.sync += head_wait.eq(wait.data)
        for k, bit in enumerate(bits):
            m.d.comb += self.wait[bit].eq(head_wait[k])
            m.d.comb += self.post[bit].eq(post.data[k] & complete)
        m.d.comb += self.keeps.eq(post.data[len(bits):] & complete.replicate(2))
        return m
