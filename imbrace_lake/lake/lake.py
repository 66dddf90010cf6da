"""A lake: the layout of its objects, and how parts are listed, read and written.

::

    lake.json                                          what the lake is: its version, its phone key
    messages/org=<organization>/conv=<conversation>/part-00000.parquet, part-00001.parquet, …
    phones/ conversations/ runs/ revisions/ shapes/    the ledgers (ledger_schema.py, ledger.py)
    checkpoints/                                       the state that the ledgers add up to (checkpoint.py)
    journal/<run>/                                     what a run that is under way has done so far

Parts are only ever added, except that a part with an edited or deleted message is replaced. The
part's own conditional write is the commit: nothing else has to succeed for it to count, and of two
writers of one part exactly one wins.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import file_digest, sha256
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.errors import DamagedObject, ObjectExists, StoreError, UsageError
from imbrace_lake.lake.hash_index import HashIndex
from imbrace_lake.lake.schema import SCHEMA, SCHEMA_VERSION
from imbrace_lake.store.contract import LazyBody, ObjectMeta
from imbrace_lake.store.factory import Store, StoreOptions, open_store

logger = logging.getLogger(__name__)

MARKER = "lake.json"
MESSAGES = "messages/"
# Only a lake has these folders: an object in one of them shows that a lake was made.
FOLDERS = (
    MESSAGES, "conversations/", "phones/", "runs/", "revisions/", "shapes/", "journal/", "checkpoints/"
)  # fmt: skip
# Names of files may have 255 bytes, some of which `conv=` and a store's own suffixes need.
LONGEST_NAME = 200
# Rows of a large part that are in memory at a time.
BATCH_ROWS = 4_096

_PART = re.compile(r"^.+/part-\d{5}\.parquet$")


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a partition, as it was listed, read, written or recorded.

    Attributes:
        key: Relative to the lake's root.
        size_bytes: Its length.
        rows: Their number; None as listed.
        sha256: Of the object's bytes; None as listed.
        etag: The store's version of it; empty as recorded in a ledger.
    """

    key: str
    size_bytes: int
    rows: int | None = None
    sha256: str | None = None
    etag: str = field(default="", compare=False)

    @property
    def number(self) -> int:
        """Its position in the partition, from 0."""
        return int(self.key[-len("00000.parquet") : -len(".parquet")])


class Partitions:
    """Which parts every conversation of an organization has, by one listing of the lake.

    Kept as columns, in the order of the keys: objects would take four times as much memory.
    """

    def __init__(self, listing: Sequence[ObjectMeta]) -> None:
        self._rows = pa.table(
            {
                "key": pa.array([meta.key for meta in listing], pa.string()),
                "size_bytes": pa.array([meta.size_bytes for meta in listing], pa.int64()),
                "etag": pa.array([meta.etag for meta in listing], pa.string()),
            }
        )
        self._index = HashIndex((_folder(meta.key) for meta in listing), len(listing))

    @classmethod
    def empty(cls) -> Partitions:
        """No partitions at all, as in a new lake."""
        return cls([])

    def of_each(self, organization_id: str, conversation_ids: Iterable[str]) -> dict[str, list[Part]]:
        """The parts of some conversations, in order; those that the lake does not have are left out."""
        wanted = {partition_key(organization_id, one): one for one in conversation_ids}
        found: dict[str, list[Part]] = {}
        for row in self._rows.take(pa.array(self._index.find(wanted))).to_pylist():
            conversation_id, part = wanted.get(_folder(row["key"])), _as_part(**row)
            if conversation_id is not None and part is not None:
                found.setdefault(conversation_id, []).append(part)
        return found

    def names(self) -> list[str]:
        """The name of each partition, in order: the id of its conversation, encoded (`encoded`)."""
        found: dict[str, None] = {}
        for batch in self._rows.to_batches(max_chunksize=BATCH_ROWS):
            folders = map(_folder, batch["key"].to_pylist())
            found.update((folder.rpartition("/conv=")[2], None) for folder in folders)
        return [*found]

    def first_parts_except(self, organization_id: str, conversation_ids: Iterable[str]) -> list[Part]:
        """The first part of each partition that belongs to none of these conversations."""
        excluded = {partition_key(organization_id, one) for one in conversation_ids}
        found: dict[str, Part] = {}
        for batch in self._rows.to_batches(max_chunksize=BATCH_ROWS):
            for row in batch.to_pylist():
                folder = _folder(row["key"])
                part = None if folder in excluded or folder in found else _as_part(**row)
                if part is not None:
                    found[folder] = part
        return [*found.values()]


