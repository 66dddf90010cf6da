"""A lake in a bucket behind a failing network: lost replies, bodies cut off, servers that stop answering."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from imbrace_lake.errors import ObjectExists, StoreError, StoreUnavailable
from imbrace_lake.store import s3 as store_s3
from imbrace_lake.store import s3_client as store_s3_client
from imbrace_lake.store.factory import Store, StoreOptions, open_store
from tests.core.s3_servers import CuttingProxy, options_for, stalled_server
from tools.seaweed import Seaweed

pytestmark = pytest.mark.slow


def is_put(first_line: bytes) -> bool:
    return first_line.startswith(b"PUT ")


def is_get(first_line: bytes) -> bool:
    return first_line.startswith(b"GET ") and b"list-type" not in first_line


def is_completion(first_line: bytes) -> bool:
    return first_line.startswith(b"POST ") and b"uploadId=" in first_line


# On a connection that was used before, aiohttp silently repeats the request.
@pytest.mark.parametrize("connection", ["fresh", "used"])
def test_a_created_object_whose_reply_got_lost_is_recognized_as_our_own(
    s3: Seaweed, bucket: str, connection: str
) -> None:
    async def write() -> None:
        async with (
            CuttingProxy(s3.endpoint_url, is_put) as proxy,
            open_store(f"s3://{bucket}/lake", options_for(s3, proxy.endpoint_url)) as store,
        ):
            if connection == "used":
                await store.overwrite("state/a", b"")
            before = proxy.asked
            proxy.cuts = 1

            written = await store.create("messages/a", b"rows")

            assert proxy.asked - before >= 2
            assert await store.head("messages/a") == written
            with pytest.raises(ObjectExists):
                await store.create("messages/a", b"rows")

    asyncio.run(write())


def test_an_update_whose_reply_got_lost_succeeds(s3: Seaweed, bucket: str) -> None:
    async def write() -> None:
        async with (
            CuttingProxy(s3.endpoint_url, is_put) as proxy,
            open_store(f"s3://{bucket}/lake", options_for(s3, proxy.endpoint_url)) as store,
        ):
            first = await store.create("messages/a", b"first")
            proxy.cuts = 1

            second = await store.update("messages/a", b"second", first.etag)

            assert await store.get("messages/a") == b"second"
            assert await store.head("messages/a") == second

    asyncio.run(write())


def test_a_large_file_whose_last_reply_got_lost_is_recognized_as_our_own(
    s3: Seaweed, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_s3, "SINGLE_PUT_BYTES", 5 * 2**20)
    monkeypatch.setattr(store_s3, "PART_BYTES", 5 * 2**20)
    spilled = tmp_path / "spilled"
    spilled.write_bytes(os.urandom(2**20) * 7)

    async def write() -> None:
        async with (
            CuttingProxy(s3.endpoint_url, is_completion) as proxy,
            open_store(f"s3://{bucket}/lake", options_for(s3, proxy.endpoint_url)) as store,
        ):
            proxy.cuts = 1

            written = await store.create("messages/a", spilled)

            assert proxy.asked >= 2
            assert written.size_bytes == spilled.stat().st_size
            assert await store.get("messages/a") == spilled.read_bytes()

    asyncio.run(write())


def test_an_object_whose_body_is_cut_off_is_read_again(s3: Seaweed, bucket: str, tmp_path: Path) -> None:
    rows = os.urandom(300_000)

    async def read() -> None:
        async with (
            CuttingProxy(s3.endpoint_url, is_get, passed_bytes=100_000) as proxy,
            open_store(f"s3://{bucket}/lake", options_for(s3, proxy.endpoint_url)) as store,
        ):
            await store.create("messages/a", rows)
            proxy.cuts = 1

            assert await store.get("messages/a") == rows
            assert proxy.asked == 2

            assert await store.get("messages/a") == rows
            assert proxy.asked == 3  # one request per read

            proxy.cuts = 1
            await store.download("messages/a", tmp_path / "fetched")
            assert (tmp_path / "fetched").read_bytes() == rows
            assert proxy.asked == 5

    asyncio.run(read())


def test_a_network_that_stays_broken_is_reported(
    s3: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_s3_client, "PAUSES_SECONDS", (0.01, 0.01))

    async def write() -> None:
        async with (
            CuttingProxy(s3.endpoint_url, is_put) as proxy,
            open_store(f"s3://{bucket}/lake", options_for(s3, proxy.endpoint_url)) as store,
        ):
            proxy.cuts = 99
            await store.create("messages/a", b"rows")

    with pytest.raises(StoreUnavailable, match=r"broke|cannot be reached"):
        asyncio.run(write())


@pytest.mark.parametrize("name", ["create", "update", "get", "head", "list", "probe"])
def test_a_server_that_stops_answering_ends_in_an_error_in_time(name: str) -> None:
    calls: dict[str, Callable[[Store], Awaitable[object]]] = {
        "create": lambda store: store.create("messages/a", b"rows" * 5000),
        "update": lambda store: store.update("messages/a", b"rows", "etag"),
        "get": lambda store: store.get("messages/a"),
        "head": lambda store: store.head("messages/a"),
        "list": lambda store: store.list("messages/"),
        "probe": lambda store: store.probe(),
    }

    async def call(endpoint: str) -> None:
        options = StoreOptions(endpoint, key=SecretStr("k"), secret=SecretStr("s"), timeout_seconds=0.4)
        async with open_store("s3://bucket", options) as store:
            await calls[name](store)

    with stalled_server() as endpoint:
        started = time.monotonic()
        with pytest.raises(StoreError, match="did not answer in time") as caught:
            asyncio.run(call(endpoint))

    assert time.monotonic() - started < 20
    assert isinstance(caught.value, StoreUnavailable)
    assert endpoint in str(caught.value)
