"""What an operator may choose for one run; the fields become the forms in the UI.

Everything that is left out comes from the settings (`IMBRACE_*`) of the machine that runs it. Phone
numbers are no parameters, because Prefect stores and shows those in clear: they travel by the
address of a list. Nor are tokens.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from imbrace_lake.export.drift import DriftMode

Source = Literal["everything", "phones", "conversations", "rerun"]


class RunParams(BaseModel):
    """What every run may be told."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    organization: str | None = Field(None, title="Organization", description="Its id, `org_…`.")
    lake: str | None = Field(None, title="Lake", description="A folder or `s3://bucket/prefix`.")
    gateway: str | None = Field(
        None, title="Gateway", description="Its address with `/3rd`; production by default."
    )


class ReadParams(RunParams):
    """What every run that reads from the gateway may be told."""

    tolerated_failures: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        title="Tolerated share of failures",
        description="Up to this share of conversations may fail in a run that still ends as completed.",
    )
    drift: DriftMode = Field(
        "evolve",
        title="Something new from the gateway",
        description=(
            "A message type or field that no message had before: `evolve` says so in the summary, `warn` also"
            " in the log, `freeze` does not export the conversation."
        ),
    )
    chunk_size: int | None = Field(
        None,
        ge=1,
        le=10_000,
        title="Conversations a task",
        description="By default chosen from the number of conversations, so that tasks stay few.",
    )


class PhonesParams(BaseModel):
    """A list of phone numbers."""

    phones: str | None = Field(
        None,
        title="List of phone numbers",
        description="Address of a text, CSV or Parquet file with the numbers: a path or `s3://bucket/list.csv`.",
    )
    column: str | None = Field(
        None, title="Column", description="The column of the list to read, by name or position."
    )
    region: str | None = Field(
        None,
        title="Default country",
        pattern="^[A-Za-z]{2}$",
        description="Country of numbers written without a country code, as two letters: `TW`.",
    )


class ExportParams(ReadParams, PhonesParams):
    """An export: the conversations of a list of phone numbers, or what an earlier run left undone."""

    rerun: str | None = Field(
        None,
        title="Only what this run left undone",
        description="The id of an earlier run: exports only what that one could not. Leave the list empty.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.phones is None) == (self.rerun is None):
            raise ValueError("give either a list of phone numbers or the run whose rest is to be exported")
        return self


class BackfillParams(ReadParams, PhonesParams):
    """A backfill: some conversations again, whole or for a window of time."""

    source: Source = Field(
        "everything",
        title="Which conversations",
        description=(
            "`everything` the lake knows, those of a list of `phones`, a list of `conversations`, or what an"
            " earlier run left undone (`rerun`). Fill in the field that belongs to it."
        ),
    )
    conversations: str | None = Field(
        None,
        title="List of conversations",
        description=(
            "Address of a text, CSV or Parquet file with conversation ids; in tables, in the column"
            " `conversation_id` unless you name another."
        ),
    )
    rerun: str | None = Field(None, title="Run", description="The id of the run that left something undone.")
    since: AwareDatetime | None = Field(
        None, title="From", description="Only messages from this moment on; their edits too."
    )
    until: AwareDatetime | None = Field(None, title="Until", description="Only messages before this moment.")
    walk_whole: bool = Field(
        True,
        title="Walk whole conversations",
        description="Read each from top to bottom, for old edits and deletions; otherwise only what is new.",
    )

    @model_validator(mode="after")
    def _source_is_given(self) -> Self:
        for source in ("phones", "conversations", "rerun"):
            if (getattr(self, source) is not None) != (self.source == source):
                verb = "is missing" if self.source == source else "belongs to another choice"
                raise ValueError(f"which conversations: {self.source}, but the field {source} {verb}")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("the window ends before it begins")
        return self

    def window(self) -> tuple[datetime | None, datetime | None]:
        """The window of time; open on a side that is None."""
        return self.since, self.until


class VerifyParams(RunParams):
    """A verification: every object against its hash, and on request every count against the gateway."""

    counts: bool = Field(
        False,
        title="Ask the gateway for every count",
        description="One request a conversation; what arrived since the last run counts as a difference.",
    )
    stale_hours: float | None = Field(
        None,
        gt=0,
        title="Stale after",
        description="Hours after which a conversation's proof is too old; says so in an event.",
    )
