"""Layer-to-layer execution: one tile, all layers in turn, weights from far memory."""

from .lowering import LayerLowering


__all__ = ["LayerLowering"]
