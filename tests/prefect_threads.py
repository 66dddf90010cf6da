"""Prefect's threads for logs and events, each of which sends to the first server it had."""

from __future__ import annotations

import threading


def end_threads() -> None:
    """Send the remaining logs and events, and end the threads, so that the next ones go to the next server.

    Otherwise the threads try for long to reach a stopped server, or send to the wrong one.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all()
        for thread in threading.enumerate():
            if thread.name == f"{worker.__name__}Thread":
                thread.join(60)
                assert not thread.is_alive()
