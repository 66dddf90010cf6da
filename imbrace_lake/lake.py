"""A lake: where its objects lie, and how a conversation's messages get there and back.

::

    lake.json                                          what the lake is: its version, its phone key
    messages/org=<organization>/conv=<conversation>/part-00000.parquet, part-00001.parquet, …
    phones/ conversations/ runs/ revisions/            the ledgers (ledger.py)
    journal/<run>/                                     what a run that is under way has done so far

Parts are only ever added. The part's own conditional write is the commit: nothing else has to
succeed for it to be true, and of two writers of one part exactly one wins.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.errors import ObjectExists, StoreError, UsageError
from imbrace_lake.schema import SCHEMA, SCHEMA_VERSION
from imbrace_lake.store import Store, StoreOptions, open_store

MARKER = "lake.json"
MESSAGES = "messages/"
# Names of files may have 255 bytes, and `conv=` and a store's own suffixes want some.
LONGEST_NAME = 200

_PART = re.compile(r"^(?P<folder>.+)/part-(?P<number>\d{5})\.parquet$")


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a partition.

    Attributes:
        key: Relative to the lake's root.
        number: Its place in the partition, from 0.
        size_bytes: Its length.
        etag: The store's version of it.
    """

    key: str
    number: int
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """A part that this run wrote; `sha256` is of the object's bytes."""

    part: Part
    sha256: str
    rows: int


class Partitions:
    """Which parts every conversation of an organization has, by one listing of the lake."""

    def __init__(self, parts: Mapping[str, Sequence[Part]]) -> None:
        self._parts = parts

    @classmethod
    def none(cls) -> Partitions:
        """No partitions at all, as in a new lake."""
        return cls({})

    def of(self, organization_id: str, conversation_id: str) -> Sequence[Part]:
        """The parts of one conversation, in order; none if the lake does not have it."""
        return self._parts.get(partition_key(organization_id, conversation_id), ())

    def __len__(self) -> int:
        return len(self._parts)


class Lake:
    """An open lake; see `open_lake`.

    Attributes:
        store: Where its objects are.
        schema_version: The version that the lake was made with.
        phone_key: Key of the hashes of phone numbers, unless the settings give another.
    """

    def __init__(self, store: Store, marker: Mapping[str, str | int]) -> None:
        self.store = store
        self.schema_version = int(marker["schema_version"])
        self.phone_key = bytes.fromhex(str(marker["phone_key"]))

    @property
    def url(self) -> str:
        """Where the lake is, free of credentials."""
        return self.store.url

    async def list_partitions(self, organization_id: str) -> Partitions:
        """List every part of an organization; once a run, since a listing costs a second for 10,000."""
        folders: dict[str, list[Part]] = {}
        for stored in await self.store.list(f"{MESSAGES}org={encoded(organization_id)}/"):
            folder, part = _as_part(stored.key, stored.size_bytes, stored.etag)
            if part is not None:
                folders.setdefault(folder, []).append(part)
        return Partitions(folders)

    async def list_parts(self, organization_id: str, conversation_id: str) -> list[Part]:
        """List the parts of one conversation anew, in order."""
        folder = partition_key(organization_id, conversation_id)
        found = await self.store.list(f"{folder}/")
        parts = [_as_part(stored.key, stored.size_bytes, stored.etag)[1] for stored in found]
        return [part for part in parts if part is not None]

    async def read_parts(self, parts: Sequence[Part]) -> pa.Table:
        """Read parts, one request each; rows in `SCHEMA`, part by part.

        Raises:
            StoreError: An object is gone or is no part; the message names it.
        """
        tables = await asyncio.gather(*(self._read_part(part) for part in parts))
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table()

    async def _read_part(self, part: Part) -> pa.Table:
        try:
            return read_rows(await self.store.get(part.key))
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{part.key} is gone: parts are never to be removed") from None
        except (pa.ArrowInvalid, OSError) as exc:
            raise StoreError(f"{self.url}/{part.key} cannot be read: restore it from a copy") from exc

    async def add_part(
        self, organization_id: str, conversation_id: str, number: int, body: bytes, rows: int
    ) -> PublishedPart:
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
        stored = await self.store.put_new(key, body)
        part = Part(key, number, stored.size_bytes, stored.etag)
        return PublishedPart(part, sha256(body).hexdigest(), rows)


@asynccontextmanager
async def open_lake(
    url: str, *, now: datetime | None, options: StoreOptions | None = None
) -> AsyncIterator[Lake]:
    """Open a lake, and with `now` make it if there is none.

    Raises:
        UsageError: There is no lake and `now` is None, or a newer version of this project wrote it.
        StoreError: The store cannot be used.
    """
    async with open_store(url, options) as store:
        try:
            marker = json.loads(await store.get(MARKER))
        except FileNotFoundError:
            marker = await _make_marker(store, now)
        except ValueError:
            raise StoreError(f"{store.url}/{MARKER} is no JSON: restore it from a copy") from None
        if int(marker.get("schema_version", 0)) > SCHEMA_VERSION:
            raise UsageError(
                f"the lake at {store.url} has schema version {marker['schema_version']}, this program knows"
                f" {SCHEMA_VERSION}: upgrade imbrace-lake"
            )
        yield Lake(store, marker)


async def _make_marker(store: Store, now: datetime | None) -> dict[str, str | int]:
    if now is None:
        raise UsageError(f"there is no lake at {store.url}: export into it first, or check the address")
    marker: dict[str, str | int] = {
        "schema_version": SCHEMA_VERSION,
        "created_at": now.isoformat(timespec="seconds"),
        "phone_key": secrets.token_hex(32),
    }
    try:
        await store.put_new(MARKER, json.dumps(marker, indent=2).encode() + b"\n")
    except ObjectExists:
        # Another run makes the same lake just now; its key is the lake's key.
        marker = json.loads(await store.get(MARKER))
    return marker


def read_rows(body: bytes) -> pa.Table:
    """Rows of a part in today's `SCHEMA`, whichever version wrote it."""
    return pq.read_table(io.BytesIO(body), schema=SCHEMA, page_checksum_verification=True)


def partition_key(organization_id: str, conversation_id: str) -> str:
    """The folder of a conversation's parts.

    The names `org` and `conv` are not those of the columns: readers that meet one name in path and
    file merge the two and fail.
    """
    return f"{MESSAGES}org={encoded(organization_id)}/conv={encoded(conversation_id)}"


def encoded(value: str) -> str:
    """An id as a folder's name: percent-encoded, and shortened with a hash where it is long."""
    name = quote(value, safe="", errors="surrogatepass")
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) <= LONGEST_NAME:
        return name
    kept = re.sub(r"%.?$", "", name[: LONGEST_NAME - 33])
    return f"{kept}~{sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _as_part(key: str, size_bytes: int, etag: str) -> tuple[str, Part | None]:
    match = _PART.match(key)
    if match is None:
        return key, None
    return match["folder"], Part(key, int(match["number"]), size_bytes, etag)
