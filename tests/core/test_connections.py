"""Connections to the gateway: certificates, names, ports and proxies, each failure with its own message."""

from __future__ import annotations

import asyncio
import base64
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imbrace_lake.errors import CertificateRejected, GatewayError, GatewayUnavailable, SettingsError
from imbrace_lake.gateway.models import Page
from tests.core.certificates import make_certificate
from tests.core.conftest import StartBox, client_of
from tests.core.raw_server import raw_server
from tests.core.test_broken_answers import answer, everything_of
from tests.core.test_gateway import NOWHERE, first_of

Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Return a function that sets environment variables; none for proxies and certificates is set before."""
    names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def change(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return change


def page_at(url: str, conversation_id: str = "conv_1", **options: Any) -> Page:
    async def run() -> Page:
        async with client_of(NOWHERE, url=url, **options) as client:
            return await client.get_page(conversation_id)

    return asyncio.run(run())


def failure_at(url: str, **options: Any) -> tuple[GatewayError, int]:
    """Return the error of a request, and the number of attempts."""

    async def run() -> tuple[GatewayError, int]:
        async with client_of(NOWHERE, url=url, **options) as client:
            with pytest.raises(GatewayError) as caught:
                await client.get_page("conv_1")
            return caught.value, client.traffic.requests

    return asyncio.run(run())


# -- certificates ---------------------------------------------------------------------------------


def test_an_unknown_certificate_authority_is_reported_and_not_retried(
    tmp_path: Path, environment: Environment
) -> None:
    context, _ = make_certificate(tmp_path)
    with raw_server(lambda _: [answer()], context) as server:
        error, requests = failure_at(f"https://127.0.0.1:{server.port}/3rd")

    assert type(error) is CertificateRejected
    assert (requests, error.is_transient, error.is_fatal) == (1, False, True)
    assert "is not trusted: set SSL_CERT_FILE" in str(error)
    assert NOWHERE.options.token not in everything_of(error)


def test_a_certificate_that_ssl_cert_file_names_is_trusted(tmp_path: Path, environment: Environment) -> None:
    context, file = make_certificate(tmp_path)
    environment(SSL_CERT_FILE=file)
    with raw_server(lambda _: [answer()], context) as server:
        assert page_at(f"https://127.0.0.1:{server.port}/3rd").ids == ["m1"]


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"first_day": -60}, "has expired"),
        ({"first_day": 10}, "is not valid yet"),
        ({"address": "127.0.0.9"}, "is for another address"),
    ],
)
def test_a_trusted_but_invalid_certificate_is_reported_with_the_reason(
    changes: dict[str, Any], reported: str, tmp_path: Path, environment: Environment
) -> None:
    context, file = make_certificate(tmp_path, **changes)
    environment(SSL_CERT_FILE=file)
    with raw_server(lambda _: [answer()], context) as server:
        error, requests = failure_at(f"https://127.0.0.1:{server.port}/3rd")

    assert (type(error), requests) == (CertificateRejected, 1)
    assert reported in str(error)


def test_a_certificate_for_another_host_name_is_reported(tmp_path: Path, environment: Environment) -> None:
    context, file = make_certificate(tmp_path)
    environment(SSL_CERT_FILE=file)
    with raw_server(lambda _: [answer()], context) as server:
        error, _ = failure_at(f"https://localhost:{server.port}/3rd")

    assert type(error) is CertificateRejected
    assert "is for another host name" in str(error)


@pytest.mark.parametrize("content", [None, b"", b"not a certificate", b"\xff\xfe\x00"])
def test_an_unreadable_file_of_certificates_is_reported(
    content: bytes | None, tmp_path: Path, environment: Environment
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    environment(SSL_CERT_FILE=tmp_path / "ca.pem")

    with pytest.raises(
        SettingsError, match="SSL_CERT_FILE names a file without readable certificates"
    ) as caught:
        client_of(NOWHERE, url="https://127.0.0.1/3rd")

    assert caught.value.__context__ is None


@pytest.mark.slow
def test_a_server_without_tls_is_reported(environment: Environment) -> None:
    with raw_server(lambda _: [answer()]) as server:
        error, _ = failure_at(f"https://127.0.0.1:{server.port}/3rd", tries=1, timeout_seconds=2.0)

    assert isinstance(error, GatewayUnavailable)
    everything_of(error)


# -- names and ports ------------------------------------------------------------------------------


def test_an_unknown_host_name_is_reported(environment: Environment) -> None:
    error, _ = failure_at("http://gateway.invalid/3rd", tries=2)

    assert type(error) is GatewayUnavailable
    assert "the host name of http://gateway.invalid/3rd has no address" in str(error)
    everything_of(error)


def test_a_closed_port_is_reported(environment: Environment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error, requests = failure_at(f"http://user:secret@127.0.0.1:{port}/3rd", tries=2)

    assert type(error) is GatewayUnavailable
    assert f"http://127.0.0.1:{port}/3rd does not accept connections" in str(error)
    assert requests == 2
    assert "secret" not in everything_of(error)


# -- proxies --------------------------------------------------------------------------------------


class Proxy(socketserver.ThreadingTCPServer):
    """A small forwarding proxy: absolute addresses for http, CONNECT for https.

    Attributes:
        heads: The heads of all requests.
        asked: The first lines of all requests.
    """

    daemon_threads = True

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyConnection)
        self.status = status
        self.heads: list[bytes] = []

    @property
    def asked(self) -> list[str]:
        return [head.partition(b"\r\n")[0].decode() for head in self.heads]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _ProxyConnection(socketserver.BaseRequestHandler):
    server: Proxy
    request: socket.socket

    def handle(self) -> None:
        head = self.request.recv(65_536)
        self.server.heads.append(head)
        if self.server.status != 200:
            answered = b"HTTP/1.1 %d No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.request.sendall(answered % self.server.status)
            return
        first, _, rest = head.partition(b"\r\n")
        method, target, _ = first.decode().split(" ")
        host, _, path = target.removeprefix("http://").partition("/")
        name, _, port = host.partition(":")
        with socket.create_connection((name, int(port))) as upstream:
            if method == "CONNECT":
                self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                upstream.sendall(f"{method} /{path} HTTP/1.1\r\n".encode() + rest)
            self.relay(upstream)

    def relay(self, upstream: socket.socket) -> None:
        other = {self.request: upstream, upstream: self.request}
        while True:
            for ready in select.select([*other], [], [])[0]:
                data = ready.recv(65_536)
                if not data:
                    return
                other[ready].sendall(data)


@contextmanager
def proxy(status: int = 200) -> Iterator[Proxy]:
    """Run a proxy; with a status other than 200 it answers every request with that status."""
    with Proxy(status) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_requests_go_through_the_proxy_of_the_environment(
    start: StartBox, environment: Environment, variable: str, scheme: str
) -> None:
    box = start(conversations=2, compression="gzip")
    with proxy() as between:
        environment(**{variable: scheme + between.address})
        page = page_at(box.url, first_of(box))

    assert page.items == box.truth(first_of(box))[::-1]
    assert between.asked == [
        f"GET {box.url}/conversations/{first_of(box)}/messages?limit=100&skip=0 HTTP/1.1"
    ]


@pytest.mark.parametrize("excluded", ["127.0.0.1", "*", "example.com, 127.0.0.1", "the port"])
def test_no_proxy_bypasses_the_proxy(start: StartBox, environment: Environment, excluded: str) -> None:
    box = start(conversations=2)
    if excluded == "the port":
        excluded = box.control_url.removeprefix("http://")
    with proxy() as between:
        environment(HTTP_PROXY=f"http://{between.address}", NO_PROXY=excluded)
        page_at(box.url, first_of(box))

    assert between.asked == []


def test_no_proxy_for_another_host_changes_nothing(start: StartBox, environment: Environment) -> None:
    box = start(conversations=2)
    with proxy() as between:
        environment(HTTP_PROXY=f"http://{between.address}", NO_PROXY="example.com,10.0.0.1")
        page_at(box.url, first_of(box))

    assert len(between.asked) == 1


def test_https_goes_through_a_tunnel_that_does_not_see_the_token(
    tmp_path: Path, environment: Environment
) -> None:
    context, file = make_certificate(tmp_path)
    with proxy() as between, raw_server(lambda _: [answer()], context) as server:
        environment(HTTPS_PROXY=f"http://{between.address}", SSL_CERT_FILE=file)
        page = page_at(f"https://127.0.0.1:{server.port}/3rd")
        token = NOWHERE.options.token.encode()

        assert page.ids == ["m1"]
        assert between.asked == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]
        assert token in server.heads[0]
        assert not any(token in head for head in between.heads)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_only_the_proxy_gets_its_user_and_password(
    scheme: str, tmp_path: Path, environment: Environment
) -> None:
    context, file = make_certificate(tmp_path)
    with (
        proxy() as between,
        raw_server(lambda _: [answer()], context if scheme == "https" else None) as server,
    ):
        address = f"http://me:secret@{between.address}"
        environment(HTTP_PROXY=address, HTTPS_PROXY=address, SSL_CERT_FILE=file)
        page_at(f"{scheme}://127.0.0.1:{server.port}/3rd")

    credentials = b"authorization: basic " + base64.b64encode(b"me:secret").lower()
    assert credentials in between.heads[0].lower()
    # This proxy forwards all headers; through a tunnel the gateway would not get them.
    assert (credentials in server.heads[0].lower()) == (scheme == "http")


@pytest.mark.parametrize("status", [407, 403, 502])
def test_a_proxy_that_rejects_the_tunnel_is_reported_with_its_status(
    status: int, environment: Environment
) -> None:
    with proxy(status) as between:
        environment(HTTPS_PROXY=f"http://me:secret@{between.address}")
        error, _ = failure_at("https://127.0.0.1:9/3rd", tries=2)

    assert type(error) is GatewayUnavailable
    assert f"the proxy answers with status {status}" in str(error)
    assert "secret" not in everything_of(error)


def test_an_unreachable_proxy_is_reported(environment: Environment) -> None:
    environment(HTTP_PROXY="http://me:secret@127.0.0.1:9")
    error, _ = failure_at("http://gateway.invalid/3rd", tries=1)

    assert "the proxy cannot be reached" in str(error)
    assert "secret" not in everything_of(error)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    "value",
    [
        "socks5://127.0.0.1:1080",
        "http://",
        "http://[::1",
        "ftp://x:1",
        "://",
        "http://me:secret@bad host:99999",
    ],
)
def test_an_invalid_proxy_address_is_a_settings_error(
    name: str, value: str, environment: Environment
) -> None:
    environment(**{name: value})

    with pytest.raises(SettingsError, match=f"{name} is not the address of a proxy"):
        client_of(NOWHERE, url="https://gateway.invalid/3rd")
