"""Servers that fail on purpose: a proxy that cuts off replies, and an S3 server with prepared answers."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from pydantic import SecretStr

from imbrace_lake.store.factory import StoreOptions
from tools.seaweed import Seaweed

KEY, SECRET = "fake-access-key", "fake-secret-never-to-be-shown"


def options_for(s3: Seaweed, endpoint_url: str | None = None, timeout_seconds: float = 20.0) -> StoreOptions:
    return StoreOptions(
        endpoint_url=endpoint_url or s3.endpoint_url,
        key=SecretStr(s3.key),
        secret=SecretStr(s3.secret),
        timeout_seconds=timeout_seconds,
    )


class CuttingProxy:
    """Passes everything on, but closes the connection within some replies.

    Args:
        endpoint_url: The server behind the proxy.
        is_to_cut: Decides by the first line of a request whether its reply is cut off.
        passed_bytes: The bytes of such a reply that are passed on.
    """

    def __init__(self, endpoint_url: str, is_to_cut: Callable[[bytes], bool], passed_bytes: int = 0) -> None:
        self.endpoint_url = ""
        self.cuts = 0
        self.asked = 0
        self._behind = urlsplit(endpoint_url)
        self._is_to_cut = is_to_cut
        self._passed_bytes = passed_bytes
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        behind, ahead = await asyncio.open_connection(self._behind.hostname, self._behind.port)
        is_cutting = False

        async def ask() -> None:
            nonlocal is_cutting
            while data := await reader.read(65536):
                # A connection carries one request at a time, so a request begins where a read begins.
                first_line = data.partition(b"\r\n")[0]
                if first_line.endswith(b" HTTP/1.1") and self._is_to_cut(first_line):
                    self.asked += 1
                    is_cutting = self.cuts > 0
                    self.cuts -= is_cutting
                ahead.write(data)
                await ahead.drain()

        async def answer() -> None:
            left = self._passed_bytes
            while data := await behind.read(65536):
                writer.write(data[:left] if is_cutting else data)
                await writer.drain()
                if is_cutting and (left := left - len(data)) <= 0:
                    return

        asking, answering = asyncio.ensure_future(ask()), asyncio.ensure_future(answer())
        try:
            await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in (asking, answering):
                pump.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            for end in (ahead, writer):
                end.close()
                with suppress(ConnectionError):
                    await end.wait_closed()


class FakeS3:
    """An S3 server in this process that keeps objects in memory, checks nothing and has prepared answers.

    Attributes:
        conditions: "kept", "ignored", "unknown" (501) or "failing" (503).
        hidden: "HEAD" or "list" if that does not show any object.
        repeats: Whether listings name each object twice.
        answers: Status and code of the next answers; without any, the server works as S3.
        message: The text of an error.
        asked: Method, path and headers of each request.
    """

    def __init__(self) -> None:
        self.conditions = "kept"
        self.hidden = ""
        self.repeats = False
        self.answers: list[tuple[int, str]] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.objects: dict[str, bytes] = {}
        self.continuation = ""
        self.message = "prepared"
        self.endpoint_url = ""

    @property
    def options(self) -> StoreOptions:
        return StoreOptions(
            self.endpoint_url, key=SecretStr(KEY), secret=SecretStr(SECRET), timeout_seconds=10
        )

    @contextmanager
    def running(self) -> Iterator[Self]:
        handler = type("Handler", (_Answer,), {"s3": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self.endpoint_url = f"http://127.0.0.1:{server.server_port}"
            yield self
            server.shutdown()


class _Answer(BaseHTTPRequestHandler):
    s3: FakeS3
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        # Clients drop connections in these tests, which is not worth a message.
        with suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        body, key = self._begin()
        if body is None or self._is_refused(key):
            return
        self.s3.objects[key] = body
        self._send(200, etag=_etag(body))

    def do_GET(self) -> None:
        body, key = self._begin()
        if body is None:
            return
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._send(200, self._listing(query.get("prefix", [""])[0]))
        elif key in self.s3.objects and self.s3.hidden != self.command:
            self._send(200, self.s3.objects[key], etag=_etag(self.s3.objects[key]))
        else:
            self._fail(404, "NoSuchKey")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        body, key = self._begin()
        if body is not None:
            self.s3.objects.pop(key, None)
            self._send(204)

    def _begin(self) -> tuple[bytes | None, str]:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.s3.asked.append((self.command, self.path, dict(self.headers)))
        if self.s3.answers:
            self._fail(*self.s3.answers.pop(0))
            return None, ""
        return body, unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _is_refused(self, key: str) -> bool:
        found = self.s3.objects.get(key)
        new, match = self.headers.get("If-None-Match"), self.headers.get("If-Match")
        cannot = {"unknown": (501, "NotImplemented"), "failing": (503, "SlowDown")}
        if (new or match) and self.s3.conditions in cannot:
            self._fail(*cannot[self.s3.conditions])
            return True
        is_met = (not new or found is None) and (not match or (found is not None and match == _etag(found)))
        if self.s3.conditions == "kept" and not is_met:
            self._fail(412, "PreconditionFailed")
            return True
        return False

    def _listing(self, prefix: str) -> bytes:
        objects = [
            (key, body)
            for key, body in self.s3.objects.items()
            if key.startswith(prefix) and self.s3.hidden != "list"
        ]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(body))}</ETag><Size>{len(body)}</Size></Contents>"
            for key, body in objects
            for _ in range(2 if self.s3.repeats else 1)
        )
        more = self.s3.continuation
        end = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>"
        return f"<ListBucketResult>{end if more else ''}{contents}</ListBucketResult>".encode()

    def _fail(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{self.s3.message}</Message></Error>".encode()
        self._send(status, b"" if self.command == "HEAD" else body)

    def _send(self, status: int, body: bytes = b"", etag: str | None = None) -> None:
        self.send_response_only(status)
        if etag:
            self.send_header("ETag", etag)
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


@contextmanager
def stalled_server() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
