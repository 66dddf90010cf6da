"""The parameters of flows, which become the forms in the UI.

Everything else comes from the blocks (`imbrace_flows.blocks`) or the settings (`IMBRACE_*`) of the worker.
Prefect stores and shows parameters in clear. So a token is never a parameter, and a list of phone numbers is
passed by its address; a few numbers may be typed for a try, and the form explains the consequence.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic.config import JsonDict

from imbrace_lake.export.drift import DriftMode

Source = Literal["everything", "phones", "conversations", "rerun"]

MOST_TYPED = 20
# Fifteen digits, a plus, and some blanks, brackets and a comma.
LONGEST_TYPED = 32 * MOST_TYPED


def _at_position(position: int) -> JsonDict:
    """Keep the order of the form, because PostgreSQL does not keep the order of the keys of an object."""
    return {"position": position}


class RunParams(BaseModel):
    """Parameters of every run."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def recorded(self) -> dict[str, Any]:
        """Return the parameters for the ledger, with typed numbers masked."""
        return self.model_dump(mode="json", exclude_none=True)


class ReadParams(RunParams):
    """Parameters of every run that reads from the gateway."""

    phones: str | None = Field(
        None,
        title="List of phone numbers",
        description=(
            "Path or URL of the list, reachable from the worker: `s3://bucket/list.csv`. Text, CSV, Parquet"
            " or a spreadsheet; a folder or a pattern (`s3://bucket/lists/*.parquet`) is one list."
        ),
        json_schema_extra=_at_position(1),
    )
    column: str | None = Field(
        None,
        title="Columns",
        description="The columns of the list to read, by name or position, separated by commas.",
        json_schema_extra=_at_position(3),
    )
    region: str | None = Field(
        None,
        title="Default country",
        pattern="^[A-Za-z]{2}$",
        description="Country of numbers written without a country code, as two letters: `TW`.",
        json_schema_extra=_at_position(4),
    )
    sheet: str | None = Field(
        None,
        title="Sheet",
        description="The sheet of a spreadsheet to read, by name or position; the first by default.",
        json_schema_extra=_at_position(18),
    )
    tolerated_failures: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        title="Tolerated share of failures",
        description="The run still ends as completed if at most this share of conversations fails, 0 to 1.",
        json_schema_extra=_at_position(20),
    )
    drift: DriftMode = Field(
        "evolve",
        title="Schema drift",
        description=(
            "What to do when the gateway sends a new message type or field: `evolve` reports it in the"
            " summary, `warn` also in the log, `freeze` does not export the conversation."
        ),
        json_schema_extra=_at_position(21),
    )
    chunk_size: int | None = Field(
        None,
        ge=1,
        le=10_000,
        title="Conversations per task",
        description="From 1 to 10,000; by default, larger runs have larger tasks.",
        json_schema_extra=_at_position(22),
    )
    shard_size: int | None = Field(
        None,
        ge=1,
        title="Conversations per shard",
        description=(
            "A run with more conversations than this is split into shards, which several workers export. By"
            " default, up to 20,000 conversations stay in one run."
        ),
        json_schema_extra=_at_position(23),
    )

    accept_repeats: bool = Field(
        False,
        title="Accept repeated messages",
        description=(
            "Export conversations although the gateway permanently repeats messages in their lists; the"
            " ledger marks them `repeats`."
        ),
        json_schema_extra=_at_position(24),
    )

    def settings(self) -> dict[str, object]:
        """Return the given parameters that win over the settings of the same name."""
        return {
            "region": self.region,
            "chunk_size": self.chunk_size,
            "shard_size": self.shard_size,
            "accept_repeats": self.accept_repeats or None,
        }


class ChosenParams(ReadParams):
    """Parameters of exports and backfills, where an operator can type numbers and approve a plan."""

    numbers: SecretStr | None = Field(
        None,
        max_length=LONGEST_TYPED,
        title="A few phone numbers",
        description=(
            f"At most {MOST_TYPED}, separated by commas or line breaks, for a try. **Prefect stores what is"
            " typed here and shows it to everybody who may see the run**: prefer a list."
        ),
        json_schema_extra=_at_position(2),
    )
    ask_first: bool = Field(
        False,
        title="Ask before reading",
        description=(
            "Estimate what the run would read and how long it would take, then wait up to a day for approval"
            " with *Resume*."
        ),
        json_schema_extra=_at_position(19),
    )

    @field_validator("numbers")
    @classmethod
    def _few(cls, numbers: SecretStr | None) -> SecretStr | None:
        if numbers is not None and not 0 < len(_separate(numbers)) <= MOST_TYPED:
            raise ValueError(f"type 1 to {MOST_TYPED} phone numbers, or give the address of a list")
        return numbers

    def typed(self) -> list[str] | None:
        """Return the typed numbers, one by one; None without any."""
        return None if self.numbers is None else _separate(self.numbers)


