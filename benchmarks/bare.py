"""The bare script: what a competent engineer writes in an afternoon to do the same job.

The same HTTP library and transport, page limit, requests in flight, JSON parser and Parquet settings,
one file a conversation in the same folders, written by name and rename. It has no retries, trusts
`has_more` and `skip`, proves nothing, and keeps no ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from httpx_aiohttp import AiohttpTransport

from benchmarks.account import measure, read_job
from benchmarks.contest import Job

PAGE = 100
IN_FLIGHT = 32
NUMBERS = 100

Item = dict[str, Any]


async def export(job: Job, phones: list[str], *, is_synced: bool) -> None:
    """Everything of the phones into the folder."""
    http = httpx.AsyncClient(
        transport=AiohttpTransport(), headers={"x-access-token": job.token}, timeout=httpx.Timeout(35.0)
    )
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def get(path: str, query: object) -> Any:
        async with slots:
            response = await http.get(f"{job.url}{path}", params=query)  # type: ignore[arg-type]
        response.raise_for_status()
        return orjson.loads(response.content)

    async def resolve(phones: list[str]) -> list[str]:
        pairs = [("phone_numbers", phone.removeprefix("+")) for phone in phones]
        entries = await get("/conversations/links", [*pairs, ("organization_id", job.organization)])
        links = [link["link"] for entry in entries for link in entry["conversation_links"]]
        return [parse_qs(urlsplit(link).query)["conv_id"][0] for link in links]

    async def export_one(conversation_id: str) -> None:
        items: list[Item] = []
        while True:
            query = {"limit": PAGE, "skip": len(items)}
            page = await get(f"/conversations/{conversation_id}/messages", query)
            items += page["items"]
            if not page["has_more"]:
                break
        folder = Path(job.folder, f"org={job.organization}", f"conv={conversation_id}")
        await asyncio.to_thread(write, items, folder, is_synced=is_synced)

    async with http:
        batches = [phones[start : start + NUMBERS] for start in range(0, len(phones), NUMBERS)]
        found = await asyncio.gather(*map(resolve, batches))
        ids = dict.fromkeys(conversation_id for batch in found for conversation_id in batch)
        async with asyncio.TaskGroup() as group:
            for conversation_id in ids:
                group.create_task(export_one(conversation_id))


def write(items: list[Item], folder: Path, *, is_synced: bool) -> None:
    """One Parquet file of a conversation, oldest message first."""
    if not items:
        return
    sink = io.BytesIO()
    pq.write_table(to_table(items), sink, compression="zstd", compression_level=1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "part-00000.parquet"
    with path.with_suffix(".tmp").open("wb") as file:
        file.write(sink.getvalue())
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    path.with_suffix(".tmp").replace(path)


def to_table(items: list[Item]) -> pa.Table:
    """The columns that an analyst would ask for; the content as JSON too, because its form varies."""

    def times(name: str) -> pa.Array:
        texts = pa.array([item[name] for item in items], pa.string())
        return pc.cast(texts, pa.timestamp("us", "UTC")).cast(pa.timestamp("ms", "UTC"))

    contents = [item["content"] for item in items]
    table = pa.table(
        {
            "message_id": pa.array([item["_id"] for item in items], pa.string()),
            "conversation_id": pa.array([item["conversation_id"] for item in items], pa.string()),
            "organization_id": pa.array([item["organization_id"] for item in items], pa.string()),
            "business_unit_id": pa.array([item["business_unit_id"] for item in items], pa.string()),
            "sender_id": pa.array([item["from"] for item in items], pa.string()),
            "type": pa.array([item["type"] for item in items], pa.string()),
            "text": pa.array([content.get("text") for content in contents], pa.string()),
            "content": pa.array([orjson.dumps(content).decode() for content in contents], pa.string()),
            "created_at": times("created_at"),
            "updated_at": times("updated_at"),
        }
    )
    return table.sort_by([("created_at", "ascending"), ("message_id", "ascending")])


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare")
    parser.add_argument(
        "--fsync", action="store_true", help="let every file reach the disk, as the lake does"
    )
    arguments = parser.parse_args()
    job = read_job()
    measure(lambda: export(job, Path(job.phones).read_text().split(), is_synced=arguments.fsync))


if __name__ == "__main__":
    main()
