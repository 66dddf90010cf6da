"""Phone numbers: parsed to E.164 (one, or all of a cell), masked for logs, hashed for ledgers."""

from __future__ import annotations

import functools
import hmac
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple, NewType

import phonenumbers
from phonenumbers import NumberParseException, PhoneMetadata, ValidationResult

from imbrace_lake.errors import InvalidPhoneNumber, UsageError

PhoneNumber = NewType("PhoneNumber", str)
"""E.164 with its plus sign, ``+886911425977``; made only by :func:`parse_phone`."""

REGIONS: frozenset[str] = frozenset(phonenumbers.SUPPORTED_REGIONS)
"""The regions of ISO 3166 that have phone numbers, in capitals."""

_MAX_CHARACTERS = 250
# Of a longer number, two digits leave thousands of candidates; of a shorter one, they would show half.
_MIN_DIGITS_FOR_TAIL = 8
_TAIL = 2

_PLAIN = re.compile(r"(\+?)([1-9][0-9]{6,18})")
_PLACE = r"(?:home|work|main|office|business|company|private|personal|other)"
# As in `Mobile phone number:` and `Tel/WhatsApp:`; a fax is not read.
_MORE = (
    r"(?:[\s/]+(?:phone|mobile|whatsapp|viber|line|number|num|no|nr|nummer|n[uú]mero|num[eé]ro))*(?:\s?#)?"
)
_SCHEME = re.compile(
    rf"\A(?:{_PLACE}\s?[:：]\s*|(?:{_PLACE}[\s/]+)?"
    r"(?:t[eé]\u0301?l|tel[eé]\u0301?fon[oe]?|t[eé]\u0301?l[eé]\u0301?phone|telem[oó]\u0301?vel|telp|tlf|tlm|tfn"
    r"|phone|fon|mobile|mobil|mobiltelefon|mob|m[oó]\u0301?vil|celular|cel|cell|cellulare|portable|handy|gsm|hp|cep"
    r"|whatsapp|wa|signal|callto|sms|smsto|ph|[cmptw](?=[:：])|тел|телефон|моб|мобильный|мобільний|сот|τηλ|κιν"
    r"|s?đt|điện thoại|โทร|เบอร์|هاتف|جوال|موبايل|טלפון|נייד)"
    rf"{_MORE}(?:\s?\.?\s?[:：]|\.|\s)\s*(?://)?"
    # Scripts that need no blank before the number.
    r"|(?:(?:聯絡|联系|連絡|行動|行动|携帯|公司|住家)?(?:電話|电话)(?:番号|號碼|号码)?|(?:手機|手机)(?:號碼|号码|号)?|携帯"
    r"|전화(?:번호)?|휴대폰|휴대전화|핸드폰|[☎✆📞📱]\ufe0f?)\s?[:：.]?\s*|(?:https?://)?wa\.me/)",
    re.IGNORECASE,
)
_WHATSAPP_ID = re.compile(r"\+?(\d+)(?::\d+)?@(?:s\.whatsapp\.net|c\.us)", re.IGNORECASE)
# The text after the number in a link is a message, unless it is another link.
_WHATSAPP_LINK = re.compile(
    r"(?:https?://)?(?:www\.)?(?:wa\.me/|(?:(?:api|web)\.whatsapp\.com/|whatsapp://)send/?\?(?:[^\s,;|]*&)?phone=)"
    r"(?:\+|%2B)?([1-9]\d+)/?(?:[?&#](?!\S*(?:wa\.me|phone=))[^\s,;|]*)?",
    re.IGNORECASE,
)
_OTHER_WHATSAPP_IDS = {
    "@g.us": "it is the id of a WhatsApp group",
    "@lid": "it is a hidden WhatsApp id (@lid), which does not contain the number",
    "@broadcast": "it is the id of a WhatsApp broadcast list",
    "@newsletter": "it is the id of a WhatsApp channel",
}
_QUOTES = "\"'`´‘’“”„«»＇＂ "
# A word after the number: +886 911 425 977 (work).
_LABEL = re.compile(r"\s*[(（]\s*[^\W\d_][^()（）\d]*[)）]$")
# Separators within a number, including the dashes of Unicode and of East Asian keyboards. Without the comma,
# because it separates numbers, and two numbers must not become one.
_DASHES = r"\-‐‑‒–—―−ー－"
_WRITTEN = re.compile(r"\(?\s*([+＋]?)[\s\d()（）\[\]［］.．·・/／" + _DASHES + "]*")
_FLOAT = re.compile(r"(\d{5,})[.,]0+")
_SCIENTIFIC = re.compile(r"([+-]?\d+)(?:[.,](\d*))?\s*[eE]\s*(\+?\d{1,2})")
# A date is not a number, although with a default region most dates would be possible numbers.
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_DATE = re.compile(rf"(?:19|20)\d\d([-./]){_DAY}\1{_DAY}|{_DAY}([-./]){_DAY}\2(?:19|20)\d\d")
_AMOUNT = re.compile(r"[1-9]\d{4,}\.\d\d?")
_GROUP = re.compile(r"\d+")
_NO_DIGITS = re.compile(r"\D+")
# After a line break, a slash, a dash with blanks or a bracket, another number or ending may begin.
_BREAK = re.compile(rf"[\n\r\t\v\f\x85\u2028\u2029/／(（\[［]|\s[{_DASHES}]|[{_DASHES}]\s")
_DASH_OR_DOT = re.compile(rf"[{_DASHES}.．·・]")
_FEWEST_DIGITS = 6  # of a complete number: 01 2345 in Vienna
_LONGEST_ENDING = 4
# Lines are numbered as 1. or 2) before a phone number; an area code can be written as 06. or (02).
_LINE_NUMBER = re.compile(r"\s*[1-9１-９]\d{0,3}(?:\s*[.．]?[)）]|[.．]\s)")
_ZERO = re.compile(r"[(（]\s*0\s*[)）]")
_PAIR = 2  # digits: 08-12 34 56-91 changes its separator for the ending
# A cell can be as long as a file, so each pattern for a whole cell takes time in proportion to its length:
# what was repeated is never given back (*+), and a run of blanks is tried only from its first one.
_EXTENSION = re.compile(
    r"[^#;,a-z\d]*+\d[^#;,a-z]*+[#;,]*\s*(?:ext(?:ension)?|extn|x|#)[.:=\s]*\d+", re.IGNORECASE
)
_BLANKS = r"(?<!\s)\s+"
_ANY_BLANKS = rf"(?:{_BLANKS})?"
# Spreadsheets and address books add byte-order marks, soft hyphens, zero-width and direction marks.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x61C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]
)
# Changed numbering plans: Mexico dropped the 1 of mobiles in 2019, Ivory Coast (2021) and Benin (2024) went
# from 8 to 10 digits. For contacts who joined before, messengers still use the old form as id.
_FORMER = re.compile(r"\+(?:521\d{10}|225\d{8}|229\d{8})")

