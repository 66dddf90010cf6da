"""Phone numbers: accepted and rejected notations, and the masks that logs show."""

from __future__ import annotations

import re

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.errors import InvalidPhoneNumber, UsageError
from imbrace_lake.phones.numbers import (
    PhoneNumber,
    digits,
    is_in_use,
    mask,
    parse_phone,
    parse_region,
    phone_hash,
)

REGIONS = sorted(
    region for region in phonenumbers.SUPPORTED_REGIONS if phonenumbers.example_number(region) is not None
)
CODES = sorted(str(code) for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE)
TAIWAN = "+886911425977"
FORMER = re.compile(r"\+(521\d{10}|225\d{8}|229\d{8})")


def as_the_library_reads(text: str, region: str | None = None) -> str | None:
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    phone = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    result = phonenumbers.is_possible_number_with_reason(number)
    if result != phonenumbers.ValidationResult.IS_POSSIBLE and not FORMER.fullmatch(phone):
        return None
    # The library removes one national prefix at a time.
    return phone if phone == text else as_the_library_reads(phone)


def has_all_digits(phone: str | None, written: str) -> bool:
    """Return whether a phone has all written digits but for one national prefix; None has."""
    if phone is None or phone == written:
        return True
    number = phonenumbers.parse(phone)
    national = phonenumbers.national_significant_number(number)
    before = written.removesuffix(national).removeprefix("+").removeprefix(str(number.country_code))
    return before in ("", "0", "1", "8", "06") and not (before and national.startswith(before))


def parsed(text: str, region: str | None = None) -> str | None:
    try:
        return parse_phone(text, region)
    except InvalidPhoneNumber:
        return None


@pytest.mark.parametrize(
    "text",
    [
        "+886911425977",
        "886911425977",
        "00886911425977",
        "+886 911-425.977",
        "+886 (0)911/425977",
        "(+886) 911 425 977",
        "(886) 911 425 977",
        "tel:+886-911-425-977",
        "WhatsApp:+886911425977",
        "whatsapp: 886911425977",
        "p:+886911425977",  # as Meta exports leads
        "T: +886 911 425 977",
        "Ph. +886911425977",
        "＋８８６（９１１）４２５－９７７",
        "\ufeff+886\u00a0911\u200b425\u2011977\u202c",
        "  +886911425977\r\n",
        "'+886911425977",
        '="886911425977"',
        "886911425977.0",
        "886911425977,00",
    ],
)
def test_every_usual_way_to_write_a_number_with_its_country_code_is_read(text: str) -> None:
    assert parse_phone(text) == TAIWAN


def test_digits_of_any_script_are_read() -> None:
    assert parse_phone("٩٦٦٥٠١٢٣٤٥٦٧") == "+966501234567"


@pytest.mark.parametrize("text", ["0911425977", "0911-425-977", "911425977", "002 886 911425977", TAIWAN])
def test_a_default_region_completes_national_numbers(text: str) -> None:
    assert parse_phone(text, "tw") == TAIWAN


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        # Only the national reading is possible, or only the international one.
        ("911425977", "TW", "+886911425977"),
        ("00886911425977", "TW", "+886911425977"),
        # The national number exists: the region was given, so it wins over +91 98765432.
        ("9198765432", "IN", "+919198765432"),
        ("886911425977", "DE", "+49886911425977"),
        # Eleven digits are possible in Taiwan but in none of its ranges; the United States have such a range.
        ("12025550123", "TW", "+12025550123"),
        # Neither exists; the region's country code decides, then the region.
        ("85212345678", "HK", "+85212345678"),
        ("5551234567", "US", "+15551234567"),
    ],
)
def test_bare_digits_with_a_region_are_read_by_the_documented_order(
    text: str, region: str, expected: str
) -> None:
    assert parse_phone(text, region) == expected


@pytest.mark.parametrize(
    ("text", "region"),
    [("4915123456789", "DE"), ("62812345678", "ID"), ("468123456", "SE"), ("318001234", "NL")],
)
def test_bare_digits_that_may_begin_with_the_code_of_the_region_are_rejected(text: str, region: str) -> None:
    with pytest.raises(InvalidPhoneNumber, match="may already begin with the country code"):
        parse_phone(text, region)

    assert parse_phone(text) == parse_phone("00" + text, region) == "+" + text
    assert is_in_use(parse_phone("0" + text, region))


