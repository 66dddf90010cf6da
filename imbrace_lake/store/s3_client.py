"""Calls to an S3 bucket, each with a time limit, one layer of retries and errors in sentences.

s3fs opens and configures the client. Its calls for files do not suffice for a lake: `_put_file` drops the
`If-Match` of an upload in parts, and leaves the parts of a cancelled one; `_cat_file` and `_get_file` can mix
two versions of a large object; a listing cannot start after a key; and none has a time limit.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from botocore.handlers import add_expect_header
from s3fs import S3FileSystem

from imbrace_lake.aws_login import quiet_aws
from imbrace_lake.errors import SettingsError
from imbrace_lake.store.contract import StoreOptions
from imbrace_lake.store.s3_errors import FAILURES, explain, is_transient

CONNECTIONS = 32
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
# The one layer of retries. Those of botocore are off: they end where the body of an answer begins, and a
# probe must not wait as long as a run.
PAUSES_SECONDS = (0.25, 0.5, 1.0, 2.0)
SLOWEST_BYTES_PER_SECOND = 50_000
PIECE_BYTES = 2**20

T = TypeVar("T")


class Bucket:
    """A bucket, in one event loop.

    Attributes:
        display_name: Bucket and endpoint, as messages show them.

    Raises:
        SettingsError: The options are malformed or contradict each other.
    """

    def __init__(self, name: str, options: StoreOptions) -> None:
        _check(options)
        self.name = name
        self.display_name = f"bucket {name}"
        self._options = options
        self._endpoint = ""
        self._client: Any = None
        self._slots = asyncio.Semaphore(CONNECTIONS)

    def __repr__(self) -> str:
        return f"Bucket({self.name!r})"

    async def open(self) -> None:
        """Look up credentials, region and endpoint; nothing is connected yet.

        Raises:
            SettingsError: The endpoint or the region is malformed.
            StoreError: A profile or its credentials cannot be read.
        """
        # A cached instance of s3fs belongs to the event loop of an earlier asyncio.run.
        files = S3FileSystem(
            asynchronous=True, skip_instance_cache=True, use_listings_cache=False, **_settings(self._options)
        )
        try:
            with quiet_aws():
                async with asyncio.timeout(self._options.timeout_seconds):
                    self._client = await files.set_session()
        except ValueError:
            raise SettingsError(
                f"the S3 settings for {self.display_name} cannot be used: check the region, and write the"
                " endpoint as https://host or http://host:port"
            ) from None
        except (*FAILURES, TimeoutError) as exc:
            raise explain(exc, self.display_name, "S3") from None
        # With `Expect: 100-continue`, a PUT to a stalled server waits without a time limit, and every other
        # PUT takes a third longer.
        self._client.meta.events.unregister("before-call.s3", add_expect_header)
        address = urlsplit(self._client.meta.endpoint_url)
        self._endpoint = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
        self.display_name = f"bucket {self.name} at {self._endpoint}"
        self._slots = asyncio.Semaphore(CONNECTIONS)

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def read(self, key: str, **kwargs: str) -> bytes:
        """Read an object, or its `Range`, by one request; raises as :meth:`call` does."""

        async def once(deadline: asyncio.Timeout) -> bytes:
            async with await self._get(key, deadline, **kwargs) as body:
                return bytes(await body.read())

        return await self._with_retries(once, self._options.timeout_seconds)

    async def download(self, key: str, path: Path) -> None:
        """Read an object by one request into a file; raises as :meth:`call` does."""

        async def once(deadline: asyncio.Timeout) -> None:
            # A retry overwrites what the failed request left in the file.
            async with await self._get(key, deadline) as body:
                with await asyncio.to_thread(path.open, "wb") as file:
                    while piece := await body.read(PIECE_BYTES):
                        await asyncio.to_thread(file.write, piece)

        await self._with_retries(once, self._options.timeout_seconds)

    async def _get(self, key: str, deadline: asyncio.Timeout, **kwargs: str) -> Any:
        """Request an object, and return its body; a large one gets more time."""
        answer = await self._client.get_object(Bucket=self.name, Key=key, **kwargs)
        deadline.reschedule(asyncio.get_running_loop().time() + self.seconds(answer["ContentLength"]))
        return answer["Body"]

    async def call(self, operation: str, seconds: float | None = None, **kwargs: Any) -> dict[str, Any]:
        """Call an operation of the bucket.

        Args:
            operation: Method of the botocore client.
            seconds: The time limit, retries included; that of the options if None.
            kwargs: The operation's arguments, without ``Bucket``.

        Raises:
            ObjectMissing: There is no such object.
            ConditionFailed: A condition is not met, or a conflict with another writer lasts.
            StoreError: Another error, in one sentence.
        """

        async def once(_: asyncio.Timeout) -> dict[str, Any]:
            answer: dict[str, Any] = await getattr(self._client, operation)(Bucket=self.name, **kwargs)
            return answer

        return await self._with_retries(once, self._options.timeout_seconds if seconds is None else seconds)

    async def _with_retries(self, once: Callable[[asyncio.Timeout], Awaitable[T]], seconds: float) -> T:
        """Make a call, and repeat it while that may help, within a time limit for all tries."""
        if self._client is None:
            raise RuntimeError("open the store with `async with` first")
        last: Exception | None = None
        # Credentials that expire are renewed within a call.
        with quiet_aws():
            async with self._slots:
                try:
                    async with asyncio.timeout(seconds) as deadline:
                        for pause in PAUSES_SECONDS:
                            try:
                                return await once(deadline)
                            except FAILURES as exc:
                                if not is_transient(exc):
                                    raise
                                last = exc
                            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
                        return await once(deadline)
                except TimeoutError as exc:
                    raise explain(last or exc, self.display_name, self._endpoint) from None
                except FAILURES as exc:
                    raise explain(exc, self.display_name, self._endpoint) from None

    def seconds(self, size_bytes: int) -> float:
        """Return the time limit of a call with a body of this size."""
        return self._options.timeout_seconds + size_bytes / SLOWEST_BYTES_PER_SECOND


def _check(options: StoreOptions) -> None:
    if (options.key is None) != (options.secret is None):
        raise SettingsError("an S3 access key and its secret key go together: give both or neither")
    if options.endpoint_url is not None:
        address = urlsplit(options.endpoint_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
            raise SettingsError("the S3 endpoint is http://host:port or https://host, without credentials")


def _settings(options: StoreOptions) -> dict[str, Any]:
    """Return the options as arguments of s3fs; botocore looks up missing ones as other AWS tools do."""
    endpoint = options.endpoint_url or os.environ.get(
        "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")
    )
    is_aws = endpoint is None or (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com")
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": min(READ_SECONDS, options.timeout_seconds),
        "max_pool_connections": CONNECTIONS,
        "retries": {"total_max_attempts": 1},
    }
    if not is_aws:
        # Some other servers do not know the checksums that AWS clients have sent since 2025. The signature
        # covers the body either way.
        config |= {"request_checksum_calculation": "when_required"}
        config |= {"response_checksum_validation": "when_required"}
    # Names such as bucket.minio:9000 are rarely in the DNS.
    if options.path_style or (options.path_style is None and not is_aws):
        config["s3"] = {"addressing_style": "path"}
    elif options.path_style is False:
        config["s3"] = {"addressing_style": "virtual"}
    # boto reads AWS_DEFAULT_REGION only; all other AWS tools prefer AWS_REGION.
    region = options.region or os.environ.get("AWS_REGION")
    secrets = {"key": options.key, "secret": options.secret, "token": options.token}
    return {
        "anon": options.is_anonymous,
        "endpoint_url": options.endpoint_url,
        "client_kwargs": {"region_name": region} if region else {},
        "config_kwargs": config,
        **{name: value.get_secret_value() for name, value in secrets.items() if value is not None},
    }