_MORE_THAN_ONE = "it has more than one number, or alternative endings: write each number in full"
_NUMBERED = "its first digits may be the number of a line: leave them out, or write it as +886911425977"
_NO_ZERO = "no number of its country has the (0) that it begins with: leave out the 0"
_INCOMPLETE = "it may lack its country or area code, which other numbers beside it have"
_NO_COUNTRY = "it has no country code; write it as +886911425977 or give a default country"
_OTHER_COUNTRY = (
    "it is not a number of the country whose code its row has: correct the code, or write the number as"
    " +886911425977"
)
_TWO_CODES = (
    "it may already begin with the country code of its row or of the default country: write it as"
    " +886911425977"
)
_UNCLEAR_COUNTRY = (
    "the country code of its row is not one, such as 886 or TW, or its row has several: correct it, or write"
    " the number as +886911425977"
)
_IMPOSSIBLE = {
    ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "it lacks its area code",
    ValidationResult.INVALID_COUNTRY_CODE: "there is no such country code",
    ValidationResult.TOO_SHORT: "it is too short for its country",
    ValidationResult.INVALID_LENGTH: "no number of its country has this length",
    ValidationResult.TOO_LONG: "it is too long for its country",
}
_OTHER_DIGITS = (
    "it is not a number of its country as it is written, and would be another one without some of its digits"
)
_UNPARSABLE = {NumberParseException.INVALID_COUNTRY_CODE: "there is no such country code"}


