"""The shared bench runner, source and sink: right results pass, wrong ones fail."""

import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from tb.run import run_bench


class Queue(wiring.Component):
    """Four bytes between two streams."""

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=8, depth=4)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload), fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            self.o.payload.eq(fifo.r_data), self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
        ]
        return m


@pytest.mark.rtl
def test_right_and_wrong(tmp_path):
    run_bench(Queue(), "tb.tb_stream", tmp_path / "right", wrong=0)
    with pytest.raises((AssertionError, SystemExit)):
        run_bench(Queue(), "tb.tb_stream", tmp_path / "wrong", wrong=1)
    with pytest.raises((AssertionError, SystemExit)):
        run_bench(Queue(), "tb.tb_stream", tmp_path / "none", testcase="no_such_test", wrong=0)
