"""Broken HTTP answers on a real socket: each raises our error, without the text of the answer."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import pickle
import socket
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbrace_lake.errors import AnswerTooLarge, GatewayError, GatewayUnavailable, MalformedAnswer
from imbrace_lake.export.chunk import ChunkResult, export_chunk
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.phones.numbers import PhoneNumber
from imbrace_lake.settings import Settings
from tests.core.conftest import StartBox, client_of
from tests.core.raw_server import raw_server
from tests.core.test_gateway import NOWHERE
from tests.gateways import open_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_of_other_modules() -> None:
    """Else connections of theirs may be collected during a test, whose event loop then reports them."""
    gc.collect()


PHONE = PhoneNumber("+886911425977")
SECRET_TEXT = "the customer wrote this"
TOKEN = NOWHERE.options.token
NOTHING_OF = (TOKEN, TOKEN[4:], "886911425977", "911425977", SECRET_TEXT)

BODY = json.dumps({
    "items": [{"_id": "m1", "content": {"text": SECRET_TEXT}, "phone": "886911425977"}],
    "count": 1, "total": 1, "has_more": False,
}).encode()  # fmt: skip
LINKS = json.dumps([{"phone_number": "886911425977", "conversation_links": []}]).encode()


def answer(body: bytes = BODY, *headers: bytes, status: bytes = b"200 OK", length: bool = True) -> bytes:
    # The server closes the connection after every answer: a client must not send its next request there.
    lines = [b"HTTP/1.1 " + status, b"content-type: application/json", b"connection: close", *headers]
    if length:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    return answer(b"".join(chunks), b"transfer-encoding: chunked", length=False)


def encoded(coding: bytes, body: bytes) -> bytes:
    return answer(body, b"content-encoding: " + coding)


ZIPPED = gzip.compress(BODY)
DEFLATED = zlib.compress(BODY)
LENGTH = b"content-length: %d" % len(BODY)

BROKEN = {
    # -- not HTTP
    "nothing": b"",
    "no status line": BODY,
    "blank lines": b"\r\n\r\n\r\n\r\n",
    "garbage": bytes(range(256)) * 8,
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "SMTP": b"220 mail.example.com ESMTP 886911425977\r\n",
    "HTTP/0.9": SECRET_TEXT.encode(),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"HTTP/9.9 200 OK\r\n\r\n" + BODY,
    "a request": b"GET / HTTP/1.1\r\nhost: 886911425977\r\n\r\n",
    # -- the status line
    "status of letters": answer(status=b"OK OK"),
    "status of two digits": answer(status=b"20 OK"),
    "status of four digits": answer(status=b"2000 OK"),
    "negative status": answer(status=b"-200 OK"),
    "status 999": answer(status=b"999 886911425977"),
    "status 000": answer(status=b"000 None"),
    "status line of 100 KB": answer(status=b"200 " + b"x" * 100_000),
    "status line cut off": b"HTTP/1.1 2",
    "informational without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 500,
    "switching protocols": answer(b"", b"upgrade: websocket", b"connection: upgrade", status=b"101 Other"),
    # -- the headers
    "header over 8 KB": answer(BODY, b"x-trace: " + b"886911425977 " * 700),
    "header name over 8 KB": answer(BODY, b"x" * 9_000 + b": 1"),
    "10,000 headers": answer(BODY, *(b"x-%d: 1" % n for n in range(10_000))),
    "NUL in a header": answer(BODY, b"x-a: a\x00b 886911425977"),
    "CR in a header": answer(BODY, b"x-a: a\rb 886911425977"),
    "blank in a header name": answer(BODY, b"x a: 886911425977"),
    "header without a colon": answer(BODY, b"886911425977"),
    "header without a name": answer(BODY, b": 886911425977"),
    "headers without end": b"HTTP/1.1 200 OK\r\nx-a: 1\r\n",
    # -- the length
    "content-length twice, different": answer(BODY, b"content-length: 3"),
    "content-length twice, equal": answer(BODY, LENGTH),
    "content-length beside chunked": answer(BODY, b"transfer-encoding: chunked"),
    "content-length negative": answer(BODY, b"content-length: -1", length=False),
    "content-length of letters": answer(BODY, b"content-length: many", length=False),
    "content-length list": answer(BODY, b"content-length: 5, 5", length=False),
    "content-length hexadecimal": answer(BODY, b"content-length: 0x40", length=False),
    "content-length of 400 digits": answer(BODY, b"content-length: " + b"9" * 400, length=False),
    "body shorter than its length": answer(BODY, b"content-length: 5000", length=False),
    "empty body with a length": answer(b"", b"content-length: 50", length=False),
    "a body longer than its length": answer(BODY + b"886911425977", LENGTH, length=False),
    # -- the chunks
    "chunk size of letters": chunked(b"zz\r\n", BODY, b"\r\n0\r\n\r\n"),
    "chunk size negative": chunked(b"-5\r\n", BODY, b"\r\n0\r\n\r\n"),
    "chunk size of 40 digits": chunked(b"f" * 40 + b"\r\n", BODY),
    "chunk shorter than its size": chunked(b"fff\r\n", BODY, b"\r\n0\r\n\r\n"),
    "chunk longer than its size": chunked(b"3\r\n", BODY, b"\r\n0\r\n\r\n"),
    "no last chunk": chunked(b"%x\r\n" % len(BODY), BODY, b"\r\n"),
    "invalid trailer": chunked(b"%x\r\n" % len(BODY), BODY, b"\r\n0\r\n\x00886911425977\r\n\r\n"),
    # -- the content coding
    "not gzip": encoded(b"gzip", BODY),
    "gzip with flipped bits": encoded(b"gzip", ZIPPED[:30] + b"\xff\xff\xff" + ZIPPED[33:]),
    "gzip with a wrong checksum": encoded(b"gzip", ZIPPED[:-8] + b"\x00\x01\x02\x03" + ZIPPED[-4:]),
    "gzip cut": encoded(b"gzip", ZIPPED[:-20]),
    "gzip of one byte": encoded(b"gzip", b"\x1f"),
    "gzip with trailing bytes": encoded(b"gzip", ZIPPED + b"886911425977"),
    "gzip with a name of 1 MB": encoded(b"gzip", b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * 1_000_000),
    "100,000 empty gzip members": encoded(b"gzip", gzip.compress(b"") * 100_000),
    "not deflate": encoded(b"deflate", BODY),
    "deflate cut": encoded(b"deflate", DEFLATED[:-12]),
    "deflate of one byte": encoded(b"deflate", b"\x78"),
    "deflate with trailing bytes": encoded(b"deflate", DEFLATED + b"886911425977"),
    "brotli": encoded(b"br", b"\x1b\x00\x00"),
    "a coding with a secret": encoded(f"{TOKEN}".encode(), BODY),
    "ten codings": encoded(b", ".join([b"gzip"] * 10), ZIPPED),
    "gzip announced twice, applied once": encoded(b"gzip, gzip", ZIPPED),
    # -- the body
    "empty body": answer(b""),
    "bytes that are not text": answer(b"\xff\xfe\x00\x01" * 50),
    "UTF-16, which RFC 8259 does not allow": answer(BODY.decode().encode("utf-16")),
    "UTF-16 without a mark": answer(BODY.decode().encode("utf-16-le")),
    "an HTML page": answer(b"<html>886911425977</html>", b"content-type: text/html"),
    "nested 100,000 deep": answer(b"[" * 100_000),
    "objects nested 100,000 deep": answer(b'{"items":[' + b'{"a":' * 100_000),
    "a number of a million digits": answer(b'{"items": [' + b"9" * 1_000_000 + b"]}"),
    "redirect with a broken address": answer(b"", b"location: http://[::1886911425977", status=b"302 Found"),
    "redirect to a secret": answer(
        b"", f"location: https://x/{TOKEN}/886911425977?t={TOKEN}".encode(), status=b"307 Redirect"
    ),
    "redirect without an address": answer(b"", status=b"301 Moved"),
    "redirect to text that is not ASCII": answer(b"", b"location: \xff\xfe\x1b[31m", status=b"302 Found"),
    "multiple choices": answer(BODY, status=b"300 Multiple Choices"),
    "not modified": answer(b"", status=b"304 Not Modified"),
    "no content": answer(b"", status=b"204 No Content", length=False),
    "partial content": answer(BODY, status=b"206 Partial Content"),
    "429 with a wait of 400 digits": answer(b"", b"retry-after: " + b"9" * 400, status=b"429 Too Many"),
    "401 with a body that is not text": answer(b"\xff\xfe", status=b"401 Unauthorized"),
    "403 nested deep": answer(b"[" * 60_000, status=b"403 Forbidden"),
    "404 of another server": answer(BODY, status=b"404 Not Found"),
    "500 with broken gzip": answer(BODY, b"content-encoding: gzip", status=b"500 Error"),
}  # fmt: skip

ODD = {
    "reason that is not UTF-8": answer(status=b"200 \xff\xfe"),
    "reason with NUL": answer(status=b"200 O\x00K"),
    "folded header": answer(BODY, b"x-a: 1\r\n 886911425977\r\n\t2"),
    "chunk extension of 100 KB": chunked(b"%x;" % len(BODY), b"x" * 100_000, b"\r\n", BODY, b"\r\n0\r\n\r\n"),
    "unknown transfer coding": answer(BODY, b"transfer-encoding: gzip, identity", length=False),
    "invalid cookies": answer(BODY, b"set-cookie: \xff=;;;=\x01;", b"set-cookie: a=b; expires=never"),
    "an unknown charset": answer(BODY, b"content-type: application/json; charset=klingon-8"),
    "an invalid content type": answer(BODY, b"content-type: ;;;/"),
    "no length, closed at the end": answer(BODY, length=False),
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    "an invalid request id": answer(BODY, b"x-request-id: \x1b[31m"),
    "identity": encoded(b"identity", BODY),
    "an empty coding": encoded(b"", BODY),
}


def ask(port: int, endpoint: str, **options: Any) -> tuple[GatewayError | None, list[str]]:
    """Return the error of a call, and the errors that the event loop reported."""
    complaints: list[str] = []

    async def run() -> GatewayError | None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(str(said)))
        client = client_of(
            NOWHERE, url=f"http://127.0.0.1:{port}/3rd", **{"timeout_seconds": 5.0, "tries": 3, **options}
        )
        try:
            async with client:
                await call(client, endpoint)
        except GatewayError as exc:
            return exc
        return None

    return asyncio.run(run()), complaints


async def call(client: GatewayClient, endpoint: str) -> None:
    if endpoint == "links":
        await client.get_links([PHONE])
    elif endpoint == "head":
        await client.get_head("conv_1", limit=10, etag=None)
    else:
        await client.get_page("conv_1")


def everything_of(error: GatewayError) -> str:
    """Return all text of an error: its traceback, its pickle and its attributes."""
    shown = ["".join(traceback.format_exception(error)), repr(error), str(error), repr(vars(error))]
    link: BaseException | None = error
    while link is not None:
        assert isinstance(link, GatewayError), f"the error refers to {type(link)}"
        assert link.__cause__ is None
        link = link.__context__
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy)) == (type(error), str(error))
    return "\n".join([*shown, repr(pickle.dumps(error))])


@pytest.mark.parametrize("endpoint", ["messages", "links"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_raises_our_error_without_its_text(
    name: str, endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with raw_server(lambda _: [BROKEN[name]]) as server:
        error, complaints = ask(server.port, endpoint, patience_seconds=0.0)
        requests = len(server.heads)

    assert error is not None
    shown = everything_of(error) + caplog.text
    assert not [secret for secret in NOTHING_OF if secret in shown]
    assert "\x1b" not in shown
    assert len(str(error)) < 400
    # The transport sends a request again after a closed connection; a 401 is requested four times.
    assert requests <= 8
    assert complaints == []


@pytest.mark.parametrize("endpoint", ["messages", "head"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_whose_body_is_complete_is_read(name: str, endpoint: str) -> None:
    with raw_server(lambda _: [ODD[name]]) as server:
        error, complaints = ask(server.port, endpoint)

    assert (error, complaints) == (None, [])


@settings(max_examples=60)
@given(st.data())
def test_an_answer_with_changed_bytes_is_read_or_raises_our_error(data: st.DataObject) -> None:
    """Replace, remove and insert bytes anywhere in answers of each kind."""
    whole = data.draw(st.sampled_from([
        answer(), chunked(b"%x\r\n" % len(BODY), BODY, b"\r\n0\r\n\r\n"), encoded(b"gzip", ZIPPED),
        encoded(b"deflate", DEFLATED), answer(b"", b"location: https://x/y", status=b"302 Found"),
    ]))  # fmt: skip
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        changed[start : start + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    endpoint = data.draw(st.sampled_from(["messages", "links"]))
    with raw_server(lambda _: [bytes(changed)]) as server:
        error, complaints = ask(server.port, endpoint, tries=1, patience_seconds=0.0, timeout_seconds=2.0)

    if error is not None:
        assert not [secret for secret in NOTHING_OF if secret in everything_of(error)]
    assert complaints == []


# -- bounds ---------------------------------------------------------------------------------------


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    while True:
        yield piece


BOMB = gzip.compress(b'{"items": [' + b" " * (64 << 20))
TWICE = gzip.compress(BOMB)
DEFLATE_BOMB = zlib.compress(b" " * (64 << 20))
HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS: dict[str, Callable[[], Iterable[bytes]]] = {
    "without a length": lambda: endless(HEAD + b"\r\n", b" " * 65_536),
    "in chunks": lambda: endless(
        HEAD + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n"
    ),
    "of a huge length": lambda: endless(HEAD + b"content-length: 99999999999\r\n\r\n", b" " * 65_536),
    "gzip bomb": lambda: [encoded(b"gzip", BOMB)],
    "gzip bomb in gzip": lambda: [encoded(b"gzip, gzip", TWICE)],
    "deflate bomb": lambda: [encoded(b"deflate", DEFLATE_BOMB)],
    "millions of values": lambda: [answer(b'{"items":[{"_id":"a","c":[' + b"[]," * 1_000_000 + b"[]]}]}")],
    "millions of messages": lambda: [answer(b'{"items":[' + b'{"_id":"a"},' * 300_000 + b'{"_id":"a"}]}')],
}  # fmt: skip


@pytest.mark.parametrize("endpoint", ["messages", "links"])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_body_beyond_the_bounds_is_cut_off_with_a_specific_error(name: str, endpoint: str) -> None:
    with raw_server(lambda _: ENDLESS[name]()) as server:
        error, complaints = ask(server.port, endpoint, most_answer_bytes=4 << 20, timeout_seconds=30.0)
        requests = len(server.heads)

    assert type(error) is AnswerTooLarge
    assert "the answer has more than 4 MiB" in str(error) or "values" in str(error)
    assert (error.is_transient, error.is_fatal) == (False, False)
    everything_of(error)
    # A page is requested again with a quarter of its length: 100, 25, 6, 1.
    assert requests == (1 if endpoint == "links" else 4)
    assert complaints == []


def test_a_page_that_is_too_large_is_read_in_smaller_pages() -> None:
    items = [{"_id": f"m{n}", "content": {"text": "x" * 30_000}} for n in range(100)]

    def reply(head: bytes) -> list[bytes]:
        limit = int(head.partition(b"limit=")[2].partition(b"&")[0])
        body = {"items": items[:limit], "count": 100, "total": min(limit, 100), "has_more": limit < 100}
        return [answer(json.dumps(body).encode())]

    async def read(port: int) -> tuple[list[str], int]:
        url = f"http://127.0.0.1:{port}/3rd"
        async with client_of(NOWHERE, url=url, most_answer_bytes=1 << 20) as client:
            page = await client.get_page("conv_1")
            return page.ids, client.traffic.size_bytes

    with raw_server(reply) as server:
        ids, _ = asyncio.run(read(server.port))

    assert ids == [f"m{n}" for n in range(25)]


def test_an_error_with_an_endless_body_is_still_that_error() -> None:
    head = b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n"
    with raw_server(lambda _: endless(head, b"1000\r\n" + b"x" * 4_096 + b"\r\n")) as server:
        error, _ = ask(server.port, "messages")

    assert type(error) is GatewayUnavailable
    assert "status 503" in str(error)


def test_large_answers_wait_for_each_other_and_all_arrive() -> None:
    text = "x" * (3 << 20)
    body = json.dumps({"items": [{"_id": "m", "content": text}], "count": 1, "total": 1}).encode()

    async def read(port: int) -> list[int]:
        async with client_of(NOWHERE, url=f"http://127.0.0.1:{port}/3rd", timeout_seconds=60.0) as client:
            pages = await asyncio.gather(*(client.get_page(f"conv_{n}") for n in range(12)))
            return [len(page.items[0]["content"]) for page in pages]

    with raw_server(lambda _: [answer(body)]) as server:
        assert asyncio.run(read(server.port)) == [len(text)] * 12


def test_a_malformed_answer_is_requested_again() -> None:
    answers = iter([BROKEN["header over 8 KB"], BROKEN["chunk size of letters"], answer()])
    with raw_server(lambda _: [next(answers)]) as server:
        error, _ = ask(server.port, "messages")

    assert error is None


@pytest.mark.parametrize(
    "unreadable",
    [
        answer(b"slow down", b"content-length: 500", status=b"429 Too Many", length=False),
        answer(b"slow down", b"content-encoding: br", status=b"429 Too Many"),
        answer(b"slow down", b"content-encoding: gzip", status=b"429 Too Many"),
    ],
)
def test_a_429_whose_body_cannot_be_read_pauses_the_requests_and_is_no_failure(unreadable: bytes) -> None:
    answers = iter([unreadable, unreadable, answer()])
    with raw_server(lambda _: [next(answers)]) as server:
        error, _ = ask(server.port, "messages", tries=1)

    assert error is None


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("header over 8 KB", MalformedAnswer),
        ("content-length twice, different", MalformedAnswer),
        ("NUL in a header", MalformedAnswer),
        ("no status line", MalformedAnswer),
        ("chunk size of letters", MalformedAnswer),
        ("not gzip", MalformedAnswer),
        ("gzip cut", MalformedAnswer),
        ("body shorter than its length", GatewayUnavailable),
        ("nothing", GatewayUnavailable),
    ],
)
def test_a_broken_answer_raises_the_error_of_its_kind(name: str, error: type[GatewayError]) -> None:
    with raw_server(lambda _: [BROKEN[name]]) as server:
        found, _ = ask(server.port, "messages", tries=1)

    assert type(found) is error


# -- in a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "header over 8 KB", "chunk size of letters", "content-length twice, different", "NUL in a header",
        "body shorter than its length", "no status line", "gzip with flipped bits", "redirect to a secret",
    ],
)  # fmt: skip
def test_a_broken_answer_fails_only_its_conversation(
    name: str, start: StartBox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    box = start(conversations=6)
    ids = list(box.conversations)
    upstream = box.control_url.removeprefix("http://").split(":")

    def reply(head: bytes) -> Iterable[bytes]:
        if ids[2].encode() in head:
            yield BROKEN[name]
            return
        with socket.create_connection((upstream[0], int(upstream[1]))) as connection:
            connection.sendall(head.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            while data := connection.recv(65_536):
                yield data

    async def export(port: int) -> ChunkResult:
        settings = Settings(
            _env_file=None, token=box.options.token, organization=box.options.organization_id, tries=2,
            gateway=f"http://127.0.0.1:{port}/3rd", lake=str(tmp_path / "lake"),
        )  # fmt: skip
        async with open_run(settings, "run_1") as run:
            await run.load_prior_state("all")
            return await export_chunk(run, "all", ids)

    with raw_server(reply) as server:
        result = asyncio.run(export(server.port))

    assert result.statuses == {"complete": 5, "failed": 1}
    [letter] = result.dead_letters
    assert letter.conversation_id == ids[2]
    shown = f"{letter}{caplog.text}"
    assert not [secret for secret in NOTHING_OF if secret in shown]


def test_a_higher_bound_also_admits_more_values() -> None:
    body = b'{"items":[{"_id":"a","c":[' + b"1," * 150_000 + b'1]}],"count":1,"total":1}'
    with raw_server(lambda _: [answer(body)]) as server:
        error, _ = ask(server.port, "messages")
        allowed, _ = ask(server.port, "messages", most_answer_bytes=32 << 20)

    assert type(error) is AnswerTooLarge
    assert allowed is None