@pytest.mark.parametrize("text", ["+5215512345678", "5215512345678", "+22507123456", "+22961123456"])
def test_former_notations_that_messengers_keep_are_accepted(text: str) -> None:
    assert parse_phone(text) == "+" + text.removeprefix("+")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no digits"),
        ("+", "no digits"),
        ("Anna Kowalska", "letters"),
        ("+1 800 FLOWERS", "letters"),
        ("+886911425977 ext. 5", "extension"),
        ("+886911425977;ext=5", "extension"),
        ("+886911425977#5", "extension"),
        ("8.86911E+11", "spreadsheet"),
        ("8,86911e11", "spreadsheet"),
        ("886911425977, 886922425977", "more than one"),
        ("+886911425977+886922425977", "more than one"),
        ("0911425977", "default country"),
        ("+0911425977", "default country"),
        ("+999123456789", "no such country code"),
        ("+1 310 1234", "area code"),
        ("+659123", "too short"),
        ("+8869", "too few or too many"),
        ("+8869114259770000", "too long"),
        ("+336123456789", "too long"),
        ("+852123456789012", "too long"),
        ("+4712345678" * 30, "too long"),
        ("+471234567", "no number of its country has this length"),
    ],
)
def test_text_that_is_not_a_number_is_rejected_with_the_reason_and_without_the_text(
    text: str, reason: str
) -> None:
    with pytest.raises(InvalidPhoneNumber) as caught:
        parse_phone(text)

    sentence = str(caught.value)
    assert reason in sentence
    assert len(text) < 2 or text not in sentence
    assert not re.search(r"911|425|977|Kowalska", sentence.replace("+886911425977 or", ""))


@pytest.mark.parametrize("text", ["XX", "UK", "886", "", "001"])
def test_an_unknown_region_is_rejected_even_if_it_is_not_needed(text: str) -> None:
    with pytest.raises(UsageError, match="There is no region"):
        parse_phone(TAIWAN, text)


def test_the_region_is_returned_in_capitals() -> None:
    assert parse_region(" tw ") == "TW"


@given(
    st.sampled_from(REGIONS),
    st.sampled_from(
        [
            phonenumbers.PhoneNumberFormat.E164,
            phonenumbers.PhoneNumberFormat.INTERNATIONAL,
            phonenumbers.PhoneNumberFormat.NATIONAL,
            phonenumbers.PhoneNumberFormat.RFC3966,
        ]
    ),
    st.sampled_from([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE]),
)
def test_a_number_is_read_from_every_notation_of_its_country(region: str, form: int, kind: int) -> None:
    number = phonenumbers.example_number_for_type(region, kind)
    if number is None:
        return
    written = phonenumbers.format_number(number, form)

    phone = parsed(written, region)

    # Numbers that the library cannot read from its own notation are left out.
    expected = as_the_library_reads(written, region)
    assert phone == expected or expected is None


@given(st.sampled_from(CODES), st.text("0123456789", min_size=3, max_size=16))
def test_digits_after_a_plus_sign_are_read_as_by_the_library(code: str, national: str) -> None:
    number = f"+{code}{national}"
    expected = as_the_library_reads(number)

    assert parsed(number) == expected or not has_all_digits(expected, number)


@pytest.mark.parametrize("zeros", range(5, 14))
def test_zeros_after_a_country_code_stay_or_make_the_number_invalid(zeros: int) -> None:
    # Numbers of Taiwan have seven to nine digits: the library reads nine zeros as eight, and these as seven.
    numbers = [f"+{code}{'0' * zeros}{rest}" for code in CODES for rest in ("", "1")]

    read = {number: parsed(number) for number in numbers}

    changed = {number: phone for number, phone in read.items() if phone not in (number, None)}
    # Old numbers of Norfolk Island get another first digit.
    assert {number: phone for number, phone in changed.items() if not is_in_use(phone)} == {}


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("+886000000000", None),
        ("886000000000", None),
        ("+886 00 911 425 977", None),
        ("840026415539", "HR"),
        ("0000348002", "FR"),
    ],
)
def test_a_number_that_needs_several_leading_digits_removed_is_invalid(text: str, region: str | None) -> None:
    with pytest.raises(InvalidPhoneNumber, match="would be another one"):
        parse_phone(text, region)


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("+886 0 911 425 977", None, TAIWAN),
        ("+370 8 612 34567", None, "+37061234567"),
        ("+7 8 800 555 35 35", None, "+78005553535"),
        ("011 15-2345-6789", "AR", "+5491123456789"),
        ("015 11 2345 6789", "BR", "+551123456789"),
        ("886377", "SM", "+3780549886377"),
    ],
)
def test_a_prefix_that_is_dialled_within_the_country_is_left_out(
    text: str, region: str | None, expected: str
) -> None:
    assert parse_phone(text, region) == expected


