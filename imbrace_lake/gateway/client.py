"""The client of the gateway: a method per endpoint, and the retries of a request.

The client retries a request for seconds, and the orchestrator a task for minutes. There is no third layer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from imbrace_lake.errors import (
    AccessBlocked,
    AnswerTooLarge,
    BadRequest,
    ConversationForbidden,
    ConversationNotFound,
    GatewayDown,
    GatewayError,
    GatewayTimeout,
    GatewayUnavailable,
    MalformedAnswer,
    OrganizationMismatch,
    RateLimited,
    TokenRejected,
    UnusableId,
)
from imbrace_lake.gateway.content_coding import ACCEPTED
from imbrace_lake.gateway.limiter import RequestLimiter, WaitersRejected
from imbrace_lake.gateway.models import (
    Counts,
    Links,
    Malformed,
    Page,
    check_owner,
    etag_of,
    parse_counts,
    parse_links,
    parse_page,
)
from imbrace_lake.gateway.response_errors import Forbidden, error_from_response, retry_after
from imbrace_lake.phones.numbers import PhoneNumber, digits
from imbrace_lake.printable import printable_request_id

if TYPE_CHECKING:
    from imbrace_lake.gateway.http_client import Answer, OpenSession

logger = logging.getLogger(__name__)

T = TypeVar("T")
# From the number of answers that timed out, and of those that were too large, to the query of the next try.
Query = Callable[[int, int], str]

LINKS_PATH = "/conversations/links"
# Proxies commonly reject URLs of more than 8 KB (nginx: large_client_header_buffers 4 8k).
MAX_URL_BYTES = 7_500
SMALLEST_PAGE = 10
TOKEN_TRIES = 4
# A warning in the log after failures only, for this long.
OUTAGE_SECONDS = 15.0
SHORT_BODY_TRIES = 3
# The most digits of an `Age`; a longer one is ignored.
MAX_AGE_DIGITS = 10
# One of the numbers that the North American plan keeps for fiction (555-0100 to 555-0199).
HARMLESS = PhoneNumber("+12025550123")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How to reach the gateway, and how long to retry.

    Attributes:
        url: Base address, with its ``/3rd``.
        timeout_seconds: Longest wait for a complete answer; the gateway's proxy gives up after 30.
        tries: How often a request is sent before it fails.
        patience_seconds: How long to keep retrying after 429; the vendor's window is 30 minutes.
        outage_seconds: How long to send requests although none succeeds.
        first_delay_seconds: The wait before the second try; each further wait is twice as long, with jitter.
        most_answer_bytes: Longest body of an answer, as received and as decoded.
    """

    url: str
    token: SecretStr
    organization: str
    timeout_seconds: float = 35.0
    tries: int = 6
    patience_seconds: float = 2_100.0
    outage_seconds: float = 2_100.0
    first_delay_seconds: float = 0.5
    longest_delay_seconds: float = 20.0
    most_answer_bytes: int = 4 << 20


@dataclass(slots=True)
class Traffic:
    """Counters of requests and received bytes, and the difference between the clocks of both sides.

    Attributes:
        requests: The number of requests sent, including retries.
        retries: The number of retries.
        size_bytes: The received bytes of bodies, before decompression.
        failing_since: Since when requests have been failing and none has succeeded, by `time.monotonic()`.
        waiting_since: When the first request after the last answer was sent, or the last answer came while
            others were under way, by the same clock; None if every request was answered.
    """

    requests: int = 0
    retries: int = 0
    size_bytes: int = 0
    failing_since: float | None = None
    waiting_since: float | None = None
    _date: str = ""
    # The most by which this machine's clock, and the gateway's, were ahead of a clock that does not jump.
    _ours: float = -math.inf
    _theirs: float = -math.inf
    # The most by which this machine's clock was behind the gateway's.
    _behind: float = 0.0

    def add_bytes(self, size_bytes: int) -> None:
        """Count received bytes."""
        self.size_bytes += size_bytes

    @property
    def failing_seconds(self) -> float:
        """For how long requests have been failing and none has succeeded."""
        return 0.0 if self.failing_since is None else time.monotonic() - self.failing_since

    @property
    def silent_seconds(self) -> float:
        """For how long requests have been under way and none was answered."""
        return 0.0 if self.waiting_since is None else time.monotonic() - self.waiting_since

    @property
    def seconds_ahead(self) -> float:
        """The most by which this machine's clock differed from the gateway's; negative if behind."""
        if self._theirs == -math.inf:
            return 0.0
        ahead = self._ours - self._theirs
        return ahead if ahead > self._behind else -self._behind

    def compare_clocks(self, date: str, sent_at: float, age: str = "") -> None:
        """Compare the clocks, by an answer that has just arrived.

        An answer from a cache is older than its request, so its date alone shows no clock that is ahead: the
        answer of the run with the latest date for its time decides.

        Args:
            date: The time at which the gateway made the answer.
            sent_at: The time of the request, by this machine's clock.
            age: The seconds for which caches have kept the answer; empty if no cache has said it.
        """
        if date == self._date:
            return
        self._date = date
        try:
            theirs = parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            return
        now, steady = time.time(), time.monotonic()
        # The gateway has answered between the two times, however long that took.
        self._behind = max(self._behind, theirs - now)
        if age.isascii() and age.isdecimal() and len(age) <= MAX_AGE_DIGITS:
            theirs += int(age)
        self._ours = max(self._ours, now - steady)
        self._theirs = max(self._theirs, theirs + (now - sent_at) - steady)