class _Plan(NamedTuple):
    """The library's metadata of one country code.

    Attributes:
        lengths: The possible lengths of a number without the country code.
        national_prefix: What the library removes from the beginning of a number, also codes of carriers.
        dialled: What is usually dialled before a number within the country: ``0``.
    """

    lengths: frozenset[int]
    national_prefix: re.Pattern[str] | None
    dialled: str


def parse_phone(text: str, region: str | None = None) -> PhoneNumber:
    """Parse one phone number as people, spreadsheets and the gateway write it.

    Accepts ``+`` or ``00`` and the country code, a leading ``tel:`` or ``whatsapp:``, ids of WhatsApp
    contacts, quotes around the number, a label in parentheses after it, spaces, dashes, dots, slashes and
    parentheses, digits of any script, invisible characters, the ``.0`` of a number column that became a
    float, and scientific notation with all digits. Rejects letters (also vanity numbers), extensions, and
    ``8.86911E+11``, whose digits are lost, because any result would be a guess.

    Digits are joined over a separator only if the digits before it are not a number by themselves. So
    ``030/1234567`` is one number, and ``+886 2 2345 6789/90`` is rejected, because ``…90`` may be the ending
    of another one.

    Bare digits are ambiguous. Without `region` they begin with the country code, as the gateway writes
    numbers. With `region` they may be a national number or begin with any country code, and

    1. the national reading wins if the number is in a range that its country uses; if it begins with the
       region's own country code and the international reading is in use, too, it is rejected,
    2. else the international one, if it is in use or begins with the region's own country code,
    3. else the national one if it is possible, and finally the international one.

    So where the reading of another country is in use, too, the region wins, because the user chose it. A list
    that is entirely in the gateway's form is best read without a region.

    Args:
        text: One number.
        region: ISO 3166 letters, ``TW``; upper or lower case. Never changes a number that has a plus sign.

    Raises:
        InvalidPhoneNumber: It is not a possible number; the message shows only its length.
        UsageError: There is no such region.
    """
    if region is not None:
        region = parse_region(region)
    plain = _PLAIN.fullmatch(text)
    if plain and (plain[1] or region is None) and (phone := _as_it_stands(plain[2])):
        return phone
    has_plus, written = _read(text)
    has_code = has_plus or (region is not None and _begins_with_code(written, region))
    phone, reason = _interpret(_ascii_digits(written), None if has_code else region, has_plus=has_code)
    if phone is None:
        raise _rejection(text, reason)
    if not _is_one_number(phone, written, None if has_code else region):
        raise _rejection(text, _MORE_THAN_ONE)
    code = _country_code(phone[1:])
    if _ZERO.search(written) and phone.startswith(f"+{code}0") and not is_in_use(phone):
        raise _rejection(text, _NO_ZERO)
    if not has_plus and _is_numbered(phone, written, region):
        raise _rejection(text, _NUMBERED)
    return phone


def _begins_with_code(written: str, region: str) -> bool:
    """Return whether the first group is the region's country code, as in ``33 6 12 34 56 78``."""
    groups = list(_GROUP.finditer(written))
    code = str(phonenumbers.country_code_for_region(region))
    if len(groups) == 1 or _ascii_digits(groups[0][0]) != code:
        return False
    separators = [written[one.end() : other.start()] for one, other in itertools.pairwise(groups)]
    # Another separator, or one that divides numbers, may begin the ending of another number.
    if any(map(_BREAK.search, separators)) or len({*separators[1:]}) > 1:
        return False
    return is_in_use("+" + _ascii_digits(written))


