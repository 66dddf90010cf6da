"""The guard of the local server admits only its own pages and programs on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest

from imbrace_cli.server_guard import Guard, Message, Receive, Scope, Send

PORT = 4280
HOST = f"127.0.0.1:{PORT}"
CHANGES = ("POST", "PUT", "PATCH", "DELETE")
JSON = {"content-type": "application/json", "content-length": "2"}


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"reached"})


def ask(
    headers: Mapping[str, str] | list[tuple[str, str]],
    *,
    method: str = "GET",
    path: str = "/api/variables/",
    kind: str = "http",
) -> list[Message]:
    """Send one request to a guarded application, and return its answers."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    scope: dict[str, Any] = {
        "type": kind,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in pairs],
    }
    if kind == "http":
        scope["method"] = method
    answers: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(Guard(application, PORT)(scope, receive, send))
    return answers


def is_reached(answers: list[Message]) -> bool:
    """Return whether the application has answered; any other answer must be a bare rejection."""
    if answers[0]["type"] == "websocket.accept" or answers[0].get("status") == 200:
        return True
    assert answers[0]["type"] == "websocket.close" or answers[0]["status"] == 403
    names = {name for name, _ in answers[0].get("headers", [])}
    assert not any(name.startswith(b"access-control") for name in names)
    return False


@pytest.mark.parametrize("host", [HOST, f"localhost:{PORT}", f"LocalHost:{PORT}", f"[::1]:{PORT}"])
@pytest.mark.parametrize("method", ["GET", *CHANGES])
def test_programs_on_this_machine_are_served(host: str, method: str) -> None:
    assert is_reached(ask({"host": host} | (JSON if method != "GET" else {}), method=method))
    assert is_reached(ask({"host": host}, kind="websocket"))


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["127.0.0.1"],
        ["localhost"],
        [f"127.0.0.1:{PORT + 1}"],
        [f"evil.example:{PORT}"],
        [f"localhost.evil.example:{PORT}"],
        [f"127.0.0.1.nip.io:{PORT}"],
        [f"localhost.:{PORT}"],
        [f"0.0.0.0:{PORT}"],
        [f"127.1:{PORT}"],
        [f"2130706433:{PORT}"],
        [f"user@127.0.0.1:{PORT}"],
        [f"127.0.0.1:{PORT}, evil.example"],
        [HOST, f"evil.example:{PORT}"],
        [f"evil.example:{PORT}", HOST],
    ],
)
def test_a_request_to_another_host_name_is_rejected(hosts: list[str]) -> None:
    headers = [("host", host) for host in hosts]
    for method in ("GET", "OPTIONS", *CHANGES):
        assert not is_reached(ask(headers, method=method))
    # The host name of a page after DNS rebinding.
    assert not is_reached(ask([*headers, ("sec-fetch-site", "same-origin")], path="/"))
    assert not is_reached(ask(headers, kind="websocket"))


FOREIGN_ORIGINS = [
    "null",
    "",
    "https://evil.example",
    f"http://evil.example:{PORT}",
    "http://127.0.0.1",
    f"http://127.0.0.1:{PORT + 1}",
    "http://localhost:8888",
    f"https://127.0.0.1:{PORT}",
    f"http://127.0.0.1:{PORT}.evil.example",
    f"http://127.0.0.1:{PORT} https://evil.example",
    "file://",
    "chrome-extension://abcdef",
]


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
@pytest.mark.parametrize("site", [None, "cross-site", "same-site", "same-origin", "none"])
def test_a_page_of_another_origin_is_rejected(origin: str, site: str | None) -> None:
    headers = {"host": HOST, "origin": origin} | ({"sec-fetch-site": site} if site else {})
    for method, body in product(("GET", "OPTIONS", *CHANGES), ({}, JSON)):
        assert not is_reached(ask(headers | body, method=method))
    assert not is_reached(ask(headers, kind="websocket"))
    assert not is_reached(ask([*headers.items(), ("origin", f"http://{HOST}")]))


@pytest.mark.parametrize("origin", [f"http://{HOST}", f"http://localhost:{PORT}"])
def test_the_servers_own_pages_are_served(origin: str) -> None:
    # A page at localhost sends requests to 127.0.0.1, which is another site to a browser.
    for site in ("same-origin", "cross-site"):
        headers = {"host": HOST, "origin": origin, "sec-fetch-site": site}
        assert is_reached(ask(headers | JSON, method="POST"))
        assert is_reached(ask(headers, method="OPTIONS"))
        assert is_reached(ask(headers, kind="websocket"))
    assert is_reached(ask({"host": HOST, "sec-fetch-site": "same-origin"}))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
@pytest.mark.parametrize("dest", ["image", "script", "style", "iframe", "frame", "object", "embed", "empty"])
def test_nothing_is_loaded_into_another_page(site: str, dest: str) -> None:
    headers = {"host": HOST, "sec-fetch-site": site, "sec-fetch-dest": dest}
    for path, mode in product(("/api/variables/", "/", "/ui-settings"), ("no-cors", "navigate")):
        assert not is_reached(ask(headers | {"sec-fetch-mode": mode}, path=path))


def test_a_link_opens_a_page_of_the_ui_but_not_of_the_api() -> None:
    link = {
        "host": HOST,
        "sec-fetch-site": "cross-site",
        "sec-fetch-dest": "document",
        "sec-fetch-mode": "navigate",
    }

    answers = ask(link, path="/runs/flow-run/1")

    assert is_reached(answers)
    headers = dict(answers[0]["headers"])
    assert headers[b"x-frame-options"] == b"DENY"
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
    assert not is_reached(ask(link, path="/api/variables/"))
    assert not is_reached(ask(link, method="POST", path="/runs/flow-run/1"))


@pytest.mark.parametrize(
    "content_types",
    [
        [],
        [""],
        ["text/plain"],
        ["text/plain; application/json"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=application/json"],
        ["application/jsonp"],
        ["application/json", "text/plain"],
    ],
)
def test_a_body_that_is_not_declared_to_be_json_is_rejected(content_types: list[str]) -> None:
    headers = [("host", HOST), *(("content-type", one) for one in content_types)]
    for method, body in product(CHANGES, (("content-length", "2"), ("transfer-encoding", "chunked"))):
        assert not is_reached(ask([*headers, body], method=method))
        assert is_reached(ask([*headers, ("content-length", "0")], method=method))


def test_json_with_a_charset_is_json() -> None:
    headers = {"host": HOST, "content-type": "Application/JSON; charset=utf-8", "content-length": "2"}

    assert is_reached(ask(headers, method="POST"))
