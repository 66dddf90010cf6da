"""A lake: the layout of its objects, and how parts are listed, read and written.

::

    lake.json                                          schema version and phone key of the lake
    messages/org=<organization>/conv=<conversation>/part-00000.parquet, part-00001.parquet, …
    phones/ conversations/ runs/ revisions/ shapes/    the ledgers (ledger_schema.py, ledger.py)
    checkpoints/                                       the state that the ledgers add up to (checkpoint.py)
    journal/<run>/                                     the results so far of a run under way

Parts are only added, except that a part with an edited or deleted message is replaced. The conditional write
of the part is the commit: it depends on no other write, and of two writers of one part exactly one wins.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import file_digest, sha256
from itertools import product
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import DamagedObject, InputError, ObjectExists, StoreError
from imbrace_lake.gateway.ids import canonical_conversation_id
from imbrace_lake.lake.hash_index import HashIndex
from imbrace_lake.lake.schema import SCHEMA, SCHEMA_VERSION
from imbrace_lake.store.contract import TEMPORARY, Body, ObjectMeta
from imbrace_lake.store.factory import Store, StoreOptions, open_store

logger = logging.getLogger(__name__)

MARKER = "lake.json"
MESSAGES = "messages/"
# Only a lake has these folders, so an object in one of them shows that there is a lake.
FOLDERS = (
    MESSAGES, "conversations/", "phones/", "runs/", "revisions/", "shapes/", "journal/", "checkpoints/"
)  # fmt: skip
# File names may have 255 bytes, including `conv=` and a store's own suffixes.
LONGEST_NAME = 200
# The parts that are read at a time.
READ_AT_A_TIME = 32
# The rows of a large part in memory at a time.
BATCH_ROWS = 4_096

# The columns that name the conversation of a row.
_OWNER = ("organization_id", "conversation_id")
# Folders of a lake that must not contain another one: its messages would be read, or its files removed.
_OWN = frozenset((*FOLDERS, "shards/", "state/", "tables/", f"{TEMPORARY}/"))
_PART = re.compile(r"messages/org=[^/]+/conv=[^/]+/part-\d{5,}\.parquet")


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a partition, as listed, read, written or recorded in a ledger.

    Attributes:
        key: The key, relative to the lake's root.
        size_bytes: The length of the object.
        rows: The number of rows; None as listed.
        sha256: The hash of the object; None as listed.
        etag: The store's version of the object; empty as recorded in a ledger.
    """

    key: str
    size_bytes: int
    rows: int | None = None
    sha256: str | None = None
    etag: str = field(default="", compare=False)

    @property
    def number(self) -> int:
        """Its position in the partition, from 0."""
        return int(self.key.rpartition("/part-")[2].removesuffix(".parquet"))


class Partitions:
    """The parts of all conversations of an organization, from one listing of the lake.

    They are columns, in the order of the keys, because objects would take four times as much memory.
    """

    def __init__(self, listing: Iterable[ObjectMeta]) -> None:
        listing = [meta for meta in listing if is_part(meta.key)]
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
        """Return no partitions, as in a new lake."""
        return cls([])

    def of_each(self, organization_id: str, conversation_ids: Iterable[str]) -> dict[str, list[Part]]:
        """Return the parts of some conversations, in order, by the ids of those that have any."""
        wanted = {partition_key(organization_id, one): one for one in conversation_ids}
        found: dict[str, list[Part]] = {}
        for row in self._rows.take(pa.array(self._index.find(wanted))).to_pylist():
            conversation_id = wanted.get(_folder(row["key"]))
            if conversation_id is not None:
                found.setdefault(conversation_id, []).append(Part(**row))
        return found

    def names(self) -> list[str]:
        """Return the name of each partition, in order: the id of its conversation, `encoded`."""
        found: dict[str, None] = {}
        for batch in self._rows.to_batches(max_chunksize=BATCH_ROWS):
            folders = map(_folder, batch["key"].to_pylist())
            found.update((folder.rpartition("/conv=")[2], None) for folder in folders)
        return [*found]

    def first_parts_except(self, organization_id: str, conversation_ids: Iterable[str]) -> list[Part]:
        """Return the first part of each partition that belongs to none of these conversations."""
        excluded = {partition_key(organization_id, one) for one in conversation_ids}
        found: dict[str, Part] = {}
        for batch in self._rows.to_batches(max_chunksize=BATCH_ROWS):
            for row in batch.to_pylist():
                folder = _folder(row["key"])
                if folder not in excluded and folder not in found:
                    found[folder] = Part(**row)
        return [*found.values()]


