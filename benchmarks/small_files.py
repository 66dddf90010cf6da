"""What many small objects cost against the same rows in few large ones.

A partition a conversation, as the lake has them, and compacted: sorted by conversation, a million rows a
file. Both are written, listed, scanned and asked for one conversation, in a folder and on S3.
"""

from __future__ import annotations

import argparse
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from benchmarks.bare import encode, to_table
from benchmarks.environment import end_tidily, machine, new_place, open_store
from imbrace_lake.lake.parquet import ROW_GROUP_ROWS
from imbrace_lake.lake.schema import SCHEMA
from imbrace_sandbox import SandboxOptions
from imbrace_sandbox.generated import GeneratedSource, iter_generated

T = TypeVar("T")

MESSAGES_A_CONVERSATION = 20.0
ROWS_A_FILE = 1_000_000
THREADS = 16
COLUMNS = ["type", "text"]
LAYOUTS = SMALL, COMPACTED = "small", "compacted"

# US dollars: S3 Standard, us-east-1, https://aws.amazon.com/s3/pricing/, "Requests & data retrievals".
PER_PUT_OR_LIST = 0.005 / 1_000
PER_GET = 0.0004 / 1_000

COUNTED_SECONDS = 0.2

_COUNTED = re.compile(r'^SeaweedFS_s3_request_total\{bucket="lake",.*type="(\w+)"\} (\S+)$', re.MULTILINE)

HEADER = (
    "| partitions | store | | small files | compacted | ratio | requests: small | compacted"
    " | US$: small | compacted |\n|--:|---|---|--:|--:|--:|--:|--:|--:|--:|"
)


@dataclass(frozen=True, slots=True)
class Requests:
    """What an S3 server was asked; HEAD counts as GET and costs the same."""

    puts: int = 0
    lists: int = 0
    gets: int = 0

    def __sub__(self, other: Requests) -> Requests:
        return Requests(self.puts - other.puts, self.lists - other.lists, self.gets - other.gets)

    def __str__(self) -> str:
        named = ((self.puts, "PUT"), (self.lists, "LIST"), (self.gets, "GET"))
        return ", ".join(f"{count:,} {name}" for count, name in named if count)

    @property
    def dollars(self) -> float:
        """What they cost."""
        return (self.puts + self.lists) * PER_PUT_OR_LIST + self.gets * PER_GET


