"""Settings from flags, the environment and a `.env`, in that order; an error is one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from imbrace_lake.errors import SettingsError
from imbrace_lake.settings import PRODUCTION, Settings, load_settings, unknown_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Remove all settings from the environment."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"IMBRACE_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SECRET = "api_secret-never-to-be-shown"
TOKEN = "api_00000000-0000-4000-8000-000000000000"


def test_flags_win_over_the_environment_and_the_environment_over_the_file(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / ".env").write_text("IMBRACE_ORGANIZATION=of-file\nIMBRACE_REGION=TW\nIMBRACE_TRIES=9\nOTHER=1\n")
    monkeypatch.setenv("IMBRACE_ORGANIZATION", "of-environment")
    monkeypatch.setenv("IMBRACE_TRIES", "8")

    settings = load_settings(tries=7, region=None)

    assert (settings.tries, settings.organization, settings.region) == (7, "of-environment", "TW")
    assert settings.gateway == PRODUCTION


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tries": "many"}, "IMBRACE_TRIES: it must be a whole number"),
        ({"tries": 0}, "IMBRACE_TRIES: input should be greater than or equal to 1"),
        ({"page_size": 5_000}, "IMBRACE_PAGE_SIZE: input should be less than or equal to 1000"),
        ({"requests_per_second": 0}, "IMBRACE_REQUESTS_PER_SECOND: input should be greater than 0"),
        ({"phone_key": SECRET[:5]}, "IMBRACE_PHONE_KEY: it must have at least 16 characters"),
        ({"timeout_seconds": "soon"}, "IMBRACE_TIMEOUT_SECONDS: it must be a number"),
    ],
)
def test_the_error_of_an_invalid_value_names_the_setting_and_not_the_value(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**given)

    assert str(caught.value).startswith(sentence)
    assert not any(str(value) in str(caught.value) for value in given.values() if isinstance(value, str))
    assert caught.value.__cause__ is None


def test_all_invalid_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBRACE_TRIES", "many")
    monkeypatch.setenv("IMBRACE_LAKE", TOKEN)

    with pytest.raises(SettingsError) as caught:
        load_settings(page_size=0)

    assert [one.partition(":")[0] for one in caught.value.problems] == [
        "IMBRACE_LAKE", "IMBRACE_PAGE_SIZE", "IMBRACE_TRIES",
    ]  # fmt: skip
    assert str(pickle.loads(pickle.dumps(caught.value))) == "; ".join(caught.value.problems)  # noqa: S301 - our own


def test_a_variable_that_nothing_reads_is_named_without_its_value(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / ".env").write_text(f"IMBRACE_TOKN={SECRET}\nimbrace_lake=./lake\nOTHER=1\n")
    for name in ("BUDGT", "XYZZY", "HOME", "ACCEPTANCE", "TEST_DATABASE", "SLACK_URL", "WORK_POOL"):
        monkeypatch.setenv(f"IMBRACE_{name}", SECRET)

    assert unknown_settings() == [
        "IMBRACE_BUDGT is not a setting: is IMBRACE_BUDGET meant?",
        "IMBRACE_TOKN in .env is not a setting: is IMBRACE_TOKEN meant?",
        "IMBRACE_XYZZY is not a setting: see docs/settings.md",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_a_file_that_is_not_utf_8_is_reported(clean: Path, encoding: str) -> None:
    (clean / ".env").write_text("IMBRACE_LAKE=./größe\n", encoding=encoding)

    if encoding == "utf-16-le":
        (clean / ".env").write_bytes(b"\xff\xfe" + (clean / ".env").read_bytes())
    with pytest.raises(SettingsError, match=r"\.env is not UTF-8 text") as caught:
        load_settings()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("name", ["lake", "gateway", "organization", "region", "request_limit"])
def test_quotes_around_a_value_are_removed(name: str, quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"IMBRACE_{name.upper()}", f"{quote}./lake{quote}")
    monkeypatch.setenv("IMBRACE_TOKEN", f"{quote}{SECRET}{quote}")

    settings = load_settings()

    assert getattr(settings, name) == "./lake"
    assert settings.token == SecretStr(SECRET)


def test_kinds_of_list_addresses_can_be_added() -> None:
    assert load_settings().schemes() == frozenset()
    assert load_settings(list_schemes=" gs, HTTPS ,").schemes() == {"gs", "https"}


@pytest.mark.parametrize("name", ["token", "organization", "lake"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_required_setting_is_reported(name: str, value: str | None) -> None:
    with pytest.raises(SettingsError, match=f"no {name} is set: set IMBRACE_{name.upper()}"):
        load_settings(**{name: value}).require(name)


@pytest.mark.parametrize(
    "address",
    [
        "app-gateway.imbrace.co/3rd",
        "ftp://x",
        "http://",
        "https:///3rd",
        "http://host:port/3rd",
        "http://[::1",
        "http://host:65536/3rd",
        "http://host:0/3rd",
    ],
)
def test_an_invalid_address_is_reported_before_anything_is_sent(address: str) -> None:
    settings = load_settings(gateway=address, token=SECRET, organization="org_1")

    with pytest.raises(SettingsError, match="IMBRACE_GATEWAY"):
        settings.gateway_options()


@pytest.mark.parametrize("name", ["organization", "lake", "gateway", "region"])
def test_a_token_in_another_setting_is_reported_without_the_token(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError) as given:
        load_settings(**{name: TOKEN})
    monkeypatch.setenv(f"IMBRACE_{name.upper()}", TOKEN)
    with pytest.raises(SettingsError) as set_:
        load_settings()

    for caught in (given, set_):
        reason = "it begins with api_, so it is a token, which only IMBRACE_TOKEN may contain"
        assert str(caught.value) == f"IMBRACE_{name.upper()}: {reason}"


def test_an_organization_that_begins_like_a_token_is_taken_for_one() -> None:
    # Tokens have other forms too, and no organization begins so.
    with pytest.raises(SettingsError, match="IMBRACE_ORGANIZATION: it begins with api_"):
        load_settings(organization="api_short")


def test_a_lake_can_have_a_name_that_begins_like_a_token() -> None:
    assert load_settings(lake="api_exports").lake == "api_exports"


def test_an_id_as_token_is_reported() -> None:
    with pytest.raises(SettingsError, match="IMBRACE_TOKEN: it begins with org_, so it is an organization's"):
        load_settings(token="org_00000000-0000-4000-8000-000000000000")


def test_a_password_in_the_address_is_reported_without_the_password() -> None:
    settings = load_settings(gateway="http://user:geheim@host/3rd", token=SECRET, organization="org_1")

    with pytest.raises(SettingsError, match="IMBRACE_GATEWAY contains a user or a password") as caught:
        settings.gateway_options()

    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("mask_phones", "yess", "it must be true or false"),
        ("page_size", "many", "it must be a whole number"),
        ("page_size", "1.5", "it must be a whole number"),
        ("timeout_seconds", "soon", "it must be a number"),
        ("phone_key", "short", "it must have at least 16 characters"),
    ],
)
def test_a_value_of_another_kind_is_reported_in_plain_words(
    name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"IMBRACE_{name.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value) == f"IMBRACE_{name.upper()}: {reason}"


@pytest.mark.parametrize("token", ["api_1\n", "api 1", "api_é", "\x00", "api_1\r\nx-evil: 1"])
def test_a_token_that_is_invalid_in_a_header_is_reported_without_the_token(token: str) -> None:
    settings = load_settings(token=token, organization="org_1")

    with pytest.raises(SettingsError) as caught:
        settings.gateway_options()

    assert "IMBRACE_TOKEN" in str(caught.value)
    assert token not in str(caught.value)


def test_settings_reach_the_client_and_its_limiter() -> None:
    settings = load_settings(
        token=SECRET, organization="org_1", gateway="http://localhost:1/3rd", tries=3, timeout_seconds=1.5,
        patience_seconds=0, max_in_flight=5, requests_per_second=2.5,
    )  # fmt: skip

    options, limiter = settings.gateway_options(), settings.new_limiter()

    assert (options.url, options.organization) == ("http://localhost:1/3rd", "org_1")
    assert (options.tries, options.timeout_seconds, options.patience_seconds) == (3, 1.5, 0.0)
    assert options.token == SecretStr(SECRET)
    assert (limiter.in_flight_limit, limiter.per_second) == (5, 2.5)


def test_printed_settings_contain_no_secret() -> None:
    settings = load_settings(token=SECRET, phone_key=SECRET, organization="org_1")

    shown = f"{settings!r} {settings} {settings.gateway_options()!r} {settings.model_dump_json()}"
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("text", "line"), [('IMBRACE_REGION="TW\n', 1), ("# ours\n\nIMBRACE_REGION='TW\nIMBRACE_TOKEN=a\n", 3)]
)
def test_a_line_of_the_file_that_cannot_be_read_is_reported_with_its_number(
    text: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(text, encoding="utf-8")

    with pytest.raises(SettingsError, match=rf"line {line} of \.env cannot be read"):
        load_settings()


def test_a_folder_in_place_of_the_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").mkdir()

    with pytest.raises(SettingsError, match=r"\.env is a folder"):
        load_settings()


@pytest.mark.parametrize("text", ["inf", "1e300", "1e14", "nan", "-inf"])
@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if "float" in str(field.annotation)]
)
def test_a_number_without_a_sane_bound_is_rejected_in_a_sentence(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"IMBRACE_{name.upper()}", text)
    why = "(less|greater) than" if text.startswith("1e") else "it must be a number"

    with pytest.raises(SettingsError, match=f"IMBRACE_{name.upper()}: .*{why}"):
        load_settings()


@pytest.mark.parametrize("number", ["+886911425977", "0911 425 977", "886911425977", "0911/425/977"])
def test_a_phone_number_as_organization_is_rejected_without_repeating_it(number: str) -> None:
    with pytest.raises(SettingsError, match="IMBRACE_ORGANIZATION: it is a phone number") as caught:
        load_settings(organization=number)

    assert number not in str(caught.value)


@pytest.mark.parametrize("value", ["org_1\n", " org_1", "org 1", "org_1\x1b[31m"])
def test_an_organization_with_a_space_or_a_line_break_is_rejected(value: str) -> None:
    with pytest.raises(SettingsError, match="IMBRACE_ORGANIZATION: it contains a space or a line break"):
        load_settings(organization=value)


def test_a_lake_whose_path_is_not_utf_8_is_rejected() -> None:
    with pytest.raises(SettingsError, match="IMBRACE_LAKE: it is not UTF-8 text"):
        load_settings(lake="/data/\udcff")


def test_a_gateway_with_a_query_is_rejected_without_repeating_it() -> None:
    settings = load_settings(gateway="https://host/3rd?token=pass-word", token="api_x", organization="org_x")

    [problem] = settings.gateway_problems()
    assert "has a query" in problem
    assert "pass-word" not in problem
