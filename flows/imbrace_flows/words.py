"""Sentences of the artifacts, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def add_up(total: int | None, what: str, parts: Sequence[tuple[int, str]]) -> str:
    """Return a total and the parts that add up to it: ``812 given = 800 with conversations + 12 without``.

    Args:
        total: The total; None if it is unknown.
        what: Names it.
        parts: Counts and their names; those of zero are left out.
    """
    shown = " + ".join(f"{count:,} {name}" for count, name in parts if count)
    if total is None:
        return shown or "unknown"
    return f"{total:,} {what}" + (f" = {shown}" if shown else "")


def as_code(text: object) -> str:
    """Return text from outside so that Markdown and HTML in it have no effect."""
    plain = "".join(char if char.isprintable() and char != "`" else "?" for char in str(text))
    return f"`{plain}`" if plain.strip() else "` `"