class ExportParams(ChosenParams):
    """An export: the conversations of a list of phone numbers, or the failures of an earlier run."""

    rerun: str | None = Field(
        None,
        title="Retry the failures of run",
        description="Id of an earlier run. Exports only what that run could not; leave the numbers empty.",
        json_schema_extra=_at_position(5),
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.phones, self.numbers, self.rerun)) != 1:
            raise ValueError(
                "give one of these: a list of phone numbers, a few numbers, or a run whose failures to retry"
            )
        return self


def _separate(numbers: SecretStr) -> list[str]:
    return [text for part in re.split(r"[,;\n]", numbers.get_secret_value()) if (text := part.strip())]


class IngestParams(ReadParams):
    """An ingestion: new messages of every conversation the lake knows, and of those of a list of numbers."""


class BackfillParams(ChosenParams):
    """A backfill: some conversations again, completely or for a window of time."""

    source: Source = Field(
        "everything",
        title="Which conversations",
        description=(
            "`everything` the lake knows, those of `phones` (a list, or a few typed numbers), a list of"
            " `conversations`, or the failures of an earlier run (`rerun`). Fill in the field that belongs to"
            " your choice."
        ),
        json_schema_extra=_at_position(0),
    )
    conversations: str | None = Field(
        None,
        title="List of conversations",
        description=(
            "Path or URL of a list of conversation ids, as for phone numbers; in tables, in the column"
            " `conversation_id` unless you name another."
        ),
        json_schema_extra=_at_position(5),
    )
    rerun: str | None = Field(
        None,
        title="Run to retry",
        description="The id of the run whose failures are exported again.",
        json_schema_extra=_at_position(6),
    )
    since: AwareDatetime | None = Field(
        None,
        title="From",
        description="Only messages from this moment on; their edits too.",
        json_schema_extra=_at_position(7),
    )
    until: AwareDatetime | None = Field(
        None,
        title="Until",
        description="Only messages before this moment.",
        json_schema_extra=_at_position(8),
    )
    walk_whole: bool = Field(
        True,
        title="Walk complete conversations",
        description="Read all messages, to find old edits and deletions; otherwise only new messages.",
        json_schema_extra=_at_position(9),
    )

    parent_run: str | None = Field(
        None,
        title="Shard of run",
        description="Leave empty. A large run enters its own id here when it starts its shards.",
        json_schema_extra=_at_position(25),
    )

    @model_validator(mode="after")
    def _source_is_given(self) -> Self:
        if self.phones is not None and self.numbers is not None:
            raise ValueError("which conversations: give a list of phone numbers or a few numbers, not both")
        given = {
            "phones": self.phones is not None or self.numbers is not None,
            "conversations": self.conversations is not None,
            "rerun": self.rerun is not None,
        }
        for source, is_given in given.items():
            if is_given != (self.source == source):
                verb = "is missing" if self.source == source else "belongs to another choice"
                raise ValueError(f"which conversations: {self.source}, but the field {source} {verb}")
        if self.parent_run is not None and self.conversations is None:
            raise ValueError("a shard of another run needs its list of conversations")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("the window ends before it begins")
        return self

    def window(self) -> tuple[datetime | None, datetime | None]:
        """Return the window of time; None on an open side."""
        return self.since, self.until


class VerifyParams(RunParams):
    """A verification: every object against its hash, and on request every count against the gateway."""

    counts: bool = Field(
        False,
        title="Ask the gateway for every count",
        description="One request per conversation; messages newer than the last run count as differences.",
        json_schema_extra=_at_position(1),
    )
    stale_hours: float | None = Field(
        None,
        gt=0,
        title="Stale after",
        description="Maximum age of a conversation's proof, in hours; an event reports older ones.",
        json_schema_extra=_at_position(2),
    )
