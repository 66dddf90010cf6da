"""The gateway's two endpoints, one method each, and what a request does when it fails.

A request is tried again for seconds here; what outlasts that is the orchestrator's to try again in
minutes. There is no third layer.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from imbrace_lake.errors import (
    ConversationNotFound,
    GatewayError,
    GatewayUnavailable,
    MalformedAnswer,
    RateLimited,
    TokenRejected,
)
from imbrace_lake.gateway.models import (
    Links,
    Malformed,
    Page,
    etag_of,
    parse_links,
    parse_page,
)
from imbrace_lake.gateway.pacing import Gate, TurnedAway
from imbrace_lake.gateway.refusals import Overdue, refusal, retry_after
from imbrace_lake.phones.numbers import PhoneNumber, digits

T = TypeVar("T")

# Proxies commonly refuse more than 8 KB of URL (nginx: large_client_header_buffers 4 8k).
MAX_URL_BYTES = 7_500
SMALLEST_PAGE = 10
TOKEN_TRIES = 4
SHORT_BODY_TRIES = 3


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How to reach the gateway and how patient to be.

    Attributes:
        url: Base address, with its ``/3rd``.
        timeout_seconds: Longest wait for one whole answer; the gateway's proxy gives up after 30.
        tries: How often one request is sent before its failure is believed.
        patience_seconds: How long refusals (429) are waited out; the source's window is 30 minutes.
        first_delay_seconds: The wait before the second try; it doubles from then on, with jitter.
    """

    url: str
    token: SecretStr
    organization: str
    timeout_seconds: float = 35.0
    tries: int = 6
    patience_seconds: float = 2_100.0
    first_delay_seconds: float = 0.5
    longest_delay_seconds: float = 20.0


@dataclass(slots=True)
class Traffic:
    """What was sent and what came back."""

    requests: int = 0
    retries: int = 0
    size_bytes: int = 0


class _ShortBody(MalformedAnswer):
    """Valid JSON with fewer messages than it says: cut, or a server that counts otherwise."""


