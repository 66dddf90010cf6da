"""The environment of benchmarks: a warm Prefect server, a folder to write to, the machine's name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from uuid import uuid4

from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from imbrace_lake.errors import ImbraceLakeError
from tools.seaweed import Seaweed

PACKAGES = ("prefect", "httpx", "aiohttp", "orjson", "pyarrow", "s3fs")


def end_tidily() -> None:
    """Let SIGTERM, which `timeout` sends, end the servers as well, and remove what was written."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def prefect_server() -> Iterator[LocalServer]:
    """A Prefect server in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="benchmark-home-") as folder:
        home = Path(folder)
        try:
            server = ensure_server(home)
        except ImbraceLakeError as exc:
            sys.exit(f"error: {exc}")
        try:
            with keep_alive(home):
                yield server
        finally:
            stop_server(home)


@contextmanager
def open_store(name: str) -> Iterator[str]:
    """Give the address of a place to write to.

    Args:
        name: ``local`` (a temporary folder), ``seaweed`` (a bucket on an S3 server that ends with the
            block and is reached by the environment), or a folder or URL, which stays as it is left.
    """
    if name not in ("local", "seaweed"):
        yield name.rstrip("/")
        return
    # Short, because SeaweedFS has its sockets there.
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        if name == "local":
            yield str(folder)
            return
        with Seaweed(folder) as s3:
            s3.create_bucket("lake")
            names = {
                "AWS_ACCESS_KEY_ID": s3.key,
                "AWS_SECRET_ACCESS_KEY": s3.secret,
                "AWS_ENDPOINT_URL": s3.endpoint_url,
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "SEAWEED_METRICS": s3.metrics_url,
            }
            with _environment(names):
                yield "s3://lake"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_place(store: str) -> str:
    """The address of an empty place within a store, which goes with the store and not before.

    Ext4 without a journal looks past every file that was deleted in the last minutes whenever it makes a
    new one (`recently_deleted` in its `ialloc.c`): 7 % of the samples of a profile of two rounds, when each
    round's lake was removed before the next.
    """
    return f"{store}/{uuid4().hex[:12]}"


@contextmanager
def _environment(names: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


def machine() -> str:
    """What the figures depend on, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.system()} {platform.machine()},"
        f" {os.cpu_count()} cores, {memory:.0f} GB, load {os.getloadavg()[0]:.1f},"
        f" Python {platform.python_version()}, {versions}"
    )
