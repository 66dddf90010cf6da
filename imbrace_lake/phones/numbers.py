"""Phone numbers: parsed to E.164, masked for logs, hashed for ledgers."""

from __future__ import annotations

import functools
import hmac
import re
from typing import NamedTuple, NewType

import phonenumbers
from phonenumbers import NumberParseException, PhoneMetadata, ValidationResult

from imbrace_lake.errors import InvalidPhoneNumber, UsageError

PhoneNumber = NewType("PhoneNumber", str)
"""E.164 with its plus sign, ``+886911425977``; made only by :func:`parse_phone`."""

_MAX_CHARACTERS = 250
# Above a few thousand candidates, two digits identify nobody; a shorter number would be half shown.
_MIN_DIGITS_FOR_TAIL = 8
_TAIL = 2

_PLAIN = re.compile(r"(\+?)([1-9][0-9]{6,18})")
_SCHEME = re.compile(r"(?:tel|whatsapp):\s*", re.IGNORECASE)
# Separators people use, the dashes of Unicode and of East Asian keyboards included. A comma is not
# among them: it separates numbers, and two of them must not become one.
_WRITTEN = re.compile(r"\(?\s*([+＋]?)[\s\d()（）\[\]［］.．·・/／\-‐‑‒–—―−ー－]*")
_FLOAT = re.compile(r"(\d{5,})[.,]0+")
_SCIENTIFIC = re.compile(r"[+-]?\d+(?:[.,]\d*)?\s*[eE]\s*[+-]?\d+")
_EXTENSION = re.compile(
    r"[^#;,a-z]*\d[^#;,a-z]*[#;,]*\s*(?:ext(?:ension)?|extn|x|#)[.:=\s]*\d+", re.IGNORECASE
)
# What spreadsheets and address books leave: byte-order mark, soft hyphen, zero-width and direction marks.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x61C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]
)
# Plans that were rebuilt: Mexico dropped the 1 of mobiles in 2019, Ivory Coast (2021) and Benin (2024) went
# from 8 to 10 digits. Messengers keep the old form as the id of contacts who joined before.
_FORMER = re.compile(r"\+(?:521\d{10}|225\d{8}|229\d{8})")

_NO_COUNTRY = "it has no country code; write it as +886911425977 or give a default region"
_IMPOSSIBLE = {
    ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "it lacks its area code",
    ValidationResult.INVALID_COUNTRY_CODE: "there is no such country code",
    ValidationResult.TOO_SHORT: "it is too short for its country",
    ValidationResult.INVALID_LENGTH: "no number of its country has this length",
    ValidationResult.TOO_LONG: "it is too long for its country",
}
_UNPARSABLE = {NumberParseException.INVALID_COUNTRY_CODE: "there is no such country code"}


class _Plan(NamedTuple):
    """What the library's metadata say of one country code, as far as the two short cuts need it."""

    region: str
    lengths: frozenset[int]
    national_prefix: re.Pattern[str] | None
    exit_code: re.Pattern[str]
    in_use: re.Pattern[str]


