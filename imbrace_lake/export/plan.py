"""Estimate what a run would read and how long it would take, without writing anything."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import itemgetter
from statistics import median
from typing import Any

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import ConversationNotFound, GatewayError
from imbrace_lake.export.humanize import counted, duration
from imbrace_lake.export.resolve import NUMBERS_PER_REQUEST, Resolved, resolve_batch
from imbrace_lake.gateway.client import LINKS_PATH, GatewayClient, link_batches
from imbrace_lake.gateway.ids import canonical_conversation_ids, other_spellings
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import has_lake, open_lake
from imbrace_lake.phones.lists import PhoneList
from imbrace_lake.phones.numbers import PhoneNumber
from imbrace_lake.printable import rate
from imbrace_lake.settings import Settings
from imbrace_lake.store.factory import StoreOptions, open_store

SAMPLE_CONVERSATIONS = 50
# Few at a time, so that no queue adds to the measured time of the gateway.
SAMPLES_IN_FLIGHT = 4
# The limit of one process, however fast the gateway is (measured: 1,670 requests in 3.5 s).
MAX_PER_SECOND = 450.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would read, and the cost.

    Attributes:
        numbers: Input numbers by status, as in a run's totals.
        lake_exists: Whether there is a lake already.
        conversations: The number of conversations.
        new: The number of conversations that are new to the lake.
        known: The number of others; each costs one request if it is unchanged and not due for a full walk.
        sampled: The number of new conversations whose length was requested.
        messages: The messages of the new conversations, estimated from the sample.
        page_size: The most messages in a page of the gateway, as far as the sample shows.
        requests: The requests of the export for numbers, known and new conversations.
        per_second: The export's requests per second.
        pace: The basis of `per_second`.
        seconds: The duration of the export.
        planning_requests: The requests of this estimate.
        failures: The number of unresolved numbers and unread conversations of the sample, by reason.
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
        """Return the plan for people, as pairs of a name and a sentence."""
        names = {"resolved": "with conversations", "none": "without", "duplicate": "repeated",
                 "invalid": "invalid", "error": "not resolved"}  # fmt: skip
        basis = f"from the lengths of {self.sampled:,}" if self.sampled < self.new else "from their lengths"
        messages = f"about {self.messages:,} in the new ones ({basis})" if self.new else "none that are new"
        pace = f"at {rate(self.per_second)} ({self.pace})"
        return [
            ("numbers", counted([(self.numbers[status], name) for status, name in names.items()])),
            ("conversations", counted([(self.new, "new to the lake"), (self.known, "known to it")])),
            ("messages", messages),
            ("requests", f"about {self.requests:,}, with {self.page_size:,} messages per page"),
            ("time", f"about {duration(self.seconds)}, {pace}"),
            *(("failed", f"{count:,}: {reason}") for reason, count in self.failures.items()),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return asdict(self)


class _Timed:
    """Measures the time of the gateway's answers, and collects its errors."""

    def __init__(self, gateway: GatewayClient) -> None:
        self.gateway = gateway
        self.seconds: list[float] = []
        self.failed: list[GatewayError] = []

    async def resolve(self, batch: Sequence[PhoneNumber]) -> Mapping[PhoneNumber, Resolved]:
        began = time.perf_counter()
        try:
            return await resolve_batch(self.gateway, batch, self.failed)
        finally:
            self.seconds.append(time.perf_counter() - began)

    async def length(self, conversation_id: str, limit: int) -> tuple[int, int] | None:
        """Return the number of messages of a conversation, and of its page; None if it cannot be read."""
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
    """Resolve the numbers, read the lake's states, and request the length of some new conversations.

    Args:
        settings: The settings, checked already.
        gateway: Opened within the budget of an export.
        phones: The numbers, if there are any.
        ids: Further conversations.
        is_everything: Include all conversations in the lake.
        is_full_walk: The run would walk known conversations in full again.
        store_options: How to reach the lake.

    Raises:
        SettingsError: A setting is missing.
        GatewayError: No number could be resolved, or no conversation of the sample read.
        StoreError: The lake cannot be read.
    """
    organization = gateway.options.organization
    timed = _Timed(gateway)
    numbers: list[PhoneNumber] = phones.unique().to_pylist() if phones else []
    batches = link_batches(numbers, organization, most=NUMBERS_PER_REQUEST)
    exists, states = await _read_states(settings, organization, store_options)
    found: dict[PhoneNumber, Resolved] = {}
    for answer in await run_bounded(SAMPLES_IN_FLIGHT, (partial(timed.resolve, batch) for batch in batches)):
        found.update(answer)
    if found and all(one.error is not None and not one.conversation_ids for one in found.values()):
        if timed.failed:
            raise timed.failed[0]
        # The gateway rejected the numbers one by one.
        first = next(iter(found.values()))
        raise (first.cause or GatewayError)(LINKS_PATH, str(first.reason), first.request_id)
    wanted = dict.fromkeys([*ids, *(one for each in found.values() for one in each.conversation_ids)])
    if is_everything:
        wanted |= dict.fromkeys(states.ids())
    there = {*states.ids()}
    spellings = other_spellings(states.ids())
    ids = [spellings.get(one, one) for one in canonical_conversation_ids(wanted)]
    new = [one for one in ids if one not in there]
    lengths, page_size = await _sample(timed, new, settings.page_size)
    if new and not lengths:
        raise timed.failed[-1]
    planning_requests = gateway.traffic.requests
    again = len(ids) - len(new)
    if is_full_walk:
        again = _pages((entry.distinct_messages or 0 for entry in states.of_each(ids).values()), page_size)
    sampled = max(1, len(lengths))
    of_new = -(-_pages(lengths, page_size) * len(new) // sampled)
    requests = len(batches) + again + of_new
    per_second, rate = _expected_rate(settings, timed.seconds, gateway.limiter.per_second)
    return Plan(
        numbers=_statuses(phones, found),
        lake_exists=exists,
        conversations=len(ids),
        new=len(new),
        known=len(ids) - len(new),
        sampled=len(lengths),
        messages=round(sum(lengths) * len(new) / sampled),
        page_size=page_size,
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
    """Return whether there is a lake, and its states; does not create a lake."""
    url = settings.require("lake")
    async with open_store(url, options) as store:
        if not await has_lake(store, options):
            return False, ConversationStates.empty()
    async with open_lake(url, now=None, options=options) as lake:
        return True, await read_states(lake, organization)


async def _sample(timed: _Timed, new: Sequence[str], page_size: int) -> tuple[list[int], int]:
    """Request the lengths of evenly distributed new conversations, and a full page of the longest.

    Returns:
        The lengths of those that could be read, and the most messages in a page.
    """
    step = max(1, math.ceil(len(new) / SAMPLE_CONVERSATIONS))
    chosen = new[::step]
    answers = await run_bounded(SAMPLES_IN_FLIGHT, (partial(timed.length, one, 1) for one in chosen))
    read = [(answer[0], one) for answer, one in zip(answers, chosen, strict=True) if answer is not None]
    lengths = [length for length, _ in read]
    page = await timed.length(max(read)[1], page_size) if read else None
    if page is None:
        return lengths, page_size
    total_count, received = page
    # Fewer messages than requested, although there are more, show the server's own limit.
    return lengths, received if 0 < received < min(page_size, total_count) else page_size


def _pages(lengths: Iterable[int], page_size: int) -> int:
    """Return the number of pages of conversations of these lengths."""
    return sum(max(1, math.ceil(length / page_size)) for length in lengths)


def _expected_rate(settings: Settings, seconds: Sequence[float], allowed: float | None) -> tuple[float, str]:
    """Return the smallest of the rates that limit an export, and its name."""
    latency = median(seconds) if seconds else 0.0
    rates = [(MAX_PER_SECOND, "the limit of one process")]
    if latency:
        answers = f"answers after {latency:.2g} s, {settings.max_in_flight} at a time"
        rates.insert(0, (settings.max_in_flight / latency, answers))
    if allowed:
        rates.insert(0, (allowed, "the limit in force"))
    return min(rates, key=itemgetter(0))


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


def _failures(found: Mapping[PhoneNumber, Resolved], failed: Sequence[GatewayError]) -> dict[str, int]:
    """Count failed numbers and conversations by reason, the most frequent first."""
    reasons = Counter(f"numbers: {one.reason}" for one in found.values() if one.reason is not None)
    reasons.update(f"conversations: {exc.reason}" for exc in failed if exc.path != LINKS_PATH)
    return dict(reasons.most_common())
