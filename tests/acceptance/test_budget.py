"""Two workers share the request budget that an operator sets and changes in Prefect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import Exporter, settings_for, write_phones
from tests.acceptance.scale import IS_FULL

LIMIT = "imbrace-requests"
PER_SECOND = 10
# For their first shares.
WARM_UP_SECONDS, MEASURED_SECONDS = 60, 120
LEAST_USED, MAX_LIMITED = 0.85, 0.02
FOLLOWED_SECONDS = 15
BUSY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Workers:
    """Two workers that export, their gateway, and the limit that they share."""

    box: Sandbox
    limit_url: str

    def set_limit(self, per_second: int) -> None:
        """Change the limit as the UI does."""
        change: dict[str, object] = {"limit": per_second, "slot_decay_per_second": per_second}
        _ask("PATCH", self.limit_url, change)

    def measure(self, seconds: int) -> tuple[float, float]:
        """Wait, and return the accepted requests per second and the share of 429 answers."""
        before = self.box.stats()
        began = time.monotonic()
        time.sleep(seconds)
        after = self.box.stats()
        accepted, limited = after.accepted - before.accepted, after.refused - before.refused
        return accepted / (time.monotonic() - began), limited / max(1, accepted + limited)


@pytest.fixture(scope="module")
def workers(prefect_server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Start two exports that take longer than these tests."""
    limits = f"{prefect_server.api_url}/v2/concurrency_limits/"
    limit: dict[str, object] = {"name": LIMIT, "limit": PER_SECOND, "slot_decay_per_second": PER_SECOND}
    _ask("POST", limits, limit)
    options = SandboxOptions(
        conversations=4_000, messages_mean=3, budget_requests=PER_SECOND, budget_window_seconds=1.0
    )
    folder = tmp_path_factory.mktemp("budget")
    with (
        Sandbox(options) as box,
        Exporter(prefect_server, folder / "one") as one,
        Exporter(prefect_server, folder / "two") as two,
    ):
        phones = write_phones(folder / "phones.txt", box.phones)
        for each, name in ((one, "one"), (two, "two")):
            each.begin(settings_for(box, _lake(folder, name)), phones=phones)
        # Both have resolved the numbers, and read the first conversations.
        while not all(_lake(folder, name).joinpath("messages").exists() for name in ("one", "two")):
            time.sleep(0.2)
        yield Workers(box, f"{limits}{LIMIT}")
        for each in (one, two):
            each.kill()
    # It would limit the tests that follow.
    _ask("DELETE", f"{limits}{LIMIT}")


def _ask(method: str, url: str, body: dict[str, object] | None = None) -> None:
    """Send a request to the Prefect server; retry while its database is busy, as Prefect's client does."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        answer = httpx.request(method, url, json=body, timeout=BUSY_SECONDS)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
            answer.raise_for_status()
            return
        time.sleep(1)


def _lake(folder: Path, name: str) -> Path:
    return folder / name / "lake"


@pytest.mark.skipif(not IS_FULL, reason="works for three minutes: IMBRACE_ACCEPTANCE=full")
def test_two_workers_use_one_budget_and_hardly_exceed_it(workers: Workers) -> None:
    workers.set_limit(PER_SECOND)
    time.sleep(WARM_UP_SECONDS)

    per_second, limited_share = workers.measure(MEASURED_SECONDS)

    assert per_second >= LEAST_USED * PER_SECOND
    assert limited_share < MAX_LIMITED


def test_a_change_in_prefect_is_followed_within_15_seconds(workers: Workers) -> None:
    workers.set_limit(4)
    time.sleep(FOLLOWED_SECONDS)
    slow, _ = workers.measure(10)
    workers.set_limit(8)
    time.sleep(FOLLOWED_SECONDS)
    fast, _ = workers.measure(10)
    workers.set_limit(0)
    time.sleep(FOLLOWED_SECONDS)
    none, _ = workers.measure(5)

    assert 2.5 <= slow <= 4.2
    assert 5.0 <= fast <= 8.2
    assert none == 0.0
