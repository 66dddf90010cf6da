"""Singer: a tap and a target from the SDK, as two processes with a pipe between them.

The tap follows the SDK's documentation: conversations are the parents, messages the children
(https://sdk.meltano.com/en/latest/parent_streams.html), with
https://sdk.meltano.com/en/latest/classes/singer_sdk.pagination.OffsetPaginator.html. The target is the
SDK's batch sink, as in its own sample target: the package index has only `target-parquet` 0.0.1 of 2019,
which is older than the SDK.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import requests
from singer_sdk import RESTStream, Tap, Target
from singer_sdk import typing as th
from singer_sdk.authenticators import APIKeyAuthenticator
from singer_sdk.contrib.msgspec import MsgSpecReader, MsgSpecWriter
from singer_sdk.pagination import BaseAPIPaginator, OffsetPaginator
from singer_sdk.sinks import BatchSink

from benchmarks.metrics import Job, Metrics, cpu_seconds

PAGE = 100
NUMBERS_PER_REQUEST = 100
TIME = pa.timestamp("ms", "UTC")


class Batches(BaseAPIPaginator[int]):
    """Pages through the phone numbers, not through an answer."""

    def __init__(self, count: int) -> None:
        super().__init__(0)
        self._count = count

    def has_more(self, response: requests.Response) -> bool:
        """Return whether numbers are left."""
        return bool(self._value + NUMBERS_PER_REQUEST < self._count)

    def get_next(self, response: requests.Response) -> int:
        """Return the index of the next request's first number."""
        return int(self._value) + NUMBERS_PER_REQUEST


class Offsets(OffsetPaginator):
    """Pages by `limit` and `skip` until `has_more` is false."""

    def has_more(self, response: requests.Response) -> bool:
        """Return the page's own statement."""
        return bool(response.json()["has_more"])


class Imbrace(RESTStream[int]):
    """The address and the token of both streams."""

    @property
    def url_base(self) -> str:
        """The gateway."""
        return str(self.config["gateway"])

    @property
    def authenticator(self) -> APIKeyAuthenticator:
        """The token's header."""
        return APIKeyAuthenticator(key="x-access-token", value=self.config["token"], location="header")


class Conversations(Imbrace):
    """One record per conversation."""

    name = "conversations"
    path = "/conversations/links"
    primary_keys = ("conversation_id",)
    schema = th.PropertiesList(th.Property("conversation_id", th.StringType)).to_dict()
    # Only its child's records are wanted.
    selected_by_default = False

    def __init__(self, tap: Tap) -> None:
        super().__init__(tap)
        self._numbers: list[str] = self.config["numbers"]
        self._seen: set[str] = set()

    def get_new_paginator(self) -> Batches:
        """Return a paginator over the numbers."""
        return Batches(len(self._numbers))

    def get_url_params(self, context: Any, next_page_token: int | None) -> dict[str, Any]:
        """Return the numbers of one request."""
        start = next_page_token or 0
        return {
            "phone_numbers": self._numbers[start : start + NUMBERS_PER_REQUEST],
            "organization_id": self.config["organization"],
        }

    def parse_response(self, response: requests.Response) -> Iterable[dict[str, Any]]:
        """Yield each conversation once, though two numbers may share it."""
        for entry in response.json():
            for link in entry["conversation_links"]:
                conversation_id = parse_qs(urlsplit(link["link"]).query)["conv_id"][0]
                if conversation_id not in self._seen:
                    self._seen.add(conversation_id)
                    yield {"conversation_id": conversation_id}

    def get_child_context(self, record: Any, context: Any) -> dict[str, str]:
        """Return the conversation for the child's path."""
        return {"conversation_id": record["conversation_id"]}


