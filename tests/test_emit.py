"""The emitted text: what it says in short."""

import re

import pytest
from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from gradmill_hw.emit import emit


class _Table(wiring.Component):
    """A memory that can be read and written."""

    def __init__(self, init):
        self.init = init
        super().__init__({"address": In(4), "value": In(8), "write": In(1), "o": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells = cells = memory.Memory(shape=8, depth=16, init=self.init)
        write, read = cells.write_port(), cells.read_port()
        m.d.comb += [write.addr.eq(self.address), write.data.eq(self.value),
                     write.en.eq(self.write), read.addr.eq(self.address), self.o.eq(read.data)]
        return m


def test_a_memory_of_zeros_is_cleared_in_a_loop():
    text = emit(None, _Table([]))
    found = re.search(r"initial begin : zeros0\n +integer zeroed;\n +for \(zeroed = 0; "
                      r"zeroed < 16; zeroed = zeroed \+ 1\)\n"
                      r" +(\S+? ?)\[zeroed\] = 8'h00;\n +end\n", text)
    assert found, text
    assert f"{found[1]}[0] =" not in text


@pytest.mark.parametrize("init", [[0, 0, 3], [7] * 16])
def test_other_contents_are_written_row_by_row(init):
    text = emit(None, _Table(init))
    rows = [int(value, 16) for value in re.findall(r"\[\d+\] = 8'h([0-9a-f]+);", text)]
    assert rows == [*init, *[0] * 16][:16]
    assert "zeros" not in text
