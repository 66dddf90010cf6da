"""A real S3 server on localhost for tests and benchmarks: SeaweedFS in one process, which ends with them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

FIRST_PORT, LAST_PORT = 12_000, 22_767
GRPC_OFFSET = 10_000
START_SECONDS = 30.0
DIE_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
os.execv(sys.argv[1], sys.argv[1:])
"""


class Seaweed:
    """`weed mini`, which listens on loopback only and is ready when the ``with`` block begins.

    Args:
        folder: For its data, log and sockets; a short path, because a socket's path has at most 107 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.key = "test-access-key"
        self.secret = "test-secret-never-to-be-shown"  # noqa: S105 - of a server that only this machine reaches
        self.reader_key = "test-reader-key"
        self.reader_secret = "test-reader-secret-never-to-be-shown"  # noqa: S105 - as above
        self.endpoint_url = ""
        self.metrics_url = ""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "s3.json").write_text(json.dumps({"identities": self._identities()}))
        ports = _free_ports(6)
        self.endpoint_url = f"http://127.0.0.1:{ports[3]}"
        self.metrics_url = f"http://127.0.0.1:{ports[5]}/metrics"
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(ports),
                stdout=log,
                stderr=log,
                # Its gRPC sockets are in the temporary folder and outlive a kill.
                env={**os.environ, "TMPDIR": str(self._folder)},
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_bucket(self, name: str) -> None:
        """Create an empty bucket; its name has at least three characters."""
        self.client().create_bucket(Bucket=name)

    def client(self) -> Any:
        """Return a plain client, which reads a bucket without the code under test."""
        session = botocore.session.Session()
        return session.create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def _identities(self) -> list[dict[str, object]]:
        def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
            credentials = [{"accessKey": key, "secretKey": secret}]
            return {"name": name, "credentials": credentials, "actions": actions}

        return [
            identity("writer", self.key, self.secret, ["Admin", "Read", "List", "Tagging", "Write"]),
            identity("reader", self.reader_key, self.reader_secret, ["Read", "List"]),
        ]

    def _command(self, ports: list[int]) -> list[str]:
        names = ("master", "volume", "filer", "s3", "admin")
        return [
            # The server must also end when the test run is killed.
            sys.executable,
            "-c",
            DIE_WITH_PARENT,
            str(Path(sys.executable).parent / "weed"),
            "-logtostderr=true",
            "mini",
            f"-dir={self._folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}.port={port}" for name, port in zip(names, ports[:5], strict=True)),
            f"-metricsPort={ports[5]}",
            "-metricsIp=127.0.0.1",
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            # Otherwise a PUT into a missing bucket creates the bucket.
            "-s3.autoCreateBucket=false",
            f"-s3.config={self._folder / 's3.json'}",
            f"-filer.localSocket={self._folder / 'f.sock'}",
            f"-s3.localSocket={self._folder / 's.sock'}",
        ]

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a PUT succeeds: the server lists buckets before it can store objects."""
        client = self.client()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with suppress(
                    client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
                ):
                    client.create_bucket(Bucket="is-ready")
                client.put_object(Bucket="is-ready", Key="is-ready", Body=b"")
            except (BotoCoreError, ClientError) as exc:
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS did not start:\n{log}") from exc
                time.sleep(0.05)
            else:
                return

    def _stop(self) -> None:
        if self._process is not None:
            # Its data is deleted, and SIGTERM takes two seconds.
            self._process.kill()
            self._process.wait()
            self._process = None


def _free_ports(count: int) -> list[int]:
    """Find free ports whose twin, 10,000 above, is free too: SeaweedFS takes both.

    Ephemeral ports begin at 32,768. A twin must be below them, because an outgoing connection can take
    an ephemeral port at any moment.
    """
    # Concurrent test runs begin their search at different ports.
    span = LAST_PORT - FIRST_PORT + 1
    start = os.getpid() * 37
    found: list[int] = []
    for step in range(span):
        port = FIRST_PORT + (start + step) % span
        if _is_free(port) and _is_free(port + GRPC_OFFSET) and port + GRPC_OFFSET not in found:
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports for SeaweedFS")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
