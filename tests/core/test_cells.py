"""Cells with one or several phone numbers: no separator ever makes a wrong number."""

from __future__ import annotations

import time
from itertools import product

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.phones import numbers
from imbrace_lake.phones.numbers import parse_cell, parse_cell_of_row, parse_phone

A, B = "+886911425977", "+886911425978"
# In these countries numbers have several lengths, so a longer number is possible too.
VARIABLE = {
    "DE": ["+49 30 1234567", "+49 30 12345", "+49 171 1234567", "+49 6789 12345"],
    "AT": ["+43 1 58058", "+43 1 2345678", "+43 664 1234567", "+43 5574 12345"],
    "IT": ["+39 06 6982", "+39 06 12345678", "+39 02 1234567", "+39 333 1234567"],
    "ID": ["+62 21 5551234", "+62 812 3456789", "+62 361 123456"],
    "BE": ["+32 2 633 12 34", "+32 475 12 34 56"],
    "MA": ["+212 522 12 34 56", "+212 661 12 34 56"],
    "TW": ["+886 2 2345 6789", "+886 4 723 4567", "+886 37 123 456"],
}
NUMBERS = [(region, number) for region, numbers in VARIABLE.items() for number in numbers]
FORMS = ["spaced", "compact", "national"]
SEPARATORS = [
    "/",
    " / ",
    "／",
    " - ",
    " – ",
    "-",
    "–",
    "－",
    " (",
    ", ",
    ",",
    ";",
    "; ",
    " ::: ",
    "\n",
    "|",
    " & ",
]


def numbers_of(text: str, region: str | None = None) -> list[str]:
    return [one for one in parse_cell(text, region) if isinstance(one, str)]


def reasons_of(text: str, region: str | None = None) -> list[str]:
    return [str(one) for one in parse_cell(text, region) if not isinstance(one, str)]


def written(number: str, region: str, form: str) -> str:
    """Write a number with its country code, without separators, or as within its country."""
    parsed = phonenumbers.parse(number)
    if form == "national":
        text = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL)
        return text.replace("-", " ")
    return number if form == "spaced" else number.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    [
        "+886 2 2345 6789/90",
        "+49 30 1234567/89",
        "+43 1 12345/67",
        "+49 30 12345 - 12349",
        "+49 30 12345-12349",
        "+49 30 1234567 (89)",
        "+49301234567.5",
        "886911425977.5",
        "43 1 2345 43 1 2346",
    ],
)
def test_an_alternative_ending_makes_the_cell_invalid_and_never_a_longer_number(text: str) -> None:
    assert numbers_of(text) == []
    assert "more than one number" in reasons_of(text)[0]


@pytest.mark.parametrize(
    ("text", "region", "phone"),
    [
        ("030/1234567", "DE", "+49301234567"),
        ("+49 (0)30/1234567", None, "+49301234567"),
        ("0171/1234567", "DE", "+491711234567"),
        ("06789/12345", "DE", "+49678912345"),
        ("05574/12345", "AT", "+43557412345"),
        ("01/58058", "AT", "+43158058"),
        ("02/633 12 34", "BE", "+3226331234"),
        ("0475/12.34.56", "BE", "+32475123456"),
        ("06/12345678", "IT", "+390612345678"),
        ("+39 02-1234-5678", None, "+390212345678"),
        ("021/5551234", "ID", "+62215551234"),
        ("0522/123456", "MA", "+212522123456"),
        ("05.22.12.34.56", "MA", "+212522123456"),
        ("02/2345-6789", "TW", "+886223456789"),
        ("(02) 2345-6789", "TW", "+886223456789"),
        ("+49 30 123 456 78", None, "+493012345678"),
        ("202/555-0123", "US", "+12025550123"),
        ("1/202/555/0123", None, "+12025550123"),
        ("33 6 12 34 56 78", "FR", "+33612345678"),
        ("(33) 6 12 34 56 78", "FR", "+33612345678"),
        ("41 78 123 45 67", "CH", "+41781234567"),
        ("971-50-123-4567", "AE", "+971501234567"),
        ("49 1512 3456789", "DE", "+4915123456789"),
    ],
)
def test_separators_within_one_number_are_accepted(text: str, region: str | None, phone: str) -> None:
    assert parse_cell(text, region) == [phone]


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("+7 800 123-45-67 (1)", None),
        ("+7 800 123-45-67 (1)", "RU"),
        ("37080012345 [2]", None),
        ("+39 02 1234 5678 2.", None),
        ("+55 800 12 3456 1", None),
        ("020-12 34 56 1", "SE"),
    ],
)
def test_a_single_last_digit_is_not_part_of_a_number(text: str, region: str | None) -> None:
    assert numbers_of(text, region) == []


