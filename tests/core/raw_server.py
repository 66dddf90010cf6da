"""A socket server that answers with any bytes, valid HTTP or not; with TLS on demand."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

# Takes the head of a request and returns the pieces of the answer; the connection is closed after the last.
Reply = Callable[[bytes], Iterable[bytes]]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, reply: Reply, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.context = context
        self.heads: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        # A client may close the connection before the end of the answer.
        with suppress(OSError):
            if self.server.context is None:
                self.serve(self.request)
            else:
                with self.server.context.wrap_socket(self.request, server_side=True) as connection:
                    self.serve(connection)
                    connection.unwrap()

    def serve(self, connection: socket.socket) -> None:
        """Read the head of one request, and send the answer."""
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65_536)
            if not data:
                return
            head += data
        self.server.heads.append(head)
        for piece in self.server.reply(head):
            connection.sendall(piece)


@contextmanager
def raw_server(reply: Reply, context: ssl.SSLContext | None = None) -> Iterator[_Server]:
    """Serve `reply` on a free port until the block ends; `heads` are the requests so far."""
    with _Server(reply, context) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
