"""The same queries about a lake for each query engine, in its language.

    python -m tests.acceptance.json_engines ENGINE MESSAGES

prints the answers as JSON. Each engine runs in a separate process: some start a virtual machine, and some
keep global state, which does not belong in the process of the tests.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

Answers = dict[str, Any]

# The queries look for rows whose `content` has this number, and this nested text; the SQL repeats both.
NUMBER, INSIDE = 1, "?"
ENGINES: dict[str, Callable[[str], Answers]] = {}


def engine(ask: Callable[[str], Answers]) -> Callable[[str], Answers]:
    """Register a function that queries one engine."""
    ENGINES[ask.__name__] = ask
    return ask


def answers(
    rows: int,
    valid: int,
    texts: list[tuple[str, str | None]],
    types: list[tuple[str | None, int]],
    numbered: list[str],
    inside: list[str],
    originals: list[str],
    by_time: list[str],
) -> Answers:
    """Return the answers of an engine in the same form for all engines.

    Args:
        rows, valid: The number of rows, and of those with valid JSON in `content` and in `extra`.
        texts: Message ids and `content.text`, if it is a string.
        types: The number of rows by type.
        numbered, inside: Ids where `content.n` is `NUMBER`, and `content.a[0].b[0]` is `INSIDE`.
        originals: Ids of rows whose `extra` has an original.
        by_time: Ids in the order of `created_at`, then `message_id`; those without a time come last.
    """
    return {
        "rows": rows,
        "valid": valid,
        "texts": sorted([one, text] for one, text in texts if text is not None),
        "types": sorted([str(name), count] for name, count in types),
        "numbered": sorted(numbered),
        "inside": sorted(inside),
        "originals": sorted(originals),
        "by_time": by_time,
    }


def _python(rows: list[dict[str, Any]]) -> Answers:
    """Return the answers of a strict parser, without an engine."""
    contents = {row["message_id"]: orjson.loads(row["content"]) for row in rows if row["content"] is not None}
    extras = {row["message_id"]: orjson.loads(row["extra"] or "null") for row in rows}
    objects = {one: content for one, content in contents.items() if isinstance(content, dict)}
    texts = {one: content.get("text") for one, content in objects.items()}
    inside = [one for one, content in objects.items() if content.get("a") == [{"b": [INSIDE]}]]
    in_order = sorted(rows, key=lambda row: (row["created_at"] is None, row["created_at"], row["message_id"]))
    return answers(
        rows=len(rows),
        valid=len(rows),
        texts=[(one, text) for one, text in texts.items() if isinstance(text, str)],
        types=[*Counter(row["type"] for row in rows).items()],
        numbered=[one for one, content in objects.items() if content.get("n") == NUMBER],
        inside=inside,
        originals=[one for one, extra in extras.items() if extra and "$original" in extra],
        by_time=[row["message_id"] for row in in_order],
    )


@engine
def pandas(messages: str) -> Answers:
    """Query with pandas, which has no JSON functions, so Python's parser reads each value."""
    import pandas as pd

    frame = pd.read_parquet(messages)
    frame = frame.astype(dict.fromkeys(("content", "extra", "type"), object))
    frame = frame.where(frame.notna(), None)
    contents = frame["content"].map(json.loads, na_action="ignore")
    extras = frame["extra"].map(json.loads, na_action="ignore")
    ids = frame["message_id"]

    def field(content: Any, name: str) -> Any:
        return content.get(name) if isinstance(content, dict) else None

    texts = contents.map(lambda content: field(content, "text"))
    inside = contents.map(lambda content: field(content, "a") == [{"b": [INSIDE]}])
    by_time = frame.sort_values(["created_at", "message_id"], na_position="last")
    return answers(
        rows=len(frame),
        valid=int((contents.notna() | frame["content"].isin(["null"]) | frame["content"].isna()).sum()),
        texts=[(one, text) for one, text in zip(ids, texts, strict=True) if isinstance(text, str)],
        types=[*Counter(frame["type"]).items()],
        numbered=[*ids[contents.map(lambda content: field(content, "n") == NUMBER)]],
        inside=[*ids[inside]],
        originals=[*ids[extras.map(lambda extra: isinstance(extra, dict) and "$original" in extra)]],
        by_time=[*by_time["message_id"]],
    )


