"""Runs a component of fixed latency in Amaranth's simulator, one operand set per cycle."""

import numpy as np
from amaranth.sim import Simulator


def run_pipeline(dut, output="o", **inputs):
    """Results of ``dut`` for a stream without gaps of equally long ``inputs``, as uint32."""
    columns = [(getattr(dut, name), np.asarray(values).tolist())
               for name, values in inputs.items()]
    count = len(columns[0][1])
    results = []

    async def feed(ctx):
        for row in range(count):
            for port, values in columns:
                ctx.set(port, values[row])
            await ctx.tick()

    async def collect(ctx):
        await ctx.tick().repeat(dut.latency)
        async for _, _, value in ctx.tick().sample(getattr(dut, output)):
            results.append(value)
            if len(results) == count:
                break

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(collect)
    simulator.run()
    return np.array(results, dtype=np.uint32)
