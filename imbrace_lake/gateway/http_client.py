"""Send one HTTP request and receive the complete answer, with bounds of time and of bytes.

Every exception of the transport, the HTTP parser or the decoder becomes one of our errors. Such exceptions
refer to requests, headers and bodies (token, phone numbers, message texts), so our errors use only their
class names, and are raised outside of the `except` block: neither `__cause__` nor `__context__` refers to
the original.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Self, TypeAlias
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from imbrace_lake.errors import (
    AnswerTooLarge,
    CertificateRejected,
    GatewayError,
    GatewayTimeout,
    GatewayUnavailable,
    MalformedAnswer,
    SettingsError,
)
from imbrace_lake.gateway.content_coding import BodyDecoder, Undecodable
from imbrace_lake.gateway.models import LARGE_BYTES
from imbrace_lake.printable import printable_address

# Of large answers, only a few are received at a time, so that they fit into memory.
LARGE_AT_A_TIME = 2
# Of the answer to a failed request, one sentence is enough.
MAX_ERROR_BYTES = 1 << 16
# Parsed lists and objects take up to 24 times the memory of their JSON: `[],[],[]`. A setting that allows
# more bytes also allows more values.
UNCOUNTED_BYTES = 1 << 18
MAX_VALUES = 100_000
BYTES_PER_VALUE = 160
_VALUE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[,\[{]', re.DOTALL)

# Codes of OpenSSL's verify(1). All other codes: no trusted authority signed the certificate.
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 62, 64

OpenSession: TypeAlias = Callable[[], aiohttp.ClientSession]


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and decoded body; for an error status, at most `MAX_ERROR_BYTES` of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Sends requests to one gateway from one event loop.

    By aiohttp, because `httpx.AsyncClient` logs phone numbers, and takes twice the time under load
    (encode/httpx issue 3215).

    Args:
        base: The gateway's address, with its ``/3rd``, without a slash at the end.
        headers: The headers of every request.
        timeout_seconds: Longest wait for one complete answer.
        most_bytes: Longest body, as received and as decoded.
        on_received: Receives the length of each body, complete or not, before decoding.
        open_session: Returns what replaces the network.

    Raises:
        SettingsError: The environment names certificates or a proxy that cannot be used.
    """

    def __init__(
        self,
        base: str,
        headers: Mapping[str, str],
        *,
        timeout_seconds: float,
        most_bytes: int,
        on_received: Callable[[int], None],
        open_session: OpenSession | None = None,
    ) -> None:
        # With a host name of other letters in its ASCII form.
        self._base = str(httpx.URL(base))
        self._shown = printable_address(base)
        self._timeout_seconds = timeout_seconds
        self._most_bytes = most_bytes
        self._most_values = max(MAX_VALUES, most_bytes // BYTES_PER_VALUE)
        self._on_received = on_received
        self._large = asyncio.Semaphore(LARGE_AT_A_TIME)
        proxy = None if open_session else _proxy_to(base)
        self._options: dict[str, Any] = {"allow_redirects": False}
        if proxy is not None:
            self._options |= {"proxy": str(proxy.url), "proxy_headers": proxy.headers}
            if base.startswith("http://"):
                # Without a tunnel, the request itself must have the proxy's headers.
                headers = {**headers, **proxy.headers}
        self._headers = headers
        self._open_session = open_session or _sessions(timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # A session needs a running event loop.
        self._session = self._open_session()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, query: str, request_id: str) -> Answer:
        """Send one request, and return its answer, whatever the status.

        Raises:
            GatewayTimeout: No complete answer in time.
            AnswerTooLarge: The body has more bytes or values than allowed.
            MalformedAnswer: The answer is not valid HTTP or cannot be decoded.
            CertificateRejected: The gateway's certificate is not trusted.
            GatewayUnavailable: The connection failed.
        """
        if self._session is None:
            raise RuntimeError("open the client with `async with` first")
        try:
            # Path and query are encoded already.
            url = URL(f"{self._base}{path}?{query}", encoded=True)
            async with (
                asyncio.timeout(self._timeout_seconds) as deadline,
                # Not in the session, whose headers a proxy would see, too. And not in a variable: a traceback
                # that shows variables must not show the token.
                self._session.get(
                    url, headers={**self._headers, "x-request-id": request_id}, **self._options
                ) as response,
            ):
                try:
                    body = await self._receive(response, deadline)
                except (Undecodable, aiohttp.ClientPayloadError):
                    # Of these, the status suffices; a 429 pauses all requests.
                    if response.status != 429 and response.status < 500:
                        raise
                    body = b""
            return Answer(response.status, response.headers, body)
        except MemoryError:
            raise  # a fault of this process, and not of the answer
        except Exception as exc:  # noqa: BLE001 - hostile answers make parsers raise anything
            kind, reason = _explain(exc, self._shown, self._timeout_seconds)
        raise kind(path, reason, request_id)

    async def _receive(self, response: aiohttp.ClientResponse, deadline: asyncio.Timeout) -> bytes:
        """Return the decoded body; the caller closes the connection if it was not read to its end."""
        is_error = response.status != 200
        most = MAX_ERROR_BYTES if is_error else self._most_bytes
        if not is_error and int(response.headers.get("content-length", 0)) > most:
            raise self._too_large()
        decoder = BodyDecoder(", ".join(response.headers.getall("content-encoding", ())))
        chunks: list[bytes] = []
        size = received = 0
        is_large = False
        try:
            async for data in response.content.iter_any():
                received += len(data)
                for chunk in decoder.decode(data):
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > most:
                        break
                    if size > LARGE_BYTES and not is_large:
                        await self._wait_for_turn(deadline)
                        is_large = True
                if max(size, received) > most:
                    if is_error:
                        return b"".join(chunks)[:most]
                    raise self._too_large()
            decoder.finish()
            body = b"".join(chunks)
            if len(body) > UNCOUNTED_BYTES and any(islice(_VALUE.finditer(body), self._most_values, None)):
                raise _TooLarge(f"the answer has more than {self._most_values:,} values")
            return body
        finally:
            self._on_received(received)
            if is_large:
                self._large.release()

    async def _wait_for_turn(self, deadline: asyncio.Timeout) -> None:
        """Wait until another large answer is complete; the wait does not count towards the time-out."""
        loop = asyncio.get_running_loop()
        # A time-out that has just expired cannot be rescheduled; it ends the next wait.
        ends_at, began = None if deadline.expired() else deadline.when(), loop.time()
        if ends_at is not None:
            deadline.reschedule(None)
        await self._large.acquire()
        if ends_at is not None:
            deadline.reschedule(ends_at + loop.time() - began)

    def _too_large(self) -> _TooLarge:
        return _TooLarge(f"the answer has more than {self._most_bytes / 2**20:g} MiB")


def _sessions(timeout_seconds: float) -> OpenSession:
    """Return what opens sessions without a limit of connections, because the limiter bounds the requests."""
    context = certificates()

    def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # The time-out of a request covers the whole of it and not each read.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_seconds),
        )

    return open_session


