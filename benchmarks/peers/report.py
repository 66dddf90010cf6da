"""The tables of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.expected import Verdict
from benchmarks.metrics import SUCCESS
from benchmarks.runner import Round

BASELINE = "bare aiohttp"
OURS = "flow"


@dataclass(frozen=True, slots=True)
class Result:
    """One round, and what is to be said of what it wrote."""

    round: Round
    verdict: Verdict

    @property
    def name(self) -> str:
        """Whose round it was."""
        return self.round.competitor.name

    @property
    def seconds(self) -> float:
        """How long the work took."""
        return self.round.metrics.seconds

    def said(self) -> str:
        """What was found, and what the competitor said if that is not the same."""
        outcome = self.round.metrics.outcome
        is_right = self.verdict.is_complete == (outcome == SUCCESS)
        return str(self.verdict) if is_right else f"{self.verdict}, and it reported {outcome}"


def speed_table(results: Sequence[Result], conversations: int, messages: int) -> str:
    """Medians of all competitors, with ratios to the bare script and to the flow.

    Args:
        results: At least one of each competitor; a competitor's line has all of its rounds.
        conversations: How many each of them read.
        messages: The same.
    """
    by_name = _by_name(results)
    medians = {name: statistics.median(one.seconds for one in its) for name, its in by_name.items()}
    lines = [
        f"| | median | spread | to {BASELINE} | to {OURS} | messages/s | CPU a conversation | most memory"
        " | requests | result |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, its in by_name.items():
        seconds = sorted(one.seconds for one in its)
        cpu = statistics.median(one.round.metrics.cpu_seconds for one in its) / conversations * 1_000
        lines.append(
            f"| {name} | {medians[name]:.2f} s | {seconds[0]:.2f} to {seconds[-1]:.2f} s"
            f" | {_ratio(medians, name, BASELINE)} | {_ratio(medians, name, OURS)}"
            f" | {messages / medians[name]:,.0f} | {cpu:.1f} ms"
            f" | {max(one.round.metrics.memory_bytes for one in its) / 1e6:.0f} MB"
            f" | {max(one.round.requests for one in its):,} | {_said(its)} |"
        )
    if {OURS, "core, no Prefect"} <= medians.keys():
        share = 1 - medians["core, no Prefect"] / medians[OURS]
        lines += ["", f"Prefect takes {share:.0%} of the flow's time."]
    return "\n".join(lines)


def moving_table(movements: Mapping[str, Sequence[Result]]) -> str:
    """What each competitor made of lists that moved, one column a movement."""
    lines = [f"| | {' | '.join(movements)} |", f"|---{'|---' * len(movements)}|"]
    columns = [_by_name(results) for results in movements.values()]
    said = {name: " | ".join(_said(column[name]) for column in columns) for name in columns[0]}
    return "\n".join([*lines, *(f"| {name} | {text} |" for name, text in said.items())])


def _by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    by_name: dict[str, list[Result]] = {}
    for one in results:
        by_name.setdefault(one.name, []).append(one)
    return by_name


def _ratio(medians: dict[str, float], name: str, other: str) -> str:
    return f"{medians[name] / medians[other]:.2f}" if other in medians else ""


def _said(results: Sequence[Result]) -> str:
    return "; ".join(sorted({one.said() for one in results}))
