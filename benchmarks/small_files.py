"""The cost of many small objects, compared with the same rows in few large ones.

One layout has one object per conversation, as the lake does; the other is compacted: sorted by conversation,
a million rows per file. Both are written, listed, scanned and searched for one conversation, in a folder and
on S3.
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

from benchmarks.environment import end_on_sigterm, machine, new_lake, open_store
from benchmarks.script import encode_lake, to_table
from imbrace_lake.lake.parquet import ROW_GROUP_ROWS
from imbrace_lake.lake.schema import SCHEMA
from imbrace_sandbox import SandboxOptions
from imbrace_sandbox.generated import GeneratedSource, iter_generated

T = TypeVar("T")

MESSAGES_PER_CONVERSATION = 20.0
ROWS_PER_FILE = 1_000_000
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
    """The requests that an S3 server received; HEAD counts as GET and costs the same."""

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
        """The price of the requests, in US dollars."""
        return (self.puts + self.lists) * PER_PUT_OR_LIST + self.gets * PER_GET


@dataclass(frozen=True, slots=True)
class Target:
    """The folder or bucket with both layouts.

    Attributes:
        files: Arrow's own file system, which Arrow's users have.
        root: The path within it.
        count: Returns the requests that the server received so far; None for a folder.
    """

    files: fs.FileSystem
    root: str
    count: Callable[[], Requests] | None


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one operation on one layout."""

    seconds: float
    requests: Requests