def test_blanks_in_the_number_of_a_link_do_not_make_its_rest_another_number() -> None:
    assert numbers_of("whatsapp://send?phone=+1 201-555-0123") == []


@pytest.mark.parametrize(
    ("text", "region"), [("+376 (0) 18001234", None), ("+975(0)2345678", "BT"), ("+599 (0)3181234", None)]
)
def test_a_0_in_brackets_that_its_country_does_not_dial_is_not_a_digit(text: str, region: str | None) -> None:
    assert numbers_of(text, region) == []
    assert "leave out the 0" in reasons_of(text, region)[0]
    assert parse_cell("+39 (0)6 6982 1234") == ["+390669821234"]


def test_a_plus_sign_between_two_national_numbers_is_not_that_of_a_country_code() -> None:
    assert numbers_of("131 2345 6789 + 131 2345 6837", "CN") == ["+8613123456789"]
    assert numbers_of("(201) 555-0123 + (201) 555-0124", "US") == ["+12015550123"]
    assert numbers_of(f"{A} + 886 911 425 978", "TW") == [A, B]
    assert numbers_of("+ 852 6260 2239", "DE") == ["+85262602239"]


def test_digits_that_are_written_one_by_one_are_read() -> None:
    assert parse_cell("0 3 0 1 2 3 4 5 6 7", "DE") == ["+49301234567"]


@pytest.mark.parametrize(
    ("text", "region"), [("45 32 12 34-56", "DK"), ("47 40 61 23/45", "NO"), ("33 6 12 34 56 / 78", "FR")]
)
def test_another_separator_after_the_country_code_may_begin_an_ending(text: str, region: str) -> None:
    assert numbers_of(text, region) == []


@pytest.mark.parametrize("separator", [*SEPARATORS, " ", "-"])
@pytest.mark.parametrize(
    ("first", "second", "region"),
    [("20123", "20524", "TV"), ("31234", "31773", "FK"), ("62889", "62261", "AC")],
)
def test_numbers_of_five_digits_are_not_joined(first: str, second: str, region: str, separator: str) -> None:
    both = [parse_phone(first, region), parse_phone(second, region)]

    assert numbers_of(f"{first}{separator}{second}", region) in ([], both)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_one_to_four_digits_after_a_number_never_make_another_one(separator: str) -> None:
    # A dash may divide a number where its country does so, and only there.
    dashed = separator.strip() in "-–－" and separator == separator.strip()
    endings = ["9", "90", "901", *([] if dashed else ["9012"])]

    for (region, number), form, ending in product(NUMBERS, FORMS, endings):
        text = f"{written(number, region, form)}{separator}{ending}"

        found = numbers_of(text, region if form == "national" else None)

        assert set(found) <= {parse_phone(number)}, f"{region} {form} {text!r}"


@pytest.mark.parametrize("separator", [*SEPARATORS, " ", "  ", "\t"])
def test_a_cell_with_two_numbers_gives_both_or_none(separator: str) -> None:
    for (region, number), form in product(NUMBERS, FORMS):
        for other in VARIABLE[region]:
            both = f"{written(number, region, form)}{separator}{written(other, region, form)}"

            found = numbers_of(both, region if form == "national" else None)

            assert found in ([], [parse_phone(number), parse_phone(other)]), f"{region} {form} {both!r}"