class GatewayClient:
    """A client of one gateway for one event loop.

    Args:
        options: Address, token and patience.
        gate: The budget that this client shares with every other of the process.
        transport: Replaces the network; for answers that a healthy server cannot send.
    """

    def __init__(
        self, options: GatewayOptions, gate: Gate, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.options = options
        self.traffic = Traffic()
        self.gate = gate
        self._base = options.url.rstrip("/")
        self._accepted = 0  # requests that the gateway has answered, and so its token
        self._longest_page = 0
        self._counts_pages = True  # one of the two counts is the number of messages in the page
        self._ids = f"lake-{uuid.uuid4().hex[:12]}"
        self._headers = {
            "host": httpx.URL(self._base).netloc.decode(),
            "accept": "application/json",
            "accept-encoding": "gzip, deflate",
            "user-agent": f"imbrace-lake/{version('imbrace-lake')}",
            "x-access-token": options.token.get_secret_value(),
        }
        # A request is timed as a whole, and not at each read.
        timeout = httpx.Timeout(None, connect=options.timeout_seconds)
        self._extensions = {"timeout": timeout.as_dict()}
        # The transport without httpx.AsyncClient, whose cookies, redirects and authentication nobody
        # wants here, cost a third of a request, and whose log has phone numbers in it. Not httpx's own
        # either: its pool costs twice the time of aiohttp's under load (encode/httpx issue 3215).
        self._transport = transport or _connections(self._base)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, exc, trace)

    async def get_links(self, phones: Sequence[PhoneNumber]) -> Links:
        """Find the conversations of some phone numbers; `link_batches` says how many fit.

        Raises:
            GatewayError: As its class says.
        """
        path = "/conversations/links"
        pairs = [("phone_numbers", digits(phone)) for phone in phones]
        query = str(httpx.QueryParams([*pairs, ("organization_id", self.options.organization)]))
        try:
            return await self._get(path, lambda _: query, lambda body: parse_links(body, phones))
        except ConversationNotFound:
            return Links((), ())

    async def get_page(self, conversation_id: str, *, skip: int = 0, limit: int = 100) -> Page:
        """Fetch one page of messages, newest first, leaving out the `skip` newest.

        A page that comes late is asked for again at half its length, so fewer than `limit` messages
        may come although there are more.

        Raises:
            ConversationNotFound: The gateway has no such conversation.
            GatewayError: As its class says.
        """
        return await self._get(*self._page_request(conversation_id, skip, limit))

    async def get_head(self, conversation_id: str, *, limit: int, etag: str | None) -> Page | None:
        """Fetch the newest messages; None if the answer is the one whose `Page.etag` is given.

        To parse an answer costs as much again as to receive it.

        Raises:
            ConversationNotFound: The gateway has no such conversation.
            GatewayError: As its class says.
        """
        path, query, parse = self._page_request(conversation_id, 0, limit)
        return await self._get(path, query, lambda body: None if etag_of(body) == etag else parse(body))

    def _page_request(
        self, conversation_id: str, skip: int, limit: int
    ) -> tuple[str, Callable[[int], str], Callable[[bytes], Page]]:
        """Path, query and parser of a page."""
        path = f"/conversations/{quote(conversation_id, safe='')}/messages"
        asked = limit
        lengths: list[int] = []

        def query(overdue: int) -> str:
            nonlocal asked
            asked = max(min(limit, SMALLEST_PAGE), limit >> overdue)
            return f"limit={asked}&skip={skip}"

        def parse(body: bytes) -> Page:
            page = parse_page(body, skip)
            if self._is_short(page, asked):
                lengths.append(len(page.ids))
                # The same length every time is no accident on the way: this server counts otherwise,
                # or gives less than it did.
                if len(lengths) < SHORT_BODY_TRIES or len(set(lengths[-SHORT_BODY_TRIES:])) > 1:
                    raise _ShortBody(path, f"{len(page.ids)} messages, fewer than the answer says")
                self._longest_page = len(page.ids)
                self._counts_pages = self._counts_pages and page.is_exact
            self._longest_page = max(self._longest_page, len(page.ids))
            return page

        return path, query, parse

    def _is_short(self, page: Page, asked: int) -> bool:
        """Whether a page may have lost messages on the way: it brings fewer than it should.

        A body can be cut and still count right, so it is also held against the longest page that
        this gateway has sent; a gap inside a page is the one thing that a walk could not see.
        """
        if page.whole is None:
            return False
        expected = min(asked, self._longest_page, page.whole - page.skip)
        is_contradictory = page.has_more is False and page.end < page.whole
        is_miscounted = self._counts_pages and not page.is_exact
        return is_miscounted or len(page.ids) < expected or is_contradictory

    async def _get(self, path: str, query: Callable[[int], str], parse: Callable[[bytes], T]) -> T:
        """Send a request until its answer can be believed.

        `query` gets how often the answer came too late, and may ask for less.
        """
        tries = rejections = accepted = overdue = 0
        while True:
            try:
                return await self._try(path, query(overdue), parse)
            except RateLimited:
                # Not this request's fault, so not one of its tries: the gate makes everybody wait.
                if self._is_refused_for_good():
                    raise
                delay = 0.0
            except TokenRejected as exc:
                rejections += 1
                accepted = self._accepted if rejections == 1 else accepted
                self._believe(exc, rejections, is_accepted_elsewhere=self._accepted > accepted)
                delay = self._delay(rejections)
            except GatewayError as exc:
                tries += 1
                if not exc.is_transient or tries >= self.options.tries:
                    raise
                overdue += isinstance(exc, Overdue)
                delay = self._delay(tries)
            self.traffic.retries += 1
            await asyncio.sleep(delay)

    def _believe(self, exc: TokenRejected, rejections: int, *, is_accepted_elsewhere: bool) -> None:
        """Raise a 401 that has come often enough.

        The gateway answers 401 also when its own look-up of the token fails for a moment. While other
        requests with the same token succeed, a 401 is that, and no reason to end the run.
        """
        if rejections < TOKEN_TRIES or (is_accepted_elsewhere and rejections < self.options.tries):
            return
        if is_accepted_elsewhere:
            reason = "the gateway does not accept the token here, although it does elsewhere"
            raise GatewayUnavailable(exc.path, reason, exc.request_id) from exc
        raise exc

    def _is_refused_for_good(self) -> bool:
        """Whether the gate was closed, or will be, for longer than anybody is to wait."""
        waited = self.gate.refused_seconds() + self.gate.pause_seconds()
        return waited > self.options.patience_seconds

    def _delay(self, failures: int) -> float:
        longest = min(
            self.options.longest_delay_seconds, self.options.first_delay_seconds * 2.0 ** (failures - 1)
        )
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    async def _try(self, path: str, query: str, parse: Callable[[bytes], T]) -> T:
        """One request and its answer, parsed or raised."""
        if self.gate.pause_seconds() and self._is_refused_for_good():
            raise self._rate_limited(path)
        try:
            ticket = await self.gate.enter()
        except TurnedAway:
            raise self._rate_limited(path) from None
        try:
            self.traffic.requests += 1
            request_id = f"{self._ids}-{self.traffic.requests:x}"
            try:
                async with asyncio.timeout(self.options.timeout_seconds):
                    response, body = await self._send(f"{self._base}{path}?{query}", request_id)
            except httpx.ConnectTimeout as exc:
                # What this transport calls every failure to connect; a smaller page would not help.
                raise self._unconnected(exc, path, request_id) from exc
            except (httpx.TimeoutException, TimeoutError) as exc:
                self.gate.strained(ticket)
                waited = f"{self.options.timeout_seconds:g} s"
                raise Overdue(path, f"the gateway sent no whole answer in {waited}", request_id) from exc
            except httpx.HTTPError as exc:
                raise self._unconnected(exc, path, request_id) from exc
            self.traffic.size_bytes += len(body)
            request_id = response.headers.get("x-request-id", request_id)
            if response.status_code == 200:
                self.gate.succeeded(ticket)
                self._accepted += 1
                return _parsed(body, parse, path, request_id)
            raise self._refusal(response, body, ticket, path, request_id)
        finally:
            self.gate.leave()

    async def _send(self, url: str, request_id: str) -> tuple[httpx.Response, bytes]:
        """One request and its whole answer, whatever its status, with the body decoded."""
        headers = {**self._headers, "x-request-id": request_id}
        request = httpx.Request("GET", url, headers=headers, extensions=self._extensions)
        response = await self._transport.handle_async_request(request)
        try:
            if "content-encoding" in response.headers:
                return response, await response.aread()
            # What needs no decoding need not go through four generators, which cost a tenth of a request.
            assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - told to the type checker
            return response, b"".join([chunk async for chunk in response.stream])
        finally:
            await response.aclose()

    def _unconnected(self, exc: httpx.HTTPError, path: str, request_id: str) -> GatewayUnavailable:
        kind = type(exc.__cause__ or exc).__name__
        return GatewayUnavailable(path, f"the connection to the gateway failed ({kind})", request_id)

    def _refusal(
        self, response: httpx.Response, body: bytes, ticket: int, path: str, request_id: str
    ) -> GatewayError:
        """The error that a status other than 200 means; tells the gate about it."""
        status = response.status_code
        if status == 429:
            self.gate.refused(ticket, retry_after(response))
            error = self._rate_limited(path, request_id)
            if self._is_refused_for_good():
                self.gate.turn_away()
            return error
        if status in (408, 503, 504):
            self.gate.strained(ticket)
        else:
            self.gate.succeeded(ticket)
        return refusal(status, body, path, request_id, self.options.organization, self._base)

    def _rate_limited(self, path: str, request_id: str = "-") -> RateLimited:
        waited = f"{self.options.patience_seconds:g} s"
        return RateLimited(path, f"the gateway refuses every request for over {waited}", request_id)


