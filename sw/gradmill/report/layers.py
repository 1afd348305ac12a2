"""What layer-to-layer execution moved, kept and waited for: ``layer_to_layer`` of report.json."""

from itertools import pairwise

from gradmill_hw.isa import Class, Kind, Opcode, Queue
from gradmill_hw.regs import Tier

from ..lowering.footprint import footprint
from ..timeline import Work


__all__ = ["beside_backward", "downloads", "layers", "waits_for_weights", "weight_rows"]


def layers(trainer, timeline=None):
    """Plain data; ``None`` for other ways of execution.

    Parameters
    ----------
    trainer : Trainer
        After training.
    timeline : Timeline or None
        The first start of the device in that training; without one nothing is measured.
    """
    if not trainer.layer_to_layer:
        return None
    lowering = trainer._lowering
    (program,) = lowering.train(trainer.virtual_minibatch, 1, (0, 0), lowering.regions,
                                trainer._losses_at)
    beside = timeline and beside_backward(timeline.spans)
    rows = [w.extent for w in lowering.buffers[0].weight.values()]
    return {
        "layers": len(rows), "boundaries": trainer.boundaries,
        "weight_rows": {"all": sum(rows), "largest_layer": max(rows),
                        "high_water_mark": weight_rows(program, trainer.device.config),
                        "tensor_memory": trainer.device.config.tensor_rows},
        "weight_bytes": {"all": lowering.weight_bytes(range(len(rows))),
                         "downloaded_per_update": downloads(program, trainer.device.config)},
        "updates_beside_backward": beside and beside[0],
        "updates_beside_products": beside and beside[1],
        "waits_for_weights": timeline and waits_for_weights(timeline.spans),
    }


def weight_rows(program, config):
    """Rows of the tensor memory that a program loads weights into or stores new ones from."""
    rows = set()
    for opcode, fields in program.lines:
        if opcode in (Opcode.LOAD, Opcode.STORE) and fields["cls"] == Class.WEIGHT:
            touched = footprint(opcode, fields, config)
            for found in (touched.reads, touched.writes):
                rows.update(map(int, found.get("tensor", ())))
    return len(rows)


def downloads(program, config):
    """Bytes of weights that a program loads from far memory."""
    return sum(
        fields["count0"] * fields["count1"] * fields["count2"]
        * config.run_bytes(Kind(fields["kind"]).name.lower(), fields["run"])
        for opcode, fields in program.lines
        if opcode is Opcode.LOAD and fields["cls"] == Class.WEIGHT and fields["tier"] == Tier.FAR)


def beside_backward(spans):
    """Of the cycles in which the vector unit updates a layer: ``(share while a layer is in its
    backward pass, share while the array has a product of that pass)``. The layer is another one,
    but for the first, which is updated beside the rest of its own."""
    passes, products = {}, {}
    for span in spans:
        if span.queue is Queue.MATRIX and span.work in (Work.DATA_GRADIENT, Work.WEIGHT_GRADIENT):
            products.setdefault(span.layer, []).append((span.start, span.end))
    for layer, found in products.items():
        passes[layer] = [(min(start for start, _ in found), max(end for _, end in found))]
    updates = [span for span in spans
               if span.queue is Queue.VECTOR and span.work is Work.UPDATE]
    total = sum(span.end - span.start for span in updates)
    return tuple(sum(
        _covered(span.start, span.end, [interval for found in of.values() for interval in found])
        for span in updates) / total for of in (passes, products)) if total else None


def _covered(first, last, intervals):
    """Cycles from ``first`` to ``last`` that lie in one of ``intervals``."""
    cycles, reached = 0, first
    for start, end in sorted(intervals):
        start, end = max(start, reached), min(end, last)
        if end > start:
            cycles, reached = cycles + end - start, end
    return cycles


def waits_for_weights(spans):
    """Share of the cycles in which the array has no product and the next one's weights are still on
    their way."""
    products = sorted((span for span in spans if span.queue is Queue.MATRIX),
                      key=lambda span: span.start)
    loads = [span for span in spans if span.opcode is Opcode.LOAD and span.work is Work.WEIGHTS]
    cycles = waits = 0
    if products:
        cycles = max(span.end for span in spans) - products[0].start
    for before, after in pairwise(products):
        if before.layer == after.layer:
            continue
        came = max((load.end for load in loads if load.layer == after.layer
                    and before.start < load.end <= after.start + 1), default=before.end)
        waits += max(0, min(came, after.start) - before.end)
    return waits / cycles if cycles else None
