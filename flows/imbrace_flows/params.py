"""The parameters of flows, which become the forms in the UI.

Everything else comes from the blocks (`imbrace_flows.blocks`) or the settings (`IMBRACE_*`) of the worker.
Prefect stores and shows parameters in clear. So a token is never a parameter, and a list of phone numbers is
passed by its address; a few numbers may be typed for a try, and the form explains the consequence.

Descriptions have no markup, because the new UI shows it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from imbrace_flows.form import (
    ONLY_IN_SCRIPTS,
    Blankable,
    OrNone,
    Secret,
    Text,
    as_form,
    at_position,
    exactly_one,
    matches,
)
from imbrace_lake.errors import UsageError
from imbrace_lake.export.drift import DriftMode
from imbrace_lake.export.rerun import RUN_ID, run_id_of
from imbrace_lake.moment import parse_moment
from imbrace_lake.phones.lists import PHONE_LIKE
from imbrace_lake.phones.numbers import REGIONS, parse_region
from imbrace_lake.printable import (
    ADDRESS_WITHOUT_CREDENTIALS,
    ADDRESS_WITHOUT_SECRETS,
    NAME_WITHOUT_NUMBERS,
    without_numbers,
)

Source = Literal["everything", "phones", "numbers", "conversations", "rerun"]

MAX_TYPED = 20
# Fifteen digits, a plus, and some blanks, brackets and a comma.
LONGEST_TYPED = 32 * MAX_TYPED
LONGEST_HINT = 50_000
_REGION = rf"^\s*(?:(?i:{'|'.join(sorted(REGIONS))}))?\s*$"
_FEW = rf"^(?![\s,;]*(?:[^,;\s][^,;\n]*[,;\n][\s,;]*){{{MAX_TYPED}}}[^,;\s])[\s\S]{{0,{LONGEST_TYPED}}}$"
# Blanks also separate the groups of a phone number.
_NO_NUMBERS = rf"^(?![\s\S]*(?:^|[\s,;]){PHONE_LIKE}(?:$|[\s,;]))"


# A list that another program wrote as text has brackets and quotes.
_ALL_IDS = r"^[\s,;]*[^\s,;\"'()<>\[\]{}][^\"'()<>\[\]{}]*$"
UNUSABLE = "?"
"""What `prefect.yaml` gives to the run of an event whose payload names nothing."""


def _name(text: str | None) -> str | None:
    if text is not None and without_numbers(text) != text:
        raise ValueError(
            "its name may contain a phone number, which Prefect would store: rename it, or give the position"
            " of a column or sheet"
        )
    return text


def _address(text: str | None) -> str | None:
    if text is not None and not re.search(ADDRESS_WITHOUT_SECRETS, text):
        raise ValueError(
            "its address contains credentials or a signature, which Prefect would store: leave them out, and"
            " copy the list to where the worker can read it without them"
        )
    return _name(text)


def _named(*fields: str) -> list[JsonDict]:
    return [matches(field, NAME_WITHOUT_NUMBERS, "a name without a phone number") for field in fields]


def _addressed(*fields: str) -> list[JsonDict]:
    words = "an address without credentials or a signature"
    return [*_named(*fields), *(matches(field, ADDRESS_WITHOUT_SECRETS, words) for field in fields)]


def _run_id(text: str) -> str:
    try:
        return run_id_of(text)
    except UsageError as exc:
        # Not by a constraint, whose message a form would show in addition to that of a rule.
        raise ValueError(str(exc)) from None


_RUN_IDS = (
    matches("rerun", RUN_ID, "the id of a run, or the address of its page"),
    matches("rerun", ADDRESS_WITHOUT_CREDENTIALS, "an address without credentials"),
)


def _with_zone(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_moment(value)
        except UsageError as exc:
            raise ValueError(f"this {exc}") from None
    return value


Name = Annotated[Text, AfterValidator(_name)]
Address = Annotated[Text, AfterValidator(_address)]
RunId = Annotated[str, AfterValidator(_run_id)]
Moment = Annotated[AwareDatetime | OrNone, BeforeValidator(_with_zone), Blankable]
Hours = Annotated[Annotated[float, Field(gt=0, le=876_000)] | OrNone, Blankable]
Minutes = Hours
Count = Annotated[Annotated[int, Field(ge=1, le=1_000_000_000)] | OrNone, Blankable]


class RunParams(BaseModel):
    """Parameters of every run.

    Attributes:
        form_title: The title of the form's fields.
        rules: What the form checks besides each field.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, json_schema_extra=as_form
    )

    form_title: ClassVar[str]
    rules: ClassVar[Sequence[JsonDict]] = ()

    def recorded(self) -> dict[str, Any]:
        """Return the parameters for the ledger, with typed numbers masked."""
        return self.model_dump(mode="json", exclude_none=True)