def _connections(url: str) -> AiohttpTransport:
    """The connections of one client to one address: as many as the gate lets through."""
    # Made once for both, because to read the certificates takes 30 ms.
    context = httpx.create_ssl_context()

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, ssl=context)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return AiohttpTransport(verify=context, client=session, proxy=_proxy_to(url))


def _proxy_to(url: str) -> httpx.Proxy | None:
    """What `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say of an address."""
    address = httpx.URL(url)
    proxy = getproxies().get(address.scheme)
    return httpx.Proxy(proxy) if proxy and not proxy_bypass(address.host) else None


def _parsed(body: bytes, parse: Callable[[bytes], T], path: str, request_id: str) -> T:
    try:
        return parse(body)
    except Malformed as exc:
        raise MalformedAnswer(path, f"the gateway sent {exc}", request_id) from exc
    except _ShortBody as exc:
        raise _ShortBody(path, exc.reason, request_id) from exc


def link_batches(
    phones: Sequence[PhoneNumber], organization: str, *, most: int
) -> list[Sequence[PhoneNumber]]:
    """Cut a list of numbers so that no request's URL is longer than proxies let through."""
    room = MAX_URL_BYTES - 300 - len(quote(organization, safe=""))
    # A number has at most 15 digits (ITU-T E.164).
    size = max(1, min(most, room // len("&phone_numbers=886911425977000")))
    return [phones[start : start + size] for start in range(0, len(phones), size)]