def certificates() -> ssl.SSLContext:
    """Return the trusted certificates; to read them takes 30 ms, so it is done once for the same variables.

    Raises:
        SettingsError: The environment names certificates that cannot be used.
    """
    return _read_certificates(*(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")))


@lru_cache(maxsize=4)
def _read_certificates(*_variables: str | None) -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as exc:  # ssl.SSLError is one
        kind = type(exc).__name__
    raise SettingsError(f"SSL_CERT_FILE names a file without readable certificates ({kind})")


def _proxy_to(base: str) -> httpx.Proxy | None:
    """Return the proxy for an address from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`."""
    address = httpx.URL(base)
    proxies = getproxies()
    own = proxies.get(address.scheme)
    named = own or proxies.get("all")
    port = address.port or (443 if address.scheme == "https" else 80)
    # With the port, because entries of NO_PROXY may have one.
    if not named or proxy_bypass(f"{address.host}:{port}"):
        return None
    name = f"{address.scheme.upper() if own else 'ALL'}_PROXY"
    try:
        proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
        # aiohttp rejects more, such as a port above 65535.
        URL(str(proxy.url))
    except (httpx.InvalidURL, ValueError):
        proxy = None
    if proxy is None or not proxy.url.host or proxy.url.scheme not in ("http", "https"):
        raise SettingsError(f"{name} is not the address of a proxy: it must be http://host:port")
    if proxy.auth is None:
        return proxy
    # As a header, because aiohttp deprecates its parameter for the user.
    return httpx.Proxy(proxy.url, headers={"proxy-authorization": aiohttp.encode_basic_auth(*proxy.auth)})


class _TooLarge(Exception):
    """An answer that exceeds a bound; the message states which."""


def _explain(exc: Exception, gateway: str, timeout_seconds: float) -> tuple[type[GatewayError], str]:
    """Return the class and the reason of our error for an exception of the transport, parser or decoder.

    Args:
        exc: The exception.
        gateway: The gateway's address, printable.
        timeout_seconds: The time-out of the request.
    """
    chain: list[BaseException] = [exc]
    while (cause := chain[-1].__cause__) is not None and len(chain) < 8:
        chain.append(cause)
    name = type(chain[-1]).__name__
    # aiohttp's own exception has this class too, but only its cause has the code.
    certificate = [one for one in chain if isinstance(one, ssl.SSLCertVerificationError)]
    if certificate:
        return CertificateRejected, _untrusted(certificate[-1], gateway)
    for one in chain:
        if known := _explain_known(one, name, gateway):
            return known
    if any(isinstance(one, TimeoutError) for one in chain):
        return GatewayTimeout, f"the gateway sent no complete answer in {timeout_seconds:g} s"
    if isinstance(exc, aiohttp.ClientConnectionError | OSError):
        return GatewayUnavailable, f"the connection to the gateway failed ({name})"
    return MalformedAnswer, f"the gateway sent an answer that cannot be read ({name})"


def _explain_known(exc: BaseException, name: str, gateway: str) -> tuple[type[GatewayError], str] | None:
    """Do the same for an exception whose class suffices; `name` is the class of the first cause."""
    failed = "the connection to the gateway failed"
    match exc:
        case _TooLarge():
            return AnswerTooLarge, str(exc)
        case Undecodable():
            return MalformedAnswer, f"the gateway sent {exc}"
        case ssl.SSLError():
            return GatewayUnavailable, f"{failed}: no TLS at {gateway} ({name})"
        case aiohttp.ClientHttpProxyError():
            return GatewayUnavailable, f"{failed}: the proxy answers with status {exc.status:d}"
        case aiohttp.ClientProxyConnectionError():
            return GatewayUnavailable, f"{failed}: the proxy cannot be reached"
        case socket.gaierror():
            return GatewayUnavailable, f"{failed}: the host name of {gateway} has no address"
        case ConnectionRefusedError():
            return GatewayUnavailable, f"{failed}: {gateway} does not accept connections"
        case aiohttp.ClientPayloadError():
            return GatewayUnavailable, "the answer is incomplete or does not match its length"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return MalformedAnswer, f"the answer is not valid HTTP ({name})"
    return None


def _untrusted(exc: ssl.SSLCertVerificationError, gateway: str) -> str:
    flaw = {
        _NOT_YET_VALID: "is not valid yet",
        _EXPIRED: "has expired",
        _WRONG_HOST: "is for another host name",
        _WRONG_ADDRESS: "is for another address",
    }.get(getattr(exc, "verify_code", 0))
    if flaw is not None:
        return f"the certificate of {gateway} {flaw}: check the address and this machine's clock"
    # Companies that inspect traffic sign certificates with their own authority.
    advice = "set SSL_CERT_FILE to the file of the authority that your network uses"
    return f"the certificate of {gateway} is not trusted: {advice}"
