"""Measures matrix products by the device's own counters, beside their bounds."""

from dataclasses import dataclass

import numpy as np

from gradmill_hw.isa import Class, Opcode
from gradmill_hw.regs import Tier

from .backends import open_device
from .lowering.layout import blocks
from .lowering.programs import assemble
from .ops import Product


__all__ = ["VARIANTS", "Measurement", "measure_from_memory", "measure_gemm"]

#: Name -> whether A and W are stored transposed: the forward product, the data gradient and the
#: weight gradient of a Linear.
VARIANTS = {"NT": (False, True), "NN": (False, False), "TN": (True, False)}


@dataclass(frozen=True)
class Measurement:
    """One product.

    Members
    -------
    shape : (int, int, int)
        m, k, c.
    variant : str
        Of :data:`VARIANTS`.
    cycles, bound : int
        Measured, and the least or allowed number.
    utilisation : float
        m·k·c / (n·n·cycles).
    """

    shape:       tuple
    variant:     str
    cycles:      int
    bound:       int
    utilisation: float


def _measured(config, shape, variant, cycles, bound):
    m, k, c = shape
    return Measurement(shape, variant, cycles, bound, m * k * c / (config.n**2 * cycles))


def _on_chip(config, shape, transpose_a, transpose_w):
    """One MATMUL, A in the lower and W in the upper half of the tensor memory."""
    n = config.n
    m, k, c = shape
    padded_m, padded_k, padded_c = (blocks(size, n) * n for size in shape)
    return [(Opcode.MATMUL, {
        "m": m, "k": k, "c": c, "op1": config.tensor_rows // 2,
        "a_transpose": int(transpose_a), "a_stride_m": padded_k if transpose_a else n,
        "a_stride_k": n if transpose_a else padded_m,
        "w_transpose": int(transpose_w), "w_stride_k": padded_c if transpose_w else n,
        "w_stride_c": n if transpose_w else padded_k, "d_stride_c": m})]


def _run(device, code):
    """Counters of a program of its own."""
    raw = assemble(device.config, [code]).assemble()
    with device.heap.scratch(len(raw), "program") as address:
        device.write_memory(Tier.NEAR, address, raw, cls=Class.COMMAND)
        device.claim(None)
        device.clear_counters()
        device.run(address)
        return device.counters()


def measure_gemm(config, shapes):
    """Products with operands on chip: cycles from the acceptance of the instruction to its last
    write (counter ``busy_matrix``), beside ceil(k/n)·ceil(c/n)·max(m, n) + 2n + 16."""
    n = config.n
    with open_device("verilator", config) as device:
        for shape in shapes:
            m, k, c = shape
            bound = blocks(k, n) * blocks(c, n) * max(m, n) + 2 * n + 16
            for variant, transposed in VARIANTS.items():
                counters = _run(device, _on_chip(config, shape, *transposed))
                if counters["macs"] != m * k * c:
                    raise AssertionError(f"{counters['macs']} MACs counted, {m * k * c} expected")
                yield _measured(config, shape, variant, counters["busy_matrix"], bound)


def measure_from_memory(config, shape):
    """Products of BFP operands in near memory, float32 result to near memory: cycles of the whole
    program, beside those of the array alone."""
    m, k, c = shape
    rng = np.random.default_rng(0)
    with open_device("verilator", config) as device:
        for variant, (transpose_a, transpose_b) in VARIANTS.items():
            a = rng.standard_normal((k, m) if transpose_a else (m, k), np.float32)
            b = rng.standard_normal((c, k) if transpose_b else (k, c), np.float32)
            with Product(device, a, b, transpose_a, transpose_b) as product:
                product.quantise()
                device.clear_counters()
                product.multiply()
                cycles = device.counters()["cycles"]
            bound = blocks(k, config.n) * blocks(c, config.n) * max(m, config.n)
            yield _measured(config, shape, variant, cycles, bound)
