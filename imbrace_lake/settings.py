"""Addresses, secrets and limits, from the environment and a `.env`; read once, handed down."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dotenv.parser import parse_stream
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from imbrace_lake.errors import SettingsError
from imbrace_lake.gateway.ids import is_encodable
from imbrace_lake.gateway.message_list import DEFAULT_BOUNDS, Bounds
from imbrace_lake.lake.memory import MemoryBudget
from imbrace_lake.policy import ReadPolicy
from imbrace_lake.printable import is_number, printable

if TYPE_CHECKING:
    from imbrace_lake.gateway.client import GatewayOptions
    from imbrace_lake.gateway.limiter import RequestLimiter
    from imbrace_lake.revisit import RevisitPolicy

PRODUCTION = "https://app-gateway.imbrace.co/3rd"
PREFIX = "IMBRACE_"
EXPIRY_WARNING = timedelta(days=14)
ENV_FILE = ".env"
OTHER_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        "CALLED_AS", "HOME", "PHONES", "PREFECT_FILE", "SERVER_IDLE_MINUTES", "SERVER_KEEP_DAYS", "SLACK_URL",
        "SMTP_PASSWORD", "TEAMS_URL", "WORK_POOL", "WORK_QUEUE",
    )
)  # fmt: skip
"""The variables of the command line and of the composed server, which are not settings of a run."""
_INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
FOR_TESTS = (f"{PREFIX}ACCEPTANCE", f"{PREFIX}TEST_")


def _day(value: object) -> object:
    """Turn a time, as the vendor shows it, into its day in UTC; pydantic parses anything else."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return value
    if not isinstance(moment, datetime):
        return value
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()


Expiry = Annotated[date, BeforeValidator(_day)]
"""The day on which a token expires, UTC; also accepts a time of that day."""


def expiry_warning(expires: date | None, today: date) -> str | None:
    """Return the warning that a token has expired or expires within two weeks; None otherwise.

    Args:
        expires: The day on which it expires.
        today: UTC.
    """
    if expires is None or expires - today > EXPIRY_WARNING:
        return None
    advice = "create a new one and run `imbrace-lake setup` with it, or change it where it is set"
    days = (expires - today).days
    if days < 0:
        return f"the token expired on {expires}, according to the settings: {advice}"
    when = "today" if days == 0 else "tomorrow" if days == 1 else f"in {days} days"
    return f"the token expires {when}, on {expires}: {advice}"


# A lake can be a folder `api_exports`.
_TOKEN = re.compile(r"api_[0-9a-f]{8}-", re.IGNORECASE)


def reject_token(value: str, *, is_organization: bool = False) -> None:
    """Reject a token that is not given as the token.

    Raises:
        ValueError: The value is a token.
    """
    if value.startswith("api_") if is_organization else _TOKEN.match(value):
        raise ValueError("it begins with api_, so it is a token, which only IMBRACE_TOKEN may contain")


# In place of Pydantic's sentences, by the type of error.
_REASONS = {
    "bool_parsing": "it must be true or false",
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_parsing": "it must be a number",
    "finite_number": "it must be a number",
    "too_short": "it must have at least 16 characters",
}


