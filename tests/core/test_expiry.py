"""Runs warn two weeks before the token expires, and after it has expired."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imbrace_lake.check import Finding, check_gateway, run_checks
from imbrace_lake.errors import SettingsError
from imbrace_lake.settings import Settings, expiry_warning, load_settings
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.gateways import opener_of

TODAY = date(2026, 11, 27)


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (-400, "the token expired on 2025-10-23"),
        (-1, "the token expired on 2026-11-26"),
        (0, "the token expires today, on 2026-11-27"),
        (1, "the token expires tomorrow, on 2026-11-28"),
        (14, "the token expires in 14 days, on 2026-12-11"),
    ],
)
def test_within_two_weeks_the_warning_states_the_day_and_the_action(days: int, words: str) -> None:
    warning = expiry_warning(TODAY + timedelta(days=days), TODAY)

    assert warning is not None
    assert warning.startswith(words)
    assert "create a new one" in warning


def test_before_that_and_without_a_day_there_is_no_warning() -> None:
    assert expiry_warning(TODAY + timedelta(days=15), TODAY) is None
    assert expiry_warning(None, TODAY) is None


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2027-01-31", date(2027, 1, 31)),
        ("2027-01-31T23:30:00.000Z", date(2027, 1, 31)),
        ("2027-01-31T23:30:00-02:00", date(2027, 2, 1)),
        ("2027-01-31 08:00", date(2027, 1, 31)),
    ],
)
def test_a_day_or_a_time_is_accepted(text: str, day: date, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBRACE_TOKEN_EXPIRES", text)

    assert load_settings().token_expires == day


@pytest.mark.parametrize("text", ["soon", "31.01.2027", "2027-02-30", ""])
def test_a_value_that_is_not_a_day_is_an_error_of_its_setting(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMBRACE_TOKEN_EXPIRES", text)

    with pytest.raises(SettingsError, match="IMBRACE_TOKEN_EXPIRES: "):
        load_settings()


@pytest.mark.parametrize(("days", "verdict"), [(-1, "error"), (3, "note"), (400, "ok"), (None, None)])
def test_a_check_reports_when_the_token_expires(
    days: int | None, verdict: str | None, tmp_path: Path
) -> None:
    with Sandbox(SandboxOptions(conversations=1)) as box:
        values: dict[str, Any] = {
            "token": box.options.token,
            "organization": box.options.organization_id,
            "gateway": box.url,
            "lake": str(tmp_path / "lake"),
            "token_expires": None if days is None else datetime.now(UTC).date() + timedelta(days=days),
        }
        settings = Settings(_env_file=None, **values)

        async def look() -> tuple[list[Finding], list[Finding]]:
            opener = opener_of(settings)
            return await run_checks(settings, opener), await check_gateway(settings, opener)

        looks = asyncio.run(look())

    for findings in looks:
        found = [one.verdict for one in findings if one.name == "token expiry"]
        assert found == ([] if verdict is None else [verdict])
        assert all(one.verdict == "ok" for one in findings if one.name == "token")
