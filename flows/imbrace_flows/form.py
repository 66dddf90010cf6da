"""The JSON schema of parameters: the fields of a form, their order, and rules about them.

The server checks a form by this schema, and shows the messages of `jsonschema` below the fields. Only that of
`const` has words of ours and repeats no input: *'two letters of a country' was expected*. The classic UI
sends rules to the server only if they belong to an object and not to a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, SecretStr
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

_HIDDEN = "is_hidden"
# No text and no switch that is on.
_BLANK: JsonDict = {"pattern": r"^\s*$", "not": {"const": True}}

ONLY_IN_SCRIPTS: JsonDict = {_HIDDEN: True}
"""Marks an option that scripts, schedules and shards may give, and that the form does not show."""


def at_position(position: int) -> JsonDict:
    """Keep the order of the form, because PostgreSQL does not keep the order of the keys of an object."""
    return {"position": position}


def matches(field: str, pattern: str, words: str) -> JsonDict:
    """Return the rule that a text matches a pattern, which `words` describe."""
    return {
        "if": {"properties": {field: {"pattern": pattern}}},
        "else": {"properties": {field: {"const": words}}},
    }


def exactly_one(*fields: str, words: str) -> list[JsonDict]:
    """Return the rules that exactly one of several texts or switches is given; `words` lists them."""
    several: list[JsonDict] = [
        {
            "if": {"not": {"anyOf": [_blank(fields[:index]), _blank([field])]}},
            "then": {"properties": {field: {"const": f"only one of these: {words}"}}},
        }
        for index, field in enumerate(fields)
        if index
    ]
    return [{"if": _blank(fields), "then": {"const": f"one of these: {words}"}}, *several]


def _blank(fields: Sequence[str]) -> JsonDict:
    return {"properties": dict.fromkeys(fields, _BLANK)}


def as_form(schema: JsonDict, model: type[Any]) -> None:
    """Turn the schema of parameters into that of a form, with the `rules` of the model."""
    properties: dict[str, Any] = schema["properties"]  # type: ignore[assignment] # of every object
    for name, field in properties.items():
        # Without null, the UI shows a field and not a choice between it and `None`.
        if field.get("default", ...) is None:
            del field["default"]
        # The new UI leaves an object out if it has neither values nor defaults.
        if name in schema.get("required", ()):  # type: ignore[operator] # a list
            field["default"] = ""
    hidden = [name for name, field in properties.items() if field.pop(_HIDDEN, False)]
    if hidden:
        # No form shows these, and the server checks them.
        schema["patternProperties"] = {f"^{name}$": properties.pop(name) for name in hidden}
    if model.rules:
        schema["allOf"] = list(model.rules)


def _none_if_blank(value: object) -> object:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return value if not isinstance(text, str) else text.strip() or None


OrNone = SkipJsonSchema[None]
"""For an optional field: null stays out of the schema."""

Blankable = BeforeValidator(_none_if_blank)
"""An empty field is None, and blanks around a text are removed."""

Text = Annotated[str | OrNone, Blankable]
Secret = Annotated[SecretStr | OrNone, Blankable]