def parse_phone(text: str, region: str | None = None) -> PhoneNumber:
    """Read one phone number as people, spreadsheets and the gateway write it.

    Accepted are ``+`` or ``00`` and the country code, a leading ``tel:`` or ``whatsapp:``, quotes around
    it, spaces, dashes, dots, slashes and parentheses, digits of any script, invisible characters, and the
    ``.0`` of a number column that became a float. Refused, because they would have to be guessed at: letters
    (also vanity numbers), extensions, two numbers in one text, and ``8.86911E+11``, whose digits are lost.

    Bare digits are ambiguous. Without `region` they begin with the country code: that is how the gateway
    writes numbers. With `region` they may be a national number of it or begin with any country code, and

    1. the national reading wins if the number is in a range that its country has in use,
    2. else the international one, if it is in use or begins with the region's own country code,
    3. else the national one if it is possible at all, and at last the international one.

    So where both readings are in use, the region wins, because naming it was a deliberate act. A list that is
    entirely in the gateway's form is best read without a region.

    Args:
        text: One number.
        region: ISO 3166 letters, ``TW``; upper or lower case. Never changes a number that has a plus sign.

    Raises:
        InvalidPhoneNumber: It is no possible number; the sentence shows only its length.
        UsageError: There is no such region.
    """
    if region is not None:
        region = parse_region(region)
    plain = _PLAIN.fullmatch(text)
    if plain and (plain[1] or region is None) and (phone := _as_it_stands(plain[2])):
        return phone
    has_plus, number = _read(text)
    if has_plus or region is None:
        number = number if has_plus else number.removeprefix("00")
        if phone := _as_it_stands(number):
            return phone
        found, reason = _reading("+" + number)
    else:
        if phone := _as_dialled(number, region):
            return phone
        found, reason = _regional_reading(number, region)
    # One reading takes away one national prefix. Read on until nothing changes, or +44 0 0 20… would be
    # another phone than +44 20…, and a phone would not be what its own text is read as.
    previous = ""
    while found is not None:
        phone = PhoneNumber(phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.E164))
        if phone == previous or _as_it_stands(phone[1:]):
            return phone
        found, reason = _reading(phone)
        previous = phone
    raise InvalidPhoneNumber(_refusal(text, reason))


def parse_region(text: str) -> str:
    """Check the letters of a default region and return them in capitals."""
    region = text.strip().upper()
    if region not in phonenumbers.SUPPORTED_REGIONS:
        hint = "GB" if region == "UK" else "TW"
        raise UsageError(f"There is no region {text[:20]!r}: use two letters of ISO 3166, such as {hint}.")
    return region


def digits(phone: PhoneNumber) -> str:
    """Return the number as the gateway wants it: country code first, no plus sign."""
    return phone[1:]


def mask(text: str) -> str:
    """Return a form for logs and errors: ``+886*******77``.

    Only a plus sign proves which digits are the country code, so bare digits keep the last two alone. Of text
    that is no phone number nothing is shown but its length, because it may be a name or an address.
    """
    try:
        phone = parse_phone(text)
    except InvalidPhoneNumber:
        return _shape(text)
    start = 1 + len(_country_code(phone[1:])) if "+" in text or "＋" in text else 1
    tail = phone[-_TAIL:] if len(phone) - start >= _MIN_DIGITS_FOR_TAIL else ""
    return (phone[:start] if start > 1 else "") + "*" * (len(phone) - start - len(tail)) + tail


def phone_hash(phone: PhoneNumber, key: bytes) -> str:
    """Return HMAC-SHA256 of the E.164 form as 64 hexadecimal digits.

    A hash without a key would hide nothing: all phone numbers there are can be hashed within minutes.
    """
    if not key:
        raise UsageError("Phone numbers cannot be hashed with an empty key: set one.")
    return hmac.digest(key, phone.encode("ascii"), "sha256").hex()


def _as_it_stands(number: str) -> PhoneNumber | None:
    """Accept digits that the library would return unchanged; say nothing of any other.

    The library takes the first country code that fits, strips a national prefix if one matches, and compares
    the length. Where no prefix matches and the length is possible, it therefore returns what it was given.
    """
    code = _country_code(number)
    plan = _plan(code) if code else None
    if plan is None:
        return None
    national = number[len(code) :]
    if len(national) not in plan.lengths or (plan.national_prefix and plan.national_prefix.match(national)):
        return None
    return PhoneNumber("+" + number)


def _as_dialled(number: str, region: str) -> PhoneNumber | None:
    """Accept ``0911425977`` where the library would do no more than take away the 0; say nothing of others.

    It does just that if 0 is the whole national prefix, no code for calls abroad matches, the number with its
    0 is in no range of the country, and the rest has a possible length. Regions that share another region's
    country code have rules of their own and are left to it.
    """
    if number[:1] != "0" or number[:2] == "00":
        return None
    code = str(phonenumbers.country_code_for_region(region))
    plan = _plan(code)
    if (
        plan is None
        or plan.region != region
        or not plan.national_prefix
        or plan.national_prefix.pattern != "0"
    ):
        return None
    if plan.exit_code.match(number) or plan.in_use.fullmatch(number) or len(number) - 1 not in plan.lengths:
        return None
    return PhoneNumber(f"+{code}{number[1:]}")


