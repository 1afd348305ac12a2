"""Signs of life of work that takes long."""

from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic


__all__ = ["heartbeat"]

#: Seconds from one sign to the next.
PERIOD = 20.0


@contextmanager
def heartbeat(say):
    """Call ``say(seconds since the beginning)`` in a thread, every 20 s until the context ends."""
    ended, began = Event(), monotonic()

    def beat():
        while not ended.wait(PERIOD):
            say(monotonic() - began)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