def is_in_use(phone: str) -> bool:
    """Return whether an E.164 number is in a range that its country uses."""
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(phone))
    except NumberParseException:
        return False


def _interpret(number: str, region: str | None, *, has_plus: bool) -> tuple[PhoneNumber | None, str]:
    """Read ASCII digits as one number; else return the reason why that is impossible."""
    if has_plus or region is None:
        number = number if has_plus else number.removeprefix("00")
        if phone := _as_it_stands(number):
            return phone, ""
        found, reason = _parse_as_typed("+" + number)
    else:
        found, reason = _regional_reading(number, region)
    # Each reading removes one national prefix. Repeat until nothing changes: otherwise the text of a phone
    # would not parse as the same phone.
    first = previous = ""
    while found is not None:
        phone = PhoneNumber(phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.E164))
        first = first or phone
        if phone == previous or _as_it_stands(phone[1:]):
            # What else is left out, such as the code of a carrier, makes a number that the country uses.
            is_usual = _has_written_digits(phone, number) or (phone == first and is_in_use(phone))
            return (phone, "") if is_usual else (None, _OTHER_DIGITS)
        found, reason = _parse_as_typed(phone)
        previous = phone
    return None, reason


def _has_written_digits(phone: PhoneNumber, number: str) -> bool:
    """Return whether a phone has all written digits, except one prefix that is dialled within its country."""
    if number == phone[1:]:
        return True
    code = _country_code(phone[1:])
    national = phone[1 + len(code) :]
    plan = _plan(code)
    before = number.removesuffix(national)
    prefixes = {"0", plan.dialled if plan else ""} - {""}
    if plan and plan.national_prefix:
        # Earlier prefixes, such as 8 in Lithuania.
        prefixes |= {digit for digit in "0123456789" if plan.national_prefix.fullmatch(digit)}
    if any(before.endswith(one) and national.startswith(one) for one in prefixes):
        return False
    return before in {"", *prefixes} or before.endswith((code, *(code + one for one in prefixes)))


def _is_one_number(phone: PhoneNumber, written: str, region: str | None) -> bool:
    """Return whether all digits of a text belong to one number.

    The digits before each separator must not be a number by themselves: a number in use or, before a slash,
    any possible number unless only the longer one is in use. Because many countries have numbers of any
    length, spaces, dots and dashes are accepted where people usually group digits.
    """
    groups = list(_GROUP.finditer(written))
    if len(groups) == 1:
        return True
    code = _country_code(phone[1:])
    plan = _plan(code)
    total = sum(len(group[0]) for group in groups)
    before = 0
    for index, (group, following) in enumerate(itertools.pairwise(groups)):
        before += len(group[0])
        is_break = _BREAK.search(written, group.end(), following.start()) is not None
        if before < _FEWEST_DIGITS:
            # Islands have numbers of four and five digits, but Luxembourg writes 27 12 34 56.
            is_foreign = code != str(phonenumbers.country_code_for_region(region or ""))
            if region and (is_break or is_foreign) and _is_national(written[: group.end()], region):
                return False
            continue
        shorter = phone[: before - total]
        is_possible = plan is not None and len(shorter) - 1 - len(code) in plan.lengths
        if not is_possible or not is_in_use(shorter):
            # The digits may be a complete number whose 0 the library removes only if it ends here, or whose 8
            # (+7 800 123 45 67) only if more digits follow.
            complete = _ascii_digits(written[: group.end()])
            if region is not None:
                is_other = _is_national(complete, region)
            else:
                is_other = is_break and is_in_use("+" + complete.removeprefix("00"))
            if is_other or ((is_break or index == 0) and is_possible and not is_in_use(phone)):
                return False
            continue
        rest = _ascii_digits(written[group.end() :])
        separator = written[group.end() : following.start()]
        before_group = written[groups[index - 1].end() : group.start()]
        if (
            is_break
            or index == 0
            or not is_in_use(phone)
            # No country writes its last digit by itself.
            or len(rest) == 1 < len(group[0])
            or _begins_again(rest, shorter)
            or (
                _DASH_OR_DOT.search(separator)
                and (
                    (separator != before_group and len(group[0]) == _PAIR and len(rest) < _LONGEST_ENDING)
                    or (_is_ending(rest, group[0]) and not _is_usual(phone, groups))
                )
            )
        ):
            return False
    return True


