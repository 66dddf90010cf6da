"""A gateway on a socket that answers some conversations with hostile bodies, many at the same time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from imbrace_lake.errors import (
    AnswerTooLarge,
    GatewayUnavailable,
    ImbraceLakeError,
    MalformedAnswer,
    WalkIncomplete,
)
from imbrace_sandbox import Sandbox
from tests.core.raw_server import raw_server
from tests.core.test_broken_answers import BROKEN, ENDLESS, HEAD, answer, endless

# The most that the client accepts by default, and a little less.
MAX_BYTES = 4 << 20
LARGE = MAX_BYTES - (1 << 19)
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Hostile:
    """The answer for a conversation.

    Attributes:
        reply: Returns the pieces of the answer to the head of a request.
        error: The error of its dead letter; None for a valid answer that is as large as allowed.
        or_error: Another possible error, depending on timing.
    """

    reply: Callable[[bytes], Iterable[bytes]]
    error: type[ImbraceLakeError] | None
    or_error: type[ImbraceLakeError] | None = None


def _number_of(head: bytes, name: bytes) -> int:
    return int(head.partition(name + b"=")[2].split()[0].partition(b"&")[0])


def _pages(messages: int, most: int, content: bytes) -> Callable[[bytes], Iterable[bytes]]:
    """Serve a conversation whose messages all have this content; a page has at most `most`."""

    def reply(head: bytes) -> Iterable[bytes]:
        skip = _number_of(head, b"skip")
        numbers = range(messages - skip, max(0, messages - skip - min(most, _number_of(head, b"limit"))), -1)
        end = b'],"count":%d,"total":%d,"has_more":%s}'
        end %= messages, len(numbers), b"true" if skip + len(numbers) < messages else b"false"
        pieces = [b'{"_id":"m%07d","content":%s}' % (number, content) for number in numbers]
        return [answer(b'{"items":[' + b",".join(pieces) + end)]

    return reply


def _one(content: bytes) -> Callable[[bytes], Iterable[bytes]]:
    return _pages(1, 1, content)


def _text(text: bytes) -> bytes:
    return b'{"text":"' + text + b'"}'


def _sent(whole: bytes) -> Callable[[bytes], Iterable[bytes]]:
    return lambda _: [whole]


def _whole(body: bytes) -> Callable[[bytes], Iterable[bytes]]:
    return _sent(answer(body))


def _made(make: Callable[[], Iterable[bytes]]) -> Callable[[bytes], Iterable[bytes]]:
    return lambda _: make()


# If the connection closes before aiohttp sees that a header is too long, it reports a cut answer.
CUT_OFF = GatewayUnavailable
OPENED = b'{"items":[{"_id":"m","content":'
HOSTILE: dict[str, Hostile] = {
    **{name: Hostile(_made(make), AnswerTooLarge) for name, make in ENDLESS.items()},
    # -- headers, chunks and codings without end
    "header without end": Hostile(
        lambda _: endless(HEAD + b"x-a: ", b"x" * 65_536), MalformedAnswer, CUT_OFF
    ),
    "headers without end": Hostile(lambda _: endless(HEAD, b"x-a: 1\r\n" * 8_192), MalformedAnswer),
    "status line without end": Hostile(lambda _: endless(b"HTTP/1.1 200 ", b"x" * 65_536), MalformedAnswer),
    "chunk extension without end": Hostile(
        lambda _: endless(HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"x" * 65_536), GatewayUnavailable
    ),
    "trailers without end": Hostile(
        lambda _: endless(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x-a: 1\r\n" * 8_192),
        MalformedAnswer,
        CUT_OFF,
    ),
    "a gzip name without end": Hostile(
        lambda _: endless(
            HEAD + b"content-encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\xff", b"n" * 65_536
        ),
        AnswerTooLarge,
    ),
    "100,000 empty gzip members": Hostile(lambda _: [BROKEN["100,000 empty gzip members"]], MalformedAnswer),
    "headers that stop": Hostile(lambda _: _stopped(HEAD + b"x-a: 1\r\n"), GatewayUnavailable),
    "a body that stops": Hostile(
        lambda _: _stopped(HEAD + b"content-length: %d\r\n\r\n" % LARGE, b" " * LARGE, cut=1),
        GatewayUnavailable,
    ),
    # -- JSON
    **{
        name: Hostile(_sent(BROKEN[name]), MalformedAnswer)
        for name in ("nested 100,000 deep", "a number of a million digits")
    },
    "objects nested 100,000 deep": Hostile(_sent(BROKEN["objects nested 100,000 deep"]), AnswerTooLarge),
    "text that does not end": Hostile(_whole(OPENED + '"😀'.encode() + b"x" * LARGE), MalformedAnswer),
    "a surrogate, then no end": Hostile(_whole(OPENED + b'"\\ud800' + b"x" * LARGE), MalformedAnswer),
    "3.5 MB after the end": Hostile(_whole(b'{"items":[]}' + b"x" * LARGE), MalformedAnswer),
    "fewer than it counts": Hostile(
        _whole(OPENED + _text(b"x" * LARGE) + b'}],"count":9,"total":9,"has_more":false}'), WalkIncomplete
    ),
}


def _stopped(*pieces: bytes, cut: int = 0) -> Iterator[bytes]:
    """Send all but the last bytes, and then nothing until the client times out."""
    whole = b"".join(pieces)
    yield whole[: len(whole) - cut]
    time.sleep(4 * PATIENCE_SECONDS)


# Valid answers, as large as allowed.
LARGEST: dict[str, Hostile] = {
    name: Hostile(reply, None)
    for name, reply in {
        "a text of 3.5 MB": _one(_text(b"x" * LARGE)),
        "a text of 3.5 MB with an emoji": _one(_text("😀".encode() + b"x" * LARGE)),
        "a text of escapes": _one(_text(b"\\ud83d\\ude00" * (LARGE // 12))),
        "a text of 3.5 MB with half a surrogate": _one(_text(b"\\ud800" + b"x" * LARGE)),
        "a repeated key of 3.5 MB": _one(b'{"a":"' + b"x" * LARGE + b'","a":1}'),
        "a key of 3.5 MB": _one(b'{"' + b"k" * LARGE + b'":1}'),
        "100,000 values": _one(b'{"a":[' + b"[]," * 49_000 + b"0]}"),
        "100,000 long numbers": _one(b'{"a":[' + (b"9" * 150 + b",") * 23_000 + b"0]}"),
        "100,000 different keys": _one(
            b"{" + b",".join(b'"%0140d":"%d"' % (n, n) for n in range(24_000)) + b"}"
        ),
        "a page of 100 long messages": _pages(100, 100, _text(b"x" * (LARGE // 100 - 60))),
        "three pages of 3.5 MB": _pages(30, 10, _text("😀".encode() + b"x" * (LARGE // 10 - 60))),
    }.items()
}
LONG = Hostile(_pages(200, 10, _text("😀".encode() + b"x" * (LARGE // 10 - 60))), None)


@dataclass(slots=True)
class HostileGateway:
    """A hostile gateway, as the tests see it.

    Attributes:
        url: The gateway's base address.
        most_at_a_time: The most hostile answers that were under way at the same time.
    """

    url: str
    most_at_a_time: int = 0
    _at_a_time: int = 0
    _turn: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def counted(self, together: int) -> Iterator[None]:
        """Count an answer as under way; it begins when `together` answers are, or after a moment."""
        with self._turn:
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
            self._turn.notify_all()
            self._turn.wait_for(lambda: self.most_at_a_time >= together, 1.0)
        try:
            yield
        finally:
            with self._turn:
                self._at_a_time -= 1


@contextmanager
def hostile_gateway(
    box: Sandbox, hostile: Mapping[str, Hostile], *, together: int
) -> Iterator[HostileGateway]:
    """Pass requests on to a fake gateway, but answer those for some conversations differently.

    Args:
        box: The fake gateway of all other conversations.
        hostile: The answers by conversation id.
        together: The number of conversations that are answered at the same time.
    """
    host, _, port = box.control_url.removeprefix("http://").partition(":")

    def reply(head: bytes) -> Iterator[bytes]:
        path = head.split(b" ", 2)[1].decode()
        one = hostile.get(path.removeprefix("/3rd/conversations/").partition("/")[0])
        if one is not None:
            with gateway.counted(together):
                yield from one.reply(head)
            return
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            while data := connection.recv(65_536):
                yield data

    with raw_server(reply) as server:
        gateway = HostileGateway(f"http://127.0.0.1:{server.port}/3rd")
        yield gateway
