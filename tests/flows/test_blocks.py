"""Blocks: the settings that a run gets from them, and their checks."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

import prefect
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from pydantic import SecretStr, ValidationError

from imbrace_flows.blocks import ConversationLake, ImbraceCredentials, connect, icon_url
from imbrace_flows.verify import verify_lake
from imbrace_lake.errors import SettingsError
from imbrace_lake.settings import PRODUCTION
from imbrace_sandbox import Sandbox, SandboxOptions
from tools.seaweed import Seaweed

CREDENTIALS = ImbraceCredentials(organization="org_of_block", token=SecretStr("api_of_block"))
LAKE = ConversationLake(
    url="s3://bucket/lake",
    endpoint="http://127.0.0.1:1",
    region="eu-west-1",
    path_style="path",
    access_key="key",
    secret_key=SecretStr("secret"),
)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with its own settings."""
    monkeypatch.chdir(tmp_path)
    settings = {"TOKEN": "api_of_machine", "ORGANIZATION": "org_of_machine", "LAKE": "lake", "PAGE_SIZE": "7"}
    os.environ.update({f"IMBRACE_{name}": value for name, value in settings.items()})


def test_blocks_win_over_the_settings_of_the_machine() -> None:
    connection = connect(CREDENTIALS, LAKE, chunk_size=3)

    settings, store = connection.settings, connection.store
    assert (settings.organization, settings.gateway, settings.lake) == (
        "org_of_block",
        PRODUCTION,
        "s3://bucket/lake",
    )
    assert settings.require("token").get_secret_value() == "api_of_block"
    assert (settings.page_size, settings.chunk_size) == (7, 3)
    assert store is not None
    assert (store.endpoint_url, store.region, store.path_style) == ("http://127.0.0.1:1", "eu-west-1", True)
    assert store.key is not None
    assert store.secret is not None
    assert (store.key.get_secret_value(), store.secret.get_secret_value()) == ("key", "secret")


@pytest.mark.parametrize("field", ["organization", "gateway"])
def test_a_token_in_a_field_that_prefect_stores_in_clear_cannot_be_saved(field: str) -> None:
    token = "api_5ec4e75e-c4e7-45ec-8e75-5ec4e75ec4e7"
    values = {"organization": "org_of_block", "token": token} | {field: token}

    with pytest.raises(ValidationError, match="so it is a token") as caught:
        ImbraceCredentials.model_validate(values)

    assert token[4:] not in str(caught.value)


def test_a_run_names_the_field_of_a_saved_block_that_the_block_does_not_accept() -> None:
    """The page Blocks saves it all the same."""
    token = "api_5ec4e75e-c4e7-45ec-8e75-5ec4e75ec4e7"
    saved = {"organization": token, "token": "api_of_block"}

    def load(block: object, **given: object) -> None:
        try:
            ImbraceCredentials.model_validate(saved)
        except ValidationError as exc:
            # As Prefect does.
            raise RuntimeError("Unable to load 'default' of block type 'block'") from exc

    parameters = {"params": {}, "credentials": {"$ref": str(UUID(int=1))}, "lake": {"$ref": str(UUID(int=2))}}
    with patch("prefect.blocks.core.Block.load_from_ref", load):
        rejected = verify_lake.validate_parameters(parameters)["params"]

    assert rejected.reason == (
        "the block iMBrace Credentials (imbrace-credentials) of this run cannot be used (Organization: it"
        " begins with api_, so it is a token, which belongs into Token): correct it on the page Blocks, then"
        " start a new run"
    )


def test_without_a_block_the_settings_of_the_machine_apply() -> None:
    connection = connect(None, None, region=None)

    assert connection.settings.organization == "org_of_machine"
    assert connection.settings.lake == "lake"
    assert connection.store is None


def test_the_expiry_of_a_token_comes_from_its_own_block() -> None:
    own = CREDENTIALS.model_copy(update={"expires_at": date(2027, 1, 31)})
    os.environ["IMBRACE_TOKEN_EXPIRES"] = "2026-12-31"
    assert connect(own, None).settings.token_expires == date(2027, 1, 31)
    assert connect(CREDENTIALS, None).settings.token_expires is None
    assert connect(None, None).settings.token_expires == date(2026, 12, 31)


def test_the_expiry_can_be_given_as_the_time_that_the_vendor_shows() -> None:
    block = ImbraceCredentials(
        organization="org",
        token=SecretStr("api"),
        expires_at="2027-01-31T12:00:00.000Z",
    )

    assert block.expires_at == date(2027, 1, 31)


def test_a_saved_block_is_passed_on_by_reference_and_an_unsaved_one_is_not() -> None:
    saved = CREDENTIALS.model_copy()
    saved._block_document_id = UUID(int=7)

    blocks = connect(saved, LAKE).blocks

    assert blocks == {"credentials": {"$ref": {"block_document_id": str(UUID(int=7))}}, "lake": None}


