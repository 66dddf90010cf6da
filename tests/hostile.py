"""JSON that some parser or engine rejects, changes or cannot store: a fixed list, and strategies.

Everything is JSON *text*, because much of it does not have a Python value: a number beyond every double,
a repeated key. `BODIES` are values of the field `content`; `FIELDS` are further fields with their values.
`message` makes a message of them, as the gateway would send it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from hypothesis import strategies as st


def nested(levels: int, inner: str = "1") -> str:
    """Arrays in arrays, and an innermost value."""
    return "[" * levels + inner + "]" * levels


def nested_objects(levels: int) -> str:
    """Objects in objects."""
    return '{"a":' * levels + "1" + "}" * levels


DIGITS = "123456789"
# Numbers that a double cannot represent exactly.
NUMBERS = {
    "over every double": "1e400",
    "under every double": "-1e999",
    "an exponent of twenty digits": "1e99999999999999999999",
    "too close to zero": "1e-400",
    "sixty decimals": f"0.{DIGITS * 6}654321",
    "nineteen decimals": "0.1234567890123456789",
    "one more than a double": "9007199254740993.5",
    "one more than 64 bits": "18446744073709551616",
    "one less than 64 bits": "-9223372036854775809",
    "ninety bits": "1237940039285380274899124224",
    "five thousand digits": "9" * 5_000,
    "five thousand digits and decimals": "9" * 5_000 + ".5",
}
# Values of `content`; all are JSON by the grammar of RFC 8259.
BODIES = {
    "half an emoji": r'{"text":"half \ud83d","n":1}',
    "the other half first": r'{"text":"\ude00\ud83d","n":1}',
    "half an emoji in a bare string": r'"half \ud83d"',
    "half an emoji in a key": r'{"text":"key","half \ud83d":1,"half ?":2}',
    "half an emoji far inside": r'{"text":"deep","a":[{"b":["\udfff"]}]}',
    "an escaped backslash before u": r'{"text":"not half \\ud83d","n":1}',
    "a key twice": '{"text":"first","text":"second","n":1}',
    "a key three times, far inside": '{"text":"x","a":[{"k":1,"k":2,"k":1}]}',
    "one key in two spellings": r'{"text":"a","t\u0065xt":"b"}',
    "an empty key twice": '{"":1,"":2}',
    "NUL in a text": r'{"text":"a\u0000b","n":1}',
    "NUL in a key": r'{"a\u0000b":1,"text":"k"}',
    "characters that are none": r'{"text":"\uffff\ufffe\ufdd0","n":1}',
    "control characters": r'{"text":"\u0001\u001f\u007f\u0085\u2028\u2029"}',
    "a key of 60,000 characters": '{"text":"long","' + "k" * 60_000 + '":1}',
    "64 levels": nested(64),
    "65 levels": nested(65),
    "129 levels": '{"text":"arrays","n":' + nested(128) + "}",
    "256 levels of objects": nested_objects(256),
    "900 levels": '{"text":"deeper","n":' + nested(899) + "}",
    "minus zero": '{"text":"zero","n":-0.0,"m":-0}',
    "only a number": "5",
    "only an array": '[1,{"text":"x"}]',
    "null": "null",
    "all at once": r'{"text":"\ud83d","text":"\ud83d","n":[1e400,{"k":0.12345678901234567890,"k":-1e999}]}',
} | {f"a number: {name}": f'{{"text":"number","n":{number}}}' for name, number in NUMBERS.items()}
# Deeper than the parser of the standard library supports.
DEEPER = {
    f"{levels} levels of {kind}": make(levels)
    for levels in (995, 1_000, 1_023, 1_024, 1_025, 5_000, 100_000)
    for kind, make in {"arrays": nested, "objects": nested_objects}.items()
}
# Further fields of a message.
FIELDS = {
    "a field twice": '"note":1,"note":2',
    "a known field twice": '"type":"text","type":"image"',
    "half an emoji in a field": r'"note":"half \ud83d"',
    "half an emoji in a field's name": r'"half \ud83d":1',
    "a field with a name of 60,000 characters": '"' + "k" * 60_000 + '":1,"n":2',
    "half an emoji in every column": (
        r'"from":"con_\ud83d","business_unit_id":"\ud83d","type":"\ud83d","conversation_id":"\ud83d"'
    ),
    "numbers": '"score":1e400,"rank":0.12345678901234567890,"big":99999999999999999999',
    "a deep field": f'"tree":{nested(70)}',
    "a deep type and sender": f'"type":{nested(300)},"from":{nested(300)}',
    "our own names": r'"$original":"{\"content\":1}","$absent":["content"],"$$":1',
    "year 0": '"created_at":"0000-01-01T00:00:00.000Z","updated_at":"0000-12-31T23:59:59.999Z"',
    "year 1": '"created_at":"0001-01-01T00:00:00.000Z","updated_at":"1899-12-31T23:59:59.999Z"',
    "year 2300": '"created_at":"2299-12-31T23:59:59.999Z","updated_at":"2300-01-01T00:00:00.000Z"',
    "year 9999": '"created_at":"9999-12-31T23:59:59.999Z","updated_at":"9999-12-31T23:59:59.999-12:00"',
    "year 292278994": '"created_at":"+292278994-08-17T07:12:55.807Z","updated_at":"292278994-08-17"',
    "negative years": '"created_at":"-0001-01-01T00:00:00Z","updated_at":"-292275055-05-16T16:47:04.192Z"',
    "times that are numbers": '"created_at":-1,"updated_at":1e400',
    "half an emoji in a time": r'"created_at":"2024-01-01T00:00:00.000\ud83d","updated_at":"\ud83d"',
}


def message(message_id: str, content: str | None, fields: str = "", minute: int = 0) -> bytes:
    """One message as the gateway would send it."""
    at = f"2025-01-01T{minute // 60:02}:{minute % 60:02}:00.000Z"
    parts = [f'"_id":{json.dumps(message_id)}', '"public_id":"p"']
    named = {"from": '"con_1"', "type": '"text"', "created_at": f'"{at}"', "updated_at": f'"{at}"'}
    parts += [f'"{name}":{value}' for name, value in named.items() if f'"{name}"' not in fields]
    parts += [f'"content":{content}'] if content is not None else []
    parts += [fields] if fields else []
    return ("{" + ",".join(parts) + "}").encode()


def messages(bodies: Iterable[str] = BODIES.values(), fields: Iterable[str] = FIELDS.values()) -> list[bytes]:
    """A message for each content and for each further field, with plain ones between."""
    contents = [(body, "") for body in bodies] + [('{"text":"plain","n":1}', field) for field in fields]
    hostile = [message(f"h{n}", body, field, 2 * n) for n, (body, field) in enumerate(contents)]
    plain = [message(f"p{n}", f'{{"text":"plain {n}","n":{n}}}', "", 2 * n + 1) for n in range(len(hostile))]
    return [one for pair in zip(hostile, plain, strict=True) for one in pair]


def page(items: Iterable[bytes]) -> bytes:
    """A page of messages, newest first, as `message` made them."""
    found = list(items)
    return b'{"items":[%s],"count":%d,"total":%d}' % (b",".join(found), len(found), len(found))


# -- strategies -----------------------------------------------------------------------------------


def _written(spell: Callable[[str], str]) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=()), max_size=8).map(spell)


_STRINGS = _written(json.dumps) | st.lists(
    st.sampled_from(
        [r"\ud83d", r"\ude00", r"\u0000", r"\\", r"\"", r"\uffff", "é", "😀", ":", "{", "]", "a"]
    ),
    max_size=6,
).map(lambda parts: f'"{"".join(parts)}"')
_NUMBERS = (
    st.sampled_from([*NUMBERS.values(), "0", "-0", "1.0", "1E5", "1e-7", "0.10", "1.7976931348623157e308"])
    | st.integers(-(2**70), 2**70).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?\Z")
)
SPACES = st.sampled_from(["", "", "", " ", "\n\t", "\r "])


def _arrays(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda items, gap: f"[{gap}{f'{gap},'.join(items)}]", st.lists(inner, max_size=3), SPACES
    )


def _objects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    # Few keys, so that they repeat.
    keys = st.sampled_from(['"a"', r'"\u0061"', '"text"', '""', r'"\ud83d"', '"$original"']) | _STRINGS
    pairs = st.lists(st.tuples(keys, SPACES, inner), max_size=4)
    return pairs.map(
        lambda found: "{" + ",".join(f"{key}{gap}:{gap}{value}" for key, gap, value in found) + "}"
    )


JSON_TEXTS = st.recursive(
    st.sampled_from(["null", "true", "false"]) | _NUMBERS | _STRINGS,
    lambda inner: _arrays(inner) | _objects(inner) | inner.map(lambda text: nested(70, text)),
    max_leaves=8,
)
"""Any JSON text, with a preference for what parsers disagree on."""
