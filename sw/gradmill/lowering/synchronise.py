"""Semaphores from footprints: the order between queues that makes a program race-free.

Queues run at the same time; within a queue instructions are in order. For each instruction and
each other queue, the latest earlier instruction of that queue which touches the same row or byte
(at least one of the two writing) must have completed. That instruction posts one token, this one
waits for it, unless the queue already waited for that instruction or a later one. The
instructions that a queue waits for only grow, so tokens are taken in the order they are posted and
one semaphore per pair of queues is enough. Every wait is met by an earlier instruction: the program
cannot deadlock, and program order, in which the emulator executes, is one of its legal orders.
"""

import numpy as np

from gradmill_hw.isa import Opcode, Queue, Space, token

from .footprint import footprint


__all__ = ["Synchroniser"]


class Synchroniser:
    """Finds the tokens of a straight-line program, instruction by instruction.

    Parameters
    ----------
    config : Config
        Sizes of the on-chip memories.
    """

    def __init__(self, config):
        self._config = config
        sizes = {"tensor": config.tensor_rows, "acc": config.acc_rows, "mask": config.mask_rows,
                 "bank": config.banks}
        self._queues = list(Queue)
        #: last instruction of each queue that read / wrote each row, -1 for none
        self._read  = {m: np.full((len(self._queues), rows), -1) for m, rows in sizes.items()}
        self._wrote = {m: np.full((len(self._queues), rows), -1) for m, rows in sizes.items()}
        self._memory = {}  # (queue, writes, tier, start, end) -> last instruction
        self._seen = np.full((len(self._queues), len(self._queues)), -1)
        self.waits, self.posts = [], []

    def add(self, opcode, fields):
        """Account for the next instruction; its tokens appear in ``waits`` and ``posts``."""
        queue, index = opcode.queue, len(self.waits)
        self.waits.append(0)
        self.posts.append(0)
        if queue is None:
            return
        touched = footprint(opcode, fields, self._config)
        reads, writes = self._turns(opcode, fields)
        reads, writes = touched.reads | reads, touched.writes | writes
        latest = np.full(len(self._queues), -1)
        for memory, rows in reads.items():
            np.maximum(latest, self._wrote[memory][:, rows].max(axis=1), out=latest)
        for memory, rows in writes.items():
            np.maximum(latest, self._wrote[memory][:, rows].max(axis=1), out=latest)
            np.maximum(latest, self._read[memory][:, rows].max(axis=1), out=latest)
        self._memory_conflicts(touched, latest)
        for producer in self._queues:
            needed = latest[producer]
            if producer != queue and needed > self._seen[queue, producer]:
                self._seen[queue, producer] = needed
                self.waits[index] |= token(producer)
                self.posts[needed] |= token(queue)
        for memory, rows in reads.items():
            self._read[memory][queue, rows] = index
        for memory, rows in writes.items():
            self._wrote[memory][queue, rows] = index
        for writes, intervals in ((False, touched.memory_reads), (True, touched.memory_writes)):
            for interval in intervals:
                self._memory[queue, writes, *interval] = index

    def _turns(self, opcode, fields):
        """Banks that an instruction reads, and that it writes, as it were. A product keeps the
        vector unit from the bank of its rows for as long as it lasts. So it waits for vector
        instructions on that bank that come before it, and they for it."""
        bank = [fields.get("op0", 0) // (self._config.tensor_rows // self._config.banks)]
        if opcode is Opcode.MATMUL:
            return {}, {"bank": bank}
        if opcode is Opcode.VECTOR and fields.get("a_space") == Space.TENSOR:
            return {"bank": bank}, {}
        return {}, {}

    def _memory_conflicts(self, touched, latest):
        for writes, intervals in ((False, touched.memory_reads), (True, touched.memory_writes)):
            for tier, start, end in intervals:
                for (queue, wrote, t, s, e), index in self._memory.items():
                    if (writes or wrote) and t == tier and s < end and start < e:
                        latest[queue] = max(latest[queue], index)
