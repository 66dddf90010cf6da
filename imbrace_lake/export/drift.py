"""Detect new shapes of messages: types of messages, fields and kinds of values that the gateway sends first.

Nothing is lost without this: unknown fields go to `extra`, and content is stored as received. But readers of
the lake need to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from imbrace_lake.errors import ImbraceLakeError
from imbrace_lake.gateway.exact_json import Number, RepeatedKeys
from imbrace_lake.gateway.models import Item
from imbrace_lake.lake.ledger_schema import SHAPES
from imbrace_lake.printable import printable_name

# The most fields of a message to compare, and the most new shapes that a run records.
MAX_FIELDS = 200
MAX_NEW = 2_000

DriftMode = Literal["evolve", "warn", "freeze"]

_TEXT = {"text": "string", "is_mail": "boolean"}
_MEDIA = {"url": "string", "caption": "string"}
# From the vendor's documentation.
_DOCUMENTED: dict[str, dict[str, str]] = {
    "text": _TEXT,
    "jaas.conference": _TEXT,
    "message_template": _TEXT,
    "quick_reply": {"title": "string", "payload": "string", "description": "string"},
    "response": {"title": "string", "text": "string", "quick_replies": "array"},
    "image": _MEDIA,
    "audio": _MEDIA,
    "pdf": _MEDIA,
    "whatsapp.sticker": _MEDIA,
    "video": {"url": "string", "text": "string"},
    "whatsapp.template": {"text": "string", "variables": "array"},
}
_FIELDS = ["_id", "public_id", "doc_name", "organization_id", "business_unit_id", "conversation_id", "from",
           "type", "content", "created_at", "updated_at"]  # fmt: skip
_KINDS = {str: "string", bool: "boolean", int: "number", float: "number", Number: "number", dict: "object",
          RepeatedKeys: "object", list: "array"}  # fmt: skip


class SchemaDrift(ImbraceLakeError):
    """A message has a new shape, and the run rejects those (`drift` is `freeze`)."""

    advice = "Look at the new shape, then rerun with `drift` set to `evolve`."


class Shapes:
    """The known shapes of messages, and those that a run was the first to see.

    A shape is a line such as ``text``, ``text.content.text:string`` or ``item.comments``.
    """

    def __init__(self, seen_before: Iterable[str] = ()) -> None:
        self._known = set(seen_before) | set(_documented())
        self._seen: set[object] = set()
        self.new: dict[str, str] = {}

    def observe(self, conversation_id: str, items: Iterable[Item], *, is_kept: bool = True) -> list[str]:
        """Return the new shapes of some messages; unless they are kept, they are new again the next time."""
        found: list[str] = []
        # Most messages have the signature of an earlier one and need no further comparison.
        unseen = {_signature(item): item for item in items}
        for signature in unseen.keys() - self._seen:
            new = [shape for shape in _shapes_of(unseen[signature]) if shape not in self._known]
            if is_kept and len(self.new) + len(new) > MAX_NEW:
                # The keys of some objects are values, such as ids, so new shapes would never end.
                continue
            found += [shape for shape in new if shape not in found]
            self.new.update(dict.fromkeys(new, conversation_id))
            if is_kept:
                self._known.update(new)
            if is_kept or not new:
                self._seen.add(signature)
        return found

    def rows(self, run_id: str, organization_id: str, seen_at: datetime) -> pa.Table:
        """Return the new shapes as rows of the ledger `shapes`."""
        rows = [
            {
                "run_id": run_id,
                "organization_id": organization_id,
                "shape": shape,
                "conversation_id": conversation_id,
                "seen_at": seen_at,
            }
            for shape, conversation_id in self.new.items()
        ]
        return pa.Table.from_pylist(rows, schema=SHAPES)


def _signature(item: Item) -> tuple[object, ...]:
    """Return a value that is equal only for items with the same shapes."""
    content = item.get("content")
    kind = item.get("type")
    # The class of any other value, because the text of a deeply nested one ends in a RecursionError.
    kind = kind if isinstance(kind, str) else kind.__class__
    if content.__class__ is dict:
        return (kind, *content, *map(type, content.values()), *item)
    return (kind, content.__class__, *item)


def _documented() -> Iterable[str]:
    yield from (f"item.{field}" for field in _FIELDS)
    for kind, fields in _DOCUMENTED.items():
        yield kind
        yield f"{kind}.content:object"
        yield from (f"{kind}.content.{field}:{value}" for field, value in fields.items())


def _shapes_of(item: Mapping[str, Any]) -> Iterable[str]:
    """Yield the shapes of a message, with printable names: a key can be a number or an answer in a form."""
    yield from (f"item.{printable_name(field)}" for field in islice(item, MAX_FIELDS))
    kind = item.get("type")
    kind = printable_name(kind) if isinstance(kind, str) else "null" if kind is None else _kind(kind)
    yield kind
    content = item.get("content")
    if content is None:
        return
    yield f"{kind}.content:{_kind(content)}"
    if isinstance(content, dict):
        yield from (
            f"{kind}.content.{printable_name(field)}:{_kind(value)}"
            for field, value in islice(content.items(), MAX_FIELDS)
            if value is not None
        )


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "object")
