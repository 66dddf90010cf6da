"""The environment of a process that imports Prefect."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

import pytest

from imbrace_cli.prefect_environment import (
    client_environment,
    configured_api_url,
    configured_login,
    prepare_client,
)

URL = "http://prefect.test:4200/api"


@pytest.fixture(autouse=True)
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PREFECT_") or name.upper() == "NO_PROXY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_without_any_configuration_there_is_no_api() -> None:
    assert configured_api_url() is None


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".env", f"PREFECT_API_URL={URL}\n"),
        ("prefect.toml", f'[api]\nurl = "{URL}"\n'),
        ("pyproject.toml", f'[tool.prefect.api]\nurl = "{URL}"\n'),
        (
            ".prefect/profiles.toml",
            f'active = "work"\n[profiles.home]\n[profiles.work]\nPREFECT_API_URL = "{URL}"\n',
        ),
    ],
)
def test_the_api_is_found_where_prefect_finds_it(path: str, text: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)

    assert configured_api_url() == URL


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".env", "PREFECT_API_AUTH_STRING=user:password\n"),
        ("prefect.toml", '[api]\nauth_string = "user:password"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nauth_string = "user:password"\n'),
        (
            ".prefect/profiles.toml",
            'active = "work"\n[profiles.work]\nPREFECT_API_AUTH_STRING = "user:password"\n',
        ),
    ],
)
def test_the_login_is_found_where_prefect_finds_it(path: str, text: str, tmp_path: Path) -> None:
    assert configured_login() == {}
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)

    assert configured_login() == {"authorization": "Basic dXNlcjpwYXNzd29yZA=="}


def test_a_key_comes_before_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "key")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:password")

    assert configured_login() == {"authorization": "Bearer key"}


def test_the_environment_comes_first_unless_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"PREFECT_API_URL={URL}\n")

    monkeypatch.setenv("PREFECT_API_URL", "")
    assert configured_api_url() == URL

    monkeypatch.setenv("PREFECT_API_URL", "http://other.test/api")
    assert configured_api_url() == "http://other.test/api"


def test_the_environment_chooses_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = tmp_path / "p.toml"
    profiles.write_text(f'active = "home"\n[profiles.work]\nPREFECT_API_URL = "{URL}"\n')
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
    assert configured_api_url() is None

    monkeypatch.setenv("PREFECT_PROFILE", "work")
    assert configured_api_url() == URL


def test_a_settings_file_that_is_not_toml_is_left_to_prefect(tmp_path: Path) -> None:
    (tmp_path / "prefect.toml").write_text("[[[")

    assert configured_api_url() is None


def test_variables_of_the_user_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")

    environment = client_environment(URL)

    assert environment["PREFECT_API_URL"] == URL
    assert "PREFECT_LOGGING_LEVEL" not in environment
    assert "PREFECT_HOME" not in environment
    assert "NO_PROXY" not in environment


def test_requests_to_the_local_server_use_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client_environment(URL, tmp_path)["NO_PROXY"] == "127.0.0.1,localhost"

    monkeypatch.setenv("no_proxy", "example.test")
    environment = client_environment(URL, tmp_path)
    assert environment["NO_PROXY"] == environment["no_proxy"] == "example.test,127.0.0.1,localhost"
    assert environment["PREFECT_HOME"] == str(tmp_path)


def test_the_preparation_sets_the_environment_and_silences_prefect_at_the_end_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    logger = logging.getLogger("EventsWorker")
    logger.setLevel(logging.NOTSET)

    prepare_client(URL, tmp_path)

    assert os.environ["PREFECT_API_URL"] == URL
    assert not logger.isEnabledFor(logging.WARNING)
    logger.setLevel(logging.NOTSET)


def test_clients_of_the_local_server_read_a_single_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))

    for _ in range(2):
        prepare_client(URL, tmp_path)

    file = os.environ["PREFECT_API_SSL_CERT_FILE"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(file)
    assert len(context.get_ca_certs()) == 1
    assert [one.name for one in tmp_path.iterdir()] == [Path(file).name]


def test_only_the_local_server_is_trusted_without_a_check(tmp_path: Path) -> None:
    local = client_environment(URL, tmp_path).items() - client_environment(URL).items()

    assert {name for name, value in local if value == "false"} == {
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED",
    }
    assert "PREFECT_API_SSL_CERT_FILE" not in client_environment(URL)
