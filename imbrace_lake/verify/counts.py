"""Compare the lake's counts with the gateway's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import ConversationNotFound, GatewayError, InputError
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.lake.checkpoint import count_others, others_in_words, read_states
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger_schema import ConversationEntry
from imbrace_lake.printable import plural, printable
from imbrace_lake.verify.findings import Difference, Verification

NO_COUNT = "has no count at the gateway"


async def read_counted(lake: Lake, organization_id: str, found: Verification) -> ConversationStates:
    """Read the conversations whose counts are to be compared; `found` receives how many cannot be.

    Raises:
        InputError: The lake has conversations, but none of this organization: no count would be compared.
    """
    states = await read_states(lake, organization_id)
    found.counts, found.not_of_organization = 0, await count_others(lake, organization_id)
    if found.not_of_organization and not len(states):
        raise InputError(
            f"the lake at {lake.url} has no proven conversation of"
            f" {printable(organization_id)}, but {others_in_words(found.not_of_organization)}: use the"
            " organization and the token of these"
        )
    return states


async def verify_counts(
    gateway: GatewayClient,
    states: ConversationStates,
    found: Verification,
    *,
    side_by_side: int = 32,
    on_progress: Callable[[int, int], None] = lambda done, all: None,
) -> None:
    """Compare the count of each conversation with the gateway's, with one request each.

    Args:
        gateway: Its limiter bounds the requests.
        states: The last state of each conversation.
        found: Receives the differences, and the number of conversations that were compared.
        side_by_side: The most conversations at a time that are requested or wait at the limiter.
        on_progress: Receives the number of finished conversations and of all.

    Raises:
        GatewayError: An error that every other request would also end with (`is_fatal`).
    """
    differences: list[Difference] = []
    done = 0

    async def ask(entry: ConversationEntry) -> None:
        nonlocal done
        problem = await _count_problem(gateway, entry)
        if problem is NO_COUNT:
            found.without_count += 1
        else:
            found.counts = (found.counts or 0) + 1
            if problem is not None:
                differences.append(Difference(entry.conversation_id, problem))
        done += 1
        on_progress(done, len(states))

    try:
        await run_bounded(side_by_side, (partial(ask, entry) for entry in states))
    finally:
        # Also those that were found before an error.
        found.differences += sorted(differences, key=lambda difference: difference.name)


async def _count_problem(gateway: GatewayClient, entry: ConversationEntry) -> str | None:
    """Describe the difference between the gateway's count and the lake's; None if they are equal.

    A conversation without a count at the gateway is `NO_COUNT`.
    """
    try:
        page = await gateway.get_page(entry.conversation_id, limit=1)
    except ConversationNotFound:
        return None if entry.status == "gone" else "was deleted at the gateway"
    except GatewayError as exc:
        if exc.is_fatal:
            raise
        return f"could not be compared: {exc}"
    count = page.total_count
    if count is None:
        return "is at the gateway again" if entry.status == "gone" else NO_COUNT
    messages = plural(count, "message")
    if entry.status == "gone":
        return f"is at the gateway again, with {messages}"
    if count == (entry.distinct_messages or 0) + entry.repeats:
        return None
    repeats = f" and {plural(entry.repeats, 'repeat')}" if entry.repeats else ""
    return f"has {messages} at the gateway, {entry.distinct_messages}{repeats} in the lake"