class _ShortBody(MalformedAnswer):
    """Valid JSON with fewer messages than it states: truncated, or the server counts differently."""


class GatewayClient:
    """A client of one gateway for one event loop.

    Args:
        options: Address, token and retries.
        limiter: The limiter that all clients of the process share.
        open_session: Replaces the network; for answers that a healthy server cannot send.
    """

    def __init__(
        self,
        options: GatewayOptions,
        limiter: RequestLimiter,
        open_session: OpenSession | None = None,
    ) -> None:
        # Not above: aiohttp reads certificates on import, so that programs import it in another thread.
        from imbrace_lake.gateway.http_client import HttpClient

        self.options = options
        self.traffic = Traffic()
        self.limiter = limiter
        self._base = options.url.rstrip("/")
        self._secrets = (options.token.get_secret_value(),)
        self._accepted = 0  # requests whose token the gateway accepted
        self._links_accepted = 0  # of those, requests that named the organization
        self._probing = asyncio.Lock()
        self._everywhere: Forbidden | None = None
        self._is_token_rejected = False
        self._is_outage_logged = False
        # Two, so that one of them is another path than that of the rejected request.
        self._accepted_paths: deque[str] = deque(maxlen=2)
        self._longest_page = 0
        self._counts_pages = True  # one of the two counts is the number of messages in the page
        self._ids = f"lake-{uuid.uuid4().hex[:12]}"
        headers = {
            "host": httpx.URL(self._base).netloc.decode(),
            "accept": "application/json",
            "accept-encoding": ACCEPTED,
            "user-agent": f"imbrace-lake/{version('imbrace-lake')}",
            "x-access-token": options.token.get_secret_value(),
        }
        self._http = HttpClient(
            self._base,
            headers,
            timeout_seconds=options.timeout_seconds,
            most_bytes=options.most_answer_bytes,
            on_received=self.traffic.add_bytes,
            open_session=open_session,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, exc, trace)

    async def get_links(self, phones: Sequence[PhoneNumber]) -> Links:
        """Find the conversations of phone numbers, as many as `link_batches` puts into a batch.

        Raises:
            GatewayError: The request failed.
        """
        query = self._links_query(phones)
        try:
            return await self._get(LINKS_PATH, lambda *_: query, lambda body: parse_links(body, phones))
        except ConversationNotFound:
            return Links((), ())

    def _links_query(self, phones: Sequence[PhoneNumber]) -> str:
        pairs = [("phone_numbers", digits(phone)) for phone in phones]
        return str(httpx.QueryParams([*pairs, ("organization_id", self.options.organization)]))

    async def get_page(self, conversation_id: str, *, skip: int = 0, limit: int = 100) -> Page:
        """Fetch a page of messages, newest first, without the `skip` newest ones.

        After a time-out the client requests half as many messages, after a too large answer a quarter. So a
        page can have fewer than `limit` messages although there are more.

        Raises:
            ConversationNotFound: The gateway does not have the conversation.
            ConversationForbidden: The token may not read the conversation.
            UnusableId: The id cannot be part of a URL.
            GatewayError: The request failed otherwise.
        """
        return await self._get(*self._page_request(conversation_id, skip, limit))

    async def get_head(self, conversation_id: str, *, limit: int, etag: str | None) -> Page | None:
        """Fetch the newest messages; None if the answer has this `etag` (`Page.etag`).

        Parsing an answer costs as much as receiving it.

        Raises:
            ConversationNotFound: The gateway does not have the conversation.
            GatewayError: The request failed otherwise.
        """
        path, query, parse = self._page_request(conversation_id, 0, limit)
        return await self._get(path, query, lambda body: None if etag_of(body) == etag else parse(body))

    async def get_counts(self, conversation_id: str) -> Counts:
        """Fetch the gateway's counts of a conversation, with a page of one message.

        Raises:
            GatewayError: The request failed.
        """
        return await self._get(_path_of(conversation_id), lambda *_: "limit=1&skip=0", parse_counts)

    def _page_request(
        self, conversation_id: str, skip: int, limit: int
    ) -> tuple[str, Query, Callable[[bytes], Page]]:
        """Return path, query and parser of a page."""
        path = _path_of(conversation_id)
        asked = limit
        lengths: list[int] = []

        def query(overdue: int, oversized: int) -> str:
            nonlocal asked
            shortest = 1 if oversized else min(limit, SMALLEST_PAGE)
            asked = max(shortest, limit >> (overdue + 2 * oversized))
            return f"limit={asked}&skip={skip}"

        def parse(body: bytes) -> Page:
            page = parse_page(body, skip)
            check_owner(page, conversation_id, self.options.organization)
            if self._is_short(page, asked):
                lengths.append(len(page.ids))
                # A body with the same length each time was not truncated: the server counts differently, or
                # its pages are shorter than before.
                if len(lengths) < SHORT_BODY_TRIES or len(set(lengths[-SHORT_BODY_TRIES:])) > 1:
                    raise _ShortBody(
                        path, f"a page of {len(page.ids)} messages, which contradicts its counts"
                    )
                self._longest_page = len(page.ids)
                self._counts_pages = self._counts_pages and page.count_matches
            self._longest_page = max(self._longest_page, len(page.ids))
            return page

        return path, query, parse

    def _is_short(self, page: Page, asked: int) -> bool:
        """Whether a page has fewer messages than it should, so that it may be truncated.

        The counts of a truncated body can match, so the page is also compared with the longest page of this
        gateway. A walk could not detect a gap inside a page.
        """
        if page.total_count is None:
            return False
        expected = min(asked, self._longest_page, page.total_count - page.skip)
        is_contradictory = page.has_more is False and page.next_skip < page.total_count
        is_miscounted = self._counts_pages and not page.count_matches
        return is_miscounted or len(page.ids) < expected or is_contradictory

    async def _get(self, path: str, query: Query, parse: Callable[[bytes], T]) -> T:
        """Send a request until its answer is conclusive; a 403 takes further requests."""
        try:
            return await self._tried(path, query, parse)
        except Forbidden as exc:
            forbidden = exc
        raise await self._explained(forbidden)

    async def _tried(self, path: str, query: Query, parse: Callable[[bytes], T]) -> T:
        tries = rejections = accepted = overdue = oversized = 0
        while True:
            sent = query(overdue, oversized)
            try:
                result = await self._try(path, sent, parse)
            except RateLimited:
                self._end_outage()
                # Does not count as one of the tries: the limiter pauses all requests.
                if self._is_rate_limited_for_good():
                    raise
                delay = 0.0
            except TokenRejected as exc:
                rejections += 1
                accepted = self._accepted if rejections == 1 else accepted
                await self._raise_if_repeated(exc, rejections, is_elsewhere=self._accepted > accepted)
                delay = self._delay(rejections)
            except AnswerTooLarge:
                oversized += 1
                if query(overdue, oversized) == sent:
                    raise  # the page cannot be smaller
                delay = 0.0
            except GatewayError as exc:
                tries += 1
                self._raise_if_down(exc)
                # A short answer is recognized as complete by further ones of the same length.
                least = SHORT_BODY_TRIES if isinstance(exc, _ShortBody) else 1
                if not exc.is_transient or tries >= max(least, self.options.tries):
                    raise
                overdue += isinstance(exc, GatewayTimeout)
                delay = self._delay(tries)
            else:
                self._end_outage()
                return result
            self.traffic.retries += 1
            await asyncio.sleep(delay)

    def _raise_if_down(self, exc: GatewayError) -> None:
        """Raise the error that ends the run if requests have been failing for long and none has succeeded."""
        failing = self.traffic.failing_seconds
        if not exc.is_transient:
            self._end_outage()
        elif self.traffic.failing_since is None:
            # A gateway that hangs has been down since it received the first request that timed out.
            self.traffic.failing_since = self.traffic.waiting_since or time.monotonic()
        elif failing > self.options.outage_seconds:
            seconds = f"{self.options.outage_seconds:g} s"
            reason = f"no request has succeeded for over {seconds}, and of the last one: {exc.reason}"
            raise GatewayDown(exc.path, reason, exc.request_id) from None
        elif failing > OUTAGE_SECONDS and not self._is_outage_logged:
            self._is_outage_logged = True
            logger.warning(
                "no request to the gateway has succeeded for %.0f s, and the run tries again: %s",
                failing,
                exc,
            )

    def _end_outage(self) -> None:
        if self._is_outage_logged:
            logger.warning("the gateway answers again, after %.0f s", self.traffic.failing_seconds)
        self.traffic.failing_since, self._is_outage_logged = None, False

    async def _explained(self, exc: Forbidden) -> GatewayError:
        """Return the error for a 403, which concerns either one conversation or every request.

        Only the links endpoint has the organization as a parameter, so its answer decides.
        """
        ours = self.options.organization
        is_links = exc.path == LINKS_PATH
        names_another = exc.expected not in (None, ours)
        is_open = not self._links_accepted and (is_links or exc.expected != ours)
        if is_open and ((is_links and names_another) or await self._is_forbidden_everywhere()):
            if self._everywhere is not None and self._everywhere.is_page:
                reason = (
                    "something in front of the gateway, such as a firewall, rejects every request (status 403"
                    " with a page of HTML)"
                )
                return AccessBlocked(exc.path, reason, exc.request_id)
            return OrganizationMismatch(exc.path, exc.mismatch(ours), exc.request_id)
        if is_links:
            return BadRequest(exc.path, "the gateway forbids this request (status 403)", exc.request_id)
        reason = "the gateway forbids access to this conversation (status 403)"
        if self._links_accepted:
            reason += ", although it accepts the token and the organization"
        return ConversationForbidden(exc.path, reason, exc.request_id)

    async def _is_forbidden_everywhere(self) -> bool:
        """Whether the gateway forbids even a harmless request for links."""
        async with self._probing:
            if self._links_accepted or self._everywhere is not None:
                return self._everywhere is not None
            query = self._links_query([HARMLESS])
            try:
                await self._tried(LINKS_PATH, lambda *_: query, lambda body: body)
            except Forbidden as exc:
                self._everywhere = exc
            except GatewayError:
                # Any other error decides nothing; the expected answer for this number is 404.
                return False
            return self._everywhere is not None

    async def _raise_if_repeated(self, exc: TokenRejected, rejections: int, *, is_elsewhere: bool) -> None:
        """Raise the error of a 401 that was repeated often enough.

        The gateway also answers 401 when its own look-up of the token fails temporarily. As long as other
        requests with the same token succeed, a 401 means that and does not end the run.

        Args:
            exc: The error of the last answer.
            rejections: The number of such answers.
            is_elsewhere: Whether the gateway has accepted the token for another request since the first one.
        """
        if rejections < (max(TOKEN_TRIES, self.options.tries) if is_elsewhere else TOKEN_TRIES):
            return
        is_links = exc.path == LINKS_PATH
        if is_elsewhere or (not is_links and await self._is_token_accepted_elsewhere(exc.path)):
            reason = "the gateway does not accept the token here, although it does for other requests"
            raise GatewayUnavailable(exc.path, reason, exc.request_id) from None
        raise exc

    async def _is_token_accepted_elsewhere(self, path: str) -> bool:
        """Whether the gateway still accepts the token for another conversation."""
        async with self._probing:
            known = next((one for one in self._accepted_paths if one != path), None)
            if known is None or self._is_token_rejected:
                return False
            try:
                await self._try(known, "limit=1&skip=0", lambda body: body)
            except ConversationNotFound:
                return True
            except TokenRejected:
                self._is_token_rejected = True
                return False
            except GatewayError:
                return False  # undecided: the next conversation probes again
            return True

    def _is_rate_limited_for_good(self) -> bool:
        """Whether the limiter was paused, or will be, for longer than the options allow."""
        waited = self.limiter.rate_limited_seconds() + self.limiter.pause_seconds()
        return waited > self.options.patience_seconds

    def _delay(self, failures: int) -> float:
        longest = min(
            self.options.longest_delay_seconds, self.options.first_delay_seconds * 2.0 ** (failures - 1)
        )
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    async def _try(self, path: str, query: str, parse: Callable[[bytes], T]) -> T:
        """Send one request, and return its parsed answer or raise the error."""
        if self.limiter.pause_seconds() and self._is_rate_limited_for_good():
            raise self._rate_limited(path)
        try:
            ticket = await self.limiter.acquire()
        except WaitersRejected:
            raise self._rate_limited(path) from None
        try:
            self.traffic.requests += 1
            request_id, sent_at = f"{self._ids}-{self.traffic.requests:x}", time.time()
            if self.traffic.waiting_since is None:
                self.traffic.waiting_since = time.monotonic()
            try:
                answer = await self._http.get(path, query, request_id)
            except GatewayTimeout:
                self.limiter.on_overload(ticket)
                raise
            except asyncio.CancelledError:
                self._note_silence(is_over=self.limiter.in_flight == 1)
                raise
            self._note_silence(is_over=True)
            self.traffic.compare_clocks(
                answer.headers.get("date", ""), sent_at, answer.headers.get("age", "")
            )
            theirs = answer.headers.get("x-request-id")
            request_id = printable_request_id(theirs, request_id, self._secrets)
            if answer.status == 200:
                self.limiter.on_success(ticket)
                self._accept(path)
                return _parsed(answer.body, parse, path, request_id)
            raise self._error_of(answer, ticket, path, request_id)
        finally:
            self.limiter.release()

    def _note_silence(self, *, is_over: bool) -> None:
        """Begin to count the silence again if it is over: at once if other requests are under way."""
        if is_over:
            self.traffic.waiting_since = time.monotonic() if self.limiter.in_flight > 1 else None

    def _accept(self, path: str) -> None:
        self._accepted += 1
        if path == LINKS_PATH:
            self._links_accepted += 1
        elif path not in self._accepted_paths:
            self._accepted_paths.append(path)

    def _error_of(self, answer: Answer, ticket: int, path: str, request_id: str) -> GatewayError:
        """Return the error for a status other than 200, and inform the limiter."""
        if answer.status == 429:
            self.limiter.on_rate_limited(ticket, retry_after(answer.headers))
            error = self._rate_limited(path, request_id)
            if self._is_rate_limited_for_good():
                self.limiter.reject_waiters()
            return error
        if answer.status in (408, 503, 504):
            self.limiter.on_overload(ticket)
        else:
            self.limiter.on_success(ticket)
        rejection = error_from_response(answer, path, request_id, base=self._base, secrets=self._secrets)
        if isinstance(rejection, ConversationNotFound):
            self._accept(path)
        return rejection

    def _rate_limited(self, path: str, request_id: str = "-") -> RateLimited:
        waited = f"{self.options.patience_seconds:g} s"
        return RateLimited(path, f"the gateway rate-limits every request for over {waited}", request_id)


