"""The SQL of the engines, where they differ; everything else in the views is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

# A Monday before every time in a lake, so that differences in days are never negative.
FIRST_MONDAY = "1899-12-25"


class Dialect(ABC):
    """The language of one engine.

    Attributes:
        name: The name of the engine, and of its file in `sql/`.
        create: The beginning of a statement that makes a view.
        text: The type of a text.
        preamble: Statements before the views.
        sources: The statement behind each source, for a lake in the folder `lake`.
    """

    name: str
    create = "CREATE OR REPLACE VIEW"
    text = "VARCHAR"
    preamble: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[Mapping[str, str]]

    @abstractmethod
    def milliseconds(self, start: str, end: str) -> str:
        """Return the milliseconds from one time to another."""

    @abstractmethod
    def local(self, moment: str, time_zone: str) -> str:
        """Return a moment as the local time of a zone, without a zone."""

    @abstractmethod
    def days(self, local: str) -> str:
        """Return the days from `FIRST_MONDAY` to a local time."""

    @abstractmethod
    def lines(self, line: str, order: str) -> str:
        """Return the aggregate that joins lines in an order."""

    def time_of_day(self, local: str) -> str:
        """Return the milliseconds since midnight of a local time."""
        return self.milliseconds(f"date_trunc('day', {local})", local)


class DuckDB(Dialect):
    """DuckDB, in this process or its command line."""

    name = "duckdb"
    sources: ClassVar = {
        "lake_messages": "SELECT * FROM read_parquet('lake/messages/**/*.parquet')",
        "lake_conversations": "SELECT * FROM read_parquet('lake/conversations/*.parquet')",
        "lake_phones": "SELECT * FROM read_parquet('lake/phones/*.parquet')",
    }

    def milliseconds(self, start: str, end: str) -> str:
        """Return the milliseconds from one time to another."""
        return f"date_diff('millisecond', {start}, {end})"

    def local(self, moment: str, time_zone: str) -> str:
        """Return a moment as the local time of a zone, without a zone."""
        return f"{moment} AT TIME ZONE {time_zone}"

    def days(self, local: str) -> str:
        """Return the days from `FIRST_MONDAY` to a local time."""
        return f"date_diff('day', DATE '{FIRST_MONDAY}', CAST({local} AS DATE))"

    def lines(self, line: str, order: str) -> str:
        """Return the aggregate that joins lines in an order."""
        return f"string_agg({line}, chr(10) ORDER BY {order})"


class Spark(Dialect):
    """Spark 3.4 and later, and Databricks."""

    name = "spark"
    create = "CREATE OR REPLACE TEMPORARY VIEW"
    text = "STRING"
    # Spark shows and takes apart times in the zone of the session.
    preamble = ("SET TIME ZONE 'UTC'",)
    sources: ClassVar = {
        "lake_messages": "SELECT * FROM parquet.`lake/messages`",
        "lake_conversations": "SELECT * FROM parquet.`lake/conversations`",
        "lake_phones": "SELECT * FROM parquet.`lake/phones`",
    }

    def milliseconds(self, start: str, end: str) -> str:
        """Return the milliseconds from one time to another."""
        return f"(unix_millis({end}) - unix_millis({start}))"

    def local(self, moment: str, time_zone: str) -> str:
        """Return a moment as the local time of a zone, without a zone."""
        return f"from_utc_timestamp({moment}, {time_zone})"

    def days(self, local: str) -> str:
        """Return the days from `FIRST_MONDAY` to a local time."""
        return f"CAST(datediff(CAST({local} AS DATE), DATE '{FIRST_MONDAY}') AS BIGINT)"

    def lines(self, line: str, order: str) -> str:
        """Return the aggregate that joins lines in an order."""
        pairs = f"array_sort(collect_list(struct({order} AS number, {line} AS line)))"
        return f"array_join(transform({pairs}, one -> one.line), chr(10))"


class Trino(Dialect):
    """Trino and Athena, over tables whose times have a zone, as those of Delta have."""

    name = "trino"
    sources: ClassVar = {
        "lake_messages": "SELECT * FROM lake.messages",
        "lake_conversations": "SELECT * FROM lake.conversations",
        "lake_phones": "SELECT * FROM lake.phones",
    }

    def milliseconds(self, start: str, end: str) -> str:
        """Return the milliseconds from one time to another."""
        return f"date_diff('millisecond', {start}, {end})"

    def local(self, moment: str, time_zone: str) -> str:
        """Return a moment as the local time of a zone, without a zone."""
        return f"CAST(at_timezone({moment}, {time_zone}) AS TIMESTAMP(3))"

    def days(self, local: str) -> str:
        """Return the days from `FIRST_MONDAY` to a local time."""
        return f"date_diff('day', DATE '{FIRST_MONDAY}', CAST({local} AS DATE))"

    def lines(self, line: str, order: str) -> str:
        """Return the aggregate that joins lines in an order."""
        return f"array_join(array_agg({line} ORDER BY {order}), chr(10))"


DIALECTS: tuple[Dialect, ...] = (DuckDB(), Spark(), Trino())
