"""Hostile JSON is stored without loss, and every row is strict JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imbrace_lake.gateway.exact_json import MAX_KEY_LENGTH, MAX_LEVELS, Number, parse, write
from imbrace_lake.gateway.models import Malformed, decode_json, parse_page
from imbrace_lake.lake.hashes import DIGEST, item_digest
from imbrace_lake.lake.lake import read_rows
from imbrace_lake.lake.parquet import to_parquet
from imbrace_lake.lake.schema import END_OF_TIME, FIRST_TIME, SCHEMA, Origin, to_item, to_rows, with_digests
from tests import hostile

ORIGIN = Origin("org_1", "conv_1", "run_1", datetime(2026, 1, 2, tzinfo=UTC))
KNOWN = {"_id", "public_id", "from", "type", "content", "created_at", "updated_at"}


def rows_of(*items: bytes) -> pa.Table:
    """Return the rows of a page with these messages, as the lake returns them, with their digests."""
    page = parse_page(hostile.page(items), 0)
    rows = to_rows(page.items, page.ids, ORIGIN)
    stored = read_rows(to_parquet(rows.drop_columns([DIGEST]), {}))
    return stored.append_column(DIGEST, rows.column(DIGEST))


def strictly(text: str | None) -> Any:
    """Parse JSON as the strictest parsers do."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        assert all(len(key) <= MAX_KEY_LENGTH for key, _ in pairs)
        return dict(pairs)

    def reject(constant: str) -> None:
        raise AssertionError(constant)

    def integer(digits: str) -> int:
        assert -(2**63) <= int(digits) < 2**64
        return int(digits)

    if text is None:
        return None
    orjson.loads(text)
    text.encode()
    assert r"\ud" not in text.replace(r"\\", "")
    value = json.loads(text, object_pairs_hook=unique, parse_constant=reject, parse_int=integer)
    assert levels(value) <= MAX_LEVELS
    return value


def levels(value: Any) -> int:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if members is None else 1 + max(map(levels, members), default=0)


def assert_strict_and_lossless(*items: bytes) -> None:
    rows = rows_of(*items)
    assert [*with_digests(rows.select(SCHEMA.names)).column(DIGEST)] == [*rows.column(DIGEST)]
    for sent, row in zip(items, rows.to_pylist(), strict=True):
        strictly(row["content"])
        assert isinstance(strictly(row["extra"]), dict | None)
        assert write(to_item(row), is_sorted=True) == write(parse(sent), is_sorted=True)
        for name in ("created_at", "updated_at"):
            assert row[name] is None or FIRST_TIME <= row[name] < END_OF_TIME


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", hostile.BODIES.values(), ids=hostile.BODIES)
def test_any_content_is_stored_as_strict_json_and_comes_back_unchanged(content: str) -> None:
    assert_strict_and_lossless(hostile.message("a", content))


@pytest.mark.parametrize("fields", hostile.FIELDS.values(), ids=hostile.FIELDS)
def test_any_field_is_stored_as_strict_json_and_comes_back_unchanged(fields: str) -> None:
    assert_strict_and_lossless(hostile.message("a", '{"text":"x"}', fields))


def test_a_page_of_all_of_them_comes_back() -> None:
    assert_strict_and_lossless(*hostile.messages())


@pytest.mark.slow
@pytest.mark.parametrize("deep", hostile.DEEPER.values(), ids=hostile.DEEPER)
@pytest.mark.parametrize("field", ["content", "type", "note", "_id"])
def test_deep_nesting_is_stored_or_a_specific_error(deep: str, field: str) -> None:
    item = (
        hostile.message("a", deep)
        if field == "content"
        else b'{"_id":"a","%s":%s}' % (field.encode(), deep.encode())
    )
    item = item.replace(b'"_id":"a",', b"") if field == "_id" else item
    if "100000" in deep or deep.count("[") + deep.count("{") >= 10_000:
        with pytest.raises(Malformed, match="nested deeper than 10,000 levels"):
            rows_of(item)
    else:
        assert_strict_and_lossless(item)


@pytest.mark.slow
@given(hostile.JSON_TEXTS, hostile.JSON_TEXTS, hostile.SPACES)
@example("1e400", r'{"\ud83d":1,"\ud83d":1}', "")
def test_any_json_is_stored_strictly_and_comes_back(content: str, other: str, gap: str) -> None:
    names = ("note", "from", "type", "created_at", "business_unit_id", r"\ud83d", "$absent", "content")
    assert_strict_and_lossless(*(hostile.message(name, content, f'"{name}":{gap}{other}') for name in names))


@pytest.mark.slow
@given(st.lists(hostile.JSON_TEXTS, min_size=2, max_size=2, unique=True))
def test_a_digest_shows_every_difference(texts: list[str]) -> None:
    first, second = ({"content": parse(text.encode())} for text in texts)

    is_same = write(first, is_sorted=True) == write(second, is_sorted=True)
    assert (item_digest(first) == item_digest(second)) == is_same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1e400", "null"),
        ("1e400", "1e401"),
        ("1e400", "-1e400"),
        ("0.12345678901234567890", "0.12345678901234567891"),
        ('{"a":1,"a":2}', '{"a":2}'),
        ('{"a":1,"a":2}', '{"a":2,"a":2}'),
        (r'"\ud83d"', '"?"'),
        (hostile.nested(70), hostile.nested(71)),
    ],
)
def test_values_that_look_alike_in_content_are_different_versions(one: str, other: str) -> None:
    first, second = (rows_of(hostile.message("a", f'{{"n":{value}}}')) for value in (one, other))

    assert first.column(DIGEST) != second.column(DIGEST)
    assert first.select(["content", "extra"]) != second.select(["content", "extra"])