@pytest.mark.parametrize(
    "separator", [", ", " / ", "/", "; ", ";", " ::: ", "\n", "\r\n", " | ", " & ", " ", " - "]
)
@pytest.mark.parametrize(
    ("first", "second", "region"),
    [
        (A, B, None),
        ("+886 911 425 977", "+886 911 425 978", None),
        ("0911425977", "0911425978", "TW"),
        ("0911-425-977", "0911-425-978", "TW"),
        ("whatsapp:+886911425977", "+886911425978", None),
    ],
)
def test_a_cell_with_two_complete_numbers_gives_both(
    first: str, second: str, region: str | None, separator: str
) -> None:
    assert parse_cell(f"{first}{separator}{second}", region) == [A, B]


def test_numbers_without_a_plus_sign_and_of_fixed_length_are_distinguished_too() -> None:
    assert parse_cell("886911425977, 886911425978") == [A, B]
    assert parse_cell("202-555-0123 / 202-555-0124", "US") == ["+12025550123", "+12025550124"]
    assert parse_cell(f"{A}{B}") == [A, B]
    assert parse_cell(f"{A} ::: ") == [A]


def test_a_shorter_number_after_a_hint_is_complete_if_it_has_its_country_code() -> None:
    assert parse_cell(f"M: {A}, T: +88637123456", "TW") == [A, "+88637123456"]
    assert parse_cell(f"tel:{A}; tel:037123456", "TW") == [A, "+88637123456"]


def test_a_piece_that_is_not_a_number_is_reported_and_the_others_are_read() -> None:
    assert numbers_of(f"{A}, Anna; {B}") == [A, B]
    assert numbers_of(f"+886, {A}") == [A]
    assert ["letters" in reason for reason in reasons_of(f"{A}, Anna; {B}")] == [True]
    # With the area code of the region it would be a number that is not in the cell.
    assert numbers_of("+886 2 2345 6789, 2345 6790", "TW") == ["+886223456789"]
    assert "lack its country or area code" in reasons_of("+886 2 2345 6789, 2345 6790", "TW")[0]


@pytest.mark.parametrize(
    "text",
    [
        "123456,78",
        "2345,6789012",
        "886,911,425,977",
        "+350,57123456",
        "00591,71234567",
        "01512,3456789",
        "(0171), 2345678",
        "Anna, Berta",
    ],
)
def test_a_comma_within_a_number_does_not_divide_it(text: str) -> None:
    assert numbers_of(text, "DE") == []
    assert len(reasons_of(text, "DE")) == 1


@pytest.mark.parametrize("line", ["1. ", "2) ", "3.) ", "10. ", "25. ", "100. ", "１． "])
@pytest.mark.parametrize("form", [*FORMS, "digits"])
def test_the_number_of_a_line_never_becomes_part_of_a_phone_number(line: str, form: str) -> None:
    for region, some in VARIABLE.items():
        for number in some:
            text = parse_phone(number)[1:] if form == "digits" else written(number, region, form)
            for default in (region,) if form == "national" else (None, region):
                found = numbers_of(line + text, default)

                assert set(found) <= {parse_phone(number)}, f"{default} {line + text!r}"


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("2. 0664 123456", "AT"),  # and not in Egypt
        ("1 0911 425 977", "TW"),
        ("12. 4915112345678", "DE"),
        ("4 4930123456", None),
        ("886. 911425977", None),
    ],
)
def test_digits_before_a_number_are_reported(text: str, region: str | None) -> None:
    assert "may be the number of a line" in reasons_of(text, region)[0]


