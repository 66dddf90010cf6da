"""Attacks on a Prefect server by pages of other origins, in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.browser.ui import PAGE_MS

FOREIGN_HOST = "evil.example"
MARK = "planted"
"""Part of the name of everything that an attack creates."""

# Each attack returns the text that the page could read, or "". Attacks that can only change something
# return "", and the tests then read their effect from the server.
_ATTACKS = """
async ({target, mark}) => {
    const api = `${target}/api`;
    const socket = target.replace("http", "ws") + "/api";
    const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    const shown = async (answer) => answer.type === "opaque" ? "" : `${answer.status} ${await answer.text()}`;
    const json = {"content-type": "application/json"};
    const variable = (way) => JSON.stringify({name: `${mark}_${way}`, value: 1});
    const limit = (way) => JSON.stringify({name: `${mark}_${way}`, limit: 1, active: true});
    const event = (way) => JSON.stringify([{
        event: mark, resource: {"prefect.resource.id": mark}, id: crypto.randomUUID?.() ??
        "00000000-0000-4000-8000-000000000000", occurred: new Date().toISOString(), payload: {}, related: [],
    }]);
    const post = (path, body, more) => fetch(api + path, {method: "POST", body, ...more}).then(shown);
    const secret = `${api}/variables/name/secret`;
    const untyped = (body) => new Blob([body]);
    const form = (path, fields, enctype) => new Promise((resolve) => {
        const frame = document.createElement("iframe");
        frame.name = `frame${Math.random()}`;
        const form = document.createElement("form");
        Object.assign(form, {action: api + path, method: "POST", enctype, target: frame.name});
        for (const [name, value] of fields) {
            const input = document.createElement("input");
            Object.assign(input, {name, value});
            form.append(input);
        }
        document.body.append(frame, form);
        form.submit();
        setTimeout(() => {
            try { resolve(frame.contentDocument?.body?.innerText ?? ""); } catch { resolve(""); }
        }, 1500);
    });
    const tag = (kind, attribute, path, rel) => new Promise((resolve) => {
        const element = document.createElement(kind);
        if (rel) element.rel = rel;
        element.onload = () => resolve(kind === "iframe" ? "" : "loaded");
        element.onerror = () => resolve("");
        element[attribute] = api + path;
        document.body.append(element);
        setTimeout(() => resolve(""), 3000);
    });
    const listen = (path, protocols, messages) => new Promise((resolve) => {
        let heard = "";
        let one;
        try { one = new WebSocket(socket + path, protocols); } catch (error) { resolve(""); return; }
        one.onopen = () => { for (const message of messages) one.send(JSON.stringify(message)); };
        one.onmessage = (message) => { heard += message.data; };
        setTimeout(() => { one.close(); resolve(heard); }, 2500);
    });
    const auth = {type: "auth", token: null};
    const filter = {type: "filter", filter: {occurred: {since: "2020-01-01T00:00:00Z"}}};
    const logs = {type: "filter", filter: {}};
    const one = JSON.parse(event("socket"))[0];
    const attacks = {
        "fetch": () => fetch(secret).then(shown),
        "fetch with credentials": () => fetch(secret, {credentials: "include"}).then(shown),
        "fetch without cors": () => fetch(secret, {mode: "no-cors"}).then(shown),
        "fetch settings": () => fetch(`${api}/admin/settings`).then(shown),
        "fetch ui settings": () => fetch(`${target}/ui-settings`).then(shown),
        "fetch a csrf token": () => fetch(`${api}/csrf-token?client=${mark}`).then(shown),
        "filter with a preflight": () => post("/variables/filter", "{}", {headers: json}),
        "blocks with a preflight": () =>
            post("/block_documents/filter", '{"include_secrets": true}', {headers: json}),
        "filter as text": () => post("/variables/filter", "{}"),
        "variable with a preflight": () => post("/variables/", variable("preflight"), {headers: json}),
        "variable as text": () => post("/variables/", variable("text")),
        "variable as text without cors": () => post("/variables/", variable("opaque"), {mode: "no-cors"}),
        "variable without a type": () => post("/variables/", untyped(variable("untyped"))),
        "variable without a type and cors": () =>
            post("/variables/", untyped(variable("untyped_opaque")), {mode: "no-cors"}),
        "variable without a referrer": () => post(
            "/variables/", untyped(variable("bare")), {mode: "no-cors", referrerPolicy: "no-referrer"}),
        "limit without a type": () =>
            post("/v2/concurrency_limits/", untyped(limit("limit")), {mode: "no-cors"}),
        "event without a type": () => post("/events", untyped(event("post")), {mode: "no-cors"}),
        "variable by beacon": async () => {
            navigator.sendBeacon(`${api}/variables/`, untyped(variable("beacon")));
            await wait(500);
            return "";
        },
        "variable by form": () =>
            form("/variables/", [[`{"name": "${mark}_form", "value": "`, '"}']], "text/plain"),
        "limit by form": () => form("/v2/concurrency_limits/",
            [[`{"name": "${mark}_form", "limit": 1, "active": true, "tags": ["`, '"]}']], "text/plain"),
        "form without a body": () => form("/v2/concurrency_limits/filter", [], "text/plain"),
        "delete with a preflight": () => fetch(secret, {method: "DELETE"}).then(shown),
        "change with a preflight": () => fetch(secret,
            {method: "PATCH", body: '{"value": "changed"}', headers: json}).then(shown),
        "script": () => tag("script", "src", "/admin/version"),
        "image": () => tag("img", "src", "/static/prefect-logo-mark-gradient.png"),
        "style sheet": () => tag("link", "href", "/variables/name/secret", "stylesheet"),
        "frame": () => tag("iframe", "src", "/variables/name/secret"),
        "socket for events": () => listen("/events/out", ["prefect"], [auth, filter]),
        "plain socket for events": () => listen("/events/out", [], [filter]),
        "socket for logs": () => listen("/logs/out", ["prefect"], [auth, logs]),
        "plain socket for logs": () => listen("/logs/out", [], [logs]),
        "socket with events": () => listen("/events/in", ["prefect"], [auth, one]),
        "plain socket with events": () => listen("/events/in", [], [one]),
    };
    const attempts = Object.entries(attacks).map(async ([name, attack]) => {
        try { return [name, await attack()]; } catch { return [name, ""]; }
    });
    return Object.fromEntries(await Promise.all(attempts));
}
"""


@dataclass(frozen=True, slots=True)
class Attacker:
    """Pages of other origins in one browser; `port` is that of their server."""

    browser: Browser
    port: int

    def attack(self, page_url: str, target: str, user: BrowserContext | None = None) -> dict[str, str]:
        """Open a page and run all attacks; return the texts that the page could read, by attack.

        Args:
            page_url: The address of the page.
            target: The attacked server.
            user: The browser of a user who is logged in there; a new one by default.
        """
        page = (user or self.browser).new_page()
        try:
            page.goto(page_url, timeout=PAGE_MS)
            found: dict[str, Any] = page.evaluate(_ATTACKS, {"target": target, "mark": MARK})
        finally:
            page.close()
        assert len(found) > 30
        return {name: read for name, read in found.items() if read}


@contextmanager
def attacker(browser: str) -> Iterator[Attacker]:
    """Serve an empty page on this machine, to be opened under several host names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>another page</title><body></body>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {FOREIGN_HOST} 127.0.0.1"]
        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(
                executable_path=browser, args=arguments, timeout=2 * PAGE_MS
            ) as chromium,
        ):
            yield Attacker(chromium, server.server_port)
        server.shutdown()