class Lake:
    """An open lake; see `open_lake`.

    Attributes:
        store: Where its objects are.
        schema_version: The version that the lake was made with.
        phone_key: Key of the hashes of phone numbers, unless the settings give another.
        damaged: Keys of ledger objects that were skipped since the lake was opened, and why.
    """

    def __init__(self, store: Store, schema_version: int, phone_key: bytes) -> None:
        self.store = store
        self.schema_version = schema_version
        self.phone_key = phone_key
        self.damaged: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where the lake is, free of credentials."""
        return self.store.url

    def skip_damaged(self, key: str, problem: str) -> None:
        """Record that a ledger object is skipped, with one warning for each object."""
        if key not in self.damaged:
            self.damaged[key] = problem
            logger.warning("skipped damaged object=%s reason=%s", ascii(key)[1:-1], problem)

    async def list_partitions(self, organization_id: str) -> Partitions:
        """List every part of an organization; once a run, since a listing costs a second for 10,000."""
        return Partitions(await self.store.list(f"{MESSAGES}org={encoded(organization_id)}/"))

    async def list_parts(self, organization_id: str, conversation_id: str) -> list[Part]:
        """List the parts of one conversation again, in order."""
        folder = partition_key(organization_id, conversation_id)
        return await self.list_below(f"{folder}/")

    async def list_below(self, folder: str = MESSAGES) -> list[Part]:
        """List the parts below a folder, those of all organizations by default, in order."""
        found = await self.store.list(folder)
        parts = [_as_part(meta.key, meta.size_bytes, meta.etag) for meta in found]
        return [part for part in parts if part is not None]

    async def read_parts(self, parts: Sequence[Part]) -> list[tuple[Part, pa.Table]]:
        """Read parts, one request each: what came, which may be newer than listed, and its rows in `SCHEMA`.

        Raises:
            StoreError: An object is missing or is not a part; the message names it.
        """
        return list(await asyncio.gather(*(self._read_part(part) for part in parts)))

    async def _read_part(self, part: Part) -> tuple[Part, pa.Table]:
        with self._explained(part):
            body = await self.store.get(part.key)
            rows = read_rows(body)
            # The ETag stays that of the listing: a part replaced since then is not to be overwritten.
            return Part(part.key, len(body), rows.num_rows, sha256(body).hexdigest(), part.etag), rows

    async def download_part(self, part: Part, path: Path) -> Part:
        """Bring a part into a file, for `iter_part`; what came may be newer than listed.

        Raises:
            StoreError: The object is missing or is not a part; the message names it.
        """
        with self._explained(part):
            await self.store.download(part.key, path)
            size_bytes, digest, rows = await asyncio.to_thread(_inspect, path)
            return Part(part.key, size_bytes, rows, digest, part.etag)

    def iter_part(self, part: Part, path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a part that was fetched, or some columns of them, in `SCHEMA`, some at a time.

        Raises:
            StoreError: The part is damaged; the message names it.
        """
        with self._explained(part):
            yield from iter_rows(path, columns)

    @contextmanager
    def _explained(self, part: Part) -> Iterator[None]:
        """Put into a sentence why a part cannot be read."""
        try:
            yield
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{part.key} is missing: parts must never be removed") from None
        except (pa.ArrowInvalid, OSError) as exc:
            raise StoreError(f"{self.url}/{part.key} cannot be read: restore it from a copy") from exc

    async def replace_part(self, part: Part, body: LazyBody) -> Part:
        """Replace a part with as many rows, some of which were edited, marked deleted or repaired.

        Raises:
            ObjectChanged: Another writer replaced it first: read it again.
        """
        meta = await self.store.update(part.key, body, part.etag)
        return replace(part, size_bytes=meta.size_bytes, sha256=body.sha256, etag=meta.etag)

    async def add_part(
        self, organization_id: str, conversation_id: str, number: int, body: LazyBody, rows: int
    ) -> Part:
        """Add a part to a conversation's partition; this is the commit.

        Args:
            organization_id: Whose conversation it is.
            conversation_id: Names the partition.
            number: One more than the highest part that was read.
            body: The Parquet file, `rows` rows in `SCHEMA`, none of them in an earlier part.
            rows: How many.

        Raises:
            ObjectExists: Another writer took this number: read the partition again.
        """
        key = f"{partition_key(organization_id, conversation_id)}/part-{number:05d}.parquet"
        meta = await self.store.create(key, body)
        return Part(key, meta.size_bytes, rows, body.sha256, meta.etag)