def test_a_row_does_not_depend_on_the_others_of_its_page() -> None:
    fields = '"conversation_id":"other","organization_id":"other","note":1,"from":7,"created_at":"x"'
    plain = hostile.message("p", '{"text":"plain"}', fields)

    alone = rows_of(plain)
    for content in hostile.BODIES.values():
        beside = rows_of(hostile.message("a", content), plain)
        assert beside.filter(pc.equal(beside.column("message_id"), "p")).to_pylist() == alone.to_pylist()


def test_stored_content_stays_close_to_the_original() -> None:
    contents = {
        r'{"text":"half \ud83d"}': '{"text":"half ?"}',
        '{"a":1e400,"b":-1e999}': '{"a":null,"b":null}',
        '{"a":99999999999999999999}': '{"a":1e+20}',
        '{"a":0.12345678901234567890}': '{"a":0.12345678901234568}',
        '{"a":1,"b":2,"a":3}': '{"a":3,"b":2}',
        '{ "a" : 1.50 }': '{"a":1.5}',
        r'{"a":"\u0000"}': r'{"a":"\u0000"}',
    }

    rows = rows_of(*(hostile.message(f"m{n}", content) for n, content in enumerate(contents)))

    assert rows.column("content").to_pylist() == [*contents.values()]


def test_the_original_is_json_in_a_string() -> None:
    row = rows_of(hostile.message("a", r'{"text":"half \ud83d"}', '"score":1e400,"note":"n"')).to_pylist()[0]

    extra = strictly(row["extra"])
    assert (extra["score"], extra["note"]) == (None, "n")
    assert extra["$original"] == r'{"content":{"text":"half \ud83d"},"score":1e400}'


# -- the parser -----------------------------------------------------------------------------------


@pytest.mark.slow
@given(hostile.JSON_TEXTS, hostile.SPACES)
def test_the_exact_parser_agrees_with_the_standard_library(text: str, gap: str) -> None:
    body = f"{gap}[{text}]{gap}".encode()

    value = parse(body)

    # The standard library rounds, drops keys and rejects very long integers, but agrees on all else.
    expected = json.loads(
        body, parse_int=lambda digits: int(digits) if len(digits) < 4_000 else float(digits)
    )
    assert json.dumps(value) == json.dumps(expected)
    assert write(parse(write(value).encode())) == write(value)


@pytest.mark.slow
@given(hostile.JSON_TEXTS, hostile.SPACES)
@example("0", "\n")
def test_the_parser_of_deep_json_agrees_with_the_other_parser(text: str, gap: str) -> None:
    deep = parse(f"{gap}{hostile.nested(1_000, f'{gap}{text}{gap}')}{gap}".encode())

    for _ in range(1_000):
        deep = deep[0]
    assert write(deep) == write(parse(text.encode()))


@given(st.text(st.sampled_from('[]{}:,"\\ud83 \n0-1.eE+truefalsn\x00\x1f'), max_size=10))
@example("0\x00")
@example("[1,]")
@example("{,}")
@example('{"a":1,}')
@example("[1}")
@example("[,1]")
@example('{"a"}')
@example("{1:2}")
@example("01")
@example("1.")
@example(".5")
@example("+1")
@example('"\n"')
@example(r'"\x"')
@example("1 2")
@example("[1]]")
def test_invalid_json_is_rejected_as_by_the_standard_library(text: str) -> None:
    inside = f'{{"a":{text}}}'
    # JSON nested deeper than the interpreter's stack has another parser.
    for plain, body in ((text, text), (inside, inside), (inside, hostile.nested(1_000, inside))):
        if is_json(plain):
            value = decode_json(body.encode())
            for _ in range(1_000 if body != plain else 0):
                value = value[0]
            assert json.dumps(value) == json.dumps(json.loads(plain))
        else:
            with pytest.raises(Malformed):
                decode_json(body.encode())


def is_json(text: str) -> bool:
    def reject(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=reject)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("number", hostile.NUMBERS.values(), ids=hostile.NUMBERS)
def test_numbers_keep_their_digits(number: str) -> None:
    for body in (f"[{number}]", f"[ {number} ]"):
        value = decode_json(body.encode())
        assert write(value) == f"[{number}]"
        assert isinstance(value[0], int | Number)


@pytest.mark.parametrize(
    "number", ["0", "-1", "1.5", "0.1", "1e5", "1E-7", "123456789.125", "5e-324", "1e22", "0e400"]
)
def test_numbers_that_fit_a_double_are_plain_numbers(number: str) -> None:
    value = decode_json(f"[ {number} ]".encode())[0]

    assert type(value) in (int, float)
    assert value == json.loads(number)
