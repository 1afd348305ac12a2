"""What a training run did: report.json, and report.html that shows it."""

from .data import differences, expectation, performance, pipeline, stashing, write_report
from .figures import plot_history
from .layers import layers
from .page import write_page


__all__ = ["differences", "expectation", "layers", "performance", "pipeline", "plot_history",
           "stashing", "write_page", "write_report"]
