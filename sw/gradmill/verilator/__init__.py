"""The RTL, simulated by Verilator in this process, on a board with two memories."""

from .backend import BusRuleError, Fault, VerilatorDevice


__all__ = ["BusRuleError", "Fault", "VerilatorDevice"]