@asynccontextmanager
async def open_lake(
    url: str, *, now: datetime | None, options: StoreOptions | None = None
) -> AsyncIterator[Lake]:
    """Open a lake, and with `now` make it if there is none.

    Raises:
        UsageError: There is no lake and `now` is None, or a newer version of this project wrote it.
        DamagedObject: The lake has lost its `lake.json`, or that is damaged.
        StoreError: The store cannot be used.
    """
    async with open_store(url, options) as store:
        marker = await _read_marker(store)
        if marker is None and now is not None:
            marker = await _write_marker(store, now)
        if marker is None:
            raise UsageError(f"there is no lake at {store.url}: export into it first, or check the address")
        if not is_marker(marker):
            raise DamagedObject(
                f"{store.url}/{MARKER} is damaged, or is not of a lake: restore it from a copy, or delete it"
                " and call `imbrace-lake new-key`"
            )
        values = json.loads(marker)
        version, phone_key = int(values["schema_version"]), bytes.fromhex(values["phone_key"])
        if version > SCHEMA_VERSION:
            raise UsageError(
                f"the lake at {store.url} has schema version {version}, this program knows"
                f" {SCHEMA_VERSION}: upgrade imbrace-lake"
            )
        yield Lake(store, version, phone_key)


async def has_lake(store: Store) -> bool:
    """Whether there is a lake.

    Raises:
        DamagedObject: There is, and it has lost its `lake.json`.
    """
    return await _read_marker(store) is not None


async def renew_marker(url: str, *, now: datetime, options: StoreOptions | None = None) -> None:
    """Write the `lake.json` that a lake has lost, with a new key of the phone numbers' hashes.

    Raises:
        UsageError: The lake has one, or there is no lake.
        StoreError: The store cannot be used.
    """
    async with open_store(url, options) as store:
        if await store.head(MARKER) is not None:
            raise UsageError(f"{store.url} has a {MARKER}, which stays: a lake keeps its key")
        if await _find_any(store) is None:
            raise UsageError(f"there is no lake at {store.url}: check the address")
        await _write_marker(store, now)


async def _read_marker(store: Store) -> bytes | None:
    """Read `lake.json`; None where there is no lake."""
    try:
        return await store.get(MARKER)
    except FileNotFoundError:
        found = await _find_any(store)
    if found is None:
        return None
    try:
        # Another run may have made the lake since, and have written what was found.
        return await store.get(MARKER)
    except FileNotFoundError:
        raise DamagedObject(
            f"the lake at {store.url} has lost its {MARKER}, for it has {found}: restore {MARKER} from a"
            " copy. Without a copy, call `imbrace-lake new-key`: later hashes of phone numbers then differ"
            " from earlier ones"
        ) from None


