"""What a training run did: report.json, and report.html that shows it."""

from .data import differences, expectation, performance, pipeline, write_report
from .figures import plot_history
from .page import write_page


__all__ = ["differences", "expectation", "performance", "pipeline", "plot_history", "write_page",
           "write_report"]
