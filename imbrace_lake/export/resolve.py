"""Find the conversations of phone numbers, so that every input number ends with exactly one status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import (
    BadRequest,
    GatewayError,
    GatewayUnavailable,
    MalformedAnswer,
    WrongAddress,
)
from imbrace_lake.gateway.client import GatewayClient, link_batches
from imbrace_lake.gateway.models import Links
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import PHONES
from imbrace_lake.phones.numbers import PhoneNumber, mask, phone_hash

UNANSWERED_TRIES = 3
# The gateway looks up each number of a request, so larger batches are not faster; their maximum is not
# documented.
NUMBERS_PER_REQUEST = 100
# A few numbers for which the gateway fails are usually found after two: a half or a quarter is without them.
FAILURES_IN_A_ROW = 4
# Of one batch whose own request failed: enough for three such numbers.
REQUESTS_FOR_FAILING = 40


@dataclass(frozen=True, slots=True)
class Resolved:
    """The result of one number: its conversations, or why they are unknown.

    Attributes:
        conversation_ids: Its conversations, each once.
        error: Why they, or further ones, are not known.
        kind: The same, without the request's id.
        cause: The class of the error, which has an `advice`.
        request_id: The id of its request.
    """

    conversation_ids: tuple[str, ...] = ()
    error: str | None = None
    kind: str | None = None
    cause: type[GatewayError] | None = None
    request_id: str = "-"

    @classmethod
    def failed(cls, exc: GatewayError) -> Resolved:
        """Return the result of a number that was not resolved because of an error."""
        return cls(error=str(exc), kind=exc.reason, cause=type(exc), request_id=exc.request_id)

    @property
    def reason(self) -> str | None:
        """Why they are not known, without the parts that differ from request to request."""
        return self.kind or self.error


@dataclass(frozen=True, slots=True)
class Recording:
    """How a run writes numbers into its ledger.

    Attributes:
        run_id, organization_id: Those of the run.
        key: The key of the numbers' hashes.
        is_masked: Leave out the numbers themselves.
        resolved_at: The time in the rows.
    """

    run_id: str
    organization_id: str
    key: bytes
    is_masked: bool
    resolved_at: datetime


@dataclass(frozen=True, slots=True)
class ResolveResult:
    """The result of a slice of the input.

    Attributes:
        conversation_ids: The conversations found, each once, in the order of the numbers.
        statuses: The number of rows by status.
        error: A transient error of numbers with the status ``error``, if there is one.
        reasons: The number of numbers with the status ``error``, by reason.
    """

    # Without `repr`, because in debug mode Prefect logs the results of tasks.
    conversation_ids: tuple[str, ...] = field(repr=False)
    statuses: Counter[str]
    error: GatewayError | None
    reasons: Counter[str] = field(default_factory=Counter)


async def resolve_numbers(
    gateway: GatewayClient, journal: Journal, recording: Recording, name: str, numbers: pa.Table
) -> ResolveResult:
    """Resolve a slice of the input, and record each of its rows under `name`.

    Args:
        gateway, journal: Those of the run.
        recording: How the rows are written.
        name: The name of the slice in the journal; the same name again replaces it.
        numbers: Rows of `PhoneList.table`; those with the status ``ok`` are resolved.

    Raises:
        GatewayError: An error that every other request would end with (`is_fatal`).
    """
    rows = numbers.to_pylist()
    phones = [PhoneNumber(row["phone"]) for row in rows if row["status"] == "ok"]
    batches = link_batches(phones, recording.organization_id, most=NUMBERS_PER_REQUEST)
    errors: list[GatewayError] = []

    # All at once, because the limiter bounds the requests.
    resolving = (partial(resolve_batch, gateway, batch, errors) for batch in batches)
    answers = await run_bounded(len(batches), resolving)
    found = {phone: resolved for answer in answers for phone, resolved in answer.items()}
    statuses = await _note(journal, recording, name, rows, found)
    ids = dict.fromkeys(one for resolved in found.values() for one in resolved.conversation_ids)
    reasons = Counter(resolved.reason for resolved in found.values() if resolved.reason is not None)
    return ResolveResult(tuple(ids), statuses, next((e for e in errors if e.is_transient), None), reasons)


async def note_unresolved(
    journal: Journal, recording: Recording, name: str, numbers: pa.Table, reason: str
) -> Counter[str]:
    """Record a slice of the input that the run did not reach; the same name replaces it.

    Returns:
        The number of rows by status.
    """
    unresolved = Resolved(error=reason)
    rows = numbers.to_pylist()
    found = {PhoneNumber(row["phone"]): unresolved for row in rows if row["status"] == "ok"}
    return await _note(journal, recording, name, rows, found)


async def resolve_batch(
    gateway: GatewayClient, batch: Sequence[PhoneNumber], errors: list[GatewayError]
) -> Mapping[PhoneNumber, Resolved]:
    """Find the conversations of as many numbers as fit one request, also if the request fails.

    Args:
        gateway: The gateway.
        batch: The numbers.
        errors: The errors of numbers that could not be resolved are added to this.

    Raises:
        GatewayError: An error that every other request would end with (`is_fatal`).
    """
    try:
        return await resolve(gateway, batch)
    except GatewayError as exc:
        if exc.is_fatal:
            raise
        return await _resolve_rest(gateway, batch, exc, errors)


async def _resolve_rest(
    gateway: GatewayClient, batch: Sequence[PhoneNumber], error: GatewayError, errors: list[GatewayError]
) -> Mapping[PhoneNumber, Resolved]:
    """Resolve the numbers of a batch whose request failed, without those that make it fail.

    Each failing half is halved again. After several failures in a row, the gateway fails for any number, so
    the rest gets its errors, which are added to `errors`.
    """
    found: dict[PhoneNumber, Resolved] = {}
    # The smallest last, so that an answer comes soon if there is one.
    failing = [(batch, error)]
    requests = failures_in_a_row = 0
    while failing:
        group, error = failing.pop()
        is_over = requests >= REQUESTS_FOR_FAILING or failures_in_a_row >= FAILURES_IN_A_ROW
        if is_over or len(group) == 1 or not isinstance(error, MalformedAnswer | GatewayUnavailable):
            errors.append(error)
            found |= dict.fromkeys(group, Resolved.failed(error))
            continue
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            requests += 1
            try:
                found |= await resolve(gateway, half)
                failures_in_a_row = 0
            except GatewayError as exc:
                if exc.is_fatal:
                    raise
                failing.append((half, exc))
                failures_in_a_row += 1
    return found


async def resolve(gateway: GatewayClient, phones: Sequence[PhoneNumber]) -> dict[PhoneNumber, Resolved]:
    """Find the conversations of as many numbers as fit one request.

    An answer without some of the numbers may be truncated, and a gateway may answer only the first numbers of
    each request. So the others are requested again, until several answers in a row have none of them, as are
    those whose entry names no conversation. A rejected request is halved until only the number that causes
    the rejection is left.

    Raises:
        GatewayError: The request failed, and not because of a number.
    """
    found: dict[PhoneNumber, Resolved] = {}
    missing = phones
    tries = 0
    while tries < UNANSWERED_TRIES:
        try:
            links = await gateway.get_links(missing)
        except WrongAddress:
            raise  # another server answers, whatever the numbers
        except BadRequest as exc:
            if len(missing) == 1:
                return found | {missing[0]: Resolved.failed(exc)}
            middle = len(missing) // 2
            return found | await resolve(gateway, missing[:middle]) | await resolve(gateway, missing[middle:])
        answered = _by_phone(missing, links)
        found |= answered
        tries = 1 if answered else tries + 1
        missing = [*links.missing, *links.malformed]
        if not missing:
            break
    # Numbers that are left out every time, without an error, are unknown to the gateway.
    return found | {phone: _unclear(phone, links) for phone in missing}


def _unclear(phone: PhoneNumber, links: Links) -> Resolved:
    """Return the result of a number that has no complete entry in the last answer."""
    if phone in links.malformed:
        # What the entry names is exported.
        named = tuple(link.conversation_id for link in links.links if link.phone == phone)
        reason = "the gateway's entry for this number does not name all its conversations"
        return Resolved(named, error=reason, cause=MalformedAnswer)
    if links.has_others:
        reason = "the gateway's answer has conversations of other numbers, and no entry for this number"
        return Resolved(error=reason, cause=MalformedAnswer)
    return Resolved()


def _by_phone(asked: Sequence[PhoneNumber], links: Links) -> dict[PhoneNumber, Resolved]:
    unclear = {*links.missing, *links.malformed}
    conversations: dict[PhoneNumber, list[str]] = {phone: [] for phone in asked if phone not in unclear}
    for link in links.links:
        if link.phone in conversations:
            conversations[link.phone].append(link.conversation_id)
    return {phone: Resolved(tuple(ids)) for phone, ids in conversations.items()}


async def _note(
    journal: Journal,
    recording: Recording,
    name: str,
    given: Sequence[Mapping[str, Any]],
    found: Mapping[PhoneNumber, Resolved],
) -> Counter[str]:
    """Record a slice of the input under a name, and return the number of rows by status."""
    table = pa.Table.from_pylist([_row(row, found, recording) for row in given], schema=PHONES)
    await journal.note("phones", name, table)
    return Counter(table.column("status").to_pylist())


def _row(
    given: Mapping[str, Any], found: Mapping[PhoneNumber, Resolved], recording: Recording
) -> dict[str, Any]:
    """Return one input number as a row of the ledger `phones`."""
    phone: PhoneNumber | None = given["phone"]
    row = {
        "run_id": recording.run_id,
        "organization_id": recording.organization_id,
        "position": given["position"],
        "status": given["status"],
        "reason": given["reason"],
        "duplicate_of": given["duplicate_of"],
        "entry": given["entry"],
        "resolved_at": recording.resolved_at,
    }
    if phone is not None:
        row["phone_hash"] = phone_hash(phone, recording.key)
        row["phone_masked"] = mask(phone)
        row["phone"] = None if recording.is_masked else phone
    if given["status"] == "ok" and phone is not None:
        resolved = found[phone]
        row["conversation_ids"] = list(resolved.conversation_ids)
        row["status"] = "resolved" if resolved.conversation_ids else "none"
        if resolved.error is not None:
            row |= {"status": "error", "reason": resolved.error}
            row["conversation_ids"] = row["conversation_ids"] or None
    return row
