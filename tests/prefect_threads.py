"""The threads by which Prefect sends logs and events, each to the server it met first."""

from __future__ import annotations

import threading


def end_threads() -> None:
    """Send what logs and events are left, and let the next ones go to the server of their own time.

    Otherwise the threads try for long to reach a server that is gone, or tell one of another's runs.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all()
        for thread in threading.enumerate():
            if thread.name == f"{worker.__name__}Thread":
                thread.join(60)
                assert not thread.is_alive()