class Lake:
    """An open lake; see `open_lake`.

    Attributes:
        store: The store of its objects.
        schema_version: The schema version of the lake.
        phone_key: The key of the phone numbers' hashes, unless the settings have another.
        is_new: There was no lake before it was opened.
        damaged: Keys of ledger objects that were skipped since the lake was opened, and why.
    """

    def __init__(self, store: Store, schema_version: int, phone_key: bytes, *, is_new: bool = False) -> None:
        self.store = store
        self.schema_version = schema_version
        self.phone_key = phone_key
        self.is_new = is_new
        self.damaged: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The address of the lake, without credentials."""
        return self.store.url

    def skip_damaged(self, key: str, problem: str) -> None:
        """Record that a ledger object is skipped, with one warning per object."""
        if key not in self.damaged:
            self.damaged[key] = problem
            # A command shows it as it is, on standard error.
            logger.warning("%s is damaged and was skipped: %s", ascii(key)[1:-1], problem)

    async def problem(self) -> str | None:
        """Return a sentence if the lake was deleted, moved or replaced since it was opened; else None."""
        try:
            marker = await self.store.get(MARKER)
        except FileNotFoundError:
            marker = b""
        if is_marker(marker) and bytes.fromhex(json.loads(marker)["phone_key"]) == self.phone_key:
            return None
        # A folder that is deleted or moved is made again by the next write.
        return (
            f"the {MARKER} of {self.url} was deleted or replaced while the run wrote to this lake, so other"
            " objects may be missing: restore the lake, then start the run again"
        )

    async def list_partitions(self, organization_id: str) -> Partitions:
        """List every part of an organization; once per run, because 10,000 parts take a second."""
        return Partitions(await self.store.list(f"{MESSAGES}org={encoded(organization_id)}/"))

    async def list_organizations(self) -> list[str]:
        """List the folders of all organizations with messages, with one request for each."""
        found: list[str] = []
        after = ""
        while listing := await self.store.list(MESSAGES, start_after=after, most=1):
            folder = "/".join(listing[0].key.split("/")[:2])
            found.append(f"{folder}/")
            # The first name after all keys of the folder.
            after = f"{folder}0"
        return found

    async def list_parts(self, organization_id: str, conversation_id: str) -> list[Part]:
        """List the parts of one conversation again, in order."""
        folder = partition_key(organization_id, conversation_id)
        return await self.list_below(f"{folder}/")

    async def list_below(self, folder: str = MESSAGES) -> list[Part]:
        """List the parts below a folder, by default those of all organizations, in order."""
        found = await self.store.list(folder)
        return [Part(meta.key, meta.size_bytes, etag=meta.etag) for meta in found if is_part(meta.key)]

    async def read_parts(self, parts: Sequence[Part]) -> list[tuple[Part, pa.Table]]:
        """Read parts, one request each, and return them as read, perhaps newer than listed, with their rows.

        Raises:
            DamagedObject: An object is missing, is not a part, or has rows of another conversation than its
                folder; the message names it.
        """
        jobs = (partial(self._read_part, part) for part in parts)
        return await run_bounded(min(READ_AT_A_TIME, len(parts)), jobs)

    async def _read_part(self, part: Part) -> tuple[Part, pa.Table]:
        with self._explained(part):
            body = await self.store.get(part.key)
            rows = read_rows(body)
            self._reject_foreign_rows(part, _conversations([rows]))
            # With the ETag of the listing, so that a part that was replaced since then is not overwritten.
            return Part(part.key, len(body), rows.num_rows, sha256(body).hexdigest(), part.etag), rows

    async def download_part(self, part: Part, path: Path) -> Part:
        """Download a part to a file, for `iter_part`, and return it as read, perhaps newer than listed.

        Raises:
            DamagedObject: The object is missing, is not a part, or has rows of another conversation than its
                folder; the message names it.
        """
        with self._explained(part):
            await self.store.download(part.key, path)
            size_bytes, digest, rows, conversations = await asyncio.to_thread(_inspect, path)
            self._reject_foreign_rows(part, conversations)
            return Part(part.key, size_bytes, rows, digest, part.etag)

    def iter_part(self, part: Part, path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of a downloaded part, or some columns of them, in `SCHEMA`, in batches.

        Raises:
            DamagedObject: The part is damaged; the message names it.
        """
        with self._explained(part):
            yield from iter_rows(path, columns)

    def _reject_foreign_rows(self, part: Part, conversations: Iterable[tuple[str, str]]) -> None:
        """Reject a part in the folder of another conversation, whose messages a run would mark deleted."""
        if not all(None not in one and is_folder_of(part.key, *one) for one in conversations):
            raise DamagedObject(
                f"{self.url}/{part.key} contains rows of another conversation: restore it from a copy, or"
                " delete it and export its conversation again"
            )

    @contextmanager
    def _explained(self, part: Part) -> Iterator[None]:
        """Turn the errors of reading a part into one sentence."""
        try:
            yield
        except FileNotFoundError:
            raise DamagedObject(f"{self.url}/{part.key} is missing: parts must never be removed") from None
        except (pa.ArrowInvalid, OSError) as exc:
            raise DamagedObject(
                f"{self.url}/{part.key} cannot be read: restore it from a copy, or delete it and export its"
                " conversation again"
            ) from exc

    async def replace_part(self, part: Part, body: Body) -> Part:
        """Replace a part with the same number of rows, some of them edited, marked deleted or repaired.

        Raises:
            ObjectChanged: Another writer replaced it first: read it again.
        """
        meta = await self.store.update(part.key, body, part.etag)
        return replace(part, size_bytes=meta.size_bytes, sha256=await _hash_of(body), etag=meta.etag)

    async def add_part(
        self, organization_id: str, conversation_id: str, number: int, body: Body, rows: int
    ) -> Part:
        """Add a part to a conversation's partition; this is the commit.

        Args:
            organization_id, conversation_id: The conversation.
            number: One more than the highest number of a part that was read.
            body: The Parquet file, `rows` rows in `SCHEMA`, none in an earlier part.
            rows: The number of rows.

        Raises:
            ObjectExists: Another writer used this number: read the partition again.
        """
        key = f"{partition_key(organization_id, conversation_id)}/part-{number:05d}.parquet"
        meta = await self.store.create(key, body)
        return Part(key, meta.size_bytes, rows, await _hash_of(body), meta.etag)


