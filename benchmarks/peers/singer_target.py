"""A Singer target that writes Parquet, from the SDK's batch sink.

The package index has `target-parquet` 0.0.1 of 2019, which is older than the SDK, and no later one; the
SDK's own sample target does as this one does.
"""

from __future__ import annotations

from typing import Any

import fsspec
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from singer_sdk import Target
from singer_sdk import typing as th
from singer_sdk.contrib.msgspec import MsgSpecReader
from singer_sdk.sinks import BatchSink

TIME = pa.timestamp("ms", "UTC")


class ParquetSink(BatchSink):
    """One file a batch."""

    max_size = 10_000

    def process_batch(self, context: dict[str, Any]) -> None:
        """Write the records of one batch."""
        records = context["records"]
        columns = {name: _column(schema, name, records) for name, schema in self.schema["properties"].items()}
        path = f"{self.config['folder']}/{self.stream_name}/{context['batch_id']}.parquet"
        with fsspec.open(path, "wb", auto_mkdir=True) as file:
            pq.write_table(pa.table(columns), file, compression="zstd")


def _column(schema: dict[str, Any], name: str, records: list[dict[str, Any]]) -> pa.Array:
    values = [record.get(name) for record in records]
    if schema.get("format") == "date-time":
        return pa.array(values, TIME)
    if "object" in schema["type"]:
        values = [value if value is None else msgspec.json.encode(value).decode() for value in values]
    return pa.array(values, pa.string())


class ParquetTarget(Target):
    """Parquet files in a folder, or below a bucket's URL."""

    name = "target-parquet"
    message_reader_class = MsgSpecReader
    default_sink_class = ParquetSink
    config_jsonschema = th.PropertiesList(th.Property("folder", th.StringType, required=True)).to_dict()
