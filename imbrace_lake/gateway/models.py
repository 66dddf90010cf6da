"""Parse the gateway's answers: pages of messages and links to conversations.

The parser also checks whether an answer is consistent: whether a page has as many messages as it states, and
whether an answer about phone numbers covers every number of the request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard
from urllib.parse import parse_qs, urlsplit

from imbrace_lake.gateway import exact_json
from imbrace_lake.gateway.ids import are_plain, canonical_conversation_id, is_encodable, message_id

if TYPE_CHECKING:
    from imbrace_lake.phones.numbers import PhoneNumber

Item = dict[str, Any]
# A number as digits, and its conversations; None for one that is not named.
_Entry: TypeAlias = tuple[str, list[Any]]

LARGE_BYTES = 1 << 19
"""Answers that are larger need care to fit into memory."""

# Shorter digits at the end of a number can be those of many.
SHORTEST_NUMBER = 7


class Malformed(ValueError):
    """The body does not have the endpoint's form; the message describes how, without quoting the body."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of the messages endpoint, newest first.

    Attributes:
        skip: The number of newest messages before this page.
        items: The messages as received.
        ids: Their ids as texts (`ids.message_id`), in the same order.
        total_count: The gateway's count of the whole conversation; None if it states none.
        has_more: Whether the gateway states that there are older messages; None if it states neither.
        count_matches: One of the two counts is the length of the page, so the body was not truncated.
        size_bytes: Length of the body.
        etag: `etag_of` the body of the first page; empty for all others.
    """

    skip: int
    items: list[Item]
    ids: list[str]
    total_count: int | None
    has_more: bool | None
    count_matches: bool
    size_bytes: int = 0
    etag: str = ""

    @property
    def next_skip(self) -> int:
        """The position in the list after this page's last message."""
        return self.skip + len(self.ids)


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts in one page.

    Attributes:
        items: The number of messages in the page.
        count, total: As received; None if missing or not a number.
        has_flag: The page has a `has_more`.
    """

    items: int
    count: int | None
    total: int | None
    has_flag: bool


@dataclass(frozen=True, slots=True)
class ConversationLink:
    """A phone number that takes part in a conversation; the id has its canonical spelling."""

    phone: PhoneNumber
    conversation_id: str


@dataclass(frozen=True, slots=True)
class Links:
    """One answer of the links endpoint.

    Attributes:
        links: Phone numbers and their conversations.
        missing: Numbers that are not in the answer.
        malformed: Numbers with an entry that does not name all its conversations.
        has_others: The answer has conversations of a number that was not requested, or of none.
    """

    links: tuple[ConversationLink, ...] = ()
    missing: tuple[PhoneNumber, ...] = ()
    malformed: tuple[PhoneNumber, ...] = ()
    has_others: bool = False


def decode_json(body: bytes) -> Any:
    """Parse JSON without loss (exact_json.py).

    Raises:
        Malformed: The body is not JSON, or is nested too deeply.
    """
    try:
        return exact_json.parse(body)
    except ValueError as exc:
        reason = "not JSON" if not str(exc).startswith("nested") else f"JSON {exc}"
        raise Malformed(f"{len(body)} bytes that are {reason}") from None


def _decode_page(body: bytes) -> dict[str, Any]:
    """Return an answer with a list of items.

    Raises:
        Malformed: It is not JSON, or has no such list, or a key twice.
    """
    answer = decode_json(body)
    if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
        raise Malformed("an answer without a list of items")
    if isinstance(answer, exact_json.RepeatedKeys):
        # The items of the first list would be missed.
        raise Malformed("an answer that repeats a key")
    return answer


def etag_of(body: bytes) -> str:
    """Return a hash of a body, 32 hexadecimal digits; the gateway itself sends no `ETag`."""
    return sha256(body).hexdigest()[:32]


def parse_page(body: bytes, skip: int) -> Page:
    """Parse one page of messages.

    `count` is the length of the conversation and `total` that of the page, the reverse of the usual
    convention. A page is never longer than the conversation, so the larger number is taken as the
    conversation's, in case a server reverses the two.

    Raises:
        Malformed: Not an object with a list of messages that each have an id, or a repeated key outside of
            the messages.
    """
    answer = _decode_page(body)
    items: list[Item] = answer["items"]
    ids = _ids_of(items)
    counts = [n for n in (answer.get("count"), answer.get("total")) if type(n) is int and n >= 0]
    has_more = answer.get("has_more")
    return Page(
        skip=skip,
        items=items,
        ids=ids,
        total_count=max(counts) if len(counts) == 2 else None,
        has_more=has_more if isinstance(has_more, bool) else None,
        count_matches=len(counts) == 2 and min(counts) == len(items),
        size_bytes=len(body),
        etag="" if skip else etag_of(body),
    )


def parse_counts(body: bytes) -> Counts:
    """Parse the counts of a page as received.

    Raises:
        Malformed: Not an object with a list of messages, or a repeated key outside of the messages.
    """
    answer = _decode_page(body)
    count, total = (n if type(n) is int else None for n in (answer.get("count"), answer.get("total")))
    return Counts(len(answer["items"]), count, total, "has_more" in answer)


def check_owner(page: Page, conversation_id: str, organization_id: str) -> None:
    """Check that a page belongs to the requested conversation and organization.

    A single message may name another one, which the lake keeps in `extra`. If all messages do, or the only
    message of a conversation, the page is the answer to another request.

    Raises:
        Malformed: Every message names another conversation, or another organization.
    """
    if len(page.items) == 1 and (page.skip or page.has_more or (page.total_count or 0) > 1):
        return
    own = canonical_conversation_id(conversation_id)
    named = [item.get("conversation_id") for item in page.items]
    if named and all(_is_text(one) and canonical_conversation_id(one) != own for one in named):
        raise Malformed("a page whose messages all name another conversation")
    named = [item.get("organization_id") for item in page.items]
    if named and all(_is_text(one) and one != organization_id for one in named):
        raise Malformed("a page whose messages all name another organization")


def _ids_of(items: list[Any]) -> list[str]:
    try:
        ids = [item["_id"] for item in items]
    except (TypeError, LookupError):
        ids = []
    if set(map(type, ids)) == {str} and are_plain(ids):
        return ids
    ids = []
    for item in items:
        if not isinstance(item, dict):
            raise Malformed("an item that is not an object")
        found = message_id(item)
        if found is None:
            raise Malformed("an item without an id")
        ids.append(found)
    return ids


def parse_links(body: bytes, asked: Iterable[PhoneNumber]) -> Links:
    """Parse an answer of the links endpoint, in either of its two documented shapes.

    Raises:
        Malformed: Neither shape, or an object repeats a key.
    """
    # Messages need no phone numbers, and the metadata of all countries takes 40 ms to import.
    from imbrace_lake.phones.numbers import digits

    by_digits = {digits(phone): phone for phone in asked}
    answer = decode_json(body)
    if isinstance(answer, list):
        entries = _from_array(answer)
    elif isinstance(answer, dict) and isinstance(answer.get("data"), list):
        entries = _from_envelope(answer)
    else:
        raise Malformed("an answer that is neither an array of links nor an envelope with data")
    if _repeats_key(answer):
        # The conversations of the first value would be missed.
        raise Malformed("an answer that repeats a key")
    found: dict[PhoneNumber, list[Any]] = {}
    has_others = False
    for number, conversation_ids in entries:
        phone = _asked(number, by_digits)
        if phone is not None:
            found.setdefault(phone, []).extend(conversation_ids)
        has_others |= phone is None and bool(conversation_ids)
    links = dict.fromkeys(
        # Blanks around an id would make it that of another conversation, which the gateway does not have.
        ConversationLink(phone, canonical_conversation_id(one.strip()))
        for phone, conversation_ids in found.items()
        for one in conversation_ids
        if _is_text(one)
    )
    return Links(
        tuple(links),
        tuple(phone for phone in by_digits.values() if phone not in found),
        tuple(phone for phone, ids in found.items() if not all(map(_is_text, ids))),
        has_others,
    )


def _asked(number: str, by_digits: Mapping[str, PhoneNumber]) -> PhoneNumber | None:
    """Return the requested number of an entry, which may state it without the country code."""
    national = number.lstrip("0")
    if number in by_digits or len(national) < SHORTEST_NUMBER:
        return by_digits.get(number)
    found = [phone for digits, phone in by_digits.items() if digits.endswith(national)]
    return found[0] if len(found) == 1 else None


def _from_array(entries: list[Any]) -> list[_Entry]:
    """Return the entries of an array; what cannot be read is a conversation that is not named.

    Raises:
        Malformed: None can be read.
    """
    found: list[_Entry] = []
    for entry in entries:
        values = entry if isinstance(entry, dict) else {}
        links = values.get("conversation_links")
        ids = [_conversation_of(link) for link in links] if isinstance(links, list) else [None]
        found.append((_plain(values.get("phone_number")), ids))
    if entries and not any(
        isinstance(one, dict) and isinstance(one.get("conversation_links"), list) for one in entries
    ):
        raise Malformed("entries without conversation_links")
    return found


def _from_envelope(answer: Mapping[str, Any]) -> list[_Entry]:
    """Return the entries of an envelope, with one conversation each, as `_from_array` does.

    Raises:
        Malformed: None can be read, or the envelope states more entries than it has.
    """
    rows = answer["data"]
    stated = [n for name in ("count", "found", "total") if type(n := answer.get(name)) is int]
    if any(n > len(rows) for n in stated) or answer.get("has_more") is True:
        # The rest of it would be missed: requests for links have no positions.
        raise Malformed("an envelope with fewer entries than it states")
    if rows and not any(isinstance(row, dict) for row in rows):
        raise Malformed("entries that are not objects")
    values = [row if isinstance(row, dict) else {} for row in rows]
    entries: list[_Entry] = [
        (_plain(one.get("phone_number")), [one.get("conversation_id")]) for one in values
    ]
    missing = answer.get("not_found")
    if isinstance(missing, list):
        with_conversations = {number for number, _ in entries}
        # A number that is found and not found may have further conversations.
        entries += [(one, [None] if one in with_conversations else []) for one in map(_plain, missing)]
    return entries


def _repeats_key(value: Any, levels: int = 4) -> bool:
    """Whether an object repeats a key, down to the links of an array of entries."""
    if isinstance(value, exact_json.RepeatedKeys):
        return True
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and any(_repeats_key(member, levels - 1) for member in members)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether a value can be an id: text that UTF-8 can encode, for URLs and columns."""
    return isinstance(value, str) and bool(value.strip()) and is_encodable(value)


def _plain(number: Any) -> str:
    return "".join(character for character in str(number).removesuffix(".0") if character.isdigit())


def _conversation_of(link: Any) -> str | None:
    """Return the `conv_id` of a link, whatever its host, path and other parameters; None if it has none.

    The parameters may also come after the `#`, as in single-page applications.
    """
    address = link.get("link") if isinstance(link, dict) else None
    if isinstance(address, str):
        try:
            parts = urlsplit(address)
        except ValueError:
            return None
        for query in (parts.query, urlsplit(parts.fragment).query):
            for conversation_id in parse_qs(query).get("conv_id", []):
                return conversation_id
    return None