@pytest.mark.parametrize(
    ("text", "region", "phone"),
    [
        ("1. 202 555 0123", "US", "+12025550123"),
        ("1 (202) 555-0123", "DE", "+12025550123"),
        ("8 (912) 345-67-89", "RU", "+79123456789"),
        ("06. 12. 34. 56. 78", "FR", "+33612345678"),
        ("333 0123456", "IT", "+393330123456"),
        ("11 - 91234 - 5678", "BR", "+5511912345678"),
        ("44 020 7946 0958", None, "+442079460958"),
        ("88 69 11 42 59 77", None, A),
        ("8 8 6 9 1 1 4 2 5 9 7 7", None, A),
        ("011 886 911 425 977", "US", A),
    ],
)
def test_a_short_first_group_may_belong_to_the_number(text: str, region: str | None, phone: str) -> None:
    assert parse_cell(text, region) == [phone]


@pytest.mark.parametrize("text", [f"{A};ext=5", f"{A} ext. 5", f"{A}#5"])
def test_an_extension_makes_the_whole_cell_invalid(text: str) -> None:
    assert numbers_of(text) == []
    assert "extension" in reasons_of(text)[0]


@pytest.mark.parametrize(
    "text",
    [
        "8.86911425977E11",
        "8.86911425977e+11",
        "8,86911425977E+11",
        "8.869114259770E11",
        "88691142597.7E1",
        "886911425977@s.whatsapp.net",
        "886911425977@c.us",
        "886911425977:12@s.whatsapp.net",
        "886911425977@C.US",
        "https://wa.me/886911425977",
        "+886 911 425 977 (work)",
        "+886911425977 （手機）",
    ],
)
@pytest.mark.parametrize("region", [None, "TW"])
def test_a_notation_with_all_digits_is_a_number(text: str, region: str | None) -> None:
    assert parse_cell(text, region) == [A]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8.86912E+11", "its digits are lost"),
        ("8.8691142597E11", "its digits are lost"),
        ("8.869114259775E11", "its digits are lost"),
        ("-8.86911425977E11", "its digits are lost"),
        ("886911425977-1611111111@g.us", "WhatsApp group"),
        ("120363000000000000@g.us", "WhatsApp group"),
        ("886911425977@lid", "hidden WhatsApp id"),
        ("status@broadcast", "broadcast list"),
        ("123@newsletter", "WhatsApp channel"),
    ],
)
def test_text_that_is_not_a_number_is_reported_with_the_reason(text: str, reason: str) -> None:
    assert numbers_of(text) == []
    assert reason in reasons_of(text)[0]


@given(st.text("0123456789+-/(),; .", max_size=40), st.sampled_from([None, *VARIABLE]))
def test_no_text_gives_a_number_whose_digits_are_not_in_it(text: str, region: str | None) -> None:
    digits = "".join(filter(str.isdecimal, text))

    for phone in numbers_of(text, region):
        assert phone[-4:] in digits


@pytest.mark.parametrize(
    "separator", ["\v", "\f", "\x85", "\u2028", "\u2029", "｜", " \\ ", " • ", "<br>", " <br/> ", "或"]
)
@pytest.mark.parametrize("region", VARIABLE)
def test_rare_separators_divide_numbers_and_never_join_them(region: str, separator: str) -> None:
    first, second = VARIABLE[region][:2]

    assert parse_cell(f"{first}{separator}{second}") == [parse_phone(first), parse_phone(second)]
    for ending in ("9", "90", "901"):
        assert set(numbers_of(f"{first}{separator}{ending}")) <= {parse_phone(first)}


@pytest.mark.parametrize("word", ["or", "and", "oder", "und", "ou", "et", "o", "y", "или", "OR"])
def test_words_between_two_complete_numbers_divide_them(word: str) -> None:
    assert parse_cell(f"0911-425-977 {word} 0911-425-978", "TW") == [A, B]
    assert numbers_of(f"02-2345-6789 {word} 90", "TW") == []