def _path_of(conversation_id: str) -> str:
    """Return the path of a conversation's messages.

    Raises:
        UnusableId: The path would be another one.
    """
    try:
        segment = quote(conversation_id, safe="")
    except UnicodeEncodeError:
        segment = ""
    # Clients and proxies resolve such segments, also after an encoded slash, and even if the dots are encoded
    # (RFC 3986, 6.2.2).
    dots = {".", ".."} & {*conversation_id.replace("\\", "/").split("/")}
    if not segment or dots or len(segment) > MAX_URL_BYTES:
        reason = "the id of the conversation cannot be part of a URL"
        raise UnusableId(f"/conversations/{segment[:MAX_URL_BYTES] or '?'}/messages", reason)
    return f"/conversations/{segment}/messages"


def _parsed(body: bytes, parse: Callable[[bytes], T], path: str, request_id: str) -> T:
    error: GatewayError
    try:
        return parse(body)
    except Malformed as exc:
        error = MalformedAnswer(path, f"the gateway sent {exc}", request_id)
    except _ShortBody as exc:
        error = _ShortBody(path, exc.reason, request_id)
    except MemoryError:
        raise
    except Exception as exc:  # noqa: BLE001 - a hostile value must not end other conversations
        error = MalformedAnswer(
            path, f"the gateway sent an answer that cannot be parsed ({type(exc).__name__})", request_id
        )
    # Raised outside of the handlers, because the parser's exception refers to the whole body.
    raise error


def link_batches(
    phones: Sequence[PhoneNumber], organization: str, *, most: int
) -> list[Sequence[PhoneNumber]]:
    """Split a list of numbers into batches whose URLs are short enough for proxies."""
    available = MAX_URL_BYTES - 300 - len(quote(organization, safe=""))
    # A number has at most 15 digits (ITU-T E.164).
    size = max(1, min(most, available // len("&phone_numbers=886911425977000")))
    return [phones[start : start + size] for start in range(0, len(phones), size)]
