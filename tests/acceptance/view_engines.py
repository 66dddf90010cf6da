"""The views in each query engine, from its file in `sql/`.

    python -m tests.acceptance.view_engines ENGINE SCRIPT VIEW…

runs the statements of a file, and prints the rows of each view as JSON. Each engine runs in a separate
process: Spark starts a virtual machine, and chDB keeps global state.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.acceptance.scale import IS_FULL

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]
ENGINES: dict[str, Callable[[list[str], list[str]], Iterator[Rows]]] = {}


def engine(
    run: Callable[[list[str], list[str]], Iterator[Rows]],
) -> Callable[[list[str], list[str]], Iterator[Rows]]:
    """Register a function that runs statements and yields the rows of some views."""
    ENGINES[run.__name__] = run
    return run


@engine
def duckdb(statements: list[str], views: list[str]) -> Iterator[Rows]:
    """Run DuckDB, in a time zone that must not matter."""
    import duckdb as engine

    with engine.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")
        for statement in statements:
            connection.execute(statement)
        connection.execute("SET TimeZone = 'UTC'")
        for view in views:
            yield connection.sql(f"FROM {view}").to_arrow_table().to_pylist()


@engine
def datafusion(statements: list[str], views: list[str]) -> Iterator[Rows]:
    """Run DataFusion."""
    from datafusion import SessionContext

    context = SessionContext()
    for statement in statements:
        context.sql(statement)
    for view in views:
        yield context.table(view).to_arrow_table().to_pylist()


@engine
def clickhouse(statements: list[str], views: list[str]) -> Iterator[Rows]:
    """Run chDB."""
    import pyarrow as pa
    from chdb.session import Session

    with Session() as session:
        for statement in statements:
            session.query(statement)
        for view in views:
            found = session.query(f"SELECT * FROM {view}", "ArrowStream").bytes()  # noqa: S608
            yield pa.ipc.open_stream(found).read_all().to_pylist()


@engine
def spark(_: list[str], views: list[str]) -> Iterator[Rows]:
    """Run the program of docs/engines/spark.md, which runs the file, in local mode."""
    # Python receives times in the zone of the process.
    os.environ["TZ"] = "UTC"
    settings = {
        "spark.master": "local[1]",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "1",
        "spark.driver.memory": "4g",
    }
    if not IS_FULL:
        # For a few rows, compiling takes three quarters of the time.
        settings |= {
            "spark.sql.adaptive.enabled": "false",
            "spark.sql.codegen.wholeStage": "false",
            "spark.sql.codegen.factoryMode": "NO_CODEGEN",
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        }
    defaults = Path("spark-defaults.conf").resolve()
    defaults.write_text("".join(f"{name} {value}\n" for name, value in settings.items()), "utf-8")
    os.environ["SPARK_CONF_DIR"] = str(defaults.parent)
    page = (ROOT / "docs/engines/spark.md").read_text("utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)  # noqa: S102 - our own page
    for view in views:
        yield [row.asDict() for row in names["spark"].table(view).collect()]


if __name__ == "__main__":
    name, script, *views = sys.argv[1:]
    statements = Path(script).read_text("utf-8").split(";\n\n")
    found = dict(zip(views, ENGINES[name](statements, views), strict=True))
    sys.stdout.write("\n" + json.dumps(found, default=str) + "\n")
