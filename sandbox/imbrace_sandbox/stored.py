"""Conversations from a file of JSON lines, and conversations of given messages."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any
from uuid import NAMESPACE_URL, uuid5

import orjson

from imbrace_sandbox.options import SandboxOptions
from imbrace_sandbox.senders import Item, Senders, digest_of, from_iso, from_json, to_json

_NAMESPACE = uuid5(NAMESPACE_URL, "imbrace-lake/sandbox")
_SPEAKERS = ("customer", "agent", "system")
_START_MS = 1_704_067_200_000  # 2024-01-01


@dataclass(frozen=True, slots=True)
class _Line:
    """One message of the file."""

    speaker: str
    text: str
    at_ms: int


class FileSource:
    """The messages of one line of the file, oldest first; made on request."""

    __slots__ = ("_key", "_lines", "phone", "senders", "size", "start_ms")

    def __init__(self, senders: Senders, key: str, phone: str | None, lines: Sequence[_Line]) -> None:
        self.senders = senders
        self.phone = phone
        self.size = len(lines)
        self._key = key
        self._lines = lines
        self.start_ms = lines[0].at_ms if lines else _START_MS

    def message_id(self, ordinal: int) -> str:
        """Name a message without making it."""
        return f"msg_{uuid5(_NAMESPACE, f'{self._key}/{ordinal}')}"

    def created_ms(self, ordinal: int) -> int:
        """Return when a message was created."""
        return self._lines[ordinal].at_ms

    def render(self, ordinal: int) -> bytes:
        """Make the JSON of one message."""
        line = self._lines[ordinal]
        sender = (
            self.senders.contact
            if line.speaker == "customer"
            else self.senders.users[line.speaker == "system"]
        )
        content = {"text": line.text, "is_mail": False}
        return self.senders.render(self.message_id(ordinal), sender, "text", content, line.at_ms)


class GivenSource:
    """Given messages, oldest first, served unchanged; bytes are JSON text."""

    __slots__ = ("_items", "senders", "size", "start_ms")

    def __init__(self, senders: Senders, items: Sequence[Item | bytes]) -> None:
        self.senders = senders
        self.size = len(items)
        self.start_ms = _START_MS
        self._items = [item if isinstance(item, bytes) else to_json(item) for item in items]
        for item in items:
            if isinstance(item, bytes):
                continue
            if item.get("_id") is None and item.get("public_id") is None:
                raise ValueError("a message needs an _id or a public_id")

    def message_id(self, ordinal: int) -> str:
        """Name a message."""
        item = from_json(self._items[ordinal])
        return str(item["public_id"] if item.get("_id") is None else item["_id"])

    def created_ms(self, ordinal: int) -> int:
        """Return a time by the position of the message, because its own may be invalid."""
        return _START_MS + ordinal * 1_000

    def render(self, ordinal: int) -> bytes:
        """Return the JSON of one message."""
        return self._items[ordinal]


def iter_file(options: SandboxOptions, path: Path) -> Iterator[FileSource]:
    """Read the conversations of a `.jsonl` or `.jsonl.gz` file one by one.

    Raises:
        ValueError: A line does not have the documented form; the message names it.
    """
    with _open(path) as lines:
        for number, line in enumerate(islice(lines, options.file_limit or None), start=1):
            try:
                record = orjson.loads(line)
                yield _read(options, record)
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as exc:
                raise ValueError(f"line {number} of {path.name} is not a conversation: {exc}") from exc


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        opened: IO[bytes] = gzip.open(path, "rb")  # type: ignore[assignment]  # noqa: SIM115 - the caller closes it
        return opened
    return path.open("rb")


def _read(options: SandboxOptions, record: Mapping[str, Any]) -> FileSource:
    key: str = record["conversation_key"]
    lines = [*_iter_lines(options.seed, key, record["messages"])]
    # Stable, so that messages with the same time keep the order of the file.
    lines.sort(key=lambda line: line.at_ms)
    senders = Senders(
        conversation_id=f"conv_{uuid5(_NAMESPACE, key)}",
        organization_id=options.organization_id,
        business_unit_id=options.business_unit_id,
        contact=f"con_{uuid5(_NAMESPACE, f'{key}/customer')}",
        users=(f"u_{uuid5(_NAMESPACE, f'{key}/agent')}", f"u_{uuid5(_NAMESPACE, 'system')}"),
    )
    phone = record.get("phone")
    return FileSource(senders, key, None if phone is None else f"+{phone.lstrip('+')}", lines)


def _iter_lines(seed: int, key: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[_Line]:
    digest = digest_of(seed, key)
    at_ms = _START_MS + int.from_bytes(digest[:4], "big") * 4
    for ordinal, message in enumerate(messages):
        if message["speaker"] not in _SPEAKERS:
            raise ValueError(f"speaker {message['speaker']!r} is not one of {', '.join(_SPEAKERS)}")
        if not isinstance(message["text"], str):
            raise TypeError("a text is not a string")
        if message.get("at") is None:
            # Never zero, so that made-up times strictly increase.
            at_ms += 1_000 + digest[ordinal % len(digest)] * 250
        else:
            at_ms = from_iso(message["at"])
        yield _Line(message["speaker"], message["text"], at_ms)
