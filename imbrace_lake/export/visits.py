"""The visits of a run within its budget: which conversations, until when, and the state that the run leaves.

`imbrace_lake.revisit` has the rules, and docs/freshness.md explains them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.export.humanize import span
from imbrace_lake.gateway.client import Traffic
from imbrace_lake.gateway.ids import canonical_conversation_id, stored_ids
from imbrace_lake.lake.checkpoint import read_state
from imbrace_lake.lake.conversation_states import ConversationStates, read_unrecorded
from imbrace_lake.lake.freshness import CLASSES, NEVER, OLDER
from imbrace_lake.lake.lake import Lake
from imbrace_lake.printable import plural
from imbrace_lake.revisit import (
    COLUMNS,
    Choice,
    Explanation,
    Floats,
    Known,
    Outlook,
    RevisitPolicy,
    as_hours,
    known_of,
)

# The share of the limit of requests that a run plans with; retries and other commands need some, too.
PLANNED_SHARE = 0.9
# A run that chooses its budget by itself ends before the next one begins.
PLANNED_TIME = 0.95
# A run expects of a visit the mean of its pages so far, and of as many visits with as many pages.
EXPECTED_PAGES = 10
EXPECTED_VISITS = 8
NOT_KNOWN = "not known yet: no conversation had been proven before"


@dataclass(frozen=True, slots=True)
class BudgetGiven:
    """The budget of a run as it was given.

    Attributes:
        requests: The most requests.
        minutes: The most minutes.
        is_automatic: Without either, the budget is what the limit of requests allows until the next run.
    """

    requests: int | None = None
    minutes: float | None = None
    is_automatic: bool = False

    @property
    def is_chosen(self) -> bool:
        """Whether an operator has chosen a budget."""
        return self.requests is not None or self.minutes is not None

    def limits(self, per_second: float | None, policy: RevisitPolicy) -> tuple[int | None, float | None]:
        """Return the most requests, and the most minutes; None for no limit.

        Args:
            per_second: The limit of requests per second; None for none, 0 for a run that waits.
            policy: Has the time until the next run.
        """
        minutes = self.minutes
        if self.requests is not None:
            return self.requests, minutes
        if minutes is not None:
            return int(per_second * 60 * minutes) if per_second else None, minutes
        if not self.is_automatic or not per_second:
            return None, None
        period = policy.period / timedelta(minutes=1)
        return int(PLANNED_SHARE * per_second * 60 * period), PLANNED_TIME * period


@dataclass(slots=True)
class RunBudget:
    """The budget of a run, and how much of it is used.

    Attributes:
        traffic: The counters of requests.
        requests: The most requests, or as many as there are conversations.
        until: The time by `time.monotonic()` after which no visit begins.
        pages: The pages requested by visits.
        waiting: The conversations whose visit has begun without a request.
        under_way: The number of visits under way.
        ended_visits: The number of visits that have ended.
        released: The number of visits that ended with the time, because none of their requests had succeeded.
        remark: Why visits were released.
        problem: Why the run visited nothing, and what to do.
    """

    traffic: Traffic
    requests: int | None = None
    until: float = math.inf
    pages: int = 0
    waiting: set[str] = field(default_factory=set)
    under_way: int = 0
    ended_visits: int = 0
    released: int = 0
    remark: str | None = None
    problem: str | None = None
    _before: int = field(init=False)
    _unanswered: dict[str, asyncio.Timeout] = field(default_factory=dict)
    _has_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._before = self.traffic.requests - self.traffic.retries

    @property
    def used(self) -> int:
        """The requests sent, and those that visits will send at least."""
        planned = self._before + self.pages + self.traffic.retries + len(self.waiting)
        # A large answer is requested again in pieces.
        return max(planned, self.traffic.requests)

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.until

    @property
    def is_used_up(self) -> bool:
        """Whether no further visit may begin."""
        return self.is_late or (self.requests is not None and self.used >= self.requests)

    def ended(self) -> str:
        """Return why the run visits no more."""
        if self.released:
            return "time used"
        if self.requests is not None and self.used >= self.requests:
            return "budget used"
        return "time used" if self.is_late else "within the budget"

    @property
    def has_room(self) -> bool:
        """Whether the rest of the budget is sufficient for what visits under way are expected to use."""
        if self.requests is None or not self.under_way:
            return True
        pages = self.pages + EXPECTED_PAGES * EXPECTED_VISITS
        expected = max(1.0, pages / (self.ended_visits + EXPECTED_VISITS))
        return self.used + self.under_way * (expected - 1) < self.requests

    async def wait_for_room(self) -> None:
        """Wait until another visit may begin, or none any more.

        Each visit that has begun is finished, many long ones at a time would exceed a small budget by far.
        """
        while not self.has_room and not self.is_used_up:
            self._has_ended.clear()
            await self._has_ended.wait()

    def begin(self, conversation_id: str) -> bool:
        """Begin a visit; return whether the budget allows it."""
        if self.is_used_up:
            return False
        self.waiting.add(conversation_id)
        return True

    def count_page(self, conversation_id: str) -> None:
        """Count the request of a page."""
        self.waiting.discard(conversation_id)
        self.pages += 1

    @asynccontextmanager
    async def visit(self, conversation_id: str) -> AsyncIterator[None]:
        """End a visit with the block; when the time is over, cancel a visit of which no page has arrived."""
        # A gateway that rate-limits every request would keep it, and with it the run, for half an hour.
        seconds = None if self.until == math.inf else max(0.0, self.until - time.monotonic())
        unanswered = asyncio.timeout(seconds)
        self.under_way += 1
        try:
            async with unanswered:
                self._unanswered[conversation_id] = unanswered
                yield
        except TimeoutError:
            if not unanswered.expired():
                raise
            self.released += 1
        finally:
            self._unanswered.pop(conversation_id, None)
            self.end(conversation_id)
            self.under_way -= 1
            self.ended_visits += 1
            self._has_ended.set()

    def end(self, conversation_id: str) -> None:
        """Count no request in advance for a visit that has ended."""
        self.waiting.discard(conversation_id)

    def note_answer(self, conversation_id: str) -> None:
        """Let a visit end with an outcome, because it has an answer."""
        unanswered = self._unanswered.pop(conversation_id, None)
        if unanswered is not None and not unanswered.expired():
            unanswered.reschedule(None)


@dataclass(frozen=True, slots=True)
class VisitReport:
    """The state of the lake after a run with a budget, or at any other time.

    Ages are in hours.

    Attributes:
        conversations: The number of all conversations.
        gone: Those of them that are deleted upstream, which no age includes.
        requests: The visits that the budget of a run allows.
        visited: The conversations that were visited.
        due: The conversations that were due when the run began.
        not_reached: Those of them that were not visited.
        unproven: The conversations that were never proven.
        oldest: The age of the oldest proof; None without any.
        active: The conversations with messages in the last seven days.
        active_age: The age that the proofs of 95 % of these have not reached.
        promise_days: The promised age.
        needed: The visits per run that the promise needs.
        is_promise_kept: Whether the budget is sufficient for them.
        is_promise_possible: Whether any budget is, as often as runs begin.
        late: The proofs that are older than promised, or will be before runs renew them, if it is sufficient.
        catches_up: The hours until runs have renewed these.
        ahead: The number of proofs from the future.
        by_age: The number of conversations by the age of their proof.
        forecast_mean, forecast_median, forecast_95: The age at which runs will find news.
        forecast_hour: The share of the news that they will find within an hour.
        ended: Why the run ended its visits.
    """

    conversations: int
    gone: int
    requests: int
    visited: int
    due: int
    not_reached: int
    unproven: int
    oldest: float | None
    active: int
    active_age: float | None
    promise_days: float
    needed: int
    is_promise_kept: bool
    is_promise_possible: bool
    late: int
    catches_up: float
    ahead: int
    forecast_mean: float
    forecast_median: float
    forecast_95: float
    forecast_hour: float
    by_age: dict[str, int]
    ended: str = ""

    @classmethod
    def of(cls, outlook: Outlook, known: Known, now: datetime) -> VisitReport:
        """Return the state of the lake if no conversation is visited.

        Args:
            outlook: The outlook when the run began.
            known: The same conversations now.
            now: The time.
        """
        forecast = replace(outlook, known=known).forecast()
        due = int(outlook.is_due().sum()) + outlook.unproven
        is_gone = known.is_gone
        ages = np.maximum(as_hours(now) - known.seen, 0.0)
        active = ages[known.is_active(as_hours(now)) & ~is_gone]
        ages = ages[~is_gone]
        return cls(
            conversations=outlook.conversations,
            gone=int(is_gone.sum()),
            requests=outlook.requests,
            visited=0,
            due=due,
            not_reached=due,
            unproven=outlook.unproven,
            oldest=float(ages.max()) if len(ages) else None,
            active=len(active),
            active_age=float(np.percentile(active, 95)) if len(active) else None,
            promise_days=outlook.policy.promise / timedelta(days=1),
            needed=forecast.requests,
            is_promise_kept=forecast.is_promise_kept,
            is_promise_possible=outlook.policy.is_possible,
            late=forecast.late,
            catches_up=forecast.catches_up,
            ahead=known.ahead(as_hours(now)),
            forecast_mean=forecast.mean,
            forecast_median=forecast.median,
            forecast_95=forecast.most,
            forecast_hour=forecast.fresh,
            by_age=_by_age(ages, outlook.unproven),
        )

    @property
    def is_first(self) -> bool:
        """Whether no conversation had been proven before, so that nothing is known about their activity."""
        return not self.forecast_mean

    def forecast(self) -> str:
        """Return the forecast as a sentence."""
        if self.is_first:
            return NOT_KNOWN
        fresh = f"{100 * self.forecast_hour:.0f} %"
        return (
            f"news is found after {span(self.forecast_mean)} on average, half of it within"
            f" {span(self.forecast_median)}, 95 % within {span(self.forecast_95)}; {fresh} within an hour"
        )

    def promise(self) -> str:
        """Return the promise, and whether it is kept."""
        if not self.is_promise_possible:
            return f"{self._promised()}: broken, because runs begin less often"
        needs = f"needs {plural(self.needed, 'visit')} per run"
        if not self.is_promise_kept:
            return f"{self._promised()}: broken, {needs}"
        if not self.late:
            return f"{self._promised()}: kept, {needs}"
        return f"{self._promised()}: not kept yet, {needs}; {self._late()}"

    def _late(self) -> str:
        late = plural(self.late, "proof is", "proofs are")
        return f"{late} older, or will be, and runs catch up in about {span(self.catches_up)}"

    def _promised(self) -> str:
        return "1 day" if self.promise_days == 1 else f"{self.promise_days:g} days"

    def sentence(self) -> str:
        """Return what a run with a budget did, and what it left."""
        parts = [
            f"{self.ended}: {self.visited:,} visited, {self.not_reached:,} due and not reached",
            *self.ages(),
        ]
        return "; ".join([*parts, *self.warnings()])

    def ages(self) -> list[str]:
        """Return the ages as sentences."""
        found = [] if self.oldest is None else [f"oldest proof {span(self.oldest)}"]
        found += [f"{self.unproven:,} never proven"] * bool(self.unproven)
        if self.active_age is not None:
            found.append(f"95 % of {self.active:,} active conversations seen within {span(self.active_age)}")
        return found

    def warnings(self) -> list[str]:
        """Return what an operator has to know, in one sentence each."""
        found = []
        if not self.is_promise_possible:
            found.append(
                f"no budget keeps the promise of {self._promised()}, because runs begin less often: change"
                " IMBRACE_PERIOD_MINUTES with the schedule, or IMBRACE_PROMISE_DAYS"
            )
        elif self.late:
            found.append(f"the promise of {self._promised()} is not kept yet: {self._late()}")
        elif not self.is_promise_kept:
            found.append(
                f"the promise of {self._promised()} needs {plural(self.needed, 'visit')} per run, and the"
                f" budget allows {self.requests:,}"
            )
        if self.ahead:
            found.append(
                f"{plural(self.ahead, 'proof is', 'proofs are')} from the future, because a clock was or is"
                " wrong: check the clocks of the workers"
            )
        return found


def _by_age(ages: Floats, unproven: int) -> dict[str, int]:
    """Count conversations by the age of their proof, in the classes of `freshness`."""
    limits = [limit / timedelta(hours=1) for limit in CLASSES.values()]
    counts = np.bincount(np.searchsorted(limits, ages, side="right"), minlength=len(limits) + 1)
    return dict(zip([*CLASSES, OLDER], counts.tolist(), strict=True)) | {NEVER: unproven}


@dataclass(slots=True)
class Visits:
    """The conversations that a run visits, and all others that it knows.

    Attributes:
        outlook: The conversations that were proven.
        choice: Its choice among them.
        ids: The conversations to visit, in this order.
        first: How many of them come first whatever their value, because a list has them and the lake has not.
        unproven: The conversations that the lake knows, and that were never proven.
    """

    outlook: Outlook
    choice: Choice
    ids: list[str]
    first: int = 0
    unproven: Sequence[str] = ()

    def explain(self, conversation_id: str) -> Explanation | None:
        """Explain when a conversation is visited next; None if it was never proven, or is unknown."""
        row = pc.index(self.outlook.known.ids, canonical_conversation_id(conversation_id)).as_py()
        if row < 0:
            row = pc.index(self.outlook.known.ids, conversation_id).as_py()
        return None if row < 0 else self.outlook.explain(row)

    def is_unproven(self, conversation_id: str) -> bool:
        """Whether the lake knows a conversation that was never proven."""
        return conversation_id in self.unproven or canonical_conversation_id(conversation_id) in self.unproven

    def report(
        self,
        now: datetime,
        visited: Collection[str],
        proven: Collection[str],
        ended: str,
        gone: Collection[str] = (),
    ) -> VisitReport:
        """Return the state of the lake after the visits.

        Args:
            now: The time.
            visited: The conversations with an outcome.
            proven: Those with a proof, or which the gateway no longer has.
            ended: Why the run ended its visits.
            gone: Those of them which the gateway no longer has.
        """
        outlook, rows = self.outlook, self.choice.rows
        start = self.first + len(self.choice.unproven)
        before, others = self.ids[:start], self.ids[start:]
        is_visited = np.fromiter((one in visited for one in others), np.bool_, len(rows))
        is_proven = np.fromiter((one in proven for one in others), np.bool_, len(rows))
        reached = sum(one in visited for one in before)
        seen, is_gone = outlook.known.seen.copy(), outlook.known.is_gone.copy()
        seen[rows[is_proven]] = as_hours(now)
        is_gone[rows[is_proven]] = [one in gone for one in others if one in proven]
        due = self.choice.due + self.first
        done = VisitReport.of(outlook, replace(outlook.known, seen=seen, gone=is_gone), now)
        newly = sum(one in proven and one not in gone for one in before)
        newly_gone = sum(one in gone for one in before)
        unproven = outlook.unproven + self.first - newly - newly_gone
        by_age = done.by_age | {NEVER: unproven}
        by_age[next(iter(CLASSES))] += newly
        return replace(
            done,
            visited=reached + int(is_visited.sum()),
            due=due,
            not_reached=due - reached - int(outlook.is_due()[rows[is_visited]].sum()),
            unproven=unproven,
            oldest=0.0 if done.oldest is None and newly else done.oldest,
            by_age=by_age,
            gone=done.gone + newly_gone,
            ended=ended,
        )


def choose_visits(
    states: ConversationStates,
    unproven: Iterable[str],
    first: Iterable[str],
    policy: RevisitPolicy,
    now: datetime,
    requests: int | None,
    spell: Callable[[Collection[str]], list[str]] = stored_ids,
) -> Visits:
    """Choose the conversations that a run visits, and their order.

    Args:
        states: The last proof of each conversation.
        unproven: All other conversations.
        first: Conversations that come first if the lake does not know them; the others wait for their turn.
        policy: The promise and the time between runs.
        now: The time.
        requests: How many requests the run may send; None for no limit.
        spell: Returns the id under which each conversation continues, each once.
    """
    table = states.table(COLUMNS)
    if any(canonical_conversation_id(one) != one for one in states.iter_ids()):
        # An earlier release may have stored a conversation under two spellings; one of them is out of date.
        current = pa.array(spell(states.ids()))
        table = table.filter(pc.is_in(table.column("conversation_id"), current))
    listed = spell([*first])
    there = states.known(listed)
    others = {*spell([*unproven])}
    # Those that failed in an earlier run take turns with all others that were never proven.
    new = [one for one in listed if one not in there and one not in others]
    proven = states.known(others.union(map(canonical_conversation_id, others)))
    rest = sorted(one for one in others if not proven & {one, canonical_conversation_id(one)})
    known = known_of(table, policy)
    count = len(known) + len(rest) + len(new)
    outlook = Outlook.of(known, now, policy, count if requests is None else requests, len(rest), len(new))
    choice = outlook.choose()
    ids = [*new, *(rest[one] for one in choice.unproven.tolist())]
    ids += table.column("conversation_id").take(pa.array(choice.rows)).to_pylist()
    return Visits(outlook, choice, ids, len(new), rest)


async def read_visits(
    lake: Lake, organization_id: str, policy: RevisitPolicy, now: datetime, requests: int | None
) -> Visits:
    """Return what a run would visit now; for the arguments see `choose_visits`."""
    state = await read_state(lake, organization_id, COLUMNS, now)
    partitions = await lake.list_partitions(organization_id)
    unrecorded = await read_unrecorded(lake, organization_id, partitions, {*state.ids()})
    unproven = [*state.unproven, *unrecorded]
    return await asyncio.to_thread(choose_visits, state.states, unproven, (), policy, now, requests)