def main() -> None:
    """Measure all sizes in all stores and print the table row by row."""
    arguments = _arguments()
    end_on_sigterm()
    print(f"{machine()}; {arguments.messages:g} messages per conversation on average\n\n{HEADER}", flush=True)
    for name in arguments.stores:
        for partitions in arguments.partitions:
            with open_target(name) as target:
                for operation, costs in measure(target, partitions, arguments.messages):
                    print(line_of(partitions, name, operation, costs), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_files", description=__doc__)
    parser.add_argument("--partitions", nargs="+", type=int, default=[1_000, 10_000], metavar="N")
    parser.add_argument(
        "--messages", type=float, default=MESSAGES_PER_CONVERSATION, metavar="N", help="mean per conversation"
    )
    parser.add_argument("--stores", nargs="+", choices=("local", "seaweed"), default=["local", "seaweed"])
    return parser.parse_args()


@contextmanager
def open_target(name: str) -> Iterator[Target]:
    """Yield an empty folder or bucket; `name` is ``local`` or ``seaweed``."""
    with open_store(name) as store:
        root = new_lake(store)
        if name == "local":
            yield Target(fs.LocalFileSystem(), root, None)
            return
        files = fs.S3FileSystem(
            endpoint_override=os.environ["AWS_ENDPOINT_URL"],
            region=os.environ["AWS_REGION"],
            # Otherwise a small object is a multipart upload of three requests.
            allow_delayed_open=True,
        )
        yield Target(files, root.removeprefix("s3://"), _count_requests)


def _count_requests() -> Requests:
    """Return the requests for objects of the bucket; SeaweedFS counts each a moment after its answer."""
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


def measure(target: Target, partitions: int, messages: float) -> Iterator[tuple[str, dict[str, Cost]]]:
    """Write both layouts and use them.

    Yields:
        The name of an operation, and its cost by layout.

    Raises:
        ValueError: The two layouts do not have the same rows.
    """
    sources = list(iter_generated(SandboxOptions(conversations=partitions, messages_mean=messages)))
    bodies = {_key(source): encode_lake(_table_of(source)) for source in sources}
    written, _ = _cost(target, lambda: _write(target, bodies))
    compacted, _ = _cost(target, lambda: _compact(target))
    listed = {layout: _cost(target, partial(_list, target, layout)) for layout in LAYOUTS}
    sizes = " / ".join(f"{found[0]:,} of {found[1] / 1e6:.1f} MB" for _, found in listed.values())
    yield f"write / compact: {sizes} in all", {SMALL: written, COMPACTED: compacted}
    yield "list", {layout: cost for layout, (cost, _) in listed.items()}
    wanted = sources[len(sources) // 2]
    uses: dict[str, Callable[[str], object]] = {
        "open and scan, pyarrow": partial(_scan, target),
        "one conversation, pyarrow": partial(_look_up, target, wanted),
    }
    if target.count is None:
        uses["open and scan, DuckDB"] = partial(_scan_with_duckdb, target)
    for name, use in uses.items():
        done = {layout: _cost(target, partial(use, layout)) for layout in LAYOUTS}
        if done[SMALL][1] != done[COMPACTED][1]:
            raise ValueError(f"{name}: the two layouts do not have the same rows")
        yield name, {layout: cost for layout, (cost, _) in done.items()}


def _cost(target: Target, work: Callable[[], T]) -> tuple[Cost, T]:
    before = target.count() if target.count else Requests()
    began = time.monotonic()
    found = work()
    seconds = time.monotonic() - began
    return Cost(seconds, (target.count() if target.count else Requests()) - before), found


def _key(source: GeneratedSource) -> str:
    return f"org={source.senders.organization_id}/conv={source.senders.conversation_id}/part-00000.parquet"


def _table_of(source: GeneratedSource) -> pa.Table:
    items: list[dict[str, Any]] = [orjson.loads(source.render(ordinal)) for ordinal in range(source.size)]
    return to_table(items)


def _write(target: Target, bodies: dict[str, bytes]) -> None:
    def put(key: str) -> None:
        path = f"{target.root}/{SMALL}/{key}"
        if target.count is None:
            Path(path).parent.mkdir(parents=True)
        with target.files.open_output_stream(path) as file:
            file.write(bodies[key])

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(put, bodies))


def _compact(target: Target) -> None:
    order = [("conversation_id", "ascending"), ("created_at", "ascending"), ("message_id", "ascending")]
    table = _dataset(target, SMALL).to_table().sort_by(order)
    if target.count is None:
        Path(target.root, COMPACTED).mkdir()
    for number, start in enumerate(range(0, table.num_rows, ROWS_PER_FILE)):
        path = f"{target.root}/{COMPACTED}/{number:05}.parquet"
        pq.write_table(
            table.slice(start, ROWS_PER_FILE),
            path,
            filesystem=target.files,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
        )


def _dataset(target: Target, layout: str) -> ds.Dataset:
    return ds.dataset(f"{target.root}/{layout}", SCHEMA, format="parquet", filesystem=target.files)


def _list(target: Target, layout: str) -> tuple[int, int]:
    """Return the number of files, and their bytes."""
    found = target.files.get_file_info(fs.FileSelector(f"{target.root}/{layout}", recursive=True))
    sizes = [each.size for each in found if each.type == fs.FileType.File]
    return len(sizes), sum(sizes)


def _scan(target: Target, layout: str) -> list[tuple[str, int, int]]:
    table = _dataset(target, layout).to_table(columns=COLUMNS)
    sizes = table.set_column(1, "size", pc.utf8_length(table["text"]))
    groups = sizes.group_by("type").aggregate([([], "count_all"), ("size", "sum")])
    return sorted((row["type"], row["count_all"], row["size_sum"]) for row in groups.to_pylist())


def _scan_with_duckdb(target: Target, layout: str) -> list[tuple[Any, ...]]:
    query = "SELECT type, count(*), sum(length(text)) FROM read_parquet($files) GROUP BY ALL ORDER BY ALL"
    return duckdb.execute(query, {"files": f"{target.root}/{layout}/**/*.parquet"}).fetchall()


def _look_up(target: Target, source: GeneratedSource, layout: str) -> list[dict[str, Any]]:
    if layout == SMALL:
        path = f"{target.root}/{SMALL}/{_key(source)}"
        table = pq.read_table(path, columns=["message_id"], filesystem=target.files, partitioning=None)
    else:
        is_wanted = pc.field("conversation_id") == source.senders.conversation_id
        table = _dataset(target, COMPACTED).to_table(columns=["message_id"], filter=is_wanted)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def line_of(partitions: int, store: str, operation: str, costs: dict[str, Cost]) -> str:
    """Return one line of the table; a folder has no requests and no dollars."""
    small, compacted = costs[SMALL], costs[COMPACTED]
    dollars = [f"{cost.requests.dollars:.6f}" if store != "local" else "" for cost in (small, compacted)]
    return (
        f"| {partitions:,} | {store} | {operation} | {small.seconds:.2f} s | {compacted.seconds:.2f} s"
        f" | {small.seconds / compacted.seconds:.1f} | {small.requests} | {compacted.requests}"
        f" | {dollars[0]} | {dollars[1]} |"
    )


if __name__ == "__main__":
    main()
