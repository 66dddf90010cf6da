"""The fake gateway in a separate process: `python -m benchmarks.gateway '{"conversations": 10}'`."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from benchmarks.environment import PROJECT
from benchmarks.expected import as_ids
from imbrace_sandbox import SandboxOptions, serve
from imbrace_sandbox.generated import iter_generated

CONTROL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class FakeGateway:
    """A running fake gateway, and what it served at first."""

    url: str
    token: str
    organization: str
    phones: list[str]
    conversation_ids: list[str]
    message_ids: pa.ChunkedArray

    def count_requests(self) -> int:
        """Return the number of requests since the last call."""
        counted = sum(json.loads(self._control("stats"))["requests"].values())
        self._control("reset-stats", {})
        return int(counted)

    def append(self, conversation_id: str, count: int) -> list[str]:
        """Add new messages to a conversation; return their ids."""
        answer = json.loads(self._control(f"conversations/{conversation_id}", {"append": count}))
        appended: list[str] = answer["ids"]["append"]
        return appended

    def ids_now(self) -> pa.ChunkedArray:
        """Return the ids of all messages that the gateway serves now, with one request per conversation."""
        bodies = (self._control(f"conversations/{each}/messages") for each in self.conversation_ids)
        return as_ids(orjson.loads(line)["_id"] for body in bodies for line in body.splitlines())

    def _control(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        return _ask(self.url, path, body)


@contextmanager
def fake_gateway(**options: Any) -> Iterator[FakeGateway]:
    """Run the fake gateway in a separate process, with all answers rendered before the first request."""
    command = [sys.executable, "-m", "benchmarks.gateway", json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        try:
            # Generated here again, because a request for the ids of millions of messages would take longer.
            sources = list(iter_generated(_options(options)))
            message_ids = as_ids(each.message_id(ordinal) for each in sources for ordinal in range(each.size))
            conversation_ids = [each.senders.conversation_id for each in sources]
            assert process.stdout is not None  # noqa: S101 - narrows the type for mypy
            facts = json.loads(process.stdout.readline())
            phones = _ask(facts["url"], "phones").decode().split()
            yield FakeGateway(
                **facts, phones=phones, conversation_ids=conversation_ids, message_ids=message_ids
            )
        finally:
            process.terminate()


def _ask(url: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
    address = f"{url.removesuffix('/3rd')}/_sandbox/{path}"
    request = urllib.request.Request(address, data=None if body is None else orjson.dumps(body))  # noqa: S310
    with urllib.request.urlopen(request, timeout=CONTROL_SECONDS) as answer:  # noqa: S310 - our own server
        found: bytes = answer.read()
    return found


def _options(given: Mapping[str, Any]) -> SandboxOptions:
    # JSON has no tuples.
    return SandboxOptions(prerender=True, **{**given, "sizes": tuple(given.get("sizes", ()))})


def main() -> None:
    """Serve until SIGTERM; the first line of output has the address, the token and the organization."""
    options = _options(json.loads(sys.argv[1]))

    def announce(url: str) -> None:
        facts = {"url": url, "token": options.token, "organization": options.organization_id}
        print(json.dumps(facts), flush=True)

    serve(options, port=0, on_start=announce)


if __name__ == "__main__":
    main()
