"""Edge cases: values that are allowed and unexpected."""

from __future__ import annotations

from collections.abc import Callable

from imbrace_sandbox.senders import Item

_STRANGE_TEXTS = (
    "NUL \x00 in the middle, \x1b[31mred\x1b[0m, tab\t, CRLF\r\n, and a last \u2028 line",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u202eright to left\u202c \ufeff \uffff \U0010ffff 𝔘𝔫𝔦",
    "مرحبا שלום 你好 こんにちは สวัสดี नमस्ते \u200b\u200d",
    '"quotes" \\ back\\slash / </script> {"text": "not json"} %00 \'; DROP TABLE --',
)
LONG_TEXT_CHARACTERS = 70_000


def _null_content(item: Item, roll: int) -> None:
    item["content"] = None


def _bare_string(item: Item, roll: int) -> None:
    item["content"] = f"a bare string, number {roll}"


def _unknown_shape(item: Item, roll: int) -> None:
    shapes: tuple[object, ...] = (
        [],
        [{"text": "a list"}, None, 1.5],
        42,
        False,
        {},
        {"blocks": [{"kind": "p", "runs": [{"t": "deep"}]}]},
    )
    item["content"] = shapes[roll % len(shapes)]


def _null_sender(item: Item, roll: int) -> None:
    item["from"] = None


def _null_business_unit(item: Item, roll: int) -> None:
    item["business_unit_id"] = None


def _no_updated_at(item: Item, roll: int) -> None:
    del item["updated_at"]


def _offset_times(item: Item, roll: int) -> None:
    for name in ("created_at", "updated_at"):
        item[name] = item[name].replace("Z", "+00:00")


def _strange_text(item: Item, roll: int) -> None:
    item["content"] = {"text": _STRANGE_TEXTS[roll % len(_STRANGE_TEXTS)], "is_mail": False}


def _long_text(item: Item, roll: int) -> None:
    item["content"] = {"text": "long " * (LONG_TEXT_CHARACTERS // 5), "is_mail": True}


def _lone_surrogate(item: Item, roll: int) -> None:
    item["content"] = {"text": f"half an emoji \ud83d, the other half \ude00 {roll}", "is_mail": False}


def _huge_integer(item: Item, roll: int) -> None:
    item["content"] = {"text": "a long number", "is_mail": False, "reference": 2**70 + roll}


def _extra_fields(item: Item, roll: int) -> None:
    item["comments"] = [{"by": "u_reviewer", "text": "please check", "stars": roll % 6}]
    item["reactions"] = {"👍": roll, "sum": -(2**80)}
    item["is_deleted"] = False
    item["deleted_at"] = None


EdgeCase = Callable[[Item, int], None]

EDGE_CASES: tuple[EdgeCase, ...] = (
    _null_content,
    _bare_string,
    _unknown_shape,
    _null_sender,
    _null_business_unit,
    _no_updated_at,
    _offset_times,
    _strange_text,
    _lone_surrogate,
    _huge_integer,
    _extra_fields,
    _long_text,
)


def apply_edge_case(item: Item, number: int, roll: int) -> None:
    """Change one message; `number` chooses the edge case, `roll` its variant."""
    EDGE_CASES[number % len(EDGE_CASES)](item, roll)