@pytest.mark.parametrize(
    "link",
    [
        "https://wa.me/{}",
        "http://www.wa.me/{}/",
        "wa.me/+{}",
        "https://wa.me/{}?text=call%20+886911425999",
        "https://api.whatsapp.com/send?phone={}",
        "https://api.whatsapp.com/send/?phone={}&text&type=phone_number",
        "https://web.whatsapp.com/send?text=hi&phone=%2B{}",
        "whatsapp://send?phone=+{}",
    ],
)
@pytest.mark.parametrize("phone", ["+886911425977", "+12025550123", "+919876543210"])
@pytest.mark.parametrize("region", [None, "TW", "IN"])
def test_a_link_to_a_chat_contains_the_number_with_its_country_code(
    link: str, phone: str, region: str | None
) -> None:
    text = link.format(phone[1:])

    assert parse_cell(text, region) == [phone]
    for separator in (" ", ", ", ";", "\n"):
        assert parse_cell(f"{text}{separator}{link.format(B[1:])}", region) == [phone, B]
    assert numbers_of("wa.me/message/ABCD1234567", region) == []


@pytest.mark.parametrize(
    "label",
    [
        "Tel: ",
        "Tel. ",
        "Tel.: ",
        "Phone ",
        "Phone number: ",
        "phone no. ",
        "Phone #: ",
        "Work: ",
        "Work phone: ",
        "Home/Mobile: ",
        "Tel/WhatsApp: ",
        "Mobil: ",
        "tel://",
        "smsto:",
        "電話：",
        "手機:",
        "手機",
        "聯絡電話: ",
        "手机号：",
        "電話番号 ",
        "携帯電話：",
        "Móvil: ",
        "Mo\u0301vil: ",
        "Celular: ",
        "Teléfono ",
        "Tél. : ",
        "Mobile : ",
        "Telemóvel: ",
        "тел.",
        "Тел.: ",
        "Моб: ",
        "Τηλ.: ",
        "โทร. ",
        "SĐT: ",
        "휴대폰: ",
        "هاتف: ",
        "טלפון: ",
        "GSM ",
        "HP: ",
        "☎ ",
        "📞",
    ],
)
@pytest.mark.parametrize("extension", [";ext=12", " ext. 12", " x12", "#12"])
def test_a_label_before_a_number_is_left_out_but_not_its_extension(label: str, extension: str) -> None:
    assert parse_cell(f"{label}+886911425977") == [A]
    assert numbers_of(f"{label}+886911425977{extension}") == []
    assert numbers_of(f"{label}+886 2 2345 6789/90") == []
    assert numbers_of("Fax: +886911425977") == numbers_of("Tel/Fax: +886911425977") == []


def test_a_label_in_another_language_may_precede_a_national_number() -> None:
    assert parse_cell("тел. 8 (916) 123-45-67", "RU") == ["+79161234567"]
    assert parse_cell("Móvil: 612 34 56 78", "ES") == ["+34612345678"]
    assert parse_cell("手機0911425977", "TW") == [A]
    assert parse_cell("手機 0911-425-977、電話 02-2345-6789", "TW") == [A, "+886223456789"]


@pytest.mark.parametrize("quotes", ["''", "\u2019\u2019", "``", "\u201c\u201d", "\u201e\u201c", "«»"])
def test_quotation_marks_of_any_kind_are_left_out(quotes: str) -> None:
    assert parse_cell(f"{quotes[0]}{A}") == parse_cell(f"{quotes[0]}{A}{quotes[1]}") == [A]


@pytest.mark.parametrize("region", ["TW", "DE", "AT", "NO", "HK", "SG", "US"])
@pytest.mark.parametrize(
    "text",
    [
        "2024-01-02",
        "1980/12/31",
        "2024.1.2",
        "02.01.2024",
        "31/12/1999",
        "12/31/1999",
        "1-2-2024",
        "12345.67",
        "1711234567.5",
    ],
)
def test_dates_and_amounts_are_not_numbers_of_a_default_region(text: str, region: str) -> None:
    assert numbers_of(text, region) == []


