"""Check settings, token, gateway and lake before a run, and report each finding in one sentence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from imbrace_lake.errors import (
    AccessBlocked,
    CertificateRejected,
    GatewayError,
    ImbraceLakeError,
    OrganizationMismatch,
    RateLimited,
    SettingsError,
    TokenRejected,
    WrongAddress,
)
from imbrace_lake.gateway.client import HARMLESS, SHORT_BODY_TRIES, GatewayClient, GatewayOptions
from imbrace_lake.gateway.factory import OpenGateway
from imbrace_lake.gateway.models import Counts, Page
from imbrace_lake.lake.checkpoint import count_others, others_in_words, read_state
from imbrace_lake.lake.lake import has_lake, open_lake
from imbrace_lake.lake.ledger_schema import PROVEN
from imbrace_lake.phones.lists import read_phone_list
from imbrace_lake.phones.numbers import PhoneNumber
from imbrace_lake.printable import plural, printable
from imbrace_lake.settings import PREFIX, Settings, expiry_warning
from imbrace_lake.store.factory import Store, StoreOptions, open_store

Verdict = Literal["ok", "note", "error", "skipped"]

# Other runs give up a share of the limit within two rounds, unless the limit is 0.
TURN_SECONDS = 60.0
NO_TURN = (
    f"not checked: the request limit that all runs share allowed no request for {TURN_SECONDS:g} s; see"
    " whether it is 0"
)
# A gateway or lake that takes longer is called slow. The time-outs are those of an export.
SLOW_SECONDS = 3.0
# The time for reading the ledgers, which only serve to find the longest conversation.
LEDGER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        name: The subject of the check.
        verdict: ``ok``, ``note`` (a run would work), ``error`` (a run would fail) or ``skipped``.
        message: The result in one sentence; for an error also what to do about it.
    """

    name: str
    verdict: Verdict
    message: str


@dataclass(frozen=True, slots=True)
class _Probe:
    """Findings, and a conversation for further checks."""

    findings: list[Finding]
    conversation_id: str | None = None


