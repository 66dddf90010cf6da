"""Requests to a Prefect server that change something."""

from __future__ import annotations

import time
from typing import Any

import httpx

BUSY_SECONDS = 60.0


def send(method: str, url: str, body: Any = None) -> httpx.Response:
    """Send a request, and return its answer.

    While its database is locked, the server answers 503, and Prefect's clients repeat the request.
    """
    end = time.monotonic() + BUSY_SECONDS
    while True:
        answer = httpx.request(method, url, json=body, timeout=BUSY_SECONDS)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > end:
            return answer.raise_for_status()
        time.sleep(0.5)