@asynccontextmanager
async def open_lake(
    url: str, *, now: datetime | None, options: StoreOptions | None = None
) -> AsyncIterator[Lake]:
    """Open a lake; with `now`, create it if there is none.

    Raises:
        InputError: There is no lake, and `now` is None or the address is inside another lake; or a newer
            version of this project wrote the lake.
        DamagedObject: The lake has lost its `lake.json`, or that is damaged.
        StoreError: The store cannot be used.
    """
    async with open_store(url, options) as store:
        marker = await _read_marker(store, options)
        is_new = marker is None
        if marker is None and now is not None:
            marker = await _write_marker(store, now)
        if marker is None:
            raise InputError(f"there is no lake at {store.url}: export into it first, or check the address")
        if not is_marker(marker):
            raise DamagedObject(
                f"{store.url}/{MARKER} is damaged, or not that of a lake: restore it from a copy, or delete"
                " it and run `imbrace-lake new-key`"
            )
        values = json.loads(marker)
        version, phone_key = int(values["schema_version"]), bytes.fromhex(values["phone_key"])
        if version > SCHEMA_VERSION:
            raise InputError(
                f"the lake at {store.url} has schema version {version}, and this program supports"
                f" {SCHEMA_VERSION}: upgrade imbrace-lake"
            )
        yield Lake(store, version, phone_key, is_new=is_new)


def is_part(key: str) -> bool:
    """Whether an object of the lake is a part."""
    return _PART.fullmatch(key) is not None


async def has_lake(store: Store, options: StoreOptions | None = None) -> bool:
    """Whether there is a lake.

    Args:
        store: The open store.
        options: Those with which it was opened.

    Raises:
        DamagedObject: There is a lake without its `lake.json`.
        InputError: There is none, and the address is inside another lake.
    """
    return await _read_marker(store, options) is not None


async def renew_marker(url: str, *, now: datetime, options: StoreOptions | None = None) -> None:
    """Write a new `lake.json`, with a new key of the phone numbers' hashes, for a lake that has lost it.

    Raises:
        InputError: The lake has a `lake.json`, or there is no lake.
        StoreError: The store cannot be used.
    """
    async with open_store(url, options) as store:
        if await store.head(MARKER) is not None:
            raise InputError(f"{store.url} has a {MARKER}, which is not replaced: a lake keeps its key")
        if await _find_any(store) is None:
            raise InputError(f"there is no lake at {store.url}: check the address")
        await _write_marker(store, now)


async def _read_marker(store: Store, options: StoreOptions | None) -> bytes | None:
    """Read `lake.json`; None if there is no lake."""
    try:
        return await store.get(MARKER)
    except FileNotFoundError:
        found = await _find_any(store)
    if found is None:
        await _reject_address_inside_lake(store, options)
        return None
    try:
        # Another run may have created the lake meanwhile, and written the object that was found.
        return await store.get(MARKER)
    except FileNotFoundError:
        raise DamagedObject(
            f"the lake at {store.url} has {found}, but has lost its {MARKER}: restore {MARKER} from a copy."
            " Without a copy, run `imbrace-lake new-key`: later hashes of phone numbers then differ from"
            " earlier ones"
        ) from None


