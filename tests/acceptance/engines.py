"""Read every message of a lake with common query engines, without this project's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from tools.seaweed import Seaweed

COLUMNS = ["conversation_id", "message_id", "text", "created_at"]

Read = Callable[[str, Seaweed | None], pa.Table]


def with_duckdb(folder: str, s3: Seaweed | None) -> pa.Table:
    """Read local files with DuckDB, and files on S3 through a pyarrow dataset.

    DuckDB's S3 reader is an extension that has to be downloaded, which a test must not depend on.
    """
    with duckdb.connect() as connection:
        if s3 is None:
            source = f"read_parquet('{folder}/**/*.parquet')"
        else:
            connection.register("messages", dataset(folder, s3))
            source = "messages"
        table = connection.sql(f"SELECT {', '.join(COLUMNS)} FROM {source}").to_arrow_table()  # noqa: S608
    return _uniform(table)


def with_pandas(folder: str, s3: Seaweed | None) -> pa.Table:
    """Read the folder with pandas as one data set, through s3fs if it is on S3."""
    options: dict[str, Any] = {}
    if s3 is not None:
        endpoint = {"endpoint_url": s3.endpoint_url}
        options["storage_options"] = {"key": s3.key, "secret": s3.secret, "client_kwargs": endpoint}
    frame = pd.read_parquet(folder, columns=COLUMNS, **options)
    return _uniform(pa.Table.from_pandas(frame, preserve_index=False))


def with_polars(folder: str, s3: Seaweed | None) -> pa.Table:
    """Scan the folder with Polars, through its S3 client if it is on S3."""
    options: dict[str, Any] = {}
    if s3 is not None:
        options["storage_options"] = {
            "aws_access_key_id": s3.key,
            "aws_secret_access_key": s3.secret,
            "aws_endpoint_url": s3.endpoint_url,
            "aws_region": "us-east-1",
            "aws_allow_http": "true",
        }
    frame = pl.scan_parquet(f"{folder}/**/*.parquet", **options).select(COLUMNS).collect()
    return _uniform(frame.to_arrow())


ENGINES: dict[str, Read] = {"duckdb": with_duckdb, "pandas": with_pandas, "polars": with_polars}


def _uniform(table: pa.Table) -> pa.Table:
    """Cast the rows of any engine to the same types; a value that does not fit is an error."""
    types = [pa.string(), pa.string(), pa.string(), pa.timestamp("ms", "UTC")]
    return table.select(COLUMNS).cast(pa.schema(list(zip(COLUMNS, types, strict=True))))


def dataset(folder: str, s3: Seaweed | None) -> ds.Dataset:
    """Return all files below a folder as a pyarrow dataset."""
    if s3 is None:
        return ds.dataset(folder)
    files = pafs.S3FileSystem(
        access_key=s3.key, secret_key=s3.secret, endpoint_override=s3.endpoint_url, region="us-east-1"
    )
    return ds.dataset(folder.removeprefix("s3://"), filesystem=files)
