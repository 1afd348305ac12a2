"""The run-time manager of a small fast and a large slow memory; see ADR 11."""

from .manager import Manager, Move
from .options import FastMemory
from .recompute import Backward, Plan, every, optimal, store_all, stored_at


__all__ = ["Backward", "FastMemory", "Manager", "Move", "Plan", "every", "optimal", "store_all",
           "stored_at"]