class ReadParams(RunParams):
    """Parameters of every run that reads from the gateway; forms do not show them."""

    tolerated_failures: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        title="Tolerated share of failures",
        description="The run still ends as completed if at most this share of conversations fails, 0 to 1.",
        json_schema_extra=ONLY_IN_SCRIPTS,
    )
    drift: DriftMode = Field(
        "evolve",
        title="Schema drift",
        description=(
            "What to do when the gateway sends a new message type or field: evolve reports it in the"
            " summary, warn also in the log, freeze does not export the conversation."
        ),
        json_schema_extra=ONLY_IN_SCRIPTS,
    )
    chunk_size: int | None = Field(
        None,
        ge=1,
        le=10_000,
        title="Conversations per task",
        description="By default, larger runs have larger tasks.",
        json_schema_extra=ONLY_IN_SCRIPTS,
    )
    shard_size: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        title="Conversations per shard",
        description=(
            "A run with more conversations than this is split into shards, which several workers export. By"
            " default, up to 20,000 conversations stay in one run."
        ),
        json_schema_extra=ONLY_IN_SCRIPTS,
    )
    accept_repeats: bool = Field(
        False,
        title="Accept repeated messages",
        description=(
            "Export conversations although the gateway permanently repeats messages in their lists; the"
            " ledger marks them."
        ),
        json_schema_extra=ONLY_IN_SCRIPTS,
    )

    def settings(self) -> dict[str, object]:
        """Return the given parameters that win over the settings of the same name."""
        return {
            "chunk_size": self.chunk_size,
            "shard_size": self.shard_size,
            "accept_repeats": self.accept_repeats or None,
        }


class ListParams(ReadParams):
    """Parameters of every run that can read a list of phone numbers."""

    rules: ClassVar[Sequence[JsonDict]] = (
        matches("region", _REGION, "two letters of a country, such as TW"),
        *_addressed("phones"),
        *_named("column", "sheet"),
    )

    phones: Address = Field(
        None,
        title="List of phone numbers",
        description=(
            "Path or URL of a list that the worker can read, such as s3://bucket/list.csv: text, CSV, Parquet"
            " or a spreadsheet. A folder is one list, and so is a pattern with an asterisk."
        ),
        json_schema_extra=at_position(1),
    )
    region: Text = Field(
        None,
        title="Default country",
        description="Country of numbers written without a country code, as two letters, such as TW.",
        json_schema_extra=at_position(4),
    )
    column: Name = Field(
        None,
        title="Columns",
        description=(
            "The columns of the list to read, by name or position, separated by commas. If empty, they are"
            " found by their content."
        ),
        json_schema_extra=at_position(21),
    )
    sheet: Name = Field(
        None,
        title="Sheet",
        description="The sheet of a spreadsheet to read, by name or position. If empty, the first.",
        json_schema_extra=at_position(22),
    )

    @field_validator("region")
    @classmethod
    def _in_capitals(cls, region: str | None) -> str | None:
        try:
            return None if region is None else parse_region(region)
        except UsageError:
            # Its message repeats the text, which can be a number in the wrong field.
            raise ValueError("write two letters of a country, such as TW") from None

    def settings(self) -> dict[str, object]:
        """Return the given parameters that win over the settings of the same name."""
        return {**super().settings(), "region": self.region}


class ChosenParams(ListParams):
    """Parameters of exports and backfills, where an operator can type numbers and approve a plan."""

    rules: ClassVar[Sequence[JsonDict]] = (
        *ListParams.rules,
        matches("numbers", _FEW, f"at most {MAX_TYPED} phone numbers; write more into a list"),
    )

    numbers: Secret = Field(
        None,
        title="A few phone numbers",
        description=(
            f"At most {MAX_TYPED}, separated by commas. Prefect stores what is typed here and shows it to"
            " everybody who may see the run: prefer a list."
        ),
        json_schema_extra=at_position(2),
    )
    ask_first: bool = Field(
        False,
        title="Ask before reading",
        description=(
            "Estimate what the run would read and how long it would take, then wait up to a day for approval"
            " with the button Resume."
        ),
        json_schema_extra=at_position(20),
    )

    @field_validator("numbers")
    @classmethod
    def _few(cls, numbers: SecretStr | None) -> SecretStr | None:
        is_too_long = numbers is not None and len(numbers) > LONGEST_TYPED
        if is_too_long or (numbers is not None and not 0 < len(_separate(numbers)) <= MAX_TYPED):
            raise ValueError(f"type 1 to {MAX_TYPED} phone numbers, or give the address of a list")
        return numbers

    def typed(self) -> list[str] | None:
        """Return the typed numbers, one by one; None without any."""
        return None if self.numbers is None else _separate(self.numbers)


