"""What a run would do, found out without writing anything: what is new, how many requests, how long."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from imbrace_lake.errors import ConversationNotFound, GatewayError
from imbrace_lake.export.humanize import counted, duration
from imbrace_lake.export.resolve import NUMBERS_PER_REQUEST, Resolved, resolve
from imbrace_lake.gateway.client import LINKS_PATH, GatewayClient, link_batches
from imbrace_lake.gateway.ids import canonical_conversation_ids, other_spellings
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import has_lake, open_lake
from imbrace_lake.phones.lists import PhoneList
from imbrace_lake.phones.numbers import PhoneNumber
from imbrace_lake.settings import Settings
from imbrace_lake.store.factory import StoreOptions, open_store

SAMPLE_CONVERSATIONS = 50
# Few at a time, so that the gateway's own time is measured and not a queue before it.
SAMPLES_IN_FLIGHT = 4
# What one process gets done however fast the gateway is (measured: 1,670 requests in 3.5 s).
MOST_PER_SECOND = 450.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would read, and what that would cost.

    Attributes:
        numbers: Input numbers by what became of them, as in a run's totals.
        lake_exists: Whether there is a lake already.
        conversations: How many there are, each once.
        new: How many of them the lake does not know.
        known: How many it does; each costs one request if nothing happened in it and it is not read whole.
        sampled: How many of the new ones were asked for their length.
        messages: Messages of the new ones, estimated from the sample.
        page_size: The most messages that a page of the gateway holds, as far as was seen.
        requests: What the export would send: for the numbers, the known and the new conversations.
        per_second: How many requests a second it would make.
        pace: What `per_second` rests on.
        seconds: How long that takes.
        planning_requests: What finding this out has cost.
        failures: Why numbers were not resolved, or conversations of the sample not read, and how many.
    """

    numbers: dict[str, int]
    lake_exists: bool
    conversations: int
    new: int
    known: int
    sampled: int
    messages: int
    page_size: int
    requests: int
    per_second: float
    pace: str
    seconds: float
    planning_requests: int
    failures: dict[str, int] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """The plan for people: what, and how much of it."""
        names = {"resolved": "with conversations", "none": "without", "duplicate": "repeated",
                 "invalid": "invalid", "error": "not resolved"}  # fmt: skip
        basis = f"from the lengths of {self.sampled:,}" if self.sampled < self.new else "from their lengths"
        messages = f"about {self.messages:,} in the new ones ({basis})" if self.new else "none that are new"
        pace = f"at {self.per_second:,.3g} requests a second ({self.pace})"
        return [
            ("numbers", counted([(self.numbers[status], name) for status, name in names.items()])),
            ("conversations", counted([(self.new, "new to the lake"), (self.known, "known to it")])),
            ("messages", messages),
            ("requests", f"about {self.requests:,}, with {self.page_size:,} messages a page"),
            ("time", f"about {duration(self.seconds)}, {pace}"),
            *(("failed", f"{count:,}: {reason}") for reason, count in self.failures.items()),
        ]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Lengths of the conversations that could be read, and the most messages that a page holds."""

    lengths: list[int]
    page_size: int


class _Timed:
    """A gateway whose answers are timed."""

    def __init__(self, gateway: GatewayClient) -> None:
        self.gateway = gateway
        self.seconds: list[float] = []
        self.slots = asyncio.Semaphore(SAMPLES_IN_FLIGHT)
        self.failed: list[GatewayError] = []

    async def resolve(self, batch: Sequence[PhoneNumber]) -> Mapping[PhoneNumber, Resolved]:
        async with self.slots:
            began = time.perf_counter()
            try:
                return await resolve(self.gateway, batch)
            except GatewayError as exc:
                if exc.is_fatal:
                    raise
                self.failed.append(exc)
                return dict.fromkeys(batch, Resolved.failed(exc))
            finally:
                self.seconds.append(time.perf_counter() - began)

    async def length(self, conversation_id: str, limit: int) -> tuple[int, int] | None:
        """How many messages a conversation has, and how many came; None where it cannot be read."""
        async with self.slots:
            began = time.perf_counter()
            try:
                page = await self.gateway.get_page(conversation_id, limit=limit)
            except ConversationNotFound:
                return 0, 0
            except GatewayError as exc:
                if exc.is_fatal:
                    raise
                self.failed.append(exc)
                return None
            self.seconds.append(time.perf_counter() - began)
            return page.total_count or len(page.ids), len(page.ids)


async def make_plan(
    settings: Settings,
    gateway: GatewayClient,
    phones: PhoneList | None,
    ids: Sequence[str] = (),
    *,
    is_everything: bool = False,
    is_full_walk: bool = False,
    store_options: StoreOptions | None = None,
) -> Plan:
    """Resolve the numbers, look into the lake, and ask some new conversations for their length.

    Args:
        settings: Checked already.
        gateway: Opened within the budget that the export would have.
        phones: The numbers, if there are any.
        ids: Conversations besides those of the numbers.
        is_everything: All that the lake knows as well.
        is_full_walk: What the lake knows is read from top to bottom again.
        store_options: How the lake is reached.

    Raises:
        SettingsError: Something is not set.
        GatewayError: No number could be resolved, or no conversation of the sample read.
        StoreError: The lake cannot be read.
    """
    organization = gateway.options.organization
    timed = _Timed(gateway)
    numbers: list[PhoneNumber] = phones.unique().to_pylist() if phones else []
    batches = link_batches(numbers, organization, most=NUMBERS_PER_REQUEST)
    exists, states = await _read_states(settings, organization, store_options)
    found: dict[PhoneNumber, Resolved] = {}
    for answer in await asyncio.gather(*map(timed.resolve, batches)):
        found.update(answer)
    if found and all(one.error is not None for one in found.values()):
        raise timed.failed[0] if timed.failed else _unresolvable(found)
    wanted = dict.fromkeys([*ids, *(one for each in found.values() for one in each.conversation_ids)])
    if is_everything:
        wanted |= dict.fromkeys(states.ids())
    there = {*states.ids()}
    spellings = other_spellings(states.ids())
    ids = [spellings.get(one, one) for one in canonical_conversation_ids(wanted)]
    new = [one for one in ids if one not in there]
    sample = await _sample(timed, new, settings.page_size)
    if new and not sample.lengths:
        raise timed.failed[-1]
    planning_requests = gateway.traffic.requests
    again = _pages_again(states, ids, sample.page_size) if is_full_walk else len(ids) - len(new)
    requests = len(batches) + again + _pages(sample, len(new))
    per_second, rate = _expected_rate(settings, timed.seconds, gateway.limiter.per_second)
    return Plan(
        numbers=_statuses(phones, found),
        lake_exists=exists,
        conversations=len(ids),
        new=len(new),
        known=len(ids) - len(new),
        sampled=len(sample.lengths),
        messages=round(_mean(sample.lengths) * len(new)),
        page_size=sample.page_size,
        requests=requests,
        per_second=round(per_second, 3),
        pace=rate,
        seconds=round(requests / per_second, 1),
        planning_requests=planning_requests,
        failures=_failures(found, timed.failed),
    )


async def _read_states(
    settings: Settings, organization: str, options: StoreOptions | None
) -> tuple[bool, ConversationStates]:
    """What the lake knows, and whether there is one; nothing is made where there is none."""
    url = settings.require("lake")
    async with open_store(url, options) as store:
        if not await has_lake(store):
            return False, ConversationStates.empty()
    async with open_lake(url, now=None, options=options) as lake:
        return True, await read_states(lake, organization)


async def _sample(timed: _Timed, new: Sequence[str], page_size: int) -> _Sample:
    """Ask conversations that lie evenly among the new ones; of the longest, a whole page."""
    step = max(1, math.ceil(len(new) / SAMPLE_CONVERSATIONS))
    chosen = new[::step]
    answers = await asyncio.gather(*(timed.length(one, 1) for one in chosen))
    read = [(answer[0], one) for answer, one in zip(answers, chosen, strict=True) if answer is not None]
    lengths = [length for length, _ in read]
    page = await timed.length(max(read)[1], page_size) if read else None
    if page is None:
        return _Sample(lengths, page_size)
    total_count, received = page
    # Fewer than asked for, and more there are: the server's own limit.
    return _Sample(lengths, received if 0 < received < min(page_size, total_count) else page_size)


def _pages(sample: _Sample, conversations: int) -> int:
    pages = [max(1, math.ceil(length / sample.page_size)) for length in sample.lengths]
    return math.ceil(_mean(pages) * conversations)


def _pages_again(states: ConversationStates, ids: Sequence[str], page_size: int) -> int:
    """The pages of those conversations that the lake knows."""
    entries = states.of_each(ids).values()
    return sum(max(1, math.ceil((entry.distinct_messages or 0) / page_size)) for entry in entries)


def _expected_rate(settings: Settings, seconds: Sequence[float], allowed: float | None) -> tuple[float, str]:
    if allowed:
        return allowed, "the limit of requests per second that is set"
    latency = median(seconds) if seconds else 0.0
    per_second = settings.max_in_flight / latency if latency else MOST_PER_SECOND
    if per_second >= MOST_PER_SECOND:
        return MOST_PER_SECOND, "what one process gets done"
    return per_second, f"answers after {latency:.2f} s, {settings.max_in_flight} at a time"


def _statuses(phones: PhoneList | None, found: Mapping[PhoneNumber, Resolved]) -> dict[str, int]:
    resolved = sum(bool(one.conversation_ids) for one in found.values())
    error = sum(one.error is not None for one in found.values())
    return {
        "resolved": resolved,
        "none": len(found) - resolved - error,
        "duplicate": phones.duplicates if phones else 0,
        "invalid": phones.invalid if phones else 0,
        "error": error,
    }


def _unresolvable(found: Mapping[PhoneNumber, Resolved]) -> GatewayError:
    """The error of numbers that were rejected one by one."""
    one = next(iter(found.values()))
    return (one.cause or GatewayError)(LINKS_PATH, str(one.reason))


def _failures(found: Mapping[PhoneNumber, Resolved], failed: Sequence[GatewayError]) -> dict[str, int]:
    """Reasons with the numbers or conversations that they cost, most frequent first."""
    reasons = Counter(f"numbers: {one.reason}" for one in found.values() if one.reason is not None)
    reasons.update(f"conversations: {exc.reason}" for exc in failed if exc.path != LINKS_PATH)
    return dict(reasons.most_common())


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
