"""Parse a cell or a line of a list: usually one phone number, sometimes several."""

from __future__ import annotations

import re

from imbrace_lake.errors import InvalidPhoneNumber
from imbrace_lake.phones.numbers import (
    INCOMPLETE,
    MORE_THAN_ONE,
    PhoneNumber,
    has_extension,
    is_in_use,
    is_whatsapp_contact,
    parse_phone,
    rejection,
    visible,
)

# What separates numbers and is never part of one. A plus sign begins a number.
_BETWEEN = re.compile(
    r"\s*(?::::|[,;|&、，；｜\r\n\t\v\f\x85\u2028\u2029])\s*|(?<=[\d)）])\s*(?=[(（]?[+＋])"
)
# A link can contain a message, whose numbers are not those of the list.
_LINK = re.compile(r"wa\.me/|whatsapp\.com/|whatsapp://", re.IGNORECASE)
_BETWEEN_LINKS = re.compile(r"[\s,;|]+(?:[/&]\s+)?")
# Separators that can also be part of a number, so all pieces must be complete numbers. A slash without blanks
# comes last, because one cell can have it in both roles: 030/1234567 / 030/7654321.
_PERHAPS_BETWEEN = (
    re.compile(r"\s+[/／]\s+"),
    re.compile(r"\s+[\-‐‑‒–—―−ー－]+\s+"),
    re.compile(r"\s+(?=[(（]?0)"),
    re.compile(
        r"\s+(?:or|and|oder|und|ou|et|o|y|e|u|i|en|of|или|и)\s+|\s*(?:<br\s*/?>|[或和及\\•])\s*",
        re.IGNORECASE,
    ),
    re.compile(r"\s*[/／]\s*"),
)
_ENDING = re.compile(r"\d{1,4}")
_SURELY_A_NUMBER = 9  # digits

_Piece = tuple[str, PhoneNumber | InvalidPhoneNumber]


def parse_cell(text: str, region: str | None = None) -> list[PhoneNumber | InvalidPhoneNumber]:
    """Read the phone numbers of a cell or line, as :func:`.parse_phone` reads one.

    Commas, semicolons, ``/``, ``:::``, ``|``, ``&``, dashes between blanks and line breaks separate numbers.
    An alternative ending, as in ``+886 2 2345 6789/90``, makes the cell invalid, because completing it would
    be a guess.

    Returns:
        At least one item: a number, or an error that states why a piece, or the cell, is not a number.
    """
    return [result for _, result in _pieces(text, region)]


def _pieces(text: str, region: str | None) -> list[_Piece]:
    try:
        return [(text, parse_phone(text, region))]
    except InvalidPhoneNumber as exc:
        error = exc
    written = visible(text)
    if has_extension(written):
        return [(text, error)]
    between_pieces = _BETWEEN_LINKS if _LINK.search(written) else _BETWEEN
    texts = [piece for piece in between_pieces.split(written) if piece]
    if len(texts) == 1 and texts[0] != written:
        return _pieces(texts[0], region)
    if len(texts) > 1:
        pieces = [one for piece in texts for one in _pieces(piece, region)]
        if not any(isinstance(result, str) for _, result in pieces):
            return [(text, error)]
        checked = _checked(pieces, region)
        if any(_ENDING.fullmatch(piece) for piece, result in checked if not isinstance(result, str)):
            return [(text, rejection(text, MORE_THAN_ONE))]
        return checked
    for between in _PERHAPS_BETWEEN:
        texts = [piece for piece in between.split(written) if piece]
        if len(texts) > 1:
            checked = _checked([one for piece in texts for one in _pieces(piece, region)], region)
            if all(isinstance(result, str) for _, result in checked):
                return checked
    return [(text, error)]


def _checked(pieces: list[_Piece], region: str | None) -> list[_Piece]:
    """Reject numbers that may be only the end of another one, as ``2345 6790`` after ``+886 …``."""
    longest = max((len(result) for _, result in pieces if isinstance(result, str)), default=0)

    def check(piece: str, phone: PhoneNumber) -> PhoneNumber | InvalidPhoneNumber:
        digits = sum(char.isdecimal() for char in piece)
        is_explicit = (
            region is None or piece.lstrip("(（").startswith(("+", "＋", "0")) or is_whatsapp_contact(piece)
        )
        if (digits >= _SURELY_A_NUMBER or is_in_use(phone)) and (is_explicit or len(phone) >= longest):
            return phone
        return rejection(piece, INCOMPLETE)

    return [(piece, check(piece, phone) if isinstance(phone, str) else phone) for piece, phone in pieces]
