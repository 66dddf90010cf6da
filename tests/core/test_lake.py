"""The lake: folder names, the marker, parts that are created once, and engines that read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.errors import DamagedObject, InputError, ObjectExists, StoreError
from imbrace_lake.lake import hash_index
from imbrace_lake.lake.hashes import DIGEST
from imbrace_lake.lake.lake import (
    FOLDERS,
    LONGEST_NAME,
    Lake,
    Part,
    Partitions,
    encoded,
    open_lake,
    partition_key,
    renew_marker,
)
from imbrace_lake.lake.memory import MemoryBudget, Reservation
from imbrace_lake.lake.parquet import to_parquet
from imbrace_lake.lake.schema import SCHEMA, SCHEMA_VERSION, Origin, to_rows
from imbrace_lake.lake.snapshot import PartitionSnapshot
from imbrace_lake.lake.sorting import in_order
from imbrace_lake.store.contract import ObjectMeta
from imbrace_lake.store.factory import StoreOptions
from tests.core.s3_servers import options_for
from tools.seaweed import Seaweed

T = TypeVar("T")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ORG = "org_1"
UUID = "9e917e42-b8d2-453a-9cbd-30fd1ecaf689"
AWKWARD_IDS = [
    "007",
    "1e5",
    "true",
    "a/b",
    "..",
    "a=b&c",
    "conv_ABC",
    "conv_abc",
    "對話 %2F",
    "x" * 300,
    "é" * 200,
]


def in_lake(
    url: Path | str,
    job: Callable[[Lake], Awaitable[T]],
    *,
    now: datetime | None = NOW,
    options: StoreOptions | None = None,
) -> T:
    async def run() -> T:
        async with open_lake(str(url), now=now, options=options) as lake:
            return await job(lake)

    return asyncio.run(run())


def a_part(conversation_id: str, *message_ids: str, organization_id: str = ORG) -> bytes:
    items = [{"_id": message_id, "content": {"text": message_id}} for message_id in message_ids]
    rows = to_rows(items, message_ids, Origin(organization_id, conversation_id, "run_1", NOW))
    return to_parquet(in_order(rows).drop_columns([DIGEST]), {})


async def add(lake: Lake, conversation_id: str, number: int, *message_ids: str) -> None:
    await lake.add_part(ORG, conversation_id, number, a_part(conversation_id, *message_ids), len(message_ids))


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("conv_85130be2-db16", "conv_85130be2-db16"),
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("a.b", "a.b"),
        ("a b=c", "a%20b%3Dc"),
        ("é", "%C3%A9"),
        ("\ud800", "%ED%A0%80"),
        ("~", "%7E"),
        ("A", "A"),
        ("%41", "%2541"),
        ("", ""),
    ],
)
def test_an_id_becomes_a_name_that_is_valid_on_every_file_system(value: str, name: str) -> None:
    assert encoded(value) == name


ANY_ID = st.text(st.characters(exclude_categories=()), max_size=80)


@pytest.mark.slow
@given(ANY_ID, ANY_ID)
def test_different_ids_have_different_names_of_bounded_length(one: str, other: str) -> None:
    for value in (one, one * 7):
        assert len(encoded(value)) <= LONGEST_NAME
        assert encoded(value).isascii()
        assert encoded(value) not in (".", "..")
        assert "/" not in encoded(value)
    assert (encoded(one) == encoded(other)) == (one == other)
    assert (encoded(one * 7) == encoded(other * 7)) == (one * 7 == other * 7)


def test_a_shortened_name_is_not_the_name_of_another_id() -> None:
    long = "x" * 500

    assert encoded(encoded(long)) != encoded(long)
    assert encoded(long) != encoded(long + "x")
    assert unquote(encoded("é" * 200), errors="strict").startswith("ééé")


def test_the_partition_keys_of_a_conversation_are_not_column_names() -> None:
    assert partition_key("org/1", "conv 2") == "messages/org=org%2F1/conv=conv%202"


# -- the marker -----------------------------------------------------------------------------------


def _with_checksum(values: dict[str, object]) -> str:
    checksum = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({**values, "checksum": checksum})


def test_a_lake_is_made_once_and_keeps_its_key(tmp_path: Path) -> None:
    async def key(lake: Lake) -> bytes:
        return lake.phone_key

    first = in_lake(tmp_path, key)
    again = in_lake(tmp_path, key, now=None)

    marker = json.loads((tmp_path / "lake.json").read_text())
    assert first == again == bytes.fromhex(marker["phone_key"])
    assert len(first) == 32
    assert marker["schema_version"] == SCHEMA_VERSION
    assert marker["created_at"] == "2026-01-02T03:04:05+00:00"


def test_processes_that_make_a_lake_at_the_same_time_agree_on_its_key(tmp_path: Path) -> None:
    async def make() -> bytes:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            return lake.phone_key

    async def all_at_once() -> list[bytes]:
        return await asyncio.gather(*(make() for _ in range(8)))

    keys = asyncio.run(all_at_once())

    assert len(set(keys)) == 1
    assert keys[0].hex() == json.loads((tmp_path / "lake.json").read_text())["phone_key"]


def test_reading_a_missing_lake_does_not_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no lake at"):
        in_lake(tmp_path, lambda lake: asyncio.sleep(0), now=None)

    assert not (tmp_path / "lake.json").exists()


@pytest.mark.parametrize("inside", ["messages", "messages/org=o/more", "tables", "phones/", ".tmp/a"])
def test_an_address_inside_a_lake_is_rejected(tmp_path: Path, inside: str) -> None:
    async def make(address: Path | str) -> None:
        async with open_lake(str(address), now=NOW):
            pass

    asyncio.run(make(tmp_path / "lake"))
    with pytest.raises(InputError, match=rf"is inside the lake at {tmp_path}/lake: give this, or another"):
        asyncio.run(make(f"{tmp_path}/lake/{inside}"))

    assert [path.name for path in (tmp_path / "lake").iterdir() if path.is_file()] == ["lake.json"]
    # No lake is around these.
    asyncio.run(make(tmp_path / "messages" / "lake"))
    asyncio.run(make(tmp_path / "lake" / "other"))


def test_a_lake_of_a_newer_version_is_rejected(tmp_path: Path) -> None:
    marker: dict[str, object] = {"schema_version": SCHEMA_VERSION + 1, "phone_key": "00"}
    marker["checksum"] = sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()
    (tmp_path / "lake.json").write_text(json.dumps(marker))

    with pytest.raises(InputError, match="upgrade imbrace-lake"):
        in_lake(tmp_path, lambda lake: asyncio.sleep(0))


@pytest.mark.parametrize(
    "marker",
    [
        "",
        "{",
        "[]",
        "{}",
        "7",
        '{"schema_version": 1}',
        '{"schema_version": "x", "phone_key": "00"}',
        '{"schema_version": 1, "phone_key": "no hex"}',
        '{"schema_version": 1, "phone_key": null}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "\0\1\2 \ufffd",
        "9" * 10_000,
        _with_checksum({"schema_version": "one", "phone_key": "00"}),
        _with_checksum({"schema_version": 1, "phone_key": "not hex"}),
        _with_checksum({"schema_version": 1, "phone_key": 7}),
    ],
)
def test_an_invalid_marker_is_reported_and_not_changed(tmp_path: Path, marker: str) -> None:
    (tmp_path / "lake.json").write_text(marker)

    with pytest.raises(StoreError, match=r"lake\.json is damaged, or not that of a lake: restore it"):
        in_lake(tmp_path, lambda lake: asyncio.sleep(0))

    assert (tmp_path / "lake.json").read_text() == marker


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("is_writing", [True, False])
def test_a_lake_without_its_marker_gets_no_new_key_by_itself(
    tmp_path: Path, folder: str, is_writing: bool
) -> None:
    in_lake(tmp_path, lambda lake: lake.store.overwrite(f"{folder}a/b/c.parquet", b"x"))
    (tmp_path / "lake.json").unlink()

    with pytest.raises(DamagedObject, match=r"has lost its lake\.json.* restore lake\.json from a copy"):
        in_lake(tmp_path, lambda lake: asyncio.sleep(0), now=NOW if is_writing else None)

    assert not (tmp_path / "lake.json").exists()


def test_a_lake_without_its_marker_gets_a_new_key_on_request(tmp_path: Path) -> None:
    async def make(lake: Lake) -> bytes:
        await lake.store.overwrite("messages/a/b.parquet", b"x")
        return lake.phone_key

    async def key(lake: Lake) -> bytes:
        return lake.phone_key

    first = in_lake(tmp_path, make)
    (tmp_path / "lake.json").unlink()
    asyncio.run(renew_marker(str(tmp_path), now=NOW))

    assert in_lake(tmp_path, key, now=None) != first
    with pytest.raises(InputError, match="a lake keeps its key"):
        asyncio.run(renew_marker(str(tmp_path), now=NOW))
    with pytest.raises(InputError, match="there is no lake at"):
        asyncio.run(renew_marker(str(tmp_path / "elsewhere"), now=NOW))


def test_a_folder_instead_of_the_marker_is_reported(tmp_path: Path) -> None:
    (tmp_path / "lake.json").mkdir()

    with pytest.raises(StoreError, match=r"lake\.json is not a file: remove it"):
        in_lake(tmp_path, lambda lake: asyncio.sleep(0))


# -- parts ----------------------------------------------------------------------------------------


def test_parts_are_found_even_if_the_hashes_of_their_folders_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_index, "hash", lambda text: 7, raising=False)
    keys = [f"messages/org={ORG}/conv={one}/part-00000.parquet" for one in "abc"]
    partitions = Partitions([ObjectMeta(key, 1, "e", NOW) for key in keys])

    found = partitions.of_each(ORG, ["c", "a", "d"])
    assert found == {"a": [Part(keys[0], 1)], "c": [Part(keys[2], 1)]}
    assert [part.etag for parts in found.values() for part in parts] == ["e", "e"]


def test_parts_are_listed_and_read_in_order(tmp_path: Path) -> None:
    async def job(lake: Lake) -> tuple[list[Part], pa.Table]:
        await add(lake, "c", 1, "b")
        await add(lake, "c", 0, "a", "aa")
        await add(lake, "other", 0, "z")
        (tmp_path / "messages/org=org_1/conv=c/notes.txt").write_text("not a part")
        parts = await lake.list_parts(ORG, "c")
        partitions = await lake.list_partitions(ORG)
        assert partitions.of_each(ORG, ["c", "missing"]) == {"c": parts}
        read = await lake.read_parts(parts)
        assert [(one.key, one.size_bytes) for one, _ in read] == [(one.key, one.size_bytes) for one in parts]
        assert [one.rows for one, _ in read] == [2, 1]
        assert [one.sha256 for one, _ in read] == [
            sha256((tmp_path / part.key).read_bytes()).hexdigest() for part in parts
        ]
        return parts, pa.concat_tables([rows for _, rows in read])

    parts, rows = in_lake(tmp_path, job)

    assert [part.number for part in parts] == [0, 1]
    assert [part.key for part in parts] == [f"messages/org=org_1/conv=c/part-0000{n}.parquet" for n in (0, 1)]
    assert rows.column("message_id").to_pylist() == ["a", "aa", "b"]
    assert rows.schema.remove_metadata() == SCHEMA


def test_a_conversation_can_have_more_than_100_000_parts(tmp_path: Path) -> None:
    async def job(lake: Lake) -> list[int]:
        await add(lake, "c", 99_999, "a")
        for message_id in ("b", "c"):
            numbers = [part.number for part in await lake.list_parts(ORG, "c")]
            await add(lake, "c", max(numbers) + 1, message_id)
        return sorted(part.number for part in await lake.list_parts(ORG, "c"))

    assert in_lake(tmp_path, job) == [99_999, 100_000, 100_001]


def test_no_read_goes_on_after_another_one_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job(lake: Lake) -> set[asyncio.Task[Any]]:
        for number in range(3):
            await add(lake, "c", number, f"m{number}")
        parts = await lake.list_parts(ORG, "c")
        get = lake.store.get

        async def fail_or_take_long(key: str) -> bytes:
            if key == parts[1].key:
                raise StoreError("damaged")
            await asyncio.sleep(60.0)
            return await get(key)

        monkeypatch.setattr(lake.store, "get", fail_or_take_long)
        before = asyncio.all_tasks()
        with pytest.raises(StoreError, match="damaged"):
            await PartitionSnapshot.read(lake, parts, Reservation(MemoryBudget(), lambda: tmp_path))
        return asyncio.all_tasks() - before

    assert in_lake(tmp_path, job) == set()


def test_no_parts_are_an_empty_table(tmp_path: Path) -> None:
    reservation = Reservation(MemoryBudget(), lambda: tmp_path)

    rows = in_lake(tmp_path, lambda lake: PartitionSnapshot.read(lake, [], reservation)).rows

    assert rows.num_rows == 0
    assert rows.schema == SCHEMA


def test_adding_a_part_returns_the_hash_of_its_bytes(tmp_path: Path) -> None:
    body = a_part("c", "a")

    published = in_lake(tmp_path, lambda lake: lake.add_part(ORG, "c", 0, body, 1))

    assert (tmp_path / published.key).read_bytes() == body
    assert published.sha256 == sha256(body).hexdigest()
    assert (published.rows, published.size_bytes) == (1, len(body))


def test_a_part_is_never_overwritten(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await add(lake, "c", 0, "a")
        with pytest.raises(ObjectExists):
            await add(lake, "c", 0, "b")
        ((_, rows),) = await lake.read_parts(await lake.list_parts(ORG, "c"))
        assert rows.column("message_id").to_pylist() == ["a"]

    in_lake(tmp_path, job)


@pytest.mark.parametrize("store", ["folder", pytest.param("s3", marks=pytest.mark.server)])
def test_of_two_writers_of_a_part_exactly_one_wins(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, options = str(tmp_path), None
    if store == "s3":
        server: Seaweed = request.getfixturevalue("s3")
        url, options = f"s3://{request.getfixturevalue('bucket')}/lake", options_for(server)

    async def write(number: int) -> str | None:
        async with open_lake(url, now=NOW, options=options) as lake:
            try:
                await add(lake, "c", 0, f"from-{number}")
            except ObjectExists:
                return None
            return f"from-{number}"

    async def race() -> tuple[list[str | None], list[str]]:
        ends = await asyncio.gather(*(write(number) for number in range(6)))
        async with open_lake(url, now=None, options=options) as lake:
            ((_, rows),) = await lake.read_parts(await lake.list_parts(ORG, "c"))
        return ends, rows.column("message_id").to_pylist()

    ends, ids = asyncio.run(race())

    assert [end for end in ends if end] == ids


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty", "foreign", "text"])
def test_an_unreadable_part_is_reported(tmp_path: Path, damage: str) -> None:
    async def job(lake: Lake) -> None:
        await add(lake, "c", 0, *(f"m{n}" for n in range(50)))
        (part,) = await lake.list_parts(ORG, "c")
        path = tmp_path / part.key
        body = bytearray(path.read_bytes())
        path.unlink()
        if damage == "flipped":
            body[200] ^= 1
        if damage == "foreign":
            pq.write_table(pa.table({"message_id": ["a"]}), path)
        elif damage != "gone":
            bodies = {"cut": bytes(body[:300]), "flipped": bytes(body), "empty": b"", "text": b"hello"}
            path.write_bytes(bodies[damage])
        with pytest.raises(StoreError, match=r"conv=c/part-00000\.parquet (is missing|cannot be read)"):
            await lake.read_parts([part])

    in_lake(tmp_path, job)


@pytest.mark.parametrize(
    ("stored", "folder", "is_own"),
    [
        (f"tcu_{UUID}", f"conv_{UUID}", True),
        (UUID.upper(), UUID, True),
        ("a~/%" * 80, "a~/%" * 80, True),
        ("c", "d", False),
        (f"conv_{UUID[::-1]}", f"conv_{UUID}", False),
    ],
)
def test_a_part_has_rows_of_the_conversation_of_its_folder_in_any_spelling(
    tmp_path: Path, stored: str, folder: str, is_own: bool
) -> None:
    async def job(lake: Lake) -> None:
        part = await lake.add_part(ORG, folder, 0, a_part(stored, "a"), 1)
        for read in (lake.read_parts([part]), lake.download_part(part, tmp_path / "copy")):
            with nullcontext() if is_own else pytest.raises(DamagedObject, match="of another conversation"):
                await read
        other = await lake.add_part("org_2", folder, 0, a_part(stored, "a"), 1)
        with pytest.raises(DamagedObject, match="of another conversation"):
            await lake.read_parts([other])

    in_lake(tmp_path, job)


# -- engines --------------------------------------------------------------------------------------


@pytest.fixture
def awkward_lake(tmp_path: Path) -> Path:
    """Make a lake of conversations with ids that engines may misread, two parts each."""

    async def fill(lake: Lake) -> None:
        for conversation_id in AWKWARD_IDS:
            await add(lake, conversation_id, 0, "1", "2")
            await add(lake, conversation_id, 1, "3")

    in_lake(tmp_path, fill)
    return tmp_path / "messages"


EXPECTED = sorted((conversation_id, number) for conversation_id in AWKWARD_IDS for number in "123")


def test_duckdb_reads_all_messages_with_their_ids(awkward_lake: Path) -> None:
    with duckdb.connect() as connection:
        everything = str(awkward_lake / "**/*.parquet")
        for rows in (
            connection.read_parquet(everything),
            connection.read_parquet(everything, hive_partitioning=True),
        ):
            assert sorted(rows.project("conversation_id, message_id").fetchall()) == EXPECTED


def test_pandas_reads_the_folder(awkward_lake: Path) -> None:
    frame = pd.read_parquet(awkward_lake)

    assert sorted(zip(frame["conversation_id"], frame["message_id"], strict=True)) == EXPECTED


def test_pyarrow_reads_the_folder(awkward_lake: Path) -> None:
    def ids(rows: pa.Table) -> list[tuple[Any, Any]]:
        return sorted(
            zip(
                rows.column("conversation_id").to_pylist(), rows.column("message_id").to_pylist(), strict=True
            )
        )

    assert ids(ds.dataset(awkward_lake, format="parquet", partitioning="hive").to_table()) == EXPECTED
    assert ids(ds.dataset(awkward_lake, format="parquet").to_table()) == EXPECTED
    assert ids(pq.read_table(awkward_lake)) == EXPECTED


def test_polars_reads_the_folder(awkward_lake: Path) -> None:
    frame = pl.scan_parquet(awkward_lake / "**/*.parquet").select("conversation_id", "message_id").collect()

    assert sorted(frame.iter_rows()) == EXPECTED