class Messages(Imbrace):
    """One record per message."""

    name = "messages"
    path = "/conversations/{conversation_id}/messages"
    records_jsonpath = "$.items[*]"
    parent_stream_type = Conversations
    primary_keys = ("_id",)
    # With a bookmark per conversation, every state message would list all conversations.
    state_partitioning_keys = ()
    schema = th.PropertiesList(
        th.Property("_id", th.StringType, required=True),
        *(
            th.Property(name, th.StringType)
            for name in (
                "public_id",
                "doc_name",
                "organization_id",
                "business_unit_id",
                "conversation_id",
                "from",
                "type",
            )
        ),
        th.Property("content", th.ObjectType(additional_properties=True)),
        th.Property("created_at", th.DateTimeType),
        th.Property("updated_at", th.DateTimeType),
    ).to_dict()

    def get_new_paginator(self) -> Offsets:
        """Return a paginator over the conversation's pages."""
        return Offsets(0, PAGE)

    def get_url_params(self, context: Any, next_page_token: int | None) -> dict[str, Any]:
        """Return the position of one page."""
        return {"limit": PAGE, "skip": next_page_token or 0}


class ImbraceTap(Tap):
    """The conversations of phone numbers."""

    name = "tap-imbrace"
    # The faster of the SDK's two writers.
    message_writer_class = MsgSpecWriter
    config_jsonschema = th.PropertiesList(
        *(th.Property(name, th.StringType, required=True) for name in ("gateway", "token", "organization")),
        th.Property("numbers", th.ArrayType(th.StringType), required=True),
    ).to_dict()

    def discover_streams(self) -> list[Imbrace]:
        """Return both streams."""
        return [Conversations(self), Messages(self)]


class ParquetSink(BatchSink):
    """Writes one file per batch."""

    max_size = 10_000

    def process_batch(self, context: dict[str, Any]) -> None:
        """Write the records of one batch."""
        records = context["records"]
        columns = {name: _column(schema, name, records) for name, schema in self.schema["properties"].items()}
        path = f"{self.config['lake']}/{self.stream_name}/{context['batch_id']}.parquet"
        with fsspec.open(path, "wb", auto_mkdir=True) as file:
            pq.write_table(pa.table(columns), file, compression="zstd")


def _column(schema: dict[str, Any], name: str, records: list[dict[str, Any]]) -> pa.Array:
    values = [record.get(name) for record in records]
    if schema.get("format") == "date-time":
        return pa.array(values, TIME)
    if "object" in schema["type"]:
        values = [value if value is None else msgspec.json.encode(value).decode() for value in values]
    return pa.array(values, pa.string())


class ParquetTarget(Target):
    """Parquet files in a folder, or below a bucket's URL."""

    name = "target-parquet"
    message_reader_class = MsgSpecReader
    default_sink_class = ParquetSink
    config_jsonschema = th.PropertiesList(th.Property("lake", th.StringType, required=True)).to_dict()


def sync(job: Job, report: Path) -> None:
    """Be the tap, and report when its work began and how much CPU time it took."""
    names = ("gateway", "token", "organization", "numbers")
    tap = ImbraceTap(config={name: getattr(job, name) for name in names})
    began, cpu = time.time(), cpu_seconds()
    tap.sync_all()
    report.write_text(json.dumps((began, cpu_seconds() - cpu)))


def main() -> None:
    """Do one job: be the target, and start the tap as a second process."""
    logging.disable(logging.WARNING)
    job = Job.read()
    if sys.argv[1] == "tap":
        sync(job, Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-singer-") as working:
        report = Path(working, "report.json")
        command = (sys.executable, "-m", "benchmarks.peers.singer_export", "tap", str(report), job.phones)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tap:
            target = ParquetTarget(config={"lake": job.lake})
            cpu = cpu_seconds()
            target.listen(tap.stdout)
            # The tap counts its own work, without its imports.
            cpu, ended = cpu_seconds() - cpu, time.time()
        if tap.returncode:
            raise SystemExit("the tap failed: see above")
        began, tap_cpu = json.loads(report.read_text())
    # The target waits for the tap's first line, so the work begins with the tap.
    Metrics(ended - began, cpu + tap_cpu).print()


if __name__ == "__main__":
    main()
