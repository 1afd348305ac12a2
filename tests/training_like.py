"""A program with every kind of instruction, in loops, with every kind of token."""

import gradmill as gm
from gradmill_hw.isa import AddSource, Class, Kind, MaskKind, MulSource, Queue
from gradmill_hw.regs import Tier


__all__ = ["FAR_BYTES", "NEAR_BYTES", "SAMPLES", "training_like"]

#: First byte of the input: one binary32 matrix of 3n x n for each iteration.
SAMPLES = 0x4000
NEAR_BYTES, FAR_BYTES = 1 << 20, 1 << 20


def training_like(config, iterations):
    """Quantises 3n x n samples, multiplies them by themselves in both orientations, masks the
    result by its sign, and stores rows of all three kinds."""
    n, rows = config.n, 3 * config.n
    size = config.run_bytes("fp32", rows)
    acc, half = config.acc_rows // config.banks, config.tensor_rows // 2
    program = gm.Program(config)
    program.base(1, mem=SAMPLES, level=0, step=size)
    program.base(2, mem=0, level=0, step=config.run_bytes("bfp", rows))
    program.base(3, mem=0, level=0, step=half, period=2)
    # The first iteration finds no earlier one to wait for.
    for first, count in ((True, 1), (False, iterations - 1)):
        with program.loop(count):
            before = [] if first else [(Queue.VECTOR, 1)]
            program.load(kind=Kind.FP32, run=rows, mem=0 if first else size, mem_base=1,
                         cls=Class.DATA, wait=before, post=[Queue.VECTOR])
            program.vector(rows=rows, cols=n - 1, op3_base=3, write_tensor=1, stochastic=1,
                           mem=99, layer=3, wait=[Queue.LOAD] + ([] if first else [Queue.STORE]),
                           post=[Queue.MATRIX, Queue.STORE])
            program.matmul(m=rows, k=n, c=n, op0_base=3, a_stride_m=n, op1=n, op1_base=3,
                           w_transpose=1, op2=acc, wait=[Queue.VECTOR])
            program.matmul(m=n, k=rows, c=n, op0_base=3, a_stride_k=n, a_transpose=1, op1_base=3,
                           w_stride_k=n, op2=acc, accumulate=1, narrow=1, post=[Queue.VECTOR])
            program.vector(rows=rows, cols=n, op0=acc, op1=acc + 1, b_step=0, op2=2 * acc, op4=8,
                           mul=MulSource.SCALAR, scalar0=gm.Scalar(0), add_source=AddSource.ROW,
                           mask=MaskKind.POSITIVE, write_acc=1, write_mask=1,
                           wait=[Queue.MATRIX], post=[Queue.STORE, (Queue.LOAD, 1)])
            program.store(kind=Kind.BFP, run=rows, op0_base=3, mem=0 if first else
                          config.run_bytes("bfp", rows), mem_base=2, tier=Tier.FAR,
                          cls=Class.STASH, wait=[Queue.VECTOR])
            program.store(kind=Kind.FP32, run=rows, op0=2 * acc, mem=0x80000, tier=Tier.FAR,
                          cls=Class.RESULT, wait=[Queue.VECTOR])
            program.store(kind=Kind.MASK, run=rows, op0=8, mem=0xf0000, cls=Class.MASK,
                          post=[Queue.VECTOR])
    program.vector(rows=1, cols=n, wait=[Queue.STORE])
    program.load(kind=Kind.MASK, run=1, mem=SAMPLES, wait=[(Queue.VECTOR, 1)])
    program.halt()
    return program