def _is_numbered(phone: PhoneNumber, written: str, region: str | None) -> bool:
    """Return whether the first digits, as in ``2. 0911…``, are not part of the number that follows them."""
    groups = _GROUP.findall(written)
    number = _ascii_digits(written)
    first = len(groups[0])
    if len(groups) == 1 or first > _LONGEST_ENDING or number.startswith("00"):
        return False
    rest = number[first:]
    following, _ = _interpret(rest, region, has_plus=False)
    if following == phone:
        return False
    if _LINE_NUMBER.match(written):
        return True
    code = _country_code(phone[1:])
    if number == phone[1:] and first <= len(code):
        # No one divides a country code, except into single digits or pairs.
        return first not in {len(code), len(groups[1])}
    if is_in_use(phone):
        return False
    calling = str(phonenumbers.country_code_for_region(region or ""))
    is_complete = region is None or rest.startswith(("0", calling))
    return is_complete and following is not None and is_in_use(following)


def _is_national(written: str, region: str) -> bool:
    found, _ = _parse_as_typed(_ascii_digits(written), region)
    return found is not None and phonenumbers.is_valid_number(found)


def _begins_again(rest: str, phone: str) -> bool:
    """Return whether the digits after a number are another one with its country code or area code."""
    if rest[0] == "0":
        return _is_national(rest, phonenumbers.region_code_for_number(phonenumbers.parse(phone)) or "ZZ")
    return is_in_use("+" + rest) and phone.startswith("+" + _country_code(rest))


def _is_ending(rest: str, group: str) -> bool:
    """Return whether digits look like the ending of another number rather than the next group of this one."""
    if len(rest) <= _LONGEST_ENDING:
        return len(rest) < len(group)
    return len(rest) == len(group)


def _is_usual(phone: PhoneNumber, groups: Sequence[re.Match[str]]) -> bool:
    """Return whether the last groups of digits are grouped as usual in the country."""
    usual = phonenumbers.format_number(
        phonenumbers.parse(phone), phonenumbers.PhoneNumberFormat.INTERNATIONAL
    )
    return _GROUP.findall(usual)[2:] == [group[0] for group in groups][-len(_GROUP.findall(usual)) + 2 :]


def parse_region(text: str) -> str:
    """Check the letters of a default region and return them in capitals."""
    region = text.strip().upper()
    if region not in REGIONS:
        hint = "GB" if region == "UK" else "TW"
        raise UsageError(f"There is no region {text[:20]!r}: use two letters of ISO 3166, such as {hint}.")
    return region


def digits(phone: PhoneNumber) -> str:
    """Return the number in the gateway's form: the country code first, no plus sign."""
    return phone[1:]


def mask(text: str) -> str:
    """Return a form for logs and errors: ``+886*******77``.

    Only a plus sign proves which digits are the country code, so bare digits keep only the last two. Text
    that is not a phone number may be a name or an address, so the form shows only its length.
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

    A hash without a key would hide nothing: hashing all phone numbers takes only minutes.
    """
    if not key:
        raise UsageError("Phone numbers cannot be hashed with an empty key: set one.")
    return hmac.digest(key, phone.encode("ascii"), "sha256").hex()


def _as_it_stands(number: str) -> PhoneNumber | None:
    """Return digits that the library would return unchanged; None for any others.

    The library uses the first country code that fits, strips a national prefix if one matches, and compares
    the length. If no prefix matches and the length is possible, the number stays the same.
    """
    code = _country_code(number)
    plan = _plan(code) if code else None
    if plan is None:
        return None
    national = number[len(code) :]
    if len(national) not in plan.lengths or (plan.national_prefix and plan.national_prefix.match(national)):
        return None
    return PhoneNumber("+" + number)