@dataclass(frozen=True, slots=True)
class Place:
    """Where both layouts are.

    Attributes:
        files: Arrow's own file system, which is what its users have.
        root: The path within it.
        count: How many requests the server had so far; None for a folder.
    """

    files: fs.FileSystem
    root: str
    count: Callable[[], Requests] | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operation on one layout."""

    seconds: float
    requests: Requests


def main() -> None:
    """Measure every size in every store and print the table line by line."""
    arguments = _arguments()
    end_tidily()
    print(f"{machine()}; {arguments.messages:g} messages a conversation in the mean\n\n{HEADER}", flush=True)
    for name in arguments.stores:
        for partitions in arguments.partitions:
            with open_place(name) as folder:
                for operation, costs in measure(folder, partitions, arguments.messages):
                    print(line_of(partitions, name, operation, costs), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_files", description=__doc__)
    parser.add_argument(
        "--partitions", type=lambda text: [int(each) for each in text.split(",")], default=[1_000, 10_000]
    )
    parser.add_argument("--messages", type=float, default=MESSAGES_A_CONVERSATION, help="mean a conversation")
    parser.add_argument(
        "--stores", type=lambda text: text.split(","), default=["local", "seaweed"], help="local, seaweed"
    )
    return parser.parse_args()


@contextmanager
def open_place(name: str) -> Iterator[Place]:
    """An empty place; `name` is ``local`` or ``seaweed``."""
    with open_store(name) as store:
        root = new_place(store)
        if name == "local":
            yield Place(fs.LocalFileSystem(), root, None)
            return
        files = fs.S3FileSystem(
            endpoint_override=os.environ["AWS_ENDPOINT_URL"],
            region=os.environ["AWS_REGION"],
            # Otherwise a small object takes three requests, as a multipart upload.
            allow_delayed_open=True,
        )
        yield Place(files, root.removeprefix("s3://"), _count_requests)


def _count_requests() -> Requests:
    """How many requests SeaweedFS had for objects of the bucket; it counts each a moment after its answer."""
    found = _counted_so_far()
    while True:
        time.sleep(COUNTED_SECONDS)
        before, found = found, _counted_so_far()
        if found == before:
            return found


def _counted_so_far() -> Requests:
    with urllib.request.urlopen(os.environ["SEAWEED_METRICS"], timeout=60) as answer:  # noqa: S310 - our own
        counted = dict.fromkeys(("PUT", "LIST", "GET", "HEAD"), 0)
        for kind, count in _COUNTED.findall(answer.read().decode()):
            counted[kind] = counted.get(kind, 0) + int(float(count))
    return Requests(counted["PUT"], counted["LIST"], counted["GET"] + counted["HEAD"])


def measure(folder: Place, partitions: int, messages: float) -> Iterator[tuple[str, dict[str, Cost]]]:
    """Write both layouts and use them.

    Yields:
        What was done, and what it cost by layout.

    Raises:
        ValueError: The two layouts do not have the same rows.
    """
    sources = list(iter_generated(SandboxOptions(conversations=partitions, messages_mean=messages)))
    bodies = {_key(source): encode(_table_of(source)) for source in sources}
    written, _ = _cost(folder, lambda: _write(folder, bodies))
    compacted, _ = _cost(folder, lambda: _compact(folder))
    listed = {layout: _cost(folder, partial(_list, folder, layout)) for layout in LAYOUTS}
    sizes = " / ".join(f"{found[0]:,} of {found[1] / 1e6:.1f} MB" for _, found in listed.values())
    yield f"write / compact: {sizes} in all", {SMALL: written, COMPACTED: compacted}
    yield "list", {layout: cost for layout, (cost, _) in listed.items()}
    wanted = sources[len(sources) // 2]
    uses: dict[str, Callable[[str], object]] = {
        "open and scan, pyarrow": partial(_scan, folder),
        "one conversation, pyarrow": partial(_look_up, folder, wanted),
    }
    if folder.count is None:
        uses["open and scan, DuckDB"] = partial(_scan_with_duckdb, folder)
    for name, use in uses.items():
        done = {layout: _cost(folder, partial(use, layout)) for layout in LAYOUTS}
        if done[SMALL][1] != done[COMPACTED][1]:
            raise ValueError(f"{name}: the two layouts do not have the same rows")
        yield name, {layout: cost for layout, (cost, _) in done.items()}


def _cost(folder: Place, work: Callable[[], T]) -> tuple[Cost, T]:
    before = folder.count() if folder.count else Requests()
    began = time.monotonic()
    found = work()
    seconds = time.monotonic() - began
    return Cost(seconds, (folder.count() if folder.count else Requests()) - before), found


def _key(source: GeneratedSource) -> str:
    return f"org={source.senders.organization_id}/conv={source.senders.conversation_id}/part-00000.parquet"


def _table_of(source: GeneratedSource) -> pa.Table:
    items: list[dict[str, Any]] = [orjson.loads(source.render(ordinal)) for ordinal in range(source.size)]
    return to_table(items)


def _write(folder: Place, bodies: dict[str, bytes]) -> None:
    def put(key: str) -> None:
        path = f"{folder.root}/{SMALL}/{key}"
        if folder.count is None:
            Path(path).parent.mkdir(parents=True)
        with folder.files.open_output_stream(path) as file:
            file.write(bodies[key])

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(put, bodies))


def _compact(folder: Place) -> None:
    order = [("conversation_id", "ascending"), ("created_at", "ascending"), ("message_id", "ascending")]
    table = _dataset(folder, SMALL).to_table().sort_by(order)
    if folder.count is None:
        Path(folder.root, COMPACTED).mkdir()
    for number, start in enumerate(range(0, table.num_rows, ROWS_A_FILE)):
        path = f"{folder.root}/{COMPACTED}/{number:05}.parquet"
        pq.write_table(
            table.slice(start, ROWS_A_FILE),
            path,
            filesystem=folder.files,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
        )


def _dataset(folder: Place, layout: str) -> ds.Dataset:
    return ds.dataset(f"{folder.root}/{layout}", SCHEMA, format="parquet", filesystem=folder.files)


def _list(folder: Place, layout: str) -> tuple[int, int]:
    """How many files there are, and their bytes."""
    found = folder.files.get_file_info(fs.FileSelector(f"{folder.root}/{layout}", recursive=True))
    sizes = [each.size for each in found if each.type == fs.FileType.File]
    return len(sizes), sum(sizes)


def _scan(folder: Place, layout: str) -> list[tuple[str, int, int]]:
    table = _dataset(folder, layout).to_table(columns=COLUMNS)
    sizes = table.set_column(1, "size", pc.utf8_length(table["text"]))
    groups = sizes.group_by("type").aggregate([([], "count_all"), ("size", "sum")])
    return sorted((row["type"], row["count_all"], row["size_sum"]) for row in groups.to_pylist())


def _scan_with_duckdb(folder: Place, layout: str) -> list[tuple[Any, ...]]:
    query = "SELECT type, count(*), sum(length(text)) FROM read_parquet($files) GROUP BY ALL ORDER BY ALL"
    return duckdb.execute(query, {"files": f"{folder.root}/{layout}/**/*.parquet"}).fetchall()


def _look_up(folder: Place, source: GeneratedSource, layout: str) -> list[dict[str, Any]]:
    if layout == SMALL:
        path = f"{folder.root}/{SMALL}/{_key(source)}"
        table = pq.read_table(path, columns=["message_id"], filesystem=folder.files, partitioning=None)
    else:
        is_wanted = pc.field("conversation_id") == source.senders.conversation_id
        table = _dataset(folder, COMPACTED).to_table(columns=["message_id"], filter=is_wanted)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def line_of(partitions: int, store: str, operation: str, costs: dict[str, Cost]) -> str:
    """One line of the table; requests and dollars are left out where there is no server."""
    small, compacted = costs[SMALL], costs[COMPACTED]
    dollars = [f"{cost.requests.dollars:.6f}" if store != "local" else "" for cost in (small, compacted)]
    return (
        f"| {partitions:,} | {store} | {operation} | {small.seconds:.2f} s | {compacted.seconds:.2f} s"
        f" | {small.seconds / compacted.seconds:.1f} | {small.requests} | {compacted.requests}"
        f" | {dollars[0]} | {dollars[1]} |"
    )


if __name__ == "__main__":
    main()
