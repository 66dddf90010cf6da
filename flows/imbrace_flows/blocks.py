"""Blocks: the credentials and the lake, which an operator saves in Prefect instead of on each worker.

A deployment refers to a block by its id, so that no secret is a parameter. Without a block, the settings of
the worker (`IMBRACE_*`, `AWS_*`) apply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.blocks.core import Block
from prefect.settings import PREFECT_UI_URL
from pydantic import BeforeValidator, ConfigDict, Field, HttpUrl, SecretStr, ValidationInfo, field_validator
from pydantic.config import JsonDict

from imbrace_flows.deployment_run import is_deployment_run
from imbrace_flows.form import OrNone, Secret, Text
from imbrace_lake.check import Finding, check_gateway, check_lake
from imbrace_lake.errors import SettingsError
from imbrace_lake.settings import PREFIX, PRODUCTION, Expiry, Settings, load_settings, reject_token
from imbrace_lake.store.factory import StoreOptions
from imbrace_tasks.budget import open_gateway

BucketPlace = Literal["automatic", "path", "host"]
_PATH_STYLES: dict[BucketPlace, bool | None] = {"automatic": None, "path": True, "host": False}


def _bucket_place(value: object) -> object:
    """Turn the value of a block of an earlier version into one of this version."""
    return next((place for place, style in _PATH_STYLES.items() if style is value), value)


def icon_url() -> HttpUrl | None:
    """Return the address of the blocks' icon, which the server itself has, so that it needs no other network.

    Prefect's client does not accept data URLs, and the new UI shows a broken picture if there is no icon.
    """
    ui = PREFECT_UI_URL.value()
    return HttpUrl(f"{ui.rstrip('/')}/ico/android-chrome-192x192.png") if ui else None


# For forms, which know nothing of a validator.
_NO_TOKEN: JsonDict = {"pattern": r"^(?!\s*api_)"}


class ImbraceCredentials(Block):
    """An organization of iMBrace, and the token with which its conversations are read."""

    # Of `organization`, which can be a token.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name = "iMBrace Credentials"
    _block_type_slug = "imbrace-credentials"
    _description = "The organization whose conversations are exported, and its API token."

    organization: str = Field(
        min_length=1, title="Organization", description="Its id, org_…", json_schema_extra=_NO_TOKEN
    )
    token: SecretStr = Field(min_length=1, title="Token", description="The organization's API token, api_…")
    expires_at: Expiry | OrNone = Field(
        None,
        title="Token expires on",
        description="The day on which the token expires, if it does. Runs warn from two weeks before.",
    )
    gateway: str = Field(
        PRODUCTION,
        title="Gateway",
        description="Production, unless you give the address of another environment, with its /3rd.",
    )

    @field_validator("organization", "gateway")
    @classmethod
    def _no_token(cls, value: str, info: ValidationInfo) -> str:
        # Prefect stores these fields in clear, and shows them.
        try:
            reject_token(value.strip(), is_organization=info.field_name == "organization")
        except ValueError:
            raise ValueError("it begins with api_, so it is a token, which belongs into Token") from None
        return value

    async def findings(self) -> list[Finding]:
        """Check the token with a request to the gateway, within the budget of all runs."""
        settings = self.settings()
        return await check_gateway(settings, partial(open_gateway, settings))

    def check(self) -> str:
        """Check the token with a request to the gateway; return one sentence about the result or the fix."""
        return _worst_message(asyncio.run(self.findings()))

    def settings(self, **given: Any) -> Settings:
        """Return the settings of the machine with the values of this block, and further `given` ones.

        Raises:
            SettingsError: A value cannot be used.
        """
        values = {"organization": self.organization, "token": self.token, "gateway": self.gateway}
        # The expiry in the settings of the machine belongs to another token.
        return load_settings(**given | values).model_copy(update={"token_expires": self.expires_at})


class ConversationLake(Block):
    """The address of the lake, and how to reach it."""

    _block_type_name = "Conversation Lake"
    _block_type_slug = "conversation-lake"
    _description = "Where exported conversations are written: a bucket, or a folder that all workers share."

    url: str = Field(title="Address", description="s3://bucket/prefix, or a folder as an absolute path.")
    endpoint: Text = Field(
        None, title="S3 endpoint", description="Address of an S3-compatible server; Amazon's by default."
    )
    region: Text = Field(None, title="S3 region", description="Such as ap-east-1; by default the worker's.")
    path_style: Annotated[BucketPlace, BeforeValidator(_bucket_place)] = Field(
        "automatic",
        title="Place of the bucket in addresses",
        description="path: endpoint/bucket, host: bucket.endpoint, automatic: what suits the endpoint.",
    )
    access_key: Text = Field(
        None,
        title="Access key id",
        description="Leave both keys out to use what the worker has: a role, a profile, or AWS settings.",
    )
    secret_key: Secret = Field(
        None, title="Secret access key", description="The secret that belongs to the access key id."
    )

    def options(self) -> StoreOptions:
        """Return the options of the store."""
        return StoreOptions(
            endpoint_url=self.endpoint,
            region=self.region,
            key=None if self.access_key is None else SecretStr(self.access_key),
            secret=self.secret_key,
            path_style=_PATH_STYLES[self.path_style],
        )

    async def findings(self, organization: str | None = None) -> list[Finding]:
        """Write, read and delete a small object; count the conversations if an organization is known."""
        settings = load_settings(lake=self.url, **({"organization": organization} if organization else {}))
        return await check_lake(settings, self.options())

    def check(self) -> str:
        """Write, read and delete a small object; return one sentence about the result or the fix."""
        return _worst_message(asyncio.run(self.findings()))


def _worst_message(findings: Sequence[Finding]) -> str:
    """Return the message of the first error, or else of the first finding."""
    worst = next((one for one in findings if one.verdict == "error"), findings[0])
    return f"{worst.name}: {worst.message}"


@dataclass(frozen=True, slots=True)
class Connection:
    """What a run needs to reach gateway and lake.

    Attributes:
        settings: Addresses, secrets and limits.
        store: How to reach the lake; None for the settings of the machine.
        blocks: References to the blocks of the run, as parameters of its shards; None for a missing block.
    """

    settings: Settings
    store: StoreOptions | None = None
    blocks: Mapping[str, object] = field(default_factory=dict)


def is_relative(lake: str) -> bool:
    """Whether the address of a lake is a relative folder."""
    return "://" not in lake and not Path(lake).expanduser().is_absolute()


def connect(
    credentials: ImbraceCredentials | None,
    lake: ConversationLake | None,
    needed: Sequence[str] = ("token", "organization"),
    /,
    **given: Any,
) -> Connection:
    """Return the connection of a run: blocks and given values win over the settings of the machine.

    Args:
        credentials, lake: The blocks of the flow.
        needed: The settings of the gateway that the flow cannot do without.
        given: Other settings by name; None for the value of the machine.

    Raises:
        SettingsError: A value cannot be used, or a deployment has no lake, a relative folder or no `needed`.
    """
    if lake is not None:
        given["lake"] = lake.url
    settings = load_settings(**given) if credentials is None else credentials.settings(**given)
    if is_deployment_run():
        missing = [name for name in needed if not getattr(settings, name)]
        problems = [
            *([_missing("lake", block=ConversationLake)] if not settings.lake else []),
            *([_missing(*missing, block=ImbraceCredentials)] if missing else []),
        ]
        if problems:
            raise SettingsError(*problems)
    # A worker runs each flow in a temporary directory, where a lake would be lost.
    if is_deployment_run() and settings.lake is not None and is_relative(settings.lake):
        raise SettingsError(
            f"the lake {settings.lake} is relative to the working directory of a run: give an absolute path"
        )
    blocks = {"credentials": _reference(credentials), "lake": _reference(lake)}
    return Connection(settings, None if lake is None else lake.options(), blocks)


def _missing(*names: str, block: type[Block]) -> str:
    variables = " and ".join(f"{PREFIX}{name.upper()}" for name in names)
    return (
        f"no {' and no '.join(names)} {'is' if len(names) == 1 else 'are'} set: choose a block of the type"
        f" {block._block_type_name} for this run, or set {variables} on the worker"
    )


def _reference(block: Block | None) -> dict[str, Any] | None:
    """Return a block as a parameter; an unsaved block cannot be one, because it would show its secret."""
    if block is None or block._block_document_id is None:
        return None
    return {"$ref": {"block_document_id": str(block._block_document_id)}}
