"""The progress that is shown during a run."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from imbrace_cli import progress_view
from imbrace_cli.progress_view import details, open_view, rate_limit_message
from imbrace_lake.export.progress import Progress
from imbrace_lake.gateway.limiter import RequestLimiter


def sample_progress() -> Progress:
    return Progress(
        stage="exporting",
        numbers=20,
        numbers_resolved=20,
        conversations=10,
        statuses=Counter(complete=4, failed=1),
        messages_total=1_234,
        limiter=RequestLimiter(),
    )


def test_the_counters_fit_one_line() -> None:
    progress = sample_progress()
    assert progress.limiter is not None
    progress.limiter.counts.rate_limited = 3

    reported = details(progress, 56.7)

    assert reported == "4 complete · 1 failed · 1,234 messages (57/s) · 0 in flight · 3 rate-limited"
    assert details(Progress(), 0.0) == ""


def test_a_rate_limit_is_reported_while_it_lasts() -> None:
    async def look() -> list[str]:
        progress = sample_progress()
        limiter = progress.limiter
        assert limiter is not None
        reported = [rate_limit_message(Progress()), rate_limit_message(progress)]
        limiter.on_rate_limited(await limiter.acquire(), 30.0)
        await asyncio.sleep(0.01)
        reported.append(rate_limit_message(progress))
        limiter._closed_until = 0.0
        reported.append(rate_limit_message(progress))
        return reported

    assert asyncio.run(look()) == [
        "",
        "",
        "the gateway limits the rate (429), asking again in 30 s",
        "the gateway limits the rate (429), probing whether the limit has lifted",
    ]


def test_a_pipe_gets_a_line_from_time_to_time(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_view, "LINE_SECONDS", 0.0)
    with open_view() as view:
        view.say("loading Prefect")
        view.say("starting a Prefect server")
        view.say("starting a Prefect server")
        view.update(Progress())
        view.update(Progress(stage="resolving", numbers=3_000, numbers_resolved=500))
        monkeypatch.setattr(progress_view, "LINE_SECONDS", 10.0)
        view.update(sample_progress())
        view.update(sample_progress())

    out, err = capsys.readouterr()
    assert out == ""
    assert re.sub(r"\([\d,]+/s\)", "(N/s)", err).splitlines() == [
        "starting a Prefect server",
        "resolving: 500 of 3,000 numbers",
        "exporting: 5 of 10 conversations · 4 complete · 1 failed · 1,234 messages (N/s) · 0 in flight",
    ]


def test_in_a_pipe_the_first_warnings_are_lines(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("imbrace_lake.export.chunk")
    with open_view():
        for number in range(30):
            logger.warning("not exported conversation=%d", number)

    logger.warning("after the end")

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: not exported conversation=0"
    assert lines[20:] == ["warning: further warnings are counted in the summary"]


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_there_is_a_display_that_is_removed_at_the_end(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def limited() -> Progress:
        progress = sample_progress()
        assert progress.limiter is not None
        progress.limiter.on_rate_limited(await progress.limiter.acquire(), 30.0)
        await asyncio.sleep(0.01)
        view.update(progress)
        return progress

    with open_view() as view:
        view.say("loading Prefect")
        view.update(Progress())
        view.update(Progress(stage="resolving", numbers=3_000, numbers_resolved=500))
        asyncio.run(limited())
        view.display.refresh()  # type: ignore[attr-defined]

    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "the gateway limits the rate" in shown