async def _find_any(store: Store) -> str | None:
    """The key of an object that only a lake has; None where there is no lake."""
    listings = await asyncio.gather(*(store.list(folder, most=1) for folder in FOLDERS))
    return next((meta.key for listing in listings for meta in listing), None)


async def _write_marker(store: Store, now: datetime) -> bytes:
    values: dict[str, str | int] = {
        "schema_version": SCHEMA_VERSION,
        "created_at": now.isoformat(timespec="seconds"),
        "phone_key": secrets.token_hex(32),
    }
    values["checksum"] = _checksum(values)
    marker = json.dumps(values, indent=2).encode() + b"\n"
    try:
        await store.create(MARKER, marker)
    except ObjectExists:
        # Another run makes the same lake just now; its key is the lake's key.
        try:
            return await store.get(MARKER)
        except FileNotFoundError:
            raise StoreError(f"{store.url}/{MARKER} is not a file: remove it") from None
    return marker


def is_marker(body: bytes) -> bool:
    """Whether `lake.json` is what was written."""
    try:
        values = json.loads(body)
        is_usable = isinstance(values["schema_version"], int) and bytes.fromhex(values["phone_key"])
        return bool(is_usable and values["checksum"] == _checksum(values))
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _checksum(values: Mapping[str, str | int]) -> str:
    content = {name: value for name, value in values.items() if name != "checksum"}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_rows(body: bytes) -> pa.Table:
    """Rows of a part in today's `SCHEMA`, whichever version wrote it.

    Raises:
        pa.ArrowInvalid: It is no part.
        OSError: It is damaged.
    """
    rows = pq.read_table(io.BytesIO(body), schema=SCHEMA, page_checksum_verification=True)
    # A column that the file does not have is read as nulls.
    if any(rows.column(field.name).null_count for field in SCHEMA if not field.nullable):
        raise pa.ArrowInvalid("columns of a part are missing")
    return rows


def iter_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Rows of a part in a file, or some columns of them, as `read_rows` gives them, some at a time.

    Raises:
        pa.ArrowInvalid: It is no part.
        OSError: It is damaged.
    """
    schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
    # Without `pre_buffer`, which would load a complete row group.
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        there = [name for name in schema.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=there, use_threads=False):
            yield in_schema(schema, batch)


def in_schema(schema: pa.Schema, batch: pa.RecordBatch) -> pa.Table:
    """Rows of a part in columns of `SCHEMA`, whichever version wrote them.

    Raises:
        pa.ArrowInvalid: A column that every part has is missing.
    """
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    if any(column.null_count for field, column in zip(schema, arrays, strict=True) if not field.nullable):
        raise pa.ArrowInvalid("columns of a part are missing")
    return pa.Table.from_arrays(arrays, schema=schema)


def _inspect(path: Path) -> tuple[int, str, int]:
    """Size, SHA-256 and rows of a part in a file."""
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, digest, pq.read_metadata(path).num_rows


def partition_key(organization_id: str, conversation_id: str) -> str:
    """The folder of a conversation's parts.

    The names `org` and `conv` are not those of the columns: readers that meet one name in path and
    file merge the two and fail.
    """
    return f"{MESSAGES}org={encoded(organization_id)}/conv={encoded(conversation_id)}"


def encoded(value: str) -> str:
    """An id as a folder's name: percent-encoded, and shortened with a hash where it is long."""
    name = _quoted(value)
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) <= LONGEST_NAME:
        return name
    # Cut between characters: engines decode names of folders, and reject half a character.
    kept = _quoted(unquote(re.sub(r"%.?$", "", name[: LONGEST_NAME - 33]), errors="ignore"))
    return f"{kept}~{sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _quoted(value: str) -> str:
    # No tilde, which marks what was shortened.
    return quote(value, safe="", errors="surrogatepass").replace("~", "%7E")


def _as_part(key: str, size_bytes: int, etag: str) -> Part | None:
    return Part(key, size_bytes, etag=etag) if _PART.match(key) else None


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
