"""cocotb bench of the bench's own source and sink, on a queue."""

import random

import cocotb

from tb.stream import Sink, Source, stalls, start


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall_in=[0.0, 0.5], stall_out=[0.0, 0.9])
async def keeps_order(dut, stall_in, stall_out):
    await start(dut)
    source = Source(dut, "i", stall=stalls(stall_in))
    sink = Sink(dut, "o", stall=stalls(stall_out))
    numbers = [random.getrandbits(8) for _ in range(200)]
    source.put(*numbers)
    # A bench can be told to expect something wrong: it must then fail.
    expected = [*numbers[:-1], numbers[-1] ^ int(cocotb.plusargs["wrong"])]
    assert await sink.recv_many(200) == expected
    await source.drained()
    assert sink.queue.empty()
