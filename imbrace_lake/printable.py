"""Make text from outside safe to show in a terminal, a log, an artifact or a ledger.

Request ids, organizations, addresses, message types and field names come from the gateway or from another
server in its place. Such text can contain control sequences, markup, phone numbers or the token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

MAX_CHARACTERS = 80
# A phone number has 7 to 15 digits (ITU-T E.164), and people write separators between them. Text programs
# turn hyphens and spaces into others.
_SEPARATORS = r"[\s().+_\u2010-\u2015\u2212\u2060-]{0,2}"
# With any other characters between them, also those of a URL, seven digits are rather a count or a time. The
# classes name the characters, because \W of JavaScript, which checks forms, contains all letters but a to z.
_ESCAPE = (
    r"%(?:0[9AaDd]|2[\dA-Fa-f]|3[A-Fa-f]|[46]0|[57][B-Fb-f]|[Cc]2%[ABab][\dA-Fa-f]|[Ee]2%8[01]%[\dA-Fa-f]{2}"
    r"|[Ee]2%88%92|[Ee]3%80%8[0-3]|[Ee][Ff]%[Bb][Cc]%8[\dA-Fa-f])"
)
_ANY = (
    rf"(?:{_ESCAPE}|(?!{_ESCAPE}|://)[\s\x00-\x2f\x3a-\x40\x5b-\x60\x7b-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf"
    r"\u2000-\u206f\u2212\u3000-\u3003\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]){0,5}"
)
_BEGIN = r"(?<!%)(?<!%[0-7])"
_DIGIT = r"(?:\d|%3\d)"


def _number(unless: str = "") -> str:
    """Return the pattern of a number in which no digit begins what `unless` matches."""
    return rf"(?:{_BEGIN}\d|%3\d)(?:{_ANY}{unless}{_DIGIT}){{7,}}|{_BEGIN}\d(?:{_SEPARATORS}{unless}\d){{6,}}"


_LONG_NUMBER = re.compile(_number())
# Markdown turns these into links (GitHub's autolinks).
_AUTOLINK = re.compile(r"(?<=:)//|(?<=www)\.", re.IGNORECASE)
# The groups of a UUID can be all digits by chance.
_UUID = re.compile(r"(?<![0-9a-z])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-z])", re.IGNORECASE)
_UUID_OR_LONG_NUMBER = re.compile(f"({_UUID.pattern})|{_LONG_NUMBER.pattern}", re.IGNORECASE)
_MONTH_DAY = (r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])")
# Parts of a name with many digits that stay: a UUID or a hash, a day or a time, although a
# number can have as many digits, and a server or a bucket, whose name can contain the number of an account.
_NO_NUMBER = "|".join(
    (
        _UUID.pattern,
        r"(?<![0-9a-z])(?:[0-9a-f]{8}){4,8}(?![0-9a-z])",
        r"(?<![+\d])20[2-9]\d(?:"
        + "|".join(one.join(("", *_MONTH_DAY)) for one in ("-", "_", r"\.", "/", r"\\"))
        + r")(?!\d)",
        # Other dates with slashes, years, and folders of years and months.
        r"(?<![+\d/])[0-3]?\d/[0-3]?\d/20[2-9]\d(?![/\d])",
        r"(?<![+\d/])20[0-4]\d/20[0-4]\d(?![/\d])",
        rf"(?<![+\d])20[2-9]\d[-_./\\]{_MONTH_DAY[0]}(?!\d|[^/\\\d]\d)",
        # A time with its fraction or zone, and from one time to another.
        r"(?<!\d)[0-2]\d(?::|%3A)[0-5]\d(?::|%3A)[0-6]\d(?:[.,]\d{1,9})?"
        r"(?:(?:[+-]|%2B)[01]\d:?[0-5]\d)?(?![:.]?\d)",
        r"(?<!\d)[0-2]?\d:[0-5]\d ?[\u2013-] ?[0-2]?\d:[0-5]\d(?![:.]?\d)",
        r"(?<![+\d])20[2-9]\d"
        + "".join(_MONTH_DAY)
        + r"(?:[ _.t-]?[0-2]\d[0-5]\d(?:[0-5]\d)?)?(?![ _.-]?\d)",
        # Seconds or milliseconds since 1970, of 2020 to 2033.
        r"(?<![+\d])1[6-9]\d{8}(?:\d{3})?(?![ _.-]?\d)",
        r"(?<=://)(?:(?=[^/]*[a-z])[^/]+|\d{1,3}(?:\.\d{1,3}){3}(?=[:/]))",
    )
)
_NUMBER_IN_NAME = _number(f"(?!{_NO_NUMBER})")
_KEPT_OR_NUMBER = re.compile(f"({_NO_NUMBER})|{_NUMBER_IN_NAME}", re.IGNORECASE)
NAME_WITHOUT_NUMBERS = rf"^(?i:{_NO_NUMBER}|(?!{_NO_NUMBER}|{_NUMBER_IN_NAME})[\s\S])*$"
"""Matches what `without_numbers` returns unchanged, for the schema of a form."""
# The name of a server has no @, and the @ of a path comes after a slash; a scheme without slashes, as in
# sftp:name:password@host, is none that is read, but can be typed.
ADDRESS_WITHOUT_CREDENTIALS = r"^(?![\s\S]*://[^/?#]*@)(?![^/?#]*:[^/?#]*@)"
"""Matches a path or URL without the name and password of a user, for the schema of a form."""
ADDRESS_WITHOUT_SECRETS = ADDRESS_WITHOUT_CREDENTIALS + (
    # In the path of a bucket, a question mark can be part of a pattern.
    r"(?!\s*(?i:https?)://[^?#]*\?[\s\S])(?!(?=[^?#]*://)[^?#]*\?[^/#]*=)"
)
"""Matches a path or URL that contains neither credentials nor a signature, for the schema of a form."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=;+/-]{0,99}")
_IP = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f:.]*:[0-9a-f:.]*")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:/+-]{0,38}[A-Za-z0-9_])?")
_SAFE_PUNCTUATION = frozenset(" ._-:/+=,;%")
# What a terminal obeys instead of showing it, and what changes the direction of the text after it; not tabs
# and line feeds.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: object, *, most: int = MAX_CHARACTERS, secrets: Iterable[str] = ()) -> str:
    """Return a short version of `text` that renders as plain text everywhere.

    Characters other than letters, digits and ``._-:/+=,;%`` become ``?``: control characters, and those
    with a meaning in HTML or Markdown. Numbers of seven digits or more, and the secrets, become ``…``.

    Args:
        text: Any value; of a value other than a string, the result names the type.
        most: Longest result, in characters; a longer text is cut and ends with ``…``.
        secrets: Texts that must not be shown, such as the token.
    """
    if not isinstance(text, str):
        return type(text).__name__
    # 100 more, to recognise a number or a secret that the cut would split.
    shown = text[: most + 100]
    for secret in _parts_of(secrets):
        shown = re.sub(re.escape(secret), "…", shown, flags=re.IGNORECASE)
    shown = _plain(_UUID_OR_LONG_NUMBER.sub(lambda found: found[1] or "…", shown))
    return shown if len(shown) <= most and len(text) <= most + 100 else shown[: most - 1] + "…"


