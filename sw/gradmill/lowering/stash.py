"""Activations to near memory through the codec, and back before the weight gradient."""

from gradmill_hw.isa import Class, Kind, Opcode

from .layout import Matrix, blocks


__all__ = ["StashPlaces", "stash_places"]


def stash_places(stash, stages, tiles, allocate):
    """:class:`StashPlaces` for the buffers of all ``tiles``; none without a ``stash``."""
    if stash is None:
        return []
    formats = stash.formats(stages, tiles[0].config)
    return [StashPlaces(buffers, formats, allocate, draws=stash.draw,
                        stochastic=stash.rounding == "stochastic") for buffers in tiles]


class StashPlaces:
    """Places in near memory for the stashed activations of one tile.

    The column blocks of an activation are one run where its rows are as many as its place on chip
    has, otherwise a run each.

    Parameters
    ----------
    buffers : TileBuffers
        Placement on chip.
    formats : dict
        Stage number -> Format of its input.
    stochastic, draws : bool
        Whether stores round, and loads draw, with random bits.
    allocate : callable
        ``allocate(nbytes, owner)`` gives an address.
    """

    def __init__(self, buffers, formats, allocate, *, stochastic=False, draws=False):
        self.formats = {s: entry for s, entry in formats.items() if s in buffers.part.numbers}
        self._random = {Opcode.STORE: stochastic, Opcode.LOAD: draws}
        self._addresses = {}
        for k, places in enumerate(buffers.x):
            for s, entry in self.formats.items():
                nbytes = 0
                for m in range(1, buffers.rows + 1):
                    run, count = self._runs(places[s], m)
                    stride = buffers.config.run_bytes("bfp", run, entry.tag)
                    nbytes = max(nbytes, count * stride)
                self._addresses[k, s] = allocate(nbytes, f"stash of activation {s}, set {k}")

    def store(self, emit, s, k, m):
        """Input of stage ``s`` of set ``k`` to near memory."""
        self._transfer(Opcode.STORE, emit, s, k, m)

    def load(self, emit, s, k, m):
        """And back to its place."""
        self._transfer(Opcode.LOAD, emit, s, k, m)

    @staticmethod
    def _runs(x, m):
        """Rows of a run, and runs."""
        padded = blocks(m, x.n) * x.n
        return (x.extent, 1) if padded == x.stride else (padded, x.blocks)

    def _transfer(self, opcode, emit, s, k, m):
        if s not in self.formats:
            return
        x, entry = emit.buffers.x[k][s], self.formats[s]
        run, count = self._runs(x, m)
        part = Matrix(x.base, run, count * x.n, x.stride, x.n)
        emit.transfer(opcode, Kind.BFP, Class.STASH, part, self._addresses[k, s],
                      emit.config.run_bytes("bfp", run, entry.tag), codec=entry.tag,
                      **emit.row_numbers(s) if self._random[opcode] else {})
