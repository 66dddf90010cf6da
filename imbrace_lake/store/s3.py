"""A lake in an S3 bucket: the conditional PUT is the commit."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from imbrace_lake.errors import ObjectChanged, ObjectExists, SettingsError, StoreError
from imbrace_lake.store.contract import (
    Body,
    Listing,
    ObjectMeta,
    Probe,
    Store,
    StoreOptions,
    check_key,
    check_prefix,
    probe_conditions,
)
from imbrace_lake.store.s3_client import Bucket
from imbrace_lake.store.s3_errors import ConditionFailed, ObjectMissing

FIRST_CALL_SECONDS = 5.0
SINGLE_PUT_BYTES = 32 * 2**20
PART_BYTES = 16 * 2**20
MAX_PARTS = 10_000
# Metadata of an object: the id of the call that wrote it.
WRITE_ID = "write-id"


class S3Store(Store):
    """Objects in a bucket below a prefix.

    Args:
        bucket: Its name.
        prefix: The folder of the lake in the bucket; empty for the complete bucket.
        options: How to reach the server.

    Raises:
        SettingsError: The options are malformed or contradict each other.
    """

    def __init__(self, bucket: str, prefix: str, options: StoreOptions) -> None:
        if not bucket or ":" in bucket:
            raise SettingsError("an S3 lake's URL is s3://bucket/prefix: name the bucket, not the server")
        segments = [segment for segment in prefix.split("/") if segment]
        self.url = "/".join([f"s3://{bucket}", *segments])
        self.is_conditional: bool | None = None
        self._bucket = Bucket(bucket, options)
        self._base = "".join(f"{segment}/" for segment in segments)
        self._temporary: Path | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    async def __aenter__(self) -> Self:
        await self._bucket.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._bucket.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    async def list(self, prefix: str, *, start_after: str = "", most: int | None = None) -> Listing:
        check_prefix(prefix)
        # Some servers list an object twice, as where one page ends and the next begins.
        found: dict[str, ObjectMeta] = {}
        position: dict[str, Any] = {"StartAfter": self._base + start_after} if start_after else {}
        if most is not None:
            # One of them may be a "folder" of a console.
            position["MaxKeys"] = most + 1
        while True:
            page = await self._bucket.call("list_objects_v2", Prefix=self._base + prefix, **position)
            for item in page.get("Contents", ()):
                # Consoles make "folders": empty objects with keys that end with a slash.
                key = item["Key"].removeprefix(self._base)
                # Some servers ignore StartAfter.
                if not key.endswith("/") and key > start_after:
                    found[key] = _s3_object_meta(key, item["Size"], item["ETag"], item["LastModified"])
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or (most is not None and len(found) >= most):
                return [found[key] for key in sorted(found)][:most]
            if token is None or token == position.get("ContinuationToken"):
                raise StoreError(
                    f"{self._bucket.display_name} repeats pages of lists: use a server that pages as S3 does"
                )
            position |= {"ContinuationToken": token}

    async def get(self, key: str) -> bytes:
        check_key(key)
        try:
            return await self._bucket.read(self._base + key)
        except ObjectMissing as exc:
            raise FileNotFoundError(key) from exc

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        try:
            return await self._bucket.read(self._base + key, Range=f"bytes={start}-{start + length - 1}")
        except ObjectMissing as exc:
            raise FileNotFoundError(key) from exc

    async def download(self, key: str, path: Path) -> None:
        check_key(key)
        try:
            await self._bucket.download(self._base + key, path)
        except ObjectMissing as exc:
            raise FileNotFoundError(key) from exc

    async def head(self, key: str) -> ObjectMeta | None:
        check_key(key)
        try:
            answer = await self._bucket.call("head_object", Key=self._base + key)
        except ObjectMissing:
            return None
        return _s3_object_meta(key, answer["ContentLength"], answer["ETag"], answer["LastModified"])

    async def create(self, key: str, data: Body) -> ObjectMeta:
        check_key(key)
        exists = f"{key} exists already in {self.url}"
        if self.is_conditional is False:
            if await self.head(key) is not None:
                raise ObjectExists(exists)
            return await self._write(key, data, {})
        try:
            return await self._write(key, data, {"IfNoneMatch": "*"})
        except ConditionFailed as exc:
            if await self.head(key) is None:
                raise
            raise ObjectExists(exists) from exc

    async def update(self, key: str, data: Body, etag: str) -> ObjectMeta:
        check_key(key)
        changed = f"{key} in {self.url} is no longer the version that was read"
        if self.is_conditional is False:
            current = await self.head(key)
            if current is None or current.etag != etag:
                raise ObjectChanged(changed)
            return await self._write(key, data, {})
        try:
            return await self._write(key, data, {"IfMatch": f'"{etag}"'})
        except (ConditionFailed, ObjectMissing) as exc:
            raise ObjectChanged(changed) from exc

    async def overwrite(self, key: str, data: bytes) -> ObjectMeta:
        check_key(key)
        return await self._write(key, data, {})

    async def delete(self, key: str) -> None:
        check_key(key)
        with suppress(ObjectMissing):
            await self._bucket.call("delete_object", Key=self._base + key)

    def temporary_directory(self) -> Path:
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="imbrace-lake-"))
        return self._temporary

    async def probe(self) -> Probe:
        # The first call shows at once whether address, bucket or credentials are wrong.
        seconds = min(FIRST_CALL_SECONDS, self._bucket.seconds(0))
        await self._bucket.call("list_objects_v2", seconds, Prefix=f"{self._base}_probe/", MaxKeys=1)
        self.is_conditional = None
        self.is_conditional = await probe_conditions(self)
        if self.is_conditional:
            return Probe(is_conditional=True)
        return Probe(
            is_conditional=False,
            note=f"{self._bucket.display_name} ignores conditions: run one export at a time.",
        )

    async def _write(self, key: str, data: Body, condition: Mapping[str, Any]) -> ObjectMeta:
        """Write under a condition; ConditionFailed is raised only if another call wrote the object."""
        size = len(data) if isinstance(data, bytes) else (await asyncio.to_thread(data.stat)).st_size
        # A reply can get lost after the object was written, and aiohttp silently repeats a PUT on a dropped
        # connection: the 412 that follows is then about our own object. Equal bytes prove nothing, because
        # two writers may write the same; so each call gives its object an id.
        write_id = uuid4().hex
        new: dict[str, Any] = {"Key": self._base + key, "Metadata": {WRITE_ID: write_id}}
        try:
            if isinstance(data, Path) and size > SINGLE_PUT_BYTES:
                answer = await self._upload(data, size, new, condition)
            else:
                body = await asyncio.to_thread(data.read_bytes) if isinstance(data, Path) else data
                seconds = self._bucket.seconds(size)
                answer = await self._bucket.call("put_object", seconds, **new, Body=body, **condition)
        except (ConditionFailed, ObjectMissing):
            with suppress(ObjectMissing):
                found = await self._bucket.call("head_object", Key=self._base + key)
                if found.get("Metadata", {}).get(WRITE_ID) == write_id:
                    return _s3_object_meta(key, found["ContentLength"], found["ETag"], found["LastModified"])
            raise
        now = datetime.now(UTC)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        written_at = parsedate_to_datetime(date) if date else now
        self.clock_offset = written_at - now
        return _s3_object_meta(key, size, answer["ETag"], written_at)

    async def _upload(
        self, path: Path, size: int, new: Mapping[str, Any], condition: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write a file in parts, one after the other; the object appears with the last call."""
        started = await self._bucket.call("create_multipart_upload", **new)
        upload: dict[str, Any] = {"Key": new["Key"], "UploadId": started["UploadId"]}
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        parts: list[dict[str, Any]] = []
        try:
            for number, offset in enumerate(range(0, size, part_bytes), start=1):
                body = await asyncio.to_thread(_read_part, path, offset, part_bytes)
                seconds = self._bucket.seconds(len(body))
                answer = await self._bucket.call(
                    "upload_part", seconds, **upload, PartNumber=number, Body=body
                )
                sums = {field: value for field, value in answer.items() if field in ("ETag", "ChecksumCRC32")}
                parts.append({"PartNumber": number, **sums})
            return await self._bucket.call(
                "complete_multipart_upload", **upload, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException:
            # Parts of an upload that is never completed are invisible, but cost money.
            with suppress(StoreError):
                await self._bucket.call("abort_multipart_upload", **upload)
            raise


def _s3_object_meta(key: str, size_bytes: int, etag: str, modified_at: datetime) -> ObjectMeta:
    return ObjectMeta(key, size_bytes, etag.strip('"'), modified_at.astimezone(UTC))


def _read_part(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
