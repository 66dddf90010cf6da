"""The views in Spark, in a process of their own, because Spark starts a virtual machine.

    python -m tests.acceptance.views_in_spark SCRIPT VIEW…

runs the statements of a file, and prints the rows of each view as JSON.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any


def rows_of_views(script: str, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Run the statements of a script, and return the rows of some views."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    # Few rows, many views: plans without many small tasks.
    builder = builder.config("spark.sql.shuffle.partitions", "1").config(
        "spark.sql.adaptive.enabled", "false"
    )
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    for statement in re.sub(r"^--.*$", "", script, flags=re.MULTILINE).split(";\n"):
        if statement.strip():
            session.sql(statement)
    return {name: [row.asDict() for row in session.table(name).collect()] for name in names}


if __name__ == "__main__":
    found = rows_of_views(Path(sys.argv[1]).read_text("utf-8"), sys.argv[2:])
    sys.stdout.write("\n" + json.dumps(found, default=str) + "\n")
