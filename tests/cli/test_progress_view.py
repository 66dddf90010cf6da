"""The progress that is shown during a run."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from imbrace_cli import progress_view
from imbrace_cli.interrupt import ACKNOWLEDGED, Interrupt
from imbrace_cli.progress_view import details, limited, open_view
from imbrace_lake.export.progress import Pace, Progress
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


def test_the_counters_the_speed_and_the_limit_fit_one_line() -> None:
    progress = sample_progress()
    assert progress.limiter is not None
    progress.limiter.per_second = 20.0
    progress.limiter.rate_limited = 3

    reported = details(progress, Pace(requests=12.34, messages=56.7))

    assert reported == (
        "4 complete · 1 failed · 12.3 requests/s · 57 messages/s · limit 20 requests/s · 3 rate-limited"
    )
    assert details(Progress(), Pace()) == ""


def test_what_limits_the_run_is_reported_while_it_lasts() -> None:
    async def look() -> list[str]:
        progress = sample_progress()
        limiter = progress.limiter
        assert limiter is not None
        limiter.on_rate_limited(await limiter.acquire(), 30.0)
        await asyncio.sleep(0.01)
        return [limited(Progress(), Pace()), limited(progress, Pace())]

    before, after = asyncio.run(look())
    assert before == ""
    assert after == "limited by the gateway, which limits the rate (429): asking again in 30 s"


def test_a_pipe_gets_a_line_from_time_to_time(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(progress: Progress) -> None:
        view.update(progress)

    monkeypatch.setattr(progress_view, "LINE_SECONDS", 0.0)
    with open_view() as view:
        view.say("loading Prefect")
        view.say("starting a Prefect server")
        view.say("starting a Prefect server")
        view.update(Progress())
        view.update(Progress(stage="resolving", numbers=3_000, numbers_resolved=500))
        monkeypatch.setattr(progress_view, "LINE_SECONDS", 10.0)
        asyncio.run(look(sample_progress()))
        asyncio.run(look(sample_progress()))

    out, err = capsys.readouterr()
    assert out == ""
    # The bound depends on how busy the processor is.
    shown = re.sub(r"[\d.,]+ (requests|messages)/s", r"N \1/s", err).partition(" · limited by")[0]
    assert shown.splitlines() == [
        "starting a Prefect server",
        "resolving: 500 of 3,000 numbers",
        "exporting: 5 of 10 conversations · 4 complete · 1 failed · N requests/s · N messages/s",
    ]


def test_in_a_pipe_the_first_warnings_are_lines(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("imbrace_lake.export.chunk")
    with open_view():
        for number in range(20):
            logger.warning("not exported conversation=%d", number)
        lines = capsys.readouterr().err.splitlines()
        for _ in range(10):
            logger.warning("another")

    logger.warning("after the end")

    assert lines == [f"warning: not exported conversation={number}" for number in range(20)]
    assert capsys.readouterr().err.splitlines() == [
        "warning: further warnings are not shown here; the log of the run in Prefect has all of them"
    ]


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_there_is_a_display_that_is_removed_at_the_end(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def rate_limited() -> Progress:
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
        asyncio.run(rate_limited())
        view.display.refresh()  # type: ignore[attr-defined]

    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "requests/s" in shown
    assert "limited by the gateway, which limits the rate" in shown


@pytest.mark.usefixtures("terminal")
def test_after_ctrl_c_the_display_shows_it_and_a_pipe_gets_no_more_lines(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = Interrupt()
    monkeypatch.setattr(progress_view, "current_interrupt", lambda: interrupt)
    monkeypatch.setattr(progress_view, "LINE_SECONDS", 0.0)
    with open_view() as view:
        view.say("loading Prefect")
        interrupt.is_requested = True
        view.display.refresh()  # type: ignore[attr-defined]
    shown = capsys.readouterr().err
    lines = progress_view._LineView()
    for _ in range(3):
        lines.update(Progress(stage="resolving", numbers=3_000))

    assert ACKNOWLEDGED in shown
    assert capsys.readouterr().err == ""