@given(st.sampled_from(REGIONS), st.text("0123456789", min_size=4, max_size=12))
def test_a_number_dialled_with_a_leading_0_is_read_as_by_the_library(region: str, rest: str) -> None:
    if rest.startswith("0"):
        return

    expected = as_the_library_reads("0" + rest, region)

    assert parsed("0" + rest, region) == expected or not has_all_digits(expected, "0" + rest)


@given(st.sampled_from(REGIONS), st.text("0123456789", min_size=6, max_size=13))
def test_parsing_is_idempotent_and_a_region_never_changes_a_number_with_a_plus_sign(
    region: str, text: str
) -> None:
    phone = parsed(text, region)
    if phone is None:
        return

    assert parsed(phone) == parsed(phone, region) == phone


@given(st.text())
def test_any_text_is_either_a_phone_number_or_rejected(text: str) -> None:
    phone = parsed(text)

    assert phone is None or re.fullmatch(r"\+[1-9]\d{5,18}", phone)


@pytest.mark.parametrize("form", ["{}", "+{}", "({}", "+{} "])
def test_a_national_number_that_begins_with_0_is_not_completed_by_a_guess(form: str) -> None:
    kinds = phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE
    examples = [phonenumbers.example_number_for_type(region, kind) for region in REGIONS for kind in kinds]
    written = [f"0{number.national_number}" for number in examples if number is not None]
    texts = [form.format(text) for one in written for text in (one, f"{one[:4]} {one[4:]}")]

    read = {text: parsed(text) for text in texts}

    assert {text: phone for text, phone in read.items() if phone is not None} == {}


def test_the_gateway_gets_digits_without_the_plus_sign() -> None:
    assert digits(parse_phone(TAIWAN)) == "886911425977"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TAIWAN, "+886*******77"),
        ("whatsapp:+886 911 425 977", "+886*******77"),
        ("+12025550123", "+1********23"),
        ("＋886911425977", "+886*******77"),
        # Only a plus sign proves the country code.
        ("886911425977", "**********77"),
        # Too short to show even two.
        ("+4712345", "+47*****"),
        ("0911425977", "<text of length 10 with 10 digits>"),
        ("Anna Kowalska", "<text of length 13 with 0 digits>"),
        ("", "<text of length 0 with 0 digits>"),
        ("R2", "<text of length 2 with 1 digit>"),
    ],
)
def test_a_mask_shows_the_country_code_and_two_digits_or_only_the_length(text: str, shown: str) -> None:
    assert mask(text) == shown


@given(
    st.sampled_from(["+", "", "00", "tel:+", "＋"]),
    st.sampled_from(CODES),
    st.text("0123456789 -", max_size=18),
)
def test_no_four_digits_of_a_number_survive_its_mask(prefix: str, code: str, rest: str) -> None:
    text = prefix + code + rest

    shown = mask(text)

    if shown.startswith("<"):
        assert re.fullmatch(r"<text of length \d+ with \d+ digits?>", shown)
    else:
        visible = re.fullmatch(r"(?:\+(\d{1,3}))?\*{4,}(\d\d)?", shown)
        assert visible
        assert visible[1] in {None, code}


@given(st.text(st.characters(categories=["L", "P", "Z", "S"]), min_size=1))
def test_a_mask_of_other_text_contains_none_of_it(text: str) -> None:
    assert mask(text) == f"<text of length {len(text)} with 0 digits>"


def test_a_hash_is_stable_keyed_and_complete() -> None:
    phone = parse_phone(TAIWAN)

    assert phone_hash(phone, b"key") == "bf9f49a790576a2f377c8aaaa18bc9decb0e43d43ec2ea100942ea5f25e9ed6f"
    assert phone_hash(phone, b"key") != phone_hash(phone, b"other")
    assert phone_hash(phone, b"key") != phone_hash(PhoneNumber("+886911425978"), b"key")


def test_a_hash_without_a_key_is_rejected() -> None:
    with pytest.raises(UsageError, match="empty key"):
        phone_hash(parse_phone(TAIWAN), b"")