class Settings(BaseSettings):
    """The settings of a run; each field is the environment variable `IMBRACE_` + its name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        # What is not a number would pass, or be reported as outside of bounds.
        allow_inf_nan=False,
    )

    token: SecretStr | None = Field(None, description="The organization's API token, `api_…`.")
    token_expires: Expiry | None = Field(
        None, description="The day on which the token expires, `2027-01-31`; runs warn two weeks before."
    )
    organization: str | None = Field(None, description="The organization's id, `org_…`.")
    gateway: str = Field(PRODUCTION, description="The gateway's address, with its `/3rd`.")
    lake: str | None = Field(
        None,
        description="The lake: a folder, `s3://bucket/prefix`, or the URL of an installed fsspec driver.",
    )
    region: str | None = Field(
        None, description="Country of numbers written without a country code, such as `TW`."
    )
    list_schemes: str = Field(
        "",
        pattern=r"^[a-zA-Z0-9+.,\s-]*$",
        description="Kinds of addresses that lists are read from besides `file` and `s3`: `gs,https`.",
    )
    mask_phones: bool = Field(False, description="Store phone numbers only masked and hashed.")
    phone_key: SecretStr | None = Field(
        None, min_length=16, description="Key of the phone numbers' hashes; by default the lake's own key."
    )
    page_size: int = Field(100, ge=1, le=1_000, description="Messages requested per page.")
    max_in_flight: int = Field(
        32,
        ge=1,
        le=1_000,
        description="Maximum requests under way at a time; fewer while the gateway is rate-limiting.",
    )
    requests_per_second: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Maximum requests per second of one process; no limit by default.",
    )
    request_limit: str = Field(
        "imbrace-requests",
        description="Prefect's global concurrency limit that all runs share; empty for none.",
    )
    budget: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="Maximum requests of an ingestion; by default what the limit allows until the next.",
    )
    period_minutes: float = Field(60.0, gt=0, le=525_600, description="Minutes between two ingestions.")
    promise_days: float = Field(
        7.0,
        gt=0,
        le=36_500,
        description="No conversation waits longer for a visit, if the budget is sufficient.",
    )
    timeout_seconds: float = Field(35.0, gt=0, le=86_400, description="Longest wait for one answer.")
    tries: int = Field(6, ge=1, le=20, description="How often one request is sent before it has failed.")
    patience_seconds: float = Field(
        2_100.0, ge=0, le=31_536_000, description="How long to keep retrying after status 429."
    )
    outage_seconds: float = Field(
        2_100.0, gt=0, le=31_536_000, description="How long a run continues although no request succeeds."
    )
    answer_megabytes: float = Field(
        4.0, gt=0, le=1_024, description="Longest answer; a larger page is requested in smaller pieces."
    )
    pages_ahead: int = Field(8, ge=1, le=64, description="Pages of a long conversation requested at a time.")
    max_messages: int = Field(
        DEFAULT_BOUNDS.messages,
        ge=1,
        le=1_000_000_000,
        description="Maximum messages of one conversation; more are incomplete.",
    )
    max_uncounted_messages: int = Field(
        DEFAULT_BOUNDS.uncounted_messages,
        ge=1,
        le=1_000_000_000,
        description="Maximum messages of a conversation for which the gateway states no count.",
    )
    accept_repeats: bool = Field(
        False, description="Export lists in which the gateway always repeats messages, marked `repeats`."
    )
    look_back_days: float = Field(
        7.0, ge=0, le=36_500, description="Messages younger than this are compared for edits."
    )
    look_back_messages: int = Field(
        200, ge=0, le=1_000_000_000, description="Maximum messages of one conversation to compare for edits."
    )
    rewalk_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="Days between two full walks of a conversation, which find older edits.",
    )
    memory_megabytes: float = Field(
        16.0,
        gt=0,
        le=1_048_576,
        description="Memory for messages; more of them wait in files until they are written.",
    )
    chunk_size: int | None = Field(
        None, ge=1, le=10_000, description="Conversations per task; by default it depends on their number."
    )
    shard_size: int | None = Field(
        None, ge=1, le=1_000_000_000, description="Conversations per shard; by default up to 20,000."
    )
    chunks_in_flight: int = Field(6, ge=1, le=64, description="Tasks that run at a time.")
    tolerated_unreadable: float = Field(
        0.05, ge=0, le=1, description="Share of a list that may be unreadable in a complete run."
    )
    task_retries: int = Field(2, ge=0, le=10, description="How often a task is tried again.")
    task_retry_seconds: float = Field(
        15.0,
        ge=0,
        le=86_400,
        description="The wait before a task's second try; it doubles with each further try.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _without_quotes(cls, value: object) -> object:
        """Remove quotes around a value: the `--env-file` of Docker keeps them."""
        if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            return value[1:-1]
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _in_their_place(cls, value: object, info: ValidationInfo) -> object:
        """Reject a token in another setting, which logs and ledgers would show, and an id as the token."""
        if isinstance(value, str):
            reject_token(value, is_organization=info.field_name == "organization")
        if info.field_name == "organization" and value and is_number(str(value)):
            raise ValueError("it is a phone number: an organization's id begins with org_")
        if info.field_name == "organization" and isinstance(value, str) and _INVISIBLE.search(value):
            # Values that are read from a file often end with a line break.
            raise ValueError("it contains a space or a line break: set it again")
        if isinstance(value, str) and not is_encodable(value):
            raise ValueError("it is not UTF-8 text")
        secret = value.get_secret_value() if isinstance(value, SecretStr) else ""
        if info.field_name == "token" and secret.startswith("org_"):
            raise ValueError("it begins with org_, so it is an organization's id: a token begins with api_")
        return value

    def schemes(self) -> frozenset[str]:
        """Return the kinds of addresses that lists are read from besides files and S3."""
        return frozenset(filter(None, (name.strip().lower() for name in self.list_schemes.split(","))))

    def require(self, name: str) -> Any:
        """Return the value of a setting that has no default.

        Raises:
            SettingsError: It is not set.
        """
        value = getattr(self, name)
        if not value:
            raise SettingsError(f"no {name} is set: set {PREFIX}{name.upper()}")
        return value

    def gateway_options(self) -> GatewayOptions:
        """Return how to reach the gateway.

        Raises:
            SettingsError: Token or organization is missing, or the token or the address is invalid.
        """
        # Commands without a gateway need no HTTP client, whose import takes 0.1 s.
        from imbrace_lake.gateway.client import GatewayOptions

        if problems := self.gateway_problems():
            raise SettingsError(*problems)
        return GatewayOptions(
            url=self.gateway,
            token=self.require("token"),
            organization=self.require("organization"),
            timeout_seconds=self.timeout_seconds,
            tries=self.tries,
            patience_seconds=self.patience_seconds,
            outage_seconds=self.outage_seconds,
            most_answer_bytes=int(self.answer_megabytes * 2**20),
        )

    def gateway_problems(self) -> list[str]:
        """Return what is wrong with token and address, a sentence for each."""
        problems = []
        if address := self._address_problem():
            problems.append(address)
        text = self.token.get_secret_value() if self.token else ""
        if not text:
            problems.append(f"no token is set: set {PREFIX}TOKEN")
        # Secrets that are read from a file often end with a line break, which a header cannot contain.
        elif not text.isascii() or not text.isprintable() or " " in text:
            problems.append(
                f"{PREFIX}TOKEN contains a space, a line break or a character that tokens do not have: set it"
                " again"
            )
        return problems

    def _address_problem(self) -> str | None:
        import httpx

        if not self.gateway.startswith(("http://", "https://")):
            return f"{PREFIX}GATEWAY must start with https:// (or http://): {self.gateway}"
        try:
            address = httpx.URL(self.gateway)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.userinfo:
            return f"{PREFIX}GATEWAY contains a user or a password, which logs would show: remove it"
        if address.query or address.fragment:
            return f"{PREFIX}GATEWAY has a query (what follows ? or #), which logs would show: remove it"
        is_address = address.host and (address.port is None or 0 < address.port < 65_536)
        return None if is_address else f"{PREFIX}GATEWAY is not an address: {self.gateway}"

    def policy(self) -> ReadPolicy:
        """Return which messages that are in the lake a run reads again."""
        return ReadPolicy(
            timedelta(days=self.look_back_days), self.look_back_messages, timedelta(days=self.rewalk_days)
        )

    def revisit_policy(self) -> RevisitPolicy:
        """Return the limits of the time between two visits of a conversation."""
        from imbrace_lake.revisit import RevisitPolicy

        return RevisitPolicy(timedelta(days=self.promise_days), timedelta(minutes=self.period_minutes))

    def bounds(self) -> Bounds:
        """Return the most messages that a run reads of one conversation."""
        return Bounds(self.max_messages, self.max_uncounted_messages)

    def new_memory_budget(self) -> MemoryBudget:
        """Return a new memory budget, for all conversations of one process to share."""
        return MemoryBudget(int(self.memory_megabytes * 2**20))

    def new_limiter(self) -> RequestLimiter:
        """Return a new limiter, for all requests of one process to share."""
        from imbrace_lake.gateway.limiter import RequestLimiter

        return RequestLimiter(max_in_flight=self.max_in_flight, per_second=self.requests_per_second)


def load_settings(**given: Any) -> Settings:
    """Read the settings; arguments that are not None win over the environment, the environment over `.env`.

    Raises:
        SettingsError: A value, or the file `.env`, cannot be used; the message does not repeat any value.
    """
    try:
        _check_env_file(Path(ENV_FILE))
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except UnicodeError:
        raise SettingsError(
            ".env is not UTF-8 text, perhaps because PowerShell wrote it with >: save it as UTF-8"
        ) from None
    except OSError as exc:
        raise SettingsError(
            f".env cannot be read ({type(exc).__name__}): check the file and its permissions"
        ) from None
    except ValidationError as exc:
        problems = []
        for one in exc.errors(include_input=False, include_url=False):
            reason = _REASONS.get(one["type"]) or one["msg"].removeprefix("Value error, ")
            problems.append(f"{PREFIX}{str(one['loc'][0]).upper()}: {reason[0].lower()}{reason[1:]}")
        raise SettingsError(*problems) from None


def unknown_settings() -> list[str]:
    """Return a sentence, without its value, for each variable with our prefix that nothing reads.

    Raises:
        OSError: The file `.env` cannot be read.
        UnicodeError: It is not text.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    names = dict.fromkeys(environ, "")
    if (path := Path(ENV_FILE)).is_file():
        with path.open(encoding="utf-8") as file:
            names = {one.key: f" in {path}" for one in parse_stream(file) if one.key} | names
    sentences = []
    for name, where in sorted(names.items()):
        # As pydantic-settings, which ignores the case.
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known or upper.startswith(FOR_TESTS):
            continue
        near = get_close_matches(upper.removeprefix(PREFIX), (one.removeprefix(PREFIX) for one in known), 1)
        advice = f"is {PREFIX}{near[0]} meant?" if near else "see docs/settings.md"
        sentences.append(f"{printable(name)}{where} is not a setting: {advice}")
    return sentences


def _check_env_file(path: Path) -> None:
    """Reject a file of settings with a line that would be left out, as one without its closing quote."""
    if path.is_dir():
        raise SettingsError(f"{path} is a folder where a file of settings belongs: rename it")
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for binding in parse_stream(file):
            if binding.error:
                text = binding.original.string
                line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
                raise SettingsError(
                    f"line {line} of {path} cannot be read: write NAME=value, and close quotes"
                )
