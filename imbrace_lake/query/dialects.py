"""The SQL of the engines, where they differ; everything else in the views is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

# A Monday before every time in a lake, so that differences in days are never negative.
FIRST_MONDAY = "1899-12-25"
# What is removed around a text, besides spaces: tab, line breaks, no-break space, ideographic space and byte
# order mark. The `trim` of some engines removes only spaces, and that of others many more characters.
WHITE_SPACE = (0x09, 0x0A, 0x0D, 0xA0, 0x3000, 0xFEFF)


class Dialect(ABC):
    """The language of one engine.

    Attributes:
        name: The name of the engine, and of its file in `sql/`.
        create: The beginning of a statement that makes a view.
        text: The type of a text.
        length: The function that returns the number of characters of a text.
        zone: The time zone in the row `s` of the settings; None if the engine needs it in the statement.
        preamble: Statements before the views.
        source: The query of a source, for a lake in the folder `lake`.
    """

    name: str
    create = "CREATE OR REPLACE VIEW"
    text = "VARCHAR"
    length = "length"
    zone: str | None = "s.time_zone"
    preamble: ClassVar[tuple[str, ...]] = ()
    source: str

    def source_statement(self, name: str) -> str:
        """Return the statement that makes the source of a folder of the lake."""
        return f"{self.create} lake_{name} AS\n{self.source.format(name=name)}"

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

    def character(self, code: int) -> str:
        """Return the character with a number in Unicode."""
        return f"chr({code})"

    def bare(self, text: str) -> str:
        """Return a text without the spaces and the characters of `WHITE_SPACE` around it."""
        for code in WHITE_SPACE:
            text = f"replace({text}, {self.character(code)}, ' ')"
        return f"trim(BOTH ' ' FROM {text})"

    def time_of_day(self, local: str) -> str:
        """Return the milliseconds since midnight of a local time."""
        return self.milliseconds(f"date_trunc('day', {local})", local)

    def minute(self, local: str) -> str:
        """Return a local time as a text to the minute: `2026-01-31 09:05`."""
        return f"substr(CAST({local} AS {self.text}), 1, 16)"

    def min_by(self, value: str, key: str) -> str:
        """Return the aggregate with the value in the row of the smallest key that is not null."""
        return f"min_by({value}, {key})"

    def max_by(self, value: str, key: str) -> str:
        """Return the aggregate with the value in the row of the largest key that is not null."""
        return f"max_by({value}, {key})"


class DuckDB(Dialect):
    """DuckDB, in this process or its command line."""

    name = "duckdb"
    source = "SELECT * FROM read_parquet('lake/{name}/**/*.parquet')"

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
    source = "SELECT * FROM parquet.`lake/{name}`"

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

    def character(self, code: int) -> str:
        """Return the character with a number in Unicode, of which `chr` takes only the last 8 bits."""
        return f"decode(unhex('{chr(code).encode().hex()}'), 'UTF-8')" if code > 255 else f"chr({code})"


class Trino(Dialect):
    """Trino and Athena, over tables whose times have a zone, as those of Delta have."""

    name = "trino"
    source = "SELECT * FROM lake.{name}"

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


class DataFusion(Dialect):
    """DataFusion, in Python or its command line."""

    name = "datafusion"
    zone = None

    def source_statement(self, name: str) -> str:
        """Return the statement that makes the source of a folder of the lake."""
        return f"CREATE OR REPLACE EXTERNAL TABLE lake_{name} STORED AS PARQUET LOCATION 'lake/{name}/'"

    def milliseconds(self, start: str, end: str) -> str:
        """Return the milliseconds from one time to another."""
        first, last = (
            f"CAST(arrow_cast({moment}, 'Timestamp(Millisecond, None)') AS BIGINT)" for moment in (start, end)
        )
        return f"({last} - {first})"

    def local(self, moment: str, time_zone: str) -> str:
        """Return a moment as the local time of a zone, without a zone."""
        return f"to_local_time({moment} AT TIME ZONE {time_zone})"

    def days(self, local: str) -> str:
        """Return the days from `FIRST_MONDAY` to a local time."""
        return f"CAST(CAST({local} AS DATE) - DATE '{FIRST_MONDAY}' AS BIGINT)"

    def lines(self, line: str, order: str) -> str:
        """Return the aggregate that joins lines in an order."""
        return f"string_agg({line}, chr(10) ORDER BY {order})"

    def minute(self, local: str) -> str:
        """Return a local time as a text to the minute: `2026-01-31 09:05`."""
        return f"to_char({local}, '%Y-%m-%d %H:%M')"

    def min_by(self, value: str, key: str) -> str:
        """Return the aggregate with the value in the row of the smallest key that is not null."""
        return f"first_value({value} ORDER BY {key}) FILTER (WHERE {key} IS NOT NULL)"

    def max_by(self, value: str, key: str) -> str:
        """Return the aggregate with the value in the row of the largest key that is not null."""
        return f"last_value({value} ORDER BY {key}) FILTER (WHERE {key} IS NOT NULL)"


class ClickHouse(Dialect):
    """ClickHouse 26 and later, and chDB, which is ClickHouse in a Python process."""

    name = "clickhouse"
    text = "Nullable(String)"
    length = "lengthUTF8"
    zone = "(SELECT time_zone FROM settings)"
    # As in the standard: rows without a partner and casts of null are null, and columns come before aliases.
    preamble = (
        "SET schema_inference_make_columns_nullable = 1, join_use_nulls = 1, cast_keep_nullable = 1,"
        " prefer_column_name_to_alias = 1",
    )
    source = "SELECT * FROM file('lake/{name}/**/*.parquet', Parquet)"

    def milliseconds(self, start: str, end: str) -> str:
        """Return the milliseconds from one time to another."""
        return f"date_diff('millisecond', {start}, {end})"

    def local(self, moment: str, time_zone: str) -> str:
        """Return a moment as the local time of a zone, which is in UTC, because every time has a zone."""
        return f"({moment} + toIntervalSecond(timeZoneOffset(toTimeZone({moment}, {time_zone}))))"

    def days(self, local: str) -> str:
        """Return the days from `FIRST_MONDAY` to a local time."""
        return f"date_diff('day', toDate32('{FIRST_MONDAY}'), toDate32({local}))"

    def lines(self, line: str, order: str) -> str:
        """Return the aggregate that joins lines in an order."""
        pairs = f"arraySort(groupArray(({order}, {line})))"
        return f"arrayStringConcat(arrayMap(one -> one.2, {pairs}), char(10))"

    def character(self, code: int) -> str:
        """Return the character with a number in Unicode, whose bytes are arguments of `char`."""
        return f"char({', '.join(map(str, chr(code).encode()))})"


DIALECTS: tuple[Dialect, ...] = (DuckDB(), Spark(), Trino(), DataFusion(), ClickHouse())
