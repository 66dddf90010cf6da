"""The baseline: the fastest script that a good engineer would write in an afternoon.

One event loop with 32 requests in flight; each conversation is encoded and written inline, without threads,
into the lake's columns, folders and Parquet settings. The script has no retries, trusts `has_more` and
`skip`, proves nothing, and keeps no ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import s3fs

from benchmarks.metrics import SUCCESS, Job, measure

PAGE = 100
IN_FLIGHT = 32
NUMBERS_PER_REQUEST = 100

RUN = "4f1c7c4e-5f2b-4b7e-9a53-0f3f6f3a9d10"
TIME = pa.timestamp("ms", "UTC")
ROLES = {"con": "contact", "u": "user", "pub": "bot"}
FIELDS = {"_id", "organization_id", "conversation_id", "business_unit_id", "from", "type", "content",
          "created_at", "updated_at"}  # fmt: skip
FEW_VALUES = ["conversation_id", "organization_id", "business_unit_id", "sender_id", "sender_role", "type",
              "first_seen_at", "last_changed_at", "run_id", "is_deleted", "deleted_at"]  # fmt: skip

Item = dict[str, Any]
Query = dict[str, str | list[str]]
Encode = Callable[[list[Item]], bytes]
Put = Callable[[str, bytes], Awaitable[None]]


async def export(job: Job, encode: Encode, put: Put) -> str:
    """Export all conversations of the numbers."""
    async with aiohttp.ClientSession(headers={"x-access-token": job.token}) as http:

        async def get(path: str, query: Query) -> Any:
            async with http.get(f"{job.gateway}{path}", params=query) as response:
                response.raise_for_status()
                return orjson.loads(await response.read())

        async def resolve(numbers: list[str]) -> list[str]:
            query: Query = {"phone_numbers": numbers, "organization_id": job.organization}
            links = [link["link"] for entry in await get("/conversations/links", query)
                     for link in entry["conversation_links"]]  # fmt: skip
            return [parse_qs(urlsplit(link).query)["conv_id"][0] for link in links]

        async def export_one(conversation_id: str) -> None:
            items: list[Item] = []
            while True:
                query: Query = {"limit": str(PAGE), "skip": str(len(items))}
                page = await get(f"/conversations/{conversation_id}/messages", query)
                items += page["items"]
                if not page["has_more"]:
                    break
            if items:
                await put(f"org={job.organization}/conv={conversation_id}/part-00000.parquet", encode(items))

        async def work(ids: Iterator[str]) -> None:
            for conversation_id in ids:
                await export_one(conversation_id)

        numbers = job.numbers
        batches = [
            numbers[start : start + NUMBERS_PER_REQUEST]
            for start in range(0, len(numbers), NUMBERS_PER_REQUEST)
        ]
        found = await asyncio.gather(*map(resolve, batches))
        ids = iter(dict.fromkeys(conversation_id for batch in found for conversation_id in batch))
        await asyncio.gather(*(work(ids) for _ in range(IN_FLIGHT)))
    return SUCCESS


@asynccontextmanager
async def open_lake(lake: str, *, is_synced: bool) -> AsyncIterator[Put]:
    """Write into a folder or below a bucket's URL."""
    if not lake.startswith("s3://"):

        async def write(key: str, body: bytes) -> None:
            path = Path(lake, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".tmp").open("wb") as file:
                file.write(body)
                if is_synced:
                    file.flush()
                    os.fsync(file.fileno())
            # No reader sees a partly written file.
            path.with_suffix(".tmp").replace(path)

        yield write
        return
    files = s3fs.S3FileSystem(asynchronous=True, skip_instance_cache=True, use_listings_cache=False)
    session = await files.set_session()

    async def put(key: str, body: bytes) -> None:
        await files._pipe_file(f"{lake}/{key}", body)

    yield put
    await session.close()


def to_table(items: list[Item]) -> pa.Table:
    """Return the lake's 17 columns, sorted."""
    count = len(items)
    now = pa.repeat(pa.scalar(datetime.now(UTC), TIME), count)
    extras = [{name: value for name, value in item.items() if name not in FIELDS} for item in items]
    columns = _columns(items) | {
        "sender_role": _strings([ROLES.get(item["from"].partition("_")[0], "unknown") for item in items]),
        "text": _strings([_text(item["content"]) for item in items]),
        "extra": _strings([orjson.dumps(extra) for extra in extras]),
        "is_deleted": pa.repeat(False, count),
        "deleted_at": pa.nulls(count, TIME),
        "first_seen_at": now,
        "last_changed_at": now,
        "run_id": pa.repeat(RUN, count),
    }
    order = ("message_id", "conversation_id", "organization_id", "business_unit_id", "sender_id",
             "sender_role", "type", "text", "content", "created_at", "updated_at", "extra", "is_deleted",
             "deleted_at", "first_seen_at", "last_changed_at", "run_id")  # fmt: skip
    table = pa.table({name: columns[name] for name in order})
    return table.sort_by([("created_at", "ascending"), ("message_id", "ascending")])


def _columns(items: list[Item]) -> dict[str, pa.Array]:
    """Return the gateway's nine fields as columns."""
    return {
        "message_id": _strings([item["_id"] for item in items]),
        "conversation_id": _strings([item["conversation_id"] for item in items]),
        "organization_id": _strings([item["organization_id"] for item in items]),
        "business_unit_id": _strings([item["business_unit_id"] for item in items]),
        "sender_id": _strings([item["from"] for item in items]),
        "type": _strings([item["type"] for item in items]),
        "content": _strings([orjson.dumps(item["content"]) for item in items]),
        "created_at": pc.cast(_strings([item["created_at"] for item in items]), TIME),
        "updated_at": pc.cast(_strings([item["updated_at"] for item in items]), TIME),
    }


def _text(content: Item) -> str | None:
    text: str | None = content.get("text")
    return text or content.get("title") or content.get("caption") or content.get("description") or text


def _strings(values: list[Any]) -> pa.Array:
    return pa.array(values, pa.string())


def encode_lake(table: pa.Table) -> bytes:
    """Encode the lake's columns with the lake's Parquet settings."""
    return _encode(
        table,
        compression={name: "none" if name in FEW_VALUES else "zstd" for name in table.column_names},
        use_dictionary=FEW_VALUES,
        write_statistics=[name for name in table.column_names if name not in ("text", "content", "extra")],
        write_page_checksum=True,
        store_schema=False,
    )


def _encode(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.script")
    parser.add_argument("--nine", action="store_true", help="only the gateway's nine fields, unsorted")
    parser.add_argument("--fsync", action="store_true", help="sync each file to the disk, as the lake does")
    parser.add_argument("phones")
    arguments = parser.parse_args()
    job = Job.read()

    def encode(items: list[Item]) -> bytes:
        if arguments.nine:
            return _encode(pa.table(_columns(items)), compression="zstd")
        return encode_lake(to_table(items))

    async def work() -> str:
        async with open_lake(job.lake, is_synced=arguments.fsync) as put:
            return await export(job, encode, put)

    # Arrow imports pandas when it makes its first array.
    measure(lambda: asyncio.run(work()), ("pandas", "pyarrow.pandas_compat"))


if __name__ == "__main__":
    main()