def _country_code(number: str) -> str:
    for width in (1, 2, 3):
        if _plan(number[:width]) is not None:
            return number[:width]
    return ""


@functools.cache
def _plan(code: str) -> _Plan | None:
    regions = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(code or 0))
    metadata = PhoneMetadata.metadata_for_region_or_calling_code(int(code), regions[0]) if regions else None
    if metadata is None or metadata.general_desc is None:
        return None
    prefix = metadata.national_prefix_for_parsing
    return _Plan(
        region=metadata.id,
        lengths=frozenset(metadata.general_desc.possible_length),
        national_prefix=re.compile(prefix) if prefix else None,
        exit_code=re.compile(metadata.international_prefix or "(?!)"),
        in_use=re.compile(metadata.general_desc.national_number_pattern or ""),
    )


def _read(text: str) -> tuple[bool, str]:
    """Return whether the text has a plus sign, and its digits in ASCII."""
    if len(text) > _MAX_CHARACTERS:
        raise InvalidPhoneNumber(_refusal(text, "it is too long"))
    visible = text.translate(_INVISIBLE).strip().removeprefix("=").strip("\"' ")
    written = _SCHEME.sub("", visible, count=1) if _SCHEME.match(visible) else visible
    if as_float := _FLOAT.fullmatch(written):
        written = as_float[1]
    form = _WRITTEN.fullmatch(written)
    if form is None:
        raise InvalidPhoneNumber(_refusal(text, _why_unreadable(written)))
    number = "".join(str(int(char)) for char in written if char.isdecimal())
    if not number:
        raise InvalidPhoneNumber(_refusal(text, "it has no digits"))
    return bool(form[1]), number


def _why_unreadable(written: str) -> str:
    if _SCIENTIFIC.fullmatch(written):
        return (
            "a spreadsheet rounded it to a form like 8.9E+11, its digits are lost: export the column as text"
        )
    if _EXTENSION.fullmatch(written):
        return "it has an extension, and conversations belong to numbers without one"
    if any(char.isalpha() for char in written):
        return "it has letters"
    return "it has characters that phone numbers do not have, or more than one number"


def _reading(text: str, region: str | None = None) -> tuple[phonenumbers.PhoneNumber | None, str]:
    """Read digits, with a plus sign or by the rules of a region; else say why that is impossible."""
    if region is None and text.startswith("+0"):
        return None, _NO_COUNTRY
    try:
        number = phonenumbers.parse(text, region)
    except NumberParseException as exc:
        return None, _UNPARSABLE.get(exc.error_type, "it has too few or too many digits")
    # is_possible_number() also accepts local numbers that lack an area code, and
    # is_valid_number() rejects ranges newer than the installed metadata.
    result = phonenumbers.is_possible_number_with_reason(number)
    if result == ValidationResult.IS_POSSIBLE:
        return number, ""
    if _FORMER.fullmatch(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)):
        return number, ""
    return None, _IMPOSSIBLE[result]


def _regional_reading(number: str, region: str) -> tuple[phonenumbers.PhoneNumber | None, str]:
    """Decide between the readings of bare digits, as :func:`parse_phone` describes."""
    national, reason = _reading(number, region)
    without_prefix = number.removeprefix("00")
    # No country code begins with 0, so most national numbers are decided here.
    if without_prefix.startswith("0") or (national is not None and phonenumbers.is_valid_number(national)):
        return national, reason
    international, _ = _reading("+" + without_prefix)
    if international is None:
        return national, reason
    is_own = number.startswith(str(phonenumbers.country_code_for_region(region)))
    if national is None or is_own or phonenumbers.is_valid_number(international):
        return international, ""
    return national, ""


def _shape(text: str) -> str:
    return f"<text of length {len(text)} with {sum(char.isdigit() for char in text)} digits>"


def _refusal(text: str, reason: str) -> str:
    return f"{_shape(text)} is no phone number: {reason}."
