"""Rejects requests of other web pages to the local Prefect server.

The server has no login, and every page in a browser on this machine can send requests to it. CORS only keeps
such a page from reading answers. So the guard, which wraps the whole application, admits only

- requests that are addressed to this server by name: a page that resolves its own host name to 127.0.0.1
  (DNS rebinding) still sends that name as ``Host``;
- requests of pages of this server: browsers add ``Origin`` to every cross-origin request that can change
  something and to every websocket, and ``Sec-Fetch-Site`` to the rest, such as images and scripts;
- bodies that are declared to be JSON, which a form cannot send;
- requests of programs, which send neither of the browser's headers.

A link to a page of the UI works from anywhere. Other pages cannot frame answers, and so cannot put the UI
under the user's clicks. The UI itself can reach only this server: it would contact an analytics service,
although analytics are switched off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY_VIOLATION = 1008


class Guard:
    """An ASGI application that passes on only requests that do not come from another page.

    Args:
        application: The guarded application.
        port: The port of the server on this machine.
    """

    def __init__(self, application: Application, port: int) -> None:
        self._application = application
        self._hosts = {host.encode() for host in own_hosts(port)}
        self._origins = {origin.encode() for origin in own_origins(port)}
        # A policy cannot name an IPv6 address, and the server listens on none.
        names = [host for host in own_hosts(port) if not host.startswith("[")]
        reachable = " ".join(f"{scheme}://{name}" for scheme in ("http", "ws") for name in names)
        policy = f"connect-src {reachable}; frame-ancestors 'none'"
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"x-frame-options", b"DENY"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, websocket or lifespan."""
        if scope["type"] not in ("http", "websocket"):
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        reason = self._reason_to_reject(scope)
        if reason is None:
            await self._application(scope, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
        else:
            await _reject(send_with_headers, reason)

    def _reason_to_reject(self, scope: Scope) -> str | None:
        headers = _headers(scope)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return "this server answers only to 127.0.0.1 and localhost"
        if origins := headers.get(b"origin"):
            if any(origin not in self._origins for origin in origins):
                return "pages of other servers have no access"
        elif _is_from_other_page(headers) and not _is_link(scope, headers):
            return "pages of other servers have no access"
        if scope["type"] == "http" and _has_body(headers) and not _is_json(headers):
            return "a body must be sent as application/json"
        return None


def own_hosts(port: int) -> list[str]:
    """Return the names, with port, of a server on this machine."""
    return [f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")]


def own_origins(port: int) -> list[str]:
    """Return the origins of the pages of a server on this machine."""
    return [f"http://{host}" for host in own_hosts(port)]


def _headers(scope: Scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def _is_from_other_page(headers: dict[bytes, list[bytes]]) -> bool:
    # "same-site" is another port of this machine, where other people's programs may listen.
    return any(site not in (b"same-origin", b"none") for site in headers.get(b"sec-fetch-site", []))


def _is_link(scope: Scope, headers: dict[bytes, list[bytes]]) -> bool:
    """Return whether a request opens a page of the UI in a tab; the page with the link cannot read it."""
    is_page = scope["type"] == "http" and scope["method"] == "GET" and not scope["path"].startswith("/api")
    destination = headers.get(b"sec-fetch-dest"), headers.get(b"sec-fetch-mode")
    return is_page and destination == ([b"document"], [b"navigate"])


def _has_body(headers: dict[bytes, list[bytes]]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", [b"0"]) != [b"0"]


def _is_json(headers: dict[bytes, list[bytes]]) -> bool:
    types = headers.get(b"content-type", [])
    return len(types) == 1 and types[0].partition(b";")[0].strip().lower() == b"application/json"


async def _reject(send: Send, reason: str) -> None:
    body = f"{reason}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
