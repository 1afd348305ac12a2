"""Memory of the groups of codes of waiting blocks."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .quantise import CODE_WIDTH


__all__ = ["Groups"]


class Groups(wiring.Component):
    """Queue of groups that are filled lane by lane.

    Parameters
    ----------
    n : int
        Codes of a group.
    depth : int
        Groups, a power of two.

    Members
    -------
    i_valid : In(n); i_codes : In(data.ArrayLayout(8, n)); i_next : In(n)
        Codes for the current group, or for the one after it.
    full, ended : In(1)
        The current group is full; the one after it, or the current one, is given up half full.
    read : In(1)
        The oldest group is taken: it is on ``codes`` now.
    codes : Out(data.ArrayLayout(8, n))
    """

    def __init__(self, n, *, depth):
        self.n = n
        self.depth = depth
        codes = data.ArrayLayout(CODE_WIDTH, n)
        super().__init__({
            "i_valid": In(n), "i_codes": In(codes), "i_next": In(n),
            "full": In(1), "ended": In(1), "read": In(1), "codes": Out(codes),
        })

    def elaborate(self, platform):
        m = Module()
        current = Signal(range(self.depth))
        after = Signal(range(self.depth), init=1)
        oldest = Signal(range(self.depth))
        steps = self.full + self.ended
        m.d.sync += [
            current.eq(current + steps),
            after.eq(after + steps),
            oldest.eq(oldest + self.read),
        ]
        for k in range(self.n):
            m.submodules[f"lane_{k}"] = lane = Memory(
                shape=CODE_WIDTH, depth=self.depth, init=[], attrs={"ram_style": "distributed"})
            write = lane.write_port()
            read = lane.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(self.i_valid[k]),
                write.addr.eq(Mux(self.i_next[k], after, current)),
                write.data.eq(self.i_codes[k]),
                read.addr.eq(oldest),
                self.codes[k].eq(read.data),
            ]
        return m
