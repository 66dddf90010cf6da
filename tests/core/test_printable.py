"""Foreign text is shown as plain, short text without phone numbers and secrets."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imbrace_lake.printable import (
    NAME_WITHOUT_NUMBERS,
    decimal,
    plural,
    printable,
    printable_address,
    printable_name,
    printable_request_id,
    without_numbers,
)

TOKEN = "api_5f0c1f4e-98a1-4a1b-8f1e-0123456789ab"


@given(st.text(max_size=300), st.integers(2, 120))
def test_any_text_becomes_short_and_harmless_in_markup_and_terminals(text: str, most: int) -> None:
    shown = printable(text, most=most)

    assert len(shown) <= most
    assert shown.isprintable()
    assert not set(shown) & set("<>&\"'`*[]()#|~!\\{}$^@\x1b\n\r\t")
    assert "://" not in shown


@given(
    st.integers(10**6, 10**15),
    st.sampled_from(["", " ", "-", ".", ") ", "\u2011", "\u2013", "\xa0", "\u202f"]),
    st.text(max_size=20),
)
def test_no_long_number_is_shown_in_any_notation(number: int, separator: str, around: str) -> None:
    written = separator.join(re.findall("..?", str(number)))

    shown = printable(f"{around}x{written}x{around}")

    assert str(number) not in shown
    assert not re.search(r"\d{7}", re.sub(r"\D", "", shown.removeprefix(around)[: len(written) + 2]))


@pytest.mark.parametrize(
    "text",
    [
        "text", "jaas.conference", "whatsapp.sticker", "message_template", "application/json", "größe",
        "org_5f0c1f4e-98a1-4a1b-8f1e-012345678912", "日本語",
    ],
)  # fmt: skip
def test_ordinary_names_are_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("most", [10, 80, 1_000])
def test_a_secret_is_hidden_even_if_the_text_is_cut_within_it(most: int) -> None:
    for start in range(most):
        shown = printable("y" * start + TOKEN, most=most, secrets=[TOKEN])
        assert TOKEN[4:14] not in shown


@pytest.mark.parametrize("value", [None, 7, 1.5, True, {"886911425977": 1}, ["x"]])
def test_a_value_that_is_not_text_is_shown_by_its_type(value: object) -> None:
    assert printable(value) == type(value).__name__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@gate.example/3rd?x=886911425977#y", "https://gate.example/3rd"),
        ("http://192.168.100.200:8443/a/886911425977/b", "http://192.168.100.200:8443/a/…/b"),
        ("http://[2001:db8:1111:2222::1]:8443/a", "http://2001:db8:1111:2222::1:8443/a"),
        ("https://886911425977.example/a", "https://….example/a"),
        ("https://0911-425-977.example/a", "https://….example/a"),
        (f"https://{TOKEN.replace('_', '-')[4:]}.example/a", "https://….example/a"),
        ("/login?token=1", "/login"),
        ("//elsewhere.example/x", "elsewhere.example/x"),
        (f"https://x.example/{TOKEN}", "https://x.example/…"),
        ("https://x.example/<b>\x1b", "an unreadable address"),
        ("http://[::1", "an unreadable address"),
        ("", "/"),
    ],
)
def test_an_address_is_shown_without_user_query_number_and_secret(url: str, shown: str) -> None:
    assert printable_address(url, [TOKEN]) == shown


@given(st.text(max_size=200))
def test_any_address_is_shown_as_plain_text(url: str) -> None:
    assert not set(printable_address(url)) & set("<>&\"'`*[]()#|~!\\\x1b\n@")


@pytest.mark.parametrize(
    ("theirs", "is_kept"),
    [
        ("theirs-7", True), ("4f1a2b3c-1111-4222-8333-123456789012", True),
        ("Root=1-5759e988-bd862e3fe1be", True),
        ("ours-1", True), (None, False), ("", False), ("886911425977", False), ("r-8869114", False),
        ("a" * 101, False), ("a\nb", False), (TOKEN, False), (TOKEN[4:], False), (f"x{TOKEN.upper()}", False),
    ],
)  # fmt: skip
def test_a_request_id_is_kept_or_replaced(theirs: str | None, is_kept: bool) -> None:
    assert printable_request_id(theirs, "ours-1", [TOKEN]) == (theirs if is_kept else "ours-1")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("export 0988 752 959.csv", "export ….csv"),
        ("/lists/+886988752959.txt", "/lists/+….txt"),
        ("s3://bucket/886-911-425-977/a.csv", "s3://bucket/…/a.csv"),
        ("s3://0988752959/a.csv", "s3://…/a.csv"),
        ("20261127 425.csv", "….csv"),
        ("17958816001.csv", "….csv"),
        ("+1795881600.csv", "+….csv"),
        ("２０２６０９８８７５.csv", "….csv"),
        ("0911 - 425 - 977.csv", "….csv"),
        ("0911,425,977.csv", "….csv"),
        ("0911%20425%20977.csv", "….csv"),
        ("lists/886911/425977.csv", "lists/….csv"),
        ("(0911) - (425977)", "(…)"),
        ("0911:425:977", "…"),
        ("%30911%3D425=977", "…"),
        ("0911%425977", "…"),
        ("09;11*42|59&77", "…"),
        ("2026-11-27/0911/425/977.csv", "2026-11-27/….csv"),
    ],
)
def test_the_name_of_a_list_is_shown_without_phone_numbers(name: str, shown: str) -> None:
    assert without_numbers(name) == shown
    assert not re.search(NAME_WITHOUT_NUMBERS, name)


@pytest.mark.parametrize(
    "name",
    [
        "s3://bucket-123456789012-eu/customers_20261127.csv",
        "http://192.168.100.25:9000/2026-11-27-1530.csv",
        "export_20261127_153000.csv",
        "lists/1795881600/a.csv",
        "phones-1795881600123.csv",
        "part-00000-12345678-4f89-11d3-9a0c-0305e82c3301.csv",
        "1234567890abcdef1234567890abcdef.csv",
        "s3://bucket/2026/11/27/0001.csv",
        "lists/2026-11/27/part-0001.csv",
        "lists/2026/11/0001.csv",
        "C:\\lists\\2026\\11\\27\\a.csv",
        "2026-11-27T15:30:00.123456+08:00.csv",
        "a 2026-11-27 15%3A30%3A00.csv",
        "%E5%88%97%E8%A1%A8%E9%99%88.csv",
        "Q1 2025/2026",
        "Tel. (09:00 - 17:30)",
        "as of 27/11/2026",
        "2026年11月27日",
        "v1.43.117",
    ],
)
def test_days_times_hashes_and_servers_in_the_name_of_a_list_stay(name: str) -> None:
    assert without_numbers(name) == name
    assert re.search(NAME_WITHOUT_NUMBERS, name)


@pytest.mark.slow
@given(
    st.from_regex(r"[1-9][0-9]{7,14}|0[1-9][0-9]{7,9}", fullmatch=True),
    st.lists(st.integers(2, 5), min_size=1, max_size=6),
    st.one_of(
        st.text(" -./,:;=+()_*&|~#@!?\\'\"\u2013\u00a0\u3000\uff0d", max_size=4),
        st.sampled_from(["%20", "%2F", "%3a", "%20-%20", "%C2%A0", "%E2%80%93"]),
    ),
)
def test_digits_of_a_number_with_any_separator_are_masked(
    number: str, groups: list[int], separator: str
) -> None:
    parts: list[str] = []
    rest = number
    for size in groups:
        parts, rest = [*parts, rest[:size]], rest[size:]
    written = separator.join(part for part in [*parts, rest] if part)
    # A number can be written as a day or a time: 20260101, 2026/01/01.
    assume(not re.search(r"20[0-9]{2}|1[6-9]|[0-3]?[0-9]/[0-3]?[0-9]/|:|%3a", written))

    assert "…" in without_numbers(f"list {written}.csv")
    assert "…" in printable(f"list {written}.csv")
    assert not re.search(NAME_WITHOUT_NUMBERS, f"list {written}.csv")
    assert printable_request_id(written, "ours-1") == "ours-1"


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2033, 1, 1)),  # noqa: DTZ001
    st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%Y_%m_%d", "%Y%m%d-%H%M%S", "%Y-%m-%dT%H:%M:%S"]),
    st.sampled_from(["", "/part-0001", "/0001", " v1.2.3", "-eu"]),
)
def test_days_and_times_stay_in_names(moment: datetime, form: str, after: str) -> None:
    name = f"s3://bucket/lists/{moment.strftime(form)}{after}.csv"

    assert without_numbers(name) == name
    assert re.search(NAME_WITHOUT_NUMBERS, name)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0000186, "0.0000186"),
        (1.5, "1.5"),
        (123_456, "123,000"),
        (2 / 3, "0.667"),
        (1_000, "1,000"),
    ],
)
def test_a_number_for_people_has_no_exponent(value: float, shown: str) -> None:
    assert decimal(value) == shown


@pytest.mark.parametrize(
    ("count", "many", "shown"),
    [
        (0, None, "0 parts"),
        (1, None, "1 part"),
        (1_000, None, "1,000 parts"),
        (1, "parts differ", "1 part"),
        (2, "parts differ", "2 parts differ"),
    ],
)
def test_a_count_has_its_form_of_the_noun(count: int, many: str | None, shown: str) -> None:
    assert plural(count, "part", many) == shown


@pytest.mark.parametrize(
    "name", ["is_mail", "quickReplies", "whatsapp.sticker", "x-id", "_id", "a", "application/json"]
)
def test_the_name_of_a_field_is_shown(name: str) -> None:
    assert printable_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("What is your name? Ann", "Ann Lee", "größe", "a" * 41, "", "ann@example.com", "a\nb"),
        *(f"{prefix}0e4c72ba-5f1d-4b7e-9a33-d18f6c2b9e50" for prefix in ("", "api_", "u_")),
    ],
)
def test_a_key_that_is_rather_data_is_only_counted(name: str) -> None:
    assert printable_name(name) == f"(a name of {plural(len(name), 'character')})"