async def run_checks(
    settings: Settings,
    open_gateway: OpenGateway,
    phone: PhoneNumber | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> list[Finding]:
    """Check the settings, then gateway and lake side by side, then a conversation.

    Args:
        settings: Those of a run; missing ones are findings.
        open_gateway: Opens a client within the budget of a run; its requests wait for their turn.
        phone: A number whose conversation shows pages and counts; by default the longest one in the lake.
        say: Called with a sentence when the gateway takes long.
    """
    findings = _missing(settings, ("token", "organization"))
    options = _options(settings, findings)
    gateway, lake = await asyncio.gather(
        _probe_gateway(options, open_gateway, phone, say), _probe_lake(settings)
    )
    findings += gateway.findings
    conversation_id = gateway.conversation_id or lake.conversation_id
    if options is not None and all(one.verdict != "error" for one in gateway.findings):
        findings += await _probe_messages(options, open_gateway, settings.page_size, conversation_id, say)
    return findings + _check_expiry(settings) + lake.findings


async def check_gateway(settings: Settings, open_gateway: OpenGateway) -> list[Finding]:
    """Check gateway, token and organization only."""
    findings = _missing(settings, ("token", "organization"))
    options = _options(settings, findings)
    if options is None:
        return findings
    return (await _probe_gateway(options, open_gateway, None)).findings + _check_expiry(settings)


async def check_list(address: str, settings: Settings) -> Finding:
    """Read a list of phone numbers, and count the numbers."""
    schemes = settings.schemes()
    try:
        found = await asyncio.to_thread(read_phone_list, address, region=settings.region, schemes=schemes)
    except ImbraceLakeError as exc:
        return Finding("list", "error", str(exc))
    if not found.valid:
        return Finding("list", "error", f"{found.report.source} has no phone number: use another list")
    invalid = f", {plural(found.invalid, 'invalid entry', 'invalid entries')}" if found.invalid else ""
    numbers = plural(found.valid, "phone number")
    return Finding("list", "ok", f"{numbers} in {found.report.source}{invalid}")


async def check_lake(settings: Settings, options: StoreOptions | None = None) -> list[Finding]:
    """Check the lake only; `options` are those of an S3 store."""
    return (await _probe_lake(settings, options)).findings


def _missing(settings: Settings, names: Iterable[str]) -> list[Finding]:
    return [
        Finding(name, "error", f"no {name} is set: set {PREFIX}{name.upper()}, or write it into .env")
        for name in names
        if not getattr(settings, name)
    ]


def _options(settings: Settings, findings: list[Finding]) -> GatewayOptions | None:
    """Return the options of an export, with fewer tries; None, with a finding, if they are not valid."""
    if findings:
        return None
    try:
        options = settings.gateway_options()
    except SettingsError as exc:
        findings.append(Finding("gateway", "error", str(exc)))
        return None
    return replace(
        options,
        # The fewest tries after which the client accepts a server with wrong counts.
        tries=SHORT_BODY_TRIES,
        patience_seconds=0.0,
        first_delay_seconds=0.1,
        longest_delay_seconds=0.5,
    )


def _check_expiry(settings: Settings) -> list[Finding]:
    """Report whether the token expires soon, if the settings state its expiry."""
    if settings.token is None or settings.token_expires is None:
        return []
    today = datetime.now(UTC).date()
    warning = expiry_warning(settings.token_expires, today)
    if warning is None:
        return [Finding("token expiry", "ok", f"the token expires on {settings.token_expires}")]
    return [Finding("token expiry", "error" if settings.token_expires < today else "note", warning)]


# -- the gateway ----------------------------------------------------------------------------------


@asynccontextmanager
async def _patiently(
    options: GatewayOptions, open_gateway: OpenGateway, say: Callable[[str], object]
) -> AsyncIterator[GatewayClient]:
    """Open a client, and report if the gateway or the shared limit takes long.

    Raises:
        TimeoutError: The shared limit allowed no request for TURN_SECONDS.
    """
    async with open_gateway(options) as gateway, asyncio.timeout(None) as deadline:

        async def watch() -> None:
            await asyncio.sleep(SLOW_SECONDS)
            if gateway.traffic.requests:
                say(f"waiting for {options.url}, as an export would: up to {options.timeout_seconds:g} s")
            else:
                say("waiting for a turn within the request limit that all runs share")
                await asyncio.sleep(TURN_SECONDS - SLOW_SECONDS)
                if not gateway.traffic.requests:
                    deadline.reschedule(asyncio.get_running_loop().time())

        watching = asyncio.create_task(watch())
        try:
            yield gateway
        finally:
            watching.cancel()


async def _probe_gateway(
    options: GatewayOptions | None,
    open_gateway: OpenGateway,
    phone: PhoneNumber | None,
    say: Callable[[str], object] = lambda _: None,
) -> _Probe:
    if options is None:
        return _Probe([Finding("gateway", "skipped", "not checked, because settings are missing")])
    began = time.perf_counter()
    try:
        async with _patiently(options, open_gateway, say) as gateway:
            links = await gateway.get_links([phone or HARMLESS])
            seconds = time.perf_counter() - began
    except TimeoutError:
        return _Probe([Finding("gateway", "error", NO_TURN)])
    except SettingsError as exc:
        return _Probe([Finding("gateway", "error", str(exc))])
    except GatewayError as exc:
        return _Probe(_describe_error(options, exc))
    verdict: Verdict = "ok"
    message = f"{options.url} answers after {1_000 * seconds:,.0f} ms"
    if seconds >= SLOW_SECONDS and gateway.limiter.per_second is not None:
        # The limit, which other runs may have used up, can explain the wait.
        message += ", including the wait for a turn within the limit"
    elif seconds >= SLOW_SECONDS:
        verdict = "note"
        message += ": slow, so exports take long"
    findings = [
        Finding("gateway", verdict, message),
        Finding("token", "ok", "accepted"),
        Finding("organization", "ok", f"{options.organization} is the token's"),
    ]
    if gateway.traffic.retries:
        message = f"{gateway.traffic.retries} of the first requests failed and were sent again"
        findings.append(Finding("gateway", "note", message))
    if phone is not None and (links.malformed or (links.missing and links.has_others)):
        findings.append(Finding("number", "error", "the gateway's answer is not about the phone number"))
    elif phone is not None and not links.links:
        findings.append(Finding("number", "note", "the phone number has no conversation"))
    return _Probe(findings, next((link.conversation_id for link in links.links), None))


def _describe_error(options: GatewayOptions, exc: GatewayError) -> list[Finding]:
    answers = Finding("gateway", "ok", f"{options.url} answers")
    match exc:
        case TokenRejected():
            advice = (
                f"check {PREFIX}TOKEN, which belongs to one organization of one environment. {exc.advice}"
            )
            return [answers, Finding("token", "error", f"{exc}: {advice}")]
        case OrganizationMismatch():
            mismatch = Finding("organization", "error", f"{exc}: change {PREFIX}ORGANIZATION, or the token")
            return [answers, Finding("token", "ok", "known to the gateway"), mismatch]
        case AccessBlocked():
            return [Finding("gateway", "error", f"{exc}: {exc.advice[0].lower()}{exc.advice[1:]}")]
        case RateLimited():
            message = "the gateway rate-limits every request at present (429): wait, as a run would"
            return [Finding("gateway", "error", message)]
        case CertificateRejected():
            return [Finding("gateway", "error", str(exc))]
        case WrongAddress():
            return [Finding("gateway", "error", f"{exc}: check {PREFIX}GATEWAY, with its /3rd")]
        case _:
            return [Finding("gateway", "error", f"{exc}: check {PREFIX}GATEWAY and the network")]


async def _probe_messages(
    options: GatewayOptions,
    open_gateway: OpenGateway,
    page_size: int,
    conversation_id: str | None,
    say: Callable[[str], object] = lambda _: None,
) -> list[Finding]:
    """Find out how long a page can be, and what the counts mean."""
    if conversation_id is None:
        message = "not checked, because no conversation is known yet: add --phone with a number that has one"
        return [Finding("pages", "skipped", message)]
    try:
        async with _patiently(options, open_gateway, say) as gateway:
            findings = [_describe_page(await gateway.get_page(conversation_id, limit=page_size), page_size)]
            try:
                findings.append(_describe_counts(await gateway.get_counts(conversation_id)))
            except GatewayError as exc:
                findings.append(Finding("counts", "skipped", f"not checked: {exc}"))
            return findings
    except TimeoutError:
        return [Finding("pages", "error", NO_TURN)]
    except GatewayError as exc:
        return [Finding("pages", "error", f"messages cannot be read: {exc}")]


def _describe_page(page: Page, page_size: int) -> Finding:
    received, total_count = len(page.ids), page.total_count
    if total_count is None:
        message = f"a page of {plural(received, 'message')} for a limit of {page_size}, without counts"
        return Finding("pages", "note", message)
    if received < min(page_size, total_count):
        message = f"a page has at most {plural(received, 'message')}, instead of {page_size}: the walk adapts"
    elif total_count <= page_size:
        message = f"the conversation has {plural(received, 'message')}, too few to find the longest page"
    else:
        message = f"a page has {plural(page_size, 'message')}, as requested"
    return Finding("pages", "ok", message)


def _describe_counts(counts: Counts) -> Finding:
    received, count, total = counts.items, counts.count, counts.total
    extras = "" if counts.has_flag else ", and `has_more` is missing"
    if count is None or total is None:
        return Finding("counts", "note", f"`count` or `total` is missing{extras}: walks cost more requests")
    if count == total:
        message = "the conversation is too short to distinguish `count` from `total`"
    elif total == received:
        message = f"`count` covers the conversation ({count:,}) and `total` the page, as documented"
    elif count == received:
        message = (
            f"`total` covers the conversation ({total:,}) and `count` the page: the reverse of the"
            " documentation, but supported"
        )
    else:
        message = (
            f"neither `count` ({count:,}) nor `total` ({total:,}) matches the page: walks cost more requests"
        )
    return Finding("counts", "ok", message + extras)


# -- the lake -------------------------------------------------------------------------------------


async def _probe_lake(settings: Settings, options: StoreOptions | None = None) -> _Probe:
    missing = _missing(settings, ["lake"])
    if missing:
        return _Probe(missing)
    options = options or StoreOptions()
    began = time.perf_counter()
    try:
        async with asyncio.timeout(options.timeout_seconds):
            async with open_store(settings.require("lake"), options) as store:
                findings, exists = await _probe_store(store, options)
    except TimeoutError:
        message = (
            f"{settings.lake} did not answer within {options.timeout_seconds:g} s, the time-out of an export:"
            " check the address and the network"
        )
        return _Probe([Finding("lake", "error", message)])
    except ImbraceLakeError as exc:
        return _Probe([Finding("lake", "error", str(exc))])
    seconds = time.perf_counter() - began
    if seconds > SLOW_SECONDS:
        message = f"{settings.lake} is slow: the first requests took {seconds:.0f} s, so exports take long"
        findings.append(Finding("lake", "note", message))
    if not exists:
        return _Probe(findings)
    ledgers = await _probe_ledgers(settings, options)
    return _Probe([*findings, *ledgers.findings], ledgers.conversation_id)


async def _probe_store(store: Store, options: StoreOptions) -> tuple[list[Finding], bool]:
    exists = await has_lake(store, options)
    probe = await store.probe()
    state = "has a lake" if exists else "has no lake yet; the first export creates it"
    if probe.is_conditional:
        conditions = Finding("conditions", "ok", "of two writers one wins, so runs may overlap")
    else:
        conditions = Finding("conditions", "note", probe.note or "the store has no conditional writes")
    found = [Finding("lake", "ok", f"put, get, list and delete work, and {store.url} {state}"), conditions]
    return found, exists


async def _probe_ledgers(settings: Settings, options: StoreOptions) -> _Probe:
    """Count the conversations in the ledgers, and find the longest."""
    if not settings.organization:
        return _Probe([])
    try:
        async with (
            asyncio.timeout(LEDGER_SECONDS),
            open_lake(settings.require("lake"), now=None, options=options) as lake,
        ):
            state = await read_state(lake, settings.organization, ["server_count"])
            others = await count_others(lake, settings.organization)
    except TimeoutError:
        message = f"not read completely within {LEDGER_SECONDS:g} s: they are large or slow, and exports wait"
        return _Probe([Finding("ledgers", "skipped", message)])
    except ImbraceLakeError as exc:
        return _Probe([Finding("ledgers", "error", str(exc))])
    count = len(state.ids())
    message = f"the lake has {plural(count, 'conversation')} of this organization"
    if not count:
        message = "the lake has no conversation of this organization yet: export into it"
    findings = [Finding("ledgers", "ok", message)]
    if others:
        message = (
            f"the lake also has conversations of other organizations ({others_in_words(others)}): runs with"
            f" these settings read only {printable(settings.organization)} and never update the others"
        )
        findings.append(Finding("ledgers", "note", message))
    if lake.damaged:
        message = (
            f"{plural(len(lake.damaged), 'damaged object')}, such as {min(lake.damaged)}: exports continue"
            " without, and `imbrace-lake verify` reports what to do"
        )
        findings.append(Finding("ledgers", "note", message))
    lengths = {one.conversation_id: one.server_count or 0 for one in state.states if one.status in PROVEN}
    return _Probe(findings, max(lengths, key=lengths.__getitem__, default=None))