@engine
def duckdb(messages: str) -> Answers:
    """Query with DuckDB and the operators of its JSON extension."""
    import duckdb as engine

    with engine.connect() as connection:
        connection.execute(f"CREATE VIEW m AS FROM '{messages}/**/*.parquet'")

        def ask(query: str) -> list[Any]:
            found = connection.sql(query).fetchall()
            return [row[0] if len(row) == 1 else row for row in found]

        return answers(
            rows=ask("SELECT count(*) FROM m")[0],
            valid=ask(
                "SELECT count(*) FROM m WHERE coalesce(json_valid(content), true)"
                " AND coalesce(json_valid(extra), true)"
            )[0],
            texts=ask(
                "SELECT message_id, content->>'text' FROM m WHERE json_type(content, '$.text') = 'VARCHAR'"
            ),
            types=ask("SELECT type, count(*) FROM m GROUP BY type"),
            numbered=ask(
                "SELECT message_id FROM m WHERE TRY_CAST(content->>'$.n' AS DOUBLE) = 1"
                " AND json_type(content, '$.n') <> 'VARCHAR'"
            ),
            inside=ask("SELECT message_id FROM m WHERE content->>'$.a[0].b[0]' = '?'"),
            originals=ask("""SELECT message_id FROM m WHERE extra->>'$."$original"' IS NOT NULL"""),
            by_time=ask("SELECT message_id FROM m ORDER BY created_at NULLS LAST, message_id"),
        )


@engine
def polars(messages: str) -> Answers:
    """Query with Polars, its JSON paths, and its decoder of objects into columns."""
    import polars as pl

    frame = pl.scan_parquet(f"{messages}/**/*.parquet").collect()
    content, extra = pl.col("content"), pl.col("extra")
    objects = frame.filter(content.str.starts_with("{"))
    decoded = objects.with_columns(
        content.str.json_decode(pl.Struct({"text": pl.String})).struct.field("text").alias("decoded")
    )
    is_valid = content.is_null() | (content == "null") | content.str.json_path_match("$").is_not_null()
    is_valid &= extra.is_null() | extra.str.json_path_match("$").is_not_null()
    is_number = content.str.json_path_match("$.n").cast(pl.Float64, strict=False) == NUMBER
    ids = "message_id"
    return answers(
        rows=frame.height,
        valid=frame.filter(is_valid).height,
        texts=decoded.select(ids, "decoded").rows(),
        types=frame.group_by("type").len().rows(),
        numbered=frame.filter(is_number)[ids].to_list(),
        inside=frame.filter(content.str.json_path_match("$.a[0].b[0]") == INSIDE)[ids].to_list(),
        originals=frame.filter(extra.str.json_path_match("$['$original']").is_not_null())[ids].to_list(),
        by_time=frame.sort("created_at", ids, nulls_last=True)[ids].to_list(),
    )


@engine
def datafusion(messages: str) -> Answers:
    """Query with DataFusion, which has no JSON functions, so our functions parse each value strictly."""
    import datafusion as engine
    import pyarrow as pa

    def function(name: str, kind: pa.DataType, work: Callable[[Any], Any]) -> Any:
        def each(texts: pa.Array) -> pa.Array:
            parsed = (None if text is None else work(orjson.loads(text)) for text in texts.to_pylist())
            return pa.array(parsed, kind)

        return engine.udf(each, [pa.string_view()], kind, "immutable", name)

    def field(value: Any, name: str) -> Any:
        return value.get(name) if isinstance(value, dict) else None

    def text(value: Any) -> str | None:
        found = field(value, "text")
        return found if isinstance(found, str) else None

    context = engine.SessionContext()
    for name, kind, work in (
        ("is_json", pa.bool_(), lambda value: True),
        ("text_of", pa.string(), text),
        ("is_numbered", pa.bool_(), lambda value: field(value, "n") == NUMBER),
        ("is_inside", pa.bool_(), lambda value: field(value, "a") == [{"b": [INSIDE]}]),
        ("has_original", pa.bool_(), lambda value: "$original" in value),
    ):
        context.register_udf(function(name, kind, work))
    context.register_parquet("m", messages)

    def ask(query: str) -> list[Any]:
        rows = (tuple(row.values()) for row in context.sql(query).to_pylist())
        return [row[0] if len(row) == 1 else row for row in rows]

    return answers(
        rows=ask("SELECT count(*) FROM m")[0],
        valid=ask(
            "SELECT count(*) FROM m WHERE coalesce(is_json(content), true) AND coalesce(is_json(extra), true)"
        )[0],
        texts=ask("SELECT message_id, text_of(content) FROM m"),
        types=ask("SELECT type, count(*) FROM m GROUP BY type"),
        numbered=ask("SELECT message_id FROM m WHERE is_numbered(content)"),
        inside=ask("SELECT message_id FROM m WHERE is_inside(content)"),
        originals=ask("SELECT message_id FROM m WHERE has_original(extra)"),
        by_time=ask("SELECT message_id FROM m ORDER BY created_at NULLS LAST, message_id"),
    )