def _country_code(number: str) -> str:
    """Return the country code with which digits begin; none begins with 0, as national numbers do."""
    for width in (1, 2, 3):
        if _plan(number[:width]) is not None:
            return number[:width]
    return ""


@functools.cache
def _plan(code: str) -> _Plan | None:
    is_national = code.startswith("0")
    regions = None if is_national else phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(code or 0))
    metadata = PhoneMetadata.metadata_for_region_or_calling_code(int(code), regions[0]) if regions else None
    if metadata is None or metadata.general_desc is None:
        return None
    prefix = metadata.national_prefix_for_parsing
    return _Plan(
        frozenset(metadata.general_desc.possible_length),
        re.compile(prefix) if prefix else None,
        metadata.national_prefix or "",
    )


def _read(text: str) -> tuple[bool, str]:
    """Return whether the text certainly begins with a country code, and its digits and separators."""
    if len(text) > _MAX_CHARACTERS:
        raise _rejection(text, "it is too long")
    written = visible(text)
    if contact := _WHATSAPP_ID.fullmatch(written) or _WHATSAPP_LINK.fullmatch(written):
        return True, contact[1]
    has_scheme = _SCHEME.match(written)
    written = _LABEL.sub("", written[has_scheme.end() :] if has_scheme else written)
    if as_float := _FLOAT.fullmatch(written):
        written = as_float[1]
    elif scientific := _SCIENTIFIC.fullmatch(written):
        written = _all_digits(*scientific.groups("")) or written
    elif _DATE.fullmatch(written):
        raise _rejection(text, "it looks like a date")
    elif _AMOUNT.fullmatch(written):
        raise _rejection(text, "it is an amount with decimals, or more than one number")
    form = _WRITTEN.fullmatch(written)
    if form is None:
        raise _rejection(text, _why_unreadable(written))
    if not _GROUP.search(written):
        raise _rejection(text, "it has no digits")
    return bool(form[1]), written


def visible(text: str) -> str:
    """Return the text without invisible characters, quotes and the equals sign of spreadsheets."""
    return text.translate(_INVISIBLE).strip().removeprefix("=").strip(_QUOTES)


def _has_extension(written: str) -> bool:
    """Return whether the text is a number with an extension."""
    return _EXTENSION.fullmatch(_SCHEME.sub("", written, count=1)) is not None


def _ascii_digits(written: str) -> str:
    if written.isascii():
        return _NO_DIGITS.sub("", written)
    return "".join(str(int(char)) for char in written if char.isdecimal())


def _all_digits(whole: str, fraction: str, exponent: str) -> str | None:
    """Return the integer in scientific notation, or None if the notation does not show all its digits."""
    shift = int(exponent)
    if len(fraction) < shift or fraction[shift:].strip("0") or whole.startswith("-"):
        return None
    return whole + fraction[:shift]


def _why_unreadable(written: str) -> str:
    for suffix, reason in _OTHER_WHATSAPP_IDS.items():
        if written.lower().endswith(suffix):
            return reason
    if _SCIENTIFIC.fullmatch(written):
        return (
            "a spreadsheet rounded it to a form like 8.9E+11, or calculated with it, and its digits are lost:"
            " export the column as text"
        )
    if _has_extension(written):
        return "it has an extension, and conversations belong to numbers without one"
    if any(char.isalpha() for char in written):
        return "it has letters"
    return "it has characters that phone numbers do not have, or more than one number"