def _separate(numbers: SecretStr) -> list[str]:
    return [text for part in re.split(r"[,;\n]", numbers.get_secret_value()) if (text := part.strip())]


class ExportParams(ChosenParams):
    """An export: the conversations of phone numbers, or, in scripts, the failures of an earlier run."""

    form_title = "What to export"
    rules: ClassVar[Sequence[JsonDict]] = (
        *ChosenParams.rules,
        *_RUN_IDS,
        *exactly_one("phones", "numbers", "rerun", words="a list of phone numbers, a few phone numbers"),
    )

    accept_repeats: bool = Field(
        False,
        title="Accept repeated messages",
        description=(
            "Export conversations although the gateway permanently repeats messages in their lists; the"
            " ledger marks them. Only if the failures of a run advise it."
        ),
        json_schema_extra=at_position(23),
    )
    rerun: RunId | None = Field(
        None,
        title="Run to retry",
        description="Id of an earlier run whose failures are exported again.",
        json_schema_extra=ONLY_IN_SCRIPTS,
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.phones, self.numbers, self.rerun)) != 1:
            raise ValueError("give one of these: a list of phone numbers, or a few phone numbers")
        return self


class UploadParams(ListParams):
    """An export of a list that an event names."""

    form_title = "What to export"

    phones: Annotated[str, AfterValidator(_address)] = Field(
        min_length=1,
        title="List of phone numbers",
        description=(
            "Path or URL of a list that the worker can read, such as s3://bucket/list.csv. An event fills"
            " this in."
        ),
        json_schema_extra=at_position(1),
    )

    @field_validator("phones")
    @classmethod
    def _is_named(cls, phones: str) -> str:
        if phones.strip() in ("", UNUSABLE):
            raise ValueError('the event names none: its payload must be {"list": "s3://bucket/list.csv"}')
        return phones


class RetryParams(ReadParams):
    """An export of the failures of an earlier run."""

    form_title = "What to retry"
    rules: ClassVar[Sequence[JsonDict]] = _RUN_IDS

    rerun: RunId = Field(
        title="Run to retry",
        description=(
            "The id of a run that ended as Partial or Failed, or of a cancelled backfill, or the address of"
            " its page. What it missed is read as that run was to read it: completely after a backfill, or in"
            " its window of time."
        ),
        json_schema_extra=at_position(1),
    )


class IngestParams(ListParams):
    """An ingestion: new messages of every conversation the lake knows, and of those of a list of numbers."""

    form_title = "Where to find new conversations"

    budget: Count = Field(
        None,
        title="Maximum requests",
        description=(
            "If these are not sufficient for all conversations, the run visits those with the most expected"
            " news. The lookup of the list, all pages and retries count, and visits that have begun are"
            " finished. If empty, as many as the limit of requests allows until the next run."
        ),
        json_schema_extra=at_position(5),
    )
    minutes: Minutes = Field(
        None,
        title="Maximum minutes",
        description=(
            "After this time, the run only finishes visits that have an answer. If empty, until the next run"
            " is near."
        ),
        json_schema_extra=at_position(6),
    )

    def settings(self) -> dict[str, object]:
        """Return the given parameters that win over the settings of the same name."""
        return {**super().settings(), "budget": self.budget}


class ChangedParams(ReadParams):
    """A visit of conversations that an event names."""

    form_title = "What has changed"
    rules: ClassVar[Sequence[JsonDict]] = (
        matches("conversations", _NO_NUMBERS, "ids of conversations, not phone numbers"),
        matches("conversations", _ALL_IDS, "ids of conversations, separated by commas"),
    )

    conversations: str = Field(
        min_length=1,
        max_length=LONGEST_HINT,
        title="Conversations",
        description=(
            "The id of a conversation, or several separated by commas, semicolons, spaces or line breaks. An"
            " event fills this in."
        ),
        json_schema_extra=at_position(1),
    )

    @field_validator("conversations")
    @classmethod
    def _only_ids(cls, conversations: str) -> str:
        if conversations.strip() == UNUSABLE:
            raise ValueError(
                'the event names none: its payload must be {"conversations": "conv_1, conv_2"}, or have a'
                " list of such texts"
            )
        if not re.search(_NO_NUMBERS, conversations):
            raise ValueError("give ids of conversations, not phone numbers")
        if not re.search(_ALL_IDS, conversations):
            raise ValueError("give ids of conversations, separated by commas, without quotes and brackets")
        return conversations

    def ids(self) -> list[str]:
        """Return the ids, each once."""
        return [*dict.fromkeys(filter(None, re.split(r"[\s,;]+", self.conversations)))]


