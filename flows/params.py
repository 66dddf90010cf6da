"""What an operator may choose for one run; the fields become the form in the UI."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ExportParams(BaseModel):
    """An export: which conversations, from where, into which lake.

    Everything that is left out comes from the settings (`IMBRACE_*`) of the machine that runs it.
    Phone numbers are no parameters, because Prefect stores and shows those in clear: they travel
    by the address of a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    phones: str | None = Field(
        None,
        title="List of phone numbers",
        description="Address of a text, CSV or Parquet file with the numbers: a path or `s3://bucket/list.csv`.",
    )
    column: str | None = Field(
        None, title="Column", description="The column that holds the numbers, by name or position."
    )
    region: str | None = Field(
        None,
        title="Default country",
        pattern="^[A-Za-z]{2}$",
        description="Country of numbers written without a country code, as two letters: `TW`.",
    )
    rerun: str | None = Field(
        None,
        title="Only what this run left undone",
        description="The id of an earlier run: exports only what that one could not. Leave the list empty.",
    )
    organization: str | None = Field(None, title="Organization", description="Its id, `org_…`.")
    lake: str | None = Field(None, title="Lake", description="A folder or `s3://bucket/prefix`.")
    gateway: str | None = Field(
        None, title="Gateway", description="Its address with `/3rd`; production by default."
    )
    chunk_size: int | None = Field(
        None,
        ge=1,
        le=10_000,
        title="Conversations a task",
        description="By default chosen from the number of conversations, so that tasks stay few.",
    )
    tolerated_failures: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        title="Tolerated share of failures",
        description="Up to this share of conversations may fail in a run that still ends as completed.",
    )