@engine
def chdb(messages: str) -> Answers:
    """Query with ClickHouse in this process."""
    import chdb as engine

    source = f"file('{messages}/**/*.parquet', Parquet)"

    def ask(query: str) -> list[Any]:
        result = engine.query(query.replace("FROM m", f"FROM {source}"), "JSONCompactEachRow")
        # Not by `splitlines`, which also splits at characters within texts.
        rows = [json.loads(line) for line in result.data().split("\n") if line]
        return [row[0] if len(row) == 1 else tuple(row) for row in rows]

    return answers(
        rows=int(ask("SELECT toInt32(count()) FROM m")[0]),
        valid=ask(
            "SELECT toInt32(count()) FROM m"
            " WHERE ifNull(isValidJSON(content), 1) AND ifNull(isValidJSON(extra), 1)"
        )[0],
        texts=ask(
            "SELECT message_id, JSONExtractString(assumeNotNull(content), 'text') FROM m"
            " WHERE JSONType(assumeNotNull(content), 'text') = 'String'"
        ),
        types=ask("SELECT type, toInt32(count()) FROM m GROUP BY type"),
        numbered=ask(
            "SELECT message_id FROM m WHERE JSONExtract(assumeNotNull(content), 'n', 'Float64') = 1"
        ),
        inside=ask(
            "SELECT message_id FROM m WHERE JSONExtractString(assumeNotNull(content), 'a', 1, 'b', 1) = '?'"
        ),
        originals=ask("SELECT message_id FROM m WHERE JSONHas(assumeNotNull(extra), '$original')"),
        by_time=ask("SELECT message_id FROM m ORDER BY created_at ASC NULLS LAST, message_id"),
    )


@engine
def spark(messages: str) -> Answers:
    """Query with Spark in local mode, in a time zone east of UTC."""
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.warehouse.dir": f"{messages}/../spark-warehouse",
        "spark.sql.session.timeZone": "Asia/Taipei",
        # Spark 3 rejects dates before 1900 by default, and this setting is its default.
        "spark.sql.parquet.datetimeRebaseModeInRead": "EXCEPTION",
    }
    builder = SparkSession.builder.master("local[1]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    session.read.parquet(messages).createOrReplaceTempView("m")

    def ask(query: str) -> list[Any]:
        return [row[0] if len(row) == 1 else tuple(row) for row in session.sql(query).collect()]

    # All times are converted to Python, which fails if one becomes later than the year 9999.
    ask("SELECT created_at, updated_at FROM m")
    return answers(
        rows=ask("SELECT count(*) FROM m")[0],
        valid=ask(
            "SELECT count(*) FROM m WHERE (content IS NULL OR parse_json(content) IS NOT NULL)"
            " AND (extra IS NULL OR parse_json(extra) IS NOT NULL)"
        )[0],
        texts=ask(
            "SELECT message_id, get_json_object(content, '$.text') FROM m"
            " WHERE schema_of_variant(variant_get(parse_json(content), '$.text', 'variant')) = 'STRING'"
        ),
        types=ask("SELECT type, count(*) FROM m GROUP BY type"),
        numbered=ask(
            "SELECT message_id FROM m"
            " WHERE try_cast(get_json_object(content, '$.n') AS DOUBLE) = CAST(1 AS DOUBLE)"
        ),
        inside=ask("SELECT message_id FROM m WHERE get_json_object(content, '$.a[0].b[0]') = '?'"),
        originals=ask(
            """SELECT message_id FROM m WHERE get_json_object(extra, "$['$original']") IS NOT NULL"""
        ),
        by_time=ask("SELECT message_id FROM m ORDER BY created_at NULLS LAST, message_id"),
    )


def expected(messages: str) -> Answers:
    """Return the answers that every engine must give."""
    import pyarrow.dataset as ds

    return _python(ds.dataset(messages).to_table().to_pylist())


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(ENGINES[sys.argv[1]](sys.argv[2])) + "\n")