async def _reject_address_inside_lake(store: Store, options: StoreOptions | None) -> None:
    segments = store.url.split("/")
    for index, segment in enumerate(segments):
        outer = "/".join(segments[:index])
        if f"{segment}/" not in _OWN or not outer or outer.endswith("/"):
            continue
        # Who may use only this address sees nothing above it.
        with suppress(StoreError):
            async with open_store(outer, options) as around:
                is_lake = await around.head(MARKER) is not None
            if is_lake:
                raise InputError(f"{store.url} is inside the lake at {outer}: give this, or another")


async def _find_any(store: Store) -> str | None:
    """Return the key of an object that only a lake has; None if there is no lake."""
    looks = (partial(store.list, folder, most=1) for folder in FOLDERS)
    listings = await run_bounded(len(FOLDERS), looks)
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
        # Another run has just created the same lake, with the lake's phone key.
        try:
            return await store.get(MARKER)
        except FileNotFoundError:
            raise StoreError(f"{store.url}/{MARKER} is not a file: remove it") from None
    return marker


def is_marker(body: bytes) -> bool:
    """Whether a `lake.json` is undamaged."""
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
    """Return the rows of a part, from any release, in today's `SCHEMA`.

    Raises:
        pa.ArrowInvalid: The body is not a part.
        OSError: The part is damaged.
    """
    source = pa.BufferReader(body)
    with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
        return in_schema(SCHEMA, file.read(use_threads=False))


def iter_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a part in a file, or some columns of them, like `read_rows`, in batches.

    Raises:
        pa.ArrowInvalid: The file is not a part.
        OSError: The part is damaged.
    """
    schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
    # Without `pre_buffer`, which would load a complete row group.
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        there = [name for name in schema.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=there, use_threads=False):
            yield in_schema(schema, batch)


def in_schema(schema: pa.Schema, batch: pa.RecordBatch | pa.Table) -> pa.Table:
    """Return rows of a part, from any release, with columns of `SCHEMA`.

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


def _inspect(path: Path) -> tuple[int, str, int, set[tuple[str, str]]]:
    """Return size, SHA-256, number of rows and conversations of a part in a file."""
    conversations = _conversations(iter_rows(path, _OWNER))
    return path.stat().st_size, body_hash(path), pq.read_metadata(path).num_rows, conversations


def _conversations(batches: Iterable[pa.Table]) -> set[tuple[str, str]]:
    """Return the organizations and conversations that rows name."""
    found: set[tuple[str, str]] = set()
    for rows in batches:
        organizations, conversations = (pc.unique(rows.column(name)).to_pylist() for name in _OWNER)
        found.update(product(organizations, conversations))
    return found


def body_hash(body: Body) -> str:
    """Return the SHA-256 of an object's bytes, or of the file that becomes an object."""
    if isinstance(body, bytes):
        return sha256(body).hexdigest()
    with body.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


async def _hash_of(body: Body) -> str:
    return body_hash(body) if isinstance(body, bytes) else await asyncio.to_thread(body_hash, body)


def partition_key(organization_id: str, conversation_id: str) -> str:
    """Return the folder of a conversation's parts.

    `org` and `conv` are not names of columns, because some engines fail if a name is in both path and file.
    """
    return f"{MESSAGES}org={encoded(organization_id)}/conv={encoded(conversation_id)}"


def organization_of(folder: str) -> str:
    """Return the organization of a folder from `Lake.list_organizations`."""
    return unquote(folder.partition("org=")[2].rstrip("/"))


def is_folder_of(key: str, organization_id: str, conversation_id: str) -> bool:
    """Whether a part's key is in the folder of a conversation, in any spelling of its id."""
    folder = _folder(key)
    if folder == partition_key(organization_id, conversation_id):
        return True
    organization, _, name = folder.rpartition("/conv=")
    canonical = encoded(canonical_conversation_id(unquote(name)))
    return f"{organization}/conv={canonical}" == partition_key(
        organization_id, canonical_conversation_id(conversation_id)
    )


def id_of_folder(key: str) -> str | None:
    """Return the id of the conversation in whose folder a part is; None if the name is shortened."""
    name = _folder(key).rpartition("/conv=")[2]
    value = unquote(name)
    return value if encoded(value) == name else None


def encoded(value: str) -> str:
    """Return an id as the name of a folder: percent-encoded and, if long, shortened with a hash."""
    name = _quoted(value)
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) <= LONGEST_NAME:
        return name
    # Cut between characters: engines decode the names of folders, and reject incomplete characters.
    kept = _quoted(unquote(re.sub(r"%.?$", "", name[: LONGEST_NAME - 33]), errors="ignore"))
    return f"{kept}~{sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _quoted(value: str) -> str:
    # Without a tilde, which marks shortened names.
    return quote(value, safe="", errors="surrogatepass").replace("~", "%7E")


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