def _parse_as_typed(text: str, region: str | None = None) -> tuple[phonenumbers.PhoneNumber | None, str]:
    """Parse digits with a plus sign, or by the rules of a region; else return the reason why not."""
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
    national, reason = _parse_as_typed(number, region)
    without_prefix = number.removeprefix("00")
    # No country code begins with 0, so most national numbers are decided here.
    if without_prefix.startswith("0"):
        return national, reason
    is_own = number.startswith(str(phonenumbers.country_code_for_region(region)))
    if national is not None and phonenumbers.is_valid_number(national):
        is_double = is_own and str(national.national_number) == number and is_in_use("+" + number)
        return (None, _TWO_CODES) if is_double else (national, reason)
    international, _ = _parse_as_typed("+" + without_prefix)
    if international is None:
        return national, reason
    if national is None or is_own or phonenumbers.is_valid_number(international):
        return international, ""
    return national, ""


def _shape(text: str) -> str:
    count = sum(char.isdigit() for char in text)
    return f"<text of length {len(text)} with {count} digit{'s' * (count != 1)}>"


def _rejection(text: str, reason: str) -> InvalidPhoneNumber:
    """Return the error with the reason why a text is not a phone number; it shows only its length."""
    return InvalidPhoneNumber(f"{_shape(text)} is not a phone number: {reason}.")


# -- several numbers in one text -----------------------------------------------------------------

# What separates numbers and is never part of one. A plus sign begins a number.
_BETWEEN = re.compile(
    _ANY_BLANKS + r"(?::::|[,;|&、，；｜\r\n\t\v\f\x85\u2028\u2029])\s*|(?<=[\d)）])\s*(?=[(（]?[+＋])"
)
# A link can contain a message, whose numbers are not those of the list.
_LINK = re.compile(r"wa\.me/|whatsapp\.com/|whatsapp://", re.IGNORECASE)
_BETWEEN_LINKS = re.compile(r"[\s,;|]+(?:[/&]\s+)?")
# Separators that can also be part of a number, so all pieces must be complete numbers. A slash without blanks
# comes last, because one cell can have it in both roles: 030/1234567 / 030/7654321.
_PERHAPS_BETWEEN = (
    re.compile(_BLANKS + r"[/／]\s+"),
    re.compile(rf"{_BLANKS}[{_DASHES}]+\s+"),
    re.compile(_BLANKS + r"(?=[(（]?0)"),
    re.compile(
        _BLANKS + r"(?:or|and|oder|und|ou|et|o|y|e|u|i|en|of|или|и)\s+"
        rf"|{_ANY_BLANKS}(?:<br\s*/?>|[或和及\\•])\s*",
        re.IGNORECASE,
    ),
    re.compile(_ANY_BLANKS + r"[/／]\s*"),
)
_AND = re.compile(r"[+＋]\s")
_CODE = re.compile(r"\(?(?:[+＋]|00)?\s?([1-9]\d{0,2})\)?(?:\.0+)?")
_ENDING = re.compile(r"\d{1,4}")
_FIRST_GROUP = re.compile(r"[(（]?(?:[+＋]|00?)?\s*\d{1,4}[)）]?")
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


def parse_cell_of_row(
    text: str, codes: Sequence[str], region: str | None = None
) -> list[PhoneNumber | InvalidPhoneNumber]:
    """Read the phone numbers of a cell whose row has country codes in cells of their own.

    A number with ``+`` or ``00``, or of a WhatsApp contact, is read as it stands. Any other is read as in the
    country of the row, and is invalid if the country is unclear, if the number belongs to another one, or if
    it may also begin with the code already.

    Args:
        text: The cell with the numbers.
        codes: The filled cells with country codes, as for :func:`region_of_code`.
        region: The default region if there are none.

    Returns:
        As for :func:`parse_cell`.
    """
    if not codes:
        return parse_cell(text, region)
    regions = [region_of_code(code) for code in codes]
    callings = {phonenumbers.country_code_for_region(one or "") for one in regions}
    # It is 0 of an unknown region.
    calling = str(callings.pop() or "") if len(callings) == 1 else ""

    def check(piece: str, phone: PhoneNumber) -> PhoneNumber | InvalidPhoneNumber:
        has_plus, written = _read(piece)
        number = _ascii_digits(written)
        if has_plus or number.startswith("00"):
            return phone
        if not calling:
            return _rejection(piece, _UNCLEAR_COUNTRY)
        if not phone.startswith("+" + calling):
            return _rejection(piece, _OTHER_COUNTRY)
        is_double = phone != "+" + number and number.startswith(calling) and is_in_use("+" + number)
        return _rejection(piece, _TWO_CODES) if is_double else phone

    return [
        check(piece, result) if isinstance(result, str) else result
        for piece, result in _pieces(text, regions[0] if calling else None)
    ]


