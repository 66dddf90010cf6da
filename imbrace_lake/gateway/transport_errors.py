"""Turn whatever transport, HTTP parser or decoder raises into one of our errors.

Their exceptions carry requests, headers and bodies: the token, phone numbers, message texts. Of these
exceptions only the class name is used. Callers raise the result outside of the `except` block, so that
neither `__cause__` nor `__context__` refers to the original.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError

from imbrace_lake.errors import (
    AnswerTooLarge,
    CertificateRejected,
    GatewayError,
    GatewayTimeout,
    GatewayUnavailable,
    MalformedAnswer,
)
from imbrace_lake.gateway.content_coding import Undecodable

# Codes of OpenSSL's verify(1). All other codes: no trusted authority signed the certificate.
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 62, 64


class TooLarge(Exception):
    """An answer that exceeds a bound; the message states which."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request, for the description of its error.

    Attributes:
        path: The path without the query.
        request_id: The id that was sent.
        gateway: The gateway's address, printable.
        timeout_seconds: The time-out of the request.
    """

    path: str
    request_id: str
    gateway: str
    timeout_seconds: float

    def error_of(self, exc: Exception) -> GatewayError:
        """Return our error for an exception of the transport, the parser or the decoder."""
        chain: list[BaseException] = [exc]
        while (cause := chain[-1].__cause__) is not None and len(chain) < 8:
            chain.append(cause)
        name = type(chain[-1]).__name__
        # aiohttp's own exception has this class too, but only its cause has the code.
        certificate = [one for one in chain if isinstance(one, ssl.SSLCertVerificationError)]
        if certificate:
            return self._made(CertificateRejected, self._untrusted(certificate[-1]))
        for one in chain:
            named = self._named(one, name)
            if named is not None:
                return named
        # httpx-aiohttp raises ConnectTimeout for any failed connection, where a smaller page does not help.
        kinds = (
            TimeoutError if isinstance(exc, httpx.ConnectTimeout) else TimeoutError | httpx.TimeoutException
        )
        if any(isinstance(one, kinds) for one in chain):
            waited = f"{self.timeout_seconds:g} s"
            return self._made(GatewayTimeout, f"the gateway sent no complete answer in {waited}")
        if isinstance(exc, httpx.TransportError | OSError):
            return self._made(GatewayUnavailable, f"the connection to the gateway failed ({name})")
        return self._made(MalformedAnswer, f"the gateway sent an answer that cannot be read ({name})")

    def _named(self, exc: BaseException, name: str) -> GatewayError | None:
        """Return our error for an exception whose class explains it; `name` is that of the first cause."""
        failed = "the connection to the gateway failed"
        match exc:
            case TooLarge():
                return self._made(AnswerTooLarge, str(exc))
            case Undecodable():
                return self._made(MalformedAnswer, f"the gateway sent {exc}")
            case ssl.SSLError():
                reason = f"{failed}: no TLS at {self.gateway} ({name})"
                return self._made(GatewayUnavailable, reason)
            case aiohttp.ClientHttpProxyError():
                reason = f"{failed}: the proxy answers with status {exc.status:d}"
                return self._made(GatewayUnavailable, reason)
            case aiohttp.ClientProxyConnectionError():
                reason = f"{failed}: the proxy cannot be reached"
                return self._made(GatewayUnavailable, reason)
            case socket.gaierror():
                reason = f"{failed}: the host name of {self.gateway} has no address"
                return self._made(GatewayUnavailable, reason)
            case ConnectionRefusedError():
                return self._made(GatewayUnavailable, f"{failed}: {self.gateway} does not accept connections")
            case aiohttp.ClientPayloadError():
                return self._made(GatewayUnavailable, "the answer is incomplete or does not match its length")
            case aiohttp.ClientResponseError() | HttpProcessingError():
                return self._made(MalformedAnswer, f"the answer is not valid HTTP ({name})")
        return None

    def _untrusted(self, exc: ssl.SSLCertVerificationError) -> str:
        flaw = {
            _NOT_YET_VALID: "is not valid yet",
            _EXPIRED: "has expired",
            _WRONG_HOST: "is for another host name",
            _WRONG_ADDRESS: "is for another address",
        }.get(getattr(exc, "verify_code", 0))
        if flaw is not None:
            return f"the certificate of {self.gateway} {flaw}: check the address and this machine's clock"
        # Companies that inspect traffic sign certificates with their own authority.
        advice = "set SSL_CERT_FILE to the file of the authority that your network uses"
        return f"the certificate of {self.gateway} is not trusted: {advice}"

    def _made(self, kind: type[GatewayError], reason: str) -> GatewayError:
        return kind(self.path, reason, self.request_id)
