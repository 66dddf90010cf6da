"""The environment of benchmarks: a home for Prefect's server, a lake to write to, the machine's name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from uuid import uuid4

from tools.seaweed import Seaweed

PROJECT = Path(__file__).parent.parent
PACKAGES = ("prefect", "httpx", "aiohttp", "orjson", "pyarrow", "s3fs")


def end_on_sigterm() -> None:
    """Let SIGTERM, which `timeout` sends, end the servers too and delete what was written."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def prefect_home(command: Path) -> Iterator[dict[str, str]]:
    """Yield the variables of a new home whose Prefect server the first run starts and later runs find.

    Args:
        command: `imbrace-lake`, which stops the server in the end.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-home-") as home:
        # The user's Prefect profile could name another server.
        variables = {"IMBRACE_HOME": home, "PREFECT_HOME": f"{home}/profile", "PREFECT_API_URL": ""}
        try:
            yield variables
        finally:
            subprocess.run(
                [command, "server", "stop"],
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL,
                check=True,
            )


@contextmanager
def open_store(name: str) -> Iterator[str]:
    """Yield the address of a store.

    Args:
        name: ``local`` (a temporary folder), ``seaweed`` (a bucket of an S3 server that ends with the
            block and is reached by environment variables), or a folder or URL, which is not deleted.
    """
    if name not in ("local", "seaweed"):
        yield name.rstrip("/")
        return
    # A short path, because SeaweedFS has its sockets there.
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        if name == "local":
            yield str(folder)
            return
        with Seaweed(folder) as s3:
            s3.create_bucket("lake")
            variables = {
                "AWS_ACCESS_KEY_ID": s3.key,
                "AWS_SECRET_ACCESS_KEY": s3.secret,
                "AWS_ENDPOINT_URL": s3.endpoint_url,
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "SEAWEED_METRICS": s3.metrics_url,
            }
            with _environment(variables):
                yield "s3://lake"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_lake(store: str) -> str:
    """Return the address of a new lake within a store; it is deleted with the store, not before.

    To create a file, Ext4 without a journal looks at every file that was deleted in the last minutes
    (`recently_deleted` in its `ialloc.c`): 7 % of the samples of a profile of two rounds, when each round's
    lake was deleted before the next.
    """
    return f"{store}/{uuid4().hex[:12]}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


def machine() -> str:
    """Return one line with everything that the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.system()} {platform.machine()},"
        f" {os.cpu_count()} cores, {memory:.0f} GB, load {os.getloadavg()[0]:.1f},"
        f" Python {platform.python_version()}, {versions}"
    )
