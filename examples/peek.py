"""Look into one unit: ``python examples/peek.py``, after ``make setup``.

Builds the binary32 adder with Verilator, pokes operands into it every cycle and peeks at what
comes out ``latency`` cycles later.
"""

import os
import struct
import tempfile
from pathlib import Path

from pyverilator import PyVerilator

from gradmill.verilator.build import find_verilator
from gradmill_hw.emit import emit
from gradmill_hw.numeric.fp32_add import Fp32Add


def bits(value):
    """Storage of a binary32 value."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


def number(word):
    """Value of binary32 storage."""
    return struct.unpack("<f", struct.pack("<I", word))[0]


def open_unit(component, name, folder):
    """The simulated unit; its ports are ``unit.io.<port>``."""
    source = Path(folder) / f"{name}.v"
    source.write_text(emit(None, component, name=name))
    os.environ["PATH"] = f"{Path(find_verilator().command).parent}:{os.environ['PATH']}"
    return PyVerilator.build(str(source), build_dir=folder, cargs="-std=c++17", quiet=True,
                             args=["-Wno-lint", "--quiet"])


def main():
    """Three sums, one a cycle."""
    unit = Fp32Add()
    pairs = [(1.5, 2.25), (1e8, 1.0), (float("inf"), float("-inf"))]
    with tempfile.TemporaryDirectory() as folder:
        sim = open_unit(unit, "fp32_add", folder)
        print(f"{unit.latency} cycles of latency; ports: {', '.join(sim.io)}")
        for cycle in range(len(pairs) + unit.latency):
            poked = ""
            if cycle < len(pairs):
                a, b = pairs[cycle]
                sim.io.a, sim.io.b = bits(a), bits(b)
                poked = f"a = {a:g}, b = {b:g}"
            peeked = ""
            if cycle >= unit.latency:
                peeked = f"o = {int(sim.io.o):#010x} = {number(sim.io.o):.9g}"
            print(f"cycle {cycle}: {poked:25} {peeked}".rstrip())
            sim.clock.tick()


if __name__ == "__main__":
    main()
