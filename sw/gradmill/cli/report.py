"""``gradmill report``: the page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from ..report import write_page
from .common import clear_errors, console


__all__ = ["report"]


def report(
    directory: Annotated[Path, typer.Argument(help="Folder that `gradmill train` wrote.")],
) -> None:
    """Write report.html from the report.json and timeline.json of a training run."""
    with clear_errors():
        console.print(f"report {write_page(directory)}", soft_wrap=True, highlight=False)
