"""Local receivers of notifications: a TLS server that plays Slack and Teams, and an SMTP server."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from socket import AF_INET, AF_INET6, MSG_PEEK, MSG_WAITALL
from socketserver import BaseRequestHandler, StreamRequestHandler, ThreadingTCPServer
from typing import Any, BinaryIO, cast


@dataclass
class Received:
    """What the receivers got: JSON bodies by the host that the client asked for, and e-mail."""

    context: ssl.SSLContext
    port: int = 0
    smtp_port: int = 0
    posts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    mails: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    logins: list[bytes] = field(default_factory=list)
    status: int = 200

    def texts(self, kind: str) -> list[str]:
        """Return the messages of a channel: `email`, or a part of the host's name."""
        if kind == "email":
            return [f"{mail['subject']}\n{mail.get_content()}" for _, mail in self.mails]
        return [json.dumps(body, ensure_ascii=False) for host, _, body in self.posts if kind in host]


class Https(BaseRequestHandler):
    """Plays every HTTPS server, and the proxy through which clients reach it."""

    def __init__(self, received: Received, *arguments: Any) -> None:
        self.received = received
        super().__init__(*arguments)

    def handle(self) -> None:
        """Record one POST."""
        # A client that checks whether the port is open closes it at once.
        with suppress(OSError):
            if self.request.recv(7, MSG_PEEK | MSG_WAITALL) == b"CONNECT":
                with self.request.makefile("rwb", 0) as plain:
                    _read_head(plain)
                    plain.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            secure = self.received.context.wrap_socket(self.request, server_side=True)
            with secure, secure.makefile("rwb") as both:
                stream = cast("BinaryIO", both)
                first, headers = _read_head(stream)
                body = json.loads(stream.read(int(headers["content-length"])))
                self.received.posts.append((headers["host"], first.split()[1], body))
                head = f"HTTP/1.1 {self.received.status} x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
                stream.write(head.encode() + b"ok")


class Smtp(StreamRequestHandler):
    """Plays an SMTP server with a login, without encryption."""

    def __init__(self, received: Received, *arguments: Any) -> None:
        self.received = received
        super().__init__(*arguments)

    def handle(self) -> None:
        """Record the e-mail of one connection."""
        recipients: list[str] = []
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().strip():
            answer = b"250 ok"
            match line[:4].upper():
                case b"EHLO":
                    answer = b"250-here\r\n250 AUTH PLAIN"
                case b"AUTH":
                    self.received.logins.append(base64.b64decode(line.split()[2]))
                    answer = b"235 welcome"
                case b"RCPT":
                    recipients.append(line.decode().partition("<")[2].rstrip(">"))
                case b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text = b"".join(iter(self.rfile.readline, b".\r\n"))
                    mail = message_from_bytes(text, EmailMessage, policy=default)
                    self.received.mails.append((recipients, mail))
                case b"QUIT":
                    answer = b"221 bye"
            self.wfile.write(answer + b"\r\n")


def _read_head(stream: BinaryIO) -> tuple[str, dict[str, str]]:
    first = stream.readline().decode().strip()
    headers = {}
    while line := stream.readline().decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return first, headers


class SmtpServer(ThreadingTCPServer):
    """An SMTP server on an IPv4 or IPv6 address."""

    def __init__(self, host: str, received: Received) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        super().__init__((host, 0), partial(Smtp, received))


@contextmanager
def receiving(context: ssl.SSLContext, smtp_host: str = "127.0.0.1") -> Iterator[Received]:
    """Serve both."""
    received = Received(context)
    with (
        ThreadingTCPServer(("127.0.0.1", 0), partial(Https, received)) as https,
        SmtpServer(smtp_host, received) as smtp,
    ):
        received.port, received.smtp_port = https.server_address[1], smtp.server_address[1]
        for server in (https, smtp):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield received
        https.shutdown()
        smtp.shutdown()