def without_controls(text: str) -> str:
    r"""Return a text of any length for a terminal, with ``\x1b`` for a control character such as Escape."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_name(name: str) -> str:
    """Return the name of a field or a type; what does not look like one can be data and is only counted.

    Names have 1 to 40 characters: ASCII letters and digits, and ``_.:/+-`` between them. One with a UUID
    is an id or a token.
    """
    is_name = _NAME.fullmatch(name) and not _UUID.search(name)
    return printable(name) if is_name else f"(a name of {plural(len(name), 'character')})"


def printable_request_id(text: str | None, ours: str, secrets: Iterable[str] = ()) -> str:
    """Return the request id of an answer, or the id that we sent if the answer's could be anything else.

    Ids with unusual characters, a long number or a secret are not shown.
    """
    if not text or not _REQUEST_ID.fullmatch(text):
        return ours
    if any(secret.lower() in text.lower() for secret in _parts_of(secrets)):
        return ours
    is_plain = text == ours or _UUID.fullmatch(text) or not _LONG_NUMBER.search(text)
    return text if is_plain else ours


def printable_address(url: str, secrets: Iterable[str] = ()) -> str:
    """Return scheme, host, port and path of a URL: no user, no query, no fragment, no long number."""
    # Imported late, because it takes 0.1 s: commands that need only the lake and the writer process show no
    # address.
    import httpx

    try:
        parts = httpx.URL(url)
        host, port = parts.host, parts.port
    except (httpx.InvalidURL, ValueError, UnicodeError):
        return "an unreadable address"
    path = printable(parts.path, secrets=secrets) if parts.path else ""
    if not host:
        return path or "an unreadable address"
    scheme = f"{_plain(parts.scheme)}://" if parts.scheme else ""
    shown = host if _IP.fullmatch(host) else printable(host, secrets=secrets)
    return f"{scheme}{_plain(shown[:MAX_CHARACTERS])}{f':{port}' if port else ''}{path}"


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with its first digits, and without an exponent: ``0.0000186``, ``123,000``."""
    return format(Decimal(f"{value:.{digits}g}"), ",f")


def rate(per_second: float, digits: int = 3) -> str:
    """Return a rate of requests: ``1 request per second``, ``2.5 requests per second``."""
    number = decimal(per_second, digits)
    return f"{number} request{'s' * (number != '1')} per second"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a count with its noun: ``1 conversation``, ``2 conversations``.

    Args:
        count: The count.
        noun: What follows a count of one.
        many: What follows any other count; by default the noun with an ``s``.
    """
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


def without_numbers(name: str) -> str:
    """Return the name of a list, a column or a sheet with ``…`` for what may be a phone number.

    Lists are often named after their day, which stays.
    """
    return _KEPT_OR_NUMBER.sub(lambda found: found[1] or "…", name)


def is_number(text: str) -> bool:
    """Return whether a text is a phone number rather than an id: a long number without letters."""
    return not re.search("[A-Za-z]", text) and _LONG_NUMBER.search(text) is not None


def _plain(text: str) -> str:
    kept = (one if one in _SAFE_PUNCTUATION or one.isalnum() or one == "…" else "?" for one in text)
    return _AUTOLINK.sub("…", "".join(kept))


def _parts_of(secrets: Iterable[str]) -> list[str]:
    """Return the secrets, and each token (``api_…``) also without its prefix; short ones are left out."""
    parts = {part for secret in secrets for part in (secret, secret.partition("_")[2]) if len(part) >= 8}
    return sorted(parts, key=len, reverse=True)
