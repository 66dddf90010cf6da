"""The bare script: what a competent engineer writes in an afternoon to do the same job.

The same page limit, requests in flight and JSON parser, one file a conversation in the same folders
with the same columns and Parquet settings, written by name and rename, or by one PUT. It has no
retries, trusts `has_more` and `skip`, proves nothing, and keeps no ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import httpx
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import s3fs
from httpx_aiohttp import AiohttpTransport

from benchmarks.metrics import SUCCESS, Job, measure, read_job

PAGE = 100
IN_FLIGHT = 32
NUMBERS = 100

RUN = "4f1c7c4e-5f2b-4b7e-9a53-0f3f6f3a9d10"
TIME = pa.timestamp("ms", "UTC")
OWN = {"_id", "organization_id", "conversation_id", "business_unit_id", "from", "type", "content",
       "created_at", "updated_at"}  # fmt: skip
FEW_VALUES = ["conversation_id", "organization_id", "business_unit_id", "sender_id", "sender_role", "type",
              "first_seen_at", "last_changed_at", "run_id", "is_deleted", "deleted_at"]  # fmt: skip

Item = dict[str, Any]
Query = dict[str, str | list[str]]
Get = Callable[[str, Query], Awaitable[Any]]
Put = Callable[[str, bytes], Awaitable[None]]


@asynccontextmanager
async def with_httpx(job: Job, transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[Get]:
    """The library that the project uses, by default with the connections it comes with."""
    headers = {"x-access-token": job.token}
    http = httpx.AsyncClient(transport=transport, headers=headers, timeout=httpx.Timeout(35.0))

    async def get(path: str, query: Query) -> Any:
        response = await http.get(f"{job.url}{path}", params=query)
        response.raise_for_status()
        return orjson.loads(response.content)

    async with http:
        yield get


@asynccontextmanager
async def with_aiohttp(job: Job) -> AsyncIterator[Get]:
    """The quickest client there is for Python."""
    async with aiohttp.ClientSession(headers={"x-access-token": job.token}) as http:

        async def get(path: str, query: Query) -> Any:
            async with http.get(f"{job.url}{path}", params=query) as response:
                response.raise_for_status()
                return orjson.loads(await response.read())

        yield get


def with_same(job: Job) -> AbstractAsyncContextManager[Get]:
    """The library that the project uses, over the transport that it uses."""
    return with_httpx(job, AiohttpTransport())


CLIENTS: dict[str, Callable[[Job], AbstractAsyncContextManager[Get]]] = {
    "aiohttp": with_aiohttp,
    "httpx": with_httpx,
    "httpx-aiohttp": with_same,
}


async def export(job: Job, phones: list[str], get_json: Get, put: Put) -> None:
    """Everything of the phones into the folder."""
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def get(path: str, query: Query) -> Any:
        async with slots:
            return await get_json(path, query)

    async def resolve(phones: list[str]) -> list[str]:
        numbers = [phone.removeprefix("+") for phone in phones]
        query: Query = {"phone_numbers": numbers, "organization_id": job.organization}
        entries = await get("/conversations/links", query)
        links = [link["link"] for entry in entries for link in entry["conversation_links"]]
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
            body = await asyncio.to_thread(lambda: encode(to_table(items)))
            await put(f"org={job.organization}/conv={conversation_id}/part-00000.parquet", body)

    batches = [phones[start : start + NUMBERS] for start in range(0, len(phones), NUMBERS)]
    found = await asyncio.gather(*map(resolve, batches))
    ids = dict.fromkeys(conversation_id for batch in found for conversation_id in batch)
    async with asyncio.TaskGroup() as group:
        for conversation_id in ids:
            group.create_task(export_one(conversation_id))


@asynccontextmanager
async def open_folder(job: Job, *, is_synced: bool) -> AsyncIterator[Put]:
    """Write into the job's folder, or below its bucket's URL."""
    if not job.folder.startswith("s3://"):
        yield lambda key, body: asyncio.to_thread(write, Path(job.folder, key), body, is_synced=is_synced)
        return
    files = s3fs.S3FileSystem(asynchronous=True, skip_instance_cache=True, use_listings_cache=False)
    slots = asyncio.Semaphore(IN_FLIGHT)
    session = await files.set_session()

    async def put(key: str, body: bytes) -> None:
        async with slots:
            await files._pipe_file(f"{job.folder}/{key}", body)

    yield put
    await session.close()


def write(path: Path, body: bytes, *, is_synced: bool) -> None:
    """One file, which nobody meets half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".tmp").open("wb") as file:
        file.write(body)
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    path.with_suffix(".tmp").replace(path)


def to_table(items: list[Item]) -> pa.Table:
    """The lake's columns, straight from the fields."""
    count = len(items)
    now = pa.repeat(pa.scalar(datetime.now(UTC), TIME), count)

    def strings(values: list[Any]) -> pa.Array:
        return pa.array(values, pa.string())

    def times(name: str) -> pa.Array:
        return pc.cast(strings([item[name] for item in items]), TIME)

    def role(sender: str) -> str:
        roles = {"con_": "contact", "u_": "user", "pub_": "bot"}
        return next((role for prefix, role in roles.items() if sender.startswith(prefix)), "unknown")

    contents = [item["content"] for item in items]
    extras = [{name: value for name, value in item.items() if name not in OWN} for item in items]
    table = pa.table(
        {
            "message_id": strings([item["_id"] for item in items]),
            "conversation_id": strings([item["conversation_id"] for item in items]),
            "organization_id": strings([item["organization_id"] for item in items]),
            "business_unit_id": strings([item["business_unit_id"] for item in items]),
            "sender_id": strings([item["from"] for item in items]),
            "sender_role": strings([role(item["from"]) for item in items]),
            "type": strings([item["type"] for item in items]),
            "text": strings([content.get("text") for content in contents]),
            "content": strings([orjson.dumps(content).decode() for content in contents]),
            "created_at": times("created_at"),
            "updated_at": times("updated_at"),
            "extra": strings([orjson.dumps(extra).decode() for extra in extras]),
            "is_deleted": pa.repeat(False, count),
            "deleted_at": pa.nulls(count, TIME),
            "first_seen_at": now,
            "last_changed_at": now,
            "run_id": strings([RUN] * count),
        }
    )
    return table.sort_by([("created_at", "ascending"), ("message_id", "ascending")])


def encode(table: pa.Table) -> bytes:
    """A Parquet file with the lake's settings."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={name: "none" if name in FEW_VALUES else "zstd" for name in table.column_names},
        use_dictionary=FEW_VALUES,
        write_statistics=[name for name in table.column_names if name not in ("text", "content", "extra")],
        write_page_checksum=True,
        store_schema=False,
    )
    body: bytes = sink.getvalue().to_pybytes()
    return body


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare")
    parser.add_argument("--client", choices=CLIENTS, default="aiohttp")
    parser.add_argument(
        "--fsync", action="store_true", help="let every file reach the disk, as the lake does"
    )
    arguments = parser.parse_args()
    job = read_job()
    phones = Path(job.phones).read_text().split()
    connect = CLIENTS[arguments.client]

    async def work() -> str:
        async with connect(job) as get, open_folder(job, is_synced=arguments.fsync) as put:
            await export(job, phones, get, put)
        return SUCCESS

    # Arrow looks for pandas when it makes its first array.
    measure(lambda: asyncio.run(work()), ("pandas", "pyarrow.pandas_compat"))


if __name__ == "__main__":
    main()
