"""Work in a second thread, beside what runs without the interpreter."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event


__all__ = ["beside"]


class _Abandoned(Exception):
    """Nobody waits for the result any more."""


@contextmanager
def beside(work):
    """Run ``work(go_on)`` in a thread; yields a function that waits for its result.

    ``work`` calls ``go_on`` now and then, with any arguments, so that it ends soon after the
    context does.
    """
    left = Event()

    def go_on(*_):
        if left.is_set():
            raise _Abandoned

    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work, go_on)
        try:
            yield future.result
        finally:
            left.set()