class BackfillParams(ChosenParams):
    """A backfill: some conversations again, completely or for a window of time."""

    form_title = "What to read again"
    rules: ClassVar[Sequence[JsonDict]] = (
        *ChosenParams.rules,
        *_RUN_IDS,
        *_addressed("conversations"),
        *exactly_one(
            *("everything", "phones", "numbers", "conversations", "rerun"),
            words="everything, a list of phone numbers, a few phone numbers, a list of conversations",
        ),
    )

    everything: bool = Field(
        False,
        title="Everything",
        description="All conversations that the lake knows.",
        json_schema_extra=at_position(0),
    )
    conversations: Address = Field(
        None,
        title="List of conversations",
        description=(
            "Path or URL of a list of conversation ids; in tables, in the column conversation_id unless you"
            " name another."
        ),
        json_schema_extra=at_position(3),
    )
    rerun: RunId | None = Field(
        None,
        title="Run to retry",
        description="Id of an earlier run whose failures are exported again.",
        json_schema_extra=ONLY_IN_SCRIPTS,
    )
    since: Moment = Field(
        None,
        title="From",
        description="Only messages from this moment on, and their edits. If empty, from the first.",
        json_schema_extra=at_position(5),
    )
    until: Moment = Field(
        None,
        title="Until",
        description="Only messages before this moment. If empty, to the last.",
        json_schema_extra=at_position(6),
    )
    walk_whole: bool = Field(
        True,
        title="Read complete conversations",
        description="Finds old edits and deletions; otherwise only new messages are read.",
        json_schema_extra=ONLY_IN_SCRIPTS,
    )
    budget: Count = Field(
        None,
        title="Maximum requests",
        description="Maximum requests of a run that reads new messages of everything.",
        json_schema_extra=ONLY_IN_SCRIPTS,
    )
    minutes: Minutes = Field(
        None,
        title="Maximum minutes",
        description="Maximum minutes of such a run.",
        json_schema_extra=ONLY_IN_SCRIPTS,
    )

    @property
    def source(self) -> Source:
        """The field that names the conversations."""
        return self._sources()[0]

    def _sources(self) -> list[Source]:
        given: dict[Source, object] = {
            "everything": self.everything or None,
            "phones": self.phones,
            "numbers": self.numbers,
            "conversations": self.conversations,
            "rerun": self.rerun,
        }
        return [source for source, value in given.items() if value is not None]

    @model_validator(mode="after")
    def _one_source_and_a_window(self) -> Self:
        if len(self._sources()) != 1:
            raise ValueError(
                "give one of these: everything, a list of phone numbers, a few phone numbers, or a list of"
                " conversations"
            )
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("the window ends before it begins: Until must be later than From")
        if self.since is not None and self.since > datetime.now(UTC):
            raise ValueError("the window begins in the future: From must be earlier than now")
        is_ingestion = self.everything and not self.walk_whole and self.since is None and self.until is None
        if (self.budget is not None or self.minutes is not None) and not is_ingestion:
            raise ValueError("a budget is for runs that read new messages of everything")
        return self


class ShardParams(ReadParams):
    """A shard of a large run, which starts it; parameters as of a backfill."""

    form_title = "Shard"

    conversations: str = Field(
        min_length=1,
        title="List of conversations",
        description="Key of a list that the run has written into the lake.",
        json_schema_extra=at_position(1),
    )
    parent_run: str = Field(
        min_length=1, title="Run", description="Id of the run.", json_schema_extra=at_position(2)
    )
    since: Moment = Field(
        None, title="From", description="Begin of the window.", json_schema_extra=at_position(5)
    )
    until: Moment = Field(
        None, title="Until", description="End of the window.", json_schema_extra=at_position(6)
    )
    walk_whole: bool = Field(True, title="Read complete conversations", json_schema_extra=ONLY_IN_SCRIPTS)


class VerifyParams(RunParams):
    """A verification: every object against its hash, and on request every count against the gateway."""

    form_title = "What to verify"

    counts: bool = Field(
        False,
        title="Ask the gateway for every count",
        description="One request per conversation; messages newer than the last run count as differences.",
        json_schema_extra=at_position(1),
    )
    stale_hours: Hours = Field(
        None,
        title="Stale after",
        description=(
            "Maximum age of a conversation's proof, in hours; an event reports older ones. If empty, any age."
        ),
        json_schema_extra=at_position(2),
    )


class CompactParams(RunParams):
    """A compaction: the tables of the lake are brought up to date."""

    form_title = "How to compact"

    dry_run: bool = Field(
        False,
        title="Dry run",
        description="Only report what the run would read and write.",
        json_schema_extra=at_position(1),
    )
    keep_hours: float = Field(
        24.0,
        ge=0.0,
        le=876_000.0,
        title="Hours to keep old files",
        description="Files of earlier versions stay so long, for queries that are reading them.",
        json_schema_extra=at_position(2),
    )
