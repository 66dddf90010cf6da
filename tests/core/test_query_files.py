"""A query reads only the column chunks that it needs of a large file of a table."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.errors import StoreUnavailable
from imbrace_lake.query import files
from imbrace_lake.query.files import dataset_of
from imbrace_lake.store.contract import ObjectMeta
from imbrace_lake.store.factory import open_store

ROWS, GROUPS = 20_000, 10
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def run() -> Iterator[Run]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda job: asyncio.run_coroutine_threadsafe(job, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def answer(messages: Any, query: str) -> list[Any]:
    connection = duckdb.connect()
    connection.register("messages", messages)
    return connection.execute(query).fetchall()


@pytest.mark.parametrize(
    ("query", "most"),
    [
        ("SELECT sum(number) FROM messages", 0.1),
        ("SELECT sum(length(text)) FROM messages WHERE number >= 18000", 0.2),
        ("SELECT sum(number), sum(length(text)) FROM messages", 1.1),
    ],
)
def test_only_the_column_chunks_of_a_query_are_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str, most: float
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    random = Random(1)
    rows = pa.table({"number": range(ROWS), "text": [random.randbytes(50).hex() for _ in range(ROWS)]})
    pq.write_table(rows, tmp_path / "file", row_group_size=ROWS // GROUPS, use_dictionary=False)
    body = (tmp_path / "file").read_bytes()
    expected = answer(rows, query)
    store = open_store(f"memory://{uuid4().hex}")
    read_bytes: list[int] = []

    async def prepare() -> None:
        await store.__aenter__()
        await store.create("tables/messages/part-1.parquet", body)
        ranges = store.get_range

        async def counted(key: str, start: int, length: int) -> bytes:
            read_bytes.append(length)
            return await ranges(key, start, length)

        monkeypatch.setattr(store, "get_range", counted)

    run(prepare())
    try:
        meta = ObjectMeta("tables/messages/part-1.parquet", len(body), "", datetime.now(UTC))
        messages = dataset_of(store, run, rows.schema, [meta])
        found = answer(messages, query)
        share_read = sum(read_bytes) / len(body)
        with ThreadPoolExecutor(4) as threads:
            tables = [*threads.map(lambda _: messages.to_table(), range(4))]
    finally:
        run(store.__aexit__())

    assert found == expected
    assert 0 < share_read < most
    assert [one == rows for one in tables] == [True] * 4


@pytest.mark.parametrize("most", [files.MAX_BYTES, 1])
def test_a_store_that_fails_is_an_error_of_arrow(
    run: Run, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    # One of Python can block DuckDB and Arrow for ever.
    monkeypatch.setattr(files, "MAX_BYTES", most)
    store = open_store(f"memory://{uuid4().hex}")

    async def fail(*_: Any) -> bytes:
        raise StoreUnavailable("the store is busy")

    monkeypatch.setattr(store, "get", fail)
    monkeypatch.setattr(store, "get_range", fail)
    meta = ObjectMeta("tables/messages/part-1.parquet", 1000, "", datetime.now(UTC))
    messages = dataset_of(store, run, pa.schema({"number": pa.int64()}), [meta])

    with pytest.raises((pa.ArrowInvalid, OSError)):
        messages.to_table()