def region_of_code(text: str) -> str | None:
    """Return the region of a country code, written as ``49``, ``+49``, ``0049`` or ``DE``; else None."""
    written = visible(text)
    if code := _CODE.fullmatch(written):
        region = phonenumbers.region_code_for_country_code(int(code[1]))
    else:
        region = "GB" if written.upper() == "UK" else written.upper()
    # NA, Namibia, is also what many programs write for a missing value.
    return region if region in REGIONS and written.upper() != "NA" else None


def _pieces(text: str, region: str | None) -> list[_Piece]:
    try:
        return [(text, parse_phone(text, region))]
    except InvalidPhoneNumber as exc:
        error = exc
    written = visible(text)
    if _has_extension(written):
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
        if _is_divided(checked):
            return [(text, _rejection(text, _MORE_THAN_ONE))]
        return checked
    for between in _PERHAPS_BETWEEN:
        texts = [piece for piece in between.split(written) if piece]
        if len(texts) > 1 and (complete := _complete(texts, region)):
            return complete
    return [(text, error)]


def _is_divided(pieces: Sequence[_Piece]) -> bool:
    """Return whether a piece may be the ending of a number (``90``) or begin the next one (``+504``)."""
    rejected = ["" if isinstance(result, str) else piece for piece, result in pieces]
    return any(map(_ENDING.fullmatch, rejected)) or any(
        (_FIRST_GROUP.fullmatch(first) or _LINK.search(first))
        and isinstance(result, str)
        and not second.startswith(("+", "＋", "00"))
        for first, (second, result) in zip(rejected, pieces[1:], strict=False)
    )


def _is_after_and(begin: str, phone: PhoneNumber, region: str | None) -> bool:
    """Return whether the plus sign of a number may mean "and", as in ``131 2345 6789 + 131 2345 6837``."""
    if region is None or not _AND.match(begin):
        return False
    try:
        return parse_phone(begin.lstrip("+＋ "), region) != phone
    except InvalidPhoneNumber:
        return False


def _complete(texts: Sequence[str], region: str | None) -> list[_Piece]:
    """Return the numbers of all pieces; none if one of them is not a complete number."""
    pieces: list[_Piece] = []
    for text in texts:
        some = _pieces(text, region)
        # Most texts are not numbers, which their first piece shows.
        if not all(isinstance(result, str) for _, result in some):
            return []
        pieces += some
    checked = _checked(pieces, region)
    return checked if all(isinstance(result, str) for _, result in checked) else []


def _checked(pieces: list[_Piece], region: str | None) -> list[_Piece]:
    """Reject numbers that may be only the end of another one, as ``2345 6790`` after ``+886 …``."""
    longest = max((len(result) for _, result in pieces if isinstance(result, str)), default=0)

    def check(piece: str, phone: PhoneNumber) -> PhoneNumber | InvalidPhoneNumber:
        digits = sum(char.isdecimal() for char in piece)
        written = visible(piece)
        is_contact = _WHATSAPP_ID.fullmatch(written) or _WHATSAPP_LINK.fullmatch(written)
        begin = _SCHEME.sub("", written, count=1).lstrip("(（")
        is_explicit = region is None or is_contact or begin.startswith(("+", "＋", "0"))
        is_sure = digits >= _SURELY_A_NUMBER or is_in_use(phone)
        if is_sure and (is_explicit or len(phone) >= longest) and not _is_after_and(begin, phone, region):
            return phone
        return _rejection(piece, _INCOMPLETE)

    return [(piece, check(piece, phone) if isinstance(phone, str) else phone) for piece, phone in pieces]