@pytest.mark.parametrize("number", ["+46 8 12 34 56", "+352 27 12 34 56"])
@pytest.mark.parametrize("dash", ["-", "–"])
def test_a_dash_after_groups_with_blanks_begins_an_alternative_ending(number: str, dash: str) -> None:
    # The longer number exists, and is also written in groups of two digits.
    assert numbers_of(f"{number}{dash}91") == []
    assert numbers_of(f"{number} 91") == [parse_phone(f"{number}91".replace(" ", ""))]


def processor_seconds(text: str) -> float:
    start = time.process_time()
    parse_cell(text, "TW")
    return time.process_time() - start


@pytest.mark.parametrize("unit", ["9", " ", "5 ", "5/", "+886911425977 ", "0911425977 ", "5 - "])
def test_the_time_for_a_cell_grows_only_in_proportion_to_its_length(unit: str) -> None:
    short, long = (f"5{unit * (length // len(unit))}5" for length in (1_500, 12_000))

    of_short = min(processor_seconds(short) for _ in range(3))

    # In proportion is 8 times as long; with the square of the length, 64 times.
    assert any(processor_seconds(long) < 30 * of_short for _ in range(3))


@pytest.mark.parametrize(("separator", "region"), [("+", None), (" +", None), (" 0", "TW")])
def test_1500_numbers_in_one_cell_are_all_found(separator: str, region: str | None) -> None:
    code = "886" if region is None else ""
    text = "".join(f"{separator}{code}91142{number:04}" for number in range(1_500))

    assert numbers_of(text, region) == [f"+88691142{number:04}" for number in range(1_500)]


def test_a_long_cell_without_a_sure_separator_is_given_up_at_its_first_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []

    def counted(text: str, region: str | None = None) -> numbers.PhoneNumber:
        parsed.append(text)
        return parse_phone(text, region)

    monkeypatch.setattr(numbers, "parse_phone", counted)

    assert "it is too long" in reasons_of("5 / 5 - 5 or 0/5 " * 100, "TW")[0]
    assert len(parsed) < 100


@pytest.mark.parametrize(
    ("text", "codes", "phones"),
    [
        ("15112345678", ["49"], ["+4915112345678"]),
        ("01511 2345678", ["+49"], ["+4915112345678"]),
        ("1511 2345678 / 1511 2345679", ["0049"], ["+4915112345678", "+4915112345679"]),
        ("911425977", ["tw"], [A]),
        ("0911-425-977", ["886.0"], [A]),
        ("886911425977", ["TW"], [A]),
        ("9198765432", ["IN"], ["+919198765432"]),
        ("416-555-0123", ["1"], ["+14165550123"]),
        ("7911 123456", ["UK"], ["+447911123456"]),
        ("0612345678", ["(+39)"], ["+390612345678"]),
        ("15112345678", ["49", "DE"], ["+4915112345678"]),
        ("0911425977", [], [A]),
        # These state their country, and the code is not added.
        (A, ["49"], [A]),
        (A, ["?"], [A]),
        ("00886911425977", ["US"], [A]),
        ("wa.me/886911425977", ["49"], [A]),
        (f"0911425978, {A}", ["886"], [B, A]),
    ],
)
def test_a_number_is_read_with_the_country_code_of_its_row(
    text: str, codes: list[str], phones: list[str]
) -> None:
    assert parse_cell_of_row(text, codes, "TW") == phones


@pytest.mark.parametrize(
    ("text", "codes", "reason"),
    [
        ("15112345678", ["Germany"], "is not one"),
        ("15112345678", ["NA"], "is not one"),
        ("15112345678", ["999"], "is not one"),
        ("15112345678", ["49", "FR"], "has several"),
        ("12025550123", ["886"], "not a number of the country"),
        ("4915112345678", ["49"], "may already begin"),
        ("Anna", ["49"], "it has letters"),
    ],
)
def test_a_number_is_not_guessed_if_the_country_code_of_its_row_does_not_suit_it(
    text: str, codes: list[str], reason: str
) -> None:
    (found,) = parse_cell_of_row(text, codes, "TW")

    assert reason in str(found)