def test_a_relative_lake_is_rejected_where_a_worker_would_lose_it() -> None:
    with (
        patch("imbrace_flows.blocks.is_deployment_run", return_value=True),
        pytest.raises(SettingsError, match="give an absolute path"),
    ):
        connect(CREDENTIALS, None)


def test_a_run_of_a_deployment_without_a_lake_says_where_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMBRACE_LAKE", raising=False)
    with (
        patch("imbrace_flows.blocks.is_deployment_run", return_value=True),
        pytest.raises(
            SettingsError, match=r"block of the type Conversation Lake .* IMBRACE_LAKE on the worker"
        ),
    ):
        connect(CREDENTIALS, None)


@pytest.mark.parametrize(
    ("needed", "sentence"),
    [
        (
            ("token", "organization"),
            "no token and no organization are set: choose a block of the type iMBrace Credentials for this"
            " run, or set IMBRACE_TOKEN and IMBRACE_ORGANIZATION on the worker",
        ),
        (
            ("organization",),
            "no organization is set: choose a block of the type iMBrace Credentials for this run, or set"
            " IMBRACE_ORGANIZATION on the worker",
        ),
        ((), None),
    ],
)
def test_a_run_of_a_deployment_without_credentials_says_where_to_set_them(
    needed: tuple[str, ...], sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IMBRACE_TOKEN", "IMBRACE_ORGANIZATION"):
        monkeypatch.delenv(name, raising=False)
    lake = ConversationLake(url="s3://bucket/lake")
    with patch("imbrace_flows.blocks.is_deployment_run", return_value=True):
        if sentence is None:
            connect(None, lake, needed)
            return
        with pytest.raises(SettingsError) as caught:
            connect(None, lake, needed)

    assert str(caught.value) == sentence


@pytest.mark.parametrize("lake", ["/data/lake", "~/lake", "s3://bucket/lake"])
def test_an_absolute_lake_is_not_rejected(lake: str) -> None:
    with patch("imbrace_flows.blocks.is_deployment_run", return_value=True):
        assert connect(CREDENTIALS, ConversationLake(url=lake)).settings.lake == lake


@pytest.mark.parametrize(
    ("saved", "style"), [(None, None), (True, True), (False, False), ("automatic", None), ("host", False)]
)
def test_the_place_of_the_bucket_is_also_read_from_blocks_of_earlier_versions(
    saved: object, style: bool | None
) -> None:
    block = ConversationLake.model_validate({"url": "s3://bucket/lake", "path_style": saved})

    assert block.options().path_style is style


def test_the_icon_of_blocks_comes_from_the_server_itself() -> None:
    with temporary_settings({PREFECT_API_URL: "https://prefect.example/api"}):
        icon = str(icon_url())
    with temporary_settings({PREFECT_UI_URL: "https://ui.example/"}):
        at_ui = str(icon_url())

    assert icon.startswith("https://prefect.example/ico/")
    assert at_ui.startswith("https://ui.example/ico/")
    assert Path(prefect.__ui_static_path__, icon.removeprefix("https://prefect.example/")).is_file()


def test_the_representation_of_a_block_contains_no_secret() -> None:
    assert "api_of_block" not in f"{CREDENTIALS!r} {CREDENTIALS}"
    assert "secret" not in repr(LAKE.secret_key)


@pytest.mark.slow
def test_the_check_of_credentials_reports_that_they_work_or_what_to_fix() -> None:
    # Without a server there is no limit to respect.
    os.environ["IMBRACE_REQUEST_LIMIT"] = ""
    with Sandbox(SandboxOptions(conversations=1)) as box:
        good = ImbraceCredentials(
            organization=box.options.organization_id, token=SecretStr(box.options.token), gateway=box.url
        )
        wrong = good.model_copy(update={"token": SecretStr("api_of_nobody")})

        assert good.check().startswith(f"gateway: {box.url} answers")
        assert wrong.check().startswith("token: ")
        assert "belongs to one organization" in wrong.check()


def test_the_check_of_a_lake_reports_that_it_works_or_what_to_fix(s3: Seaweed, bucket: str) -> None:
    good = ConversationLake(
        url=f"s3://{bucket}/lake",
        endpoint=s3.endpoint_url,
        region="us-east-1",
        access_key=s3.key,
        secret_key=SecretStr(s3.secret),
    )
    half = good.model_copy(update={"secret_key": None})
    rejected = good.model_copy(update={"secret_key": SecretStr("another")})

    assert good.check().startswith("lake: put, get, list and delete work")
    assert half.check() == "lake: an S3 access key and its secret key go together: give both or neither"
    assert rejected.check().startswith("lake: ")
    assert "another" not in rejected.check()
