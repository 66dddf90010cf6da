"""The cost of compacting a lake, of bringing its table up to date, and of queries on table and parts.

The lake is written directly, one part per conversation with its proof in the ledger, as an export leaves it.
Each compaction is a separate process; the first line is that of a lake without conversations, which is mostly
the start of the process. A change is one new message or an edit of an existing one in 1 % of the
conversations. The last lines compare the figures with the promises for 100,000 conversations:

    python -m benchmarks.tables --conversations 100000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import orjson
import polars
import pyarrow as pa

from benchmarks.environment import end_on_sigterm, machine
from benchmarks.memory import watched
from imbrace_lake.concurrency import run_bounded
from imbrace_lake.lake.hashes import content_hash
from imbrace_lake.lake.lake import Lake, Part, open_lake
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import ConversationEntry, conversation_rows
from imbrace_lake.lake.parquet import to_parquet
from imbrace_lake.lake.schema import SCHEMA, Origin, to_rows
from imbrace_sandbox import SandboxOptions
from imbrace_sandbox.generated import iter_generated
from imbrace_sandbox.stored import iter_file

START = datetime(2026, 1, 1, tzinfo=UTC)
SHARE_CHANGED = 0.01
# The promises.
MAX_MEMORY_BYTES = 512_000_000
MAX_OF_FIRST = 0.05
FEWEST_TIMES_FASTER = 50
ENTRIES_AT_A_TIME = 10_000
SIDE_BY_SIDE = 16
HEADER = (
    "| compaction | conversations | rows | time | of the first | CPU | of the first | most memory | objects"
    " | written |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
QUERY_HEADER = "| query | engine | parts, CPU | table, CPU | ratio |\n|---|---|--:|--:|--:|"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as it is in the lake."""

    organization_id: str
    conversation_id: str
    part: Part


@dataclass(frozen=True, slots=True)
class Query:
    """The CPU time of a query on the parts and on the table, in seconds."""

    name: str
    engine: str
    parts_seconds: float
    table_seconds: float

    @property
    def times_faster(self) -> float:
        """How many times faster the table is."""
        return self.parts_seconds / self.table_seconds

    def line(self) -> str:
        """Return one line of the table."""
        seconds = f"{self.parts_seconds:.2f} s | {self.table_seconds:.3f} s"
        return f"| {self.name} | {self.engine} | {seconds} | {self.times_faster:.0f} |"


@dataclass(frozen=True, slots=True)
class Measured:
    """The cost of one process."""

    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    report: dict[str, Any]


def main() -> None:
    """Write a lake, compact it, change 1 % of it, and run the queries."""
    arguments = _arguments()
    end_on_sigterm()
    print(f"{machine()}\n\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-tables-") as folder:
        url = arguments.lake or str(Path(folder, "lake"))
        bench = Bench(url)
        options = SandboxOptions(conversations=arguments.conversations, messages_mean=arguments.messages)
        sources = iter_file(options, arguments.file) if arguments.file else iter_generated(options)
        asyncio.run(bench.write(iter(())))
        start = bench.compact()
        asyncio.run(bench.write(sources))
        first = bench.compact()
        print(bench.line_of("start", start, first), flush=True)
        print(bench.line_of("first", first, first), flush=True)
        measured = {"start": start, "first": first}
        for name, change in (("1 % grown", bench.grow), ("1 % edited", bench.edit), ("nothing", None)):
            if change is not None:
                asyncio.run(change())
            measured[name] = bench.compact()
            print(bench.line_of(name, measured[name], first), flush=True)
        queries: list[Query] = []
        if arguments.queries and "://" not in url:
            print(f"\n{QUERY_HEADER}", flush=True)
            for query in run_queries(url, bench.conversations[len(bench.conversations) // 2]):
                queries.append(query)
                print(query.line(), flush=True)
        print("\n" + "\n".join(promises(measured, queries)))


def promises(measured: dict[str, Measured], queries: Sequence[Query]) -> Iterator[str]:
    """Yield a line for each promise, with its figure and whether it is kept."""

    def line(text: str, is_kept: bool) -> str:
        return f"{'kept' if is_kept else 'NOT KEPT'}: {text}"

    memory_bytes = max(one.memory_bytes for one in measured.values())
    yield line(
        f"at most {memory_bytes / 1e6:.0f} MB of memory, of {MAX_MEMORY_BYTES / 1e6:.0f} MB",
        memory_bytes <= MAX_MEMORY_BYTES,
    )
    for name in ("1 % grown", "1 % edited"):
        changed, first, start = measured[name], measured["first"], measured["start"]
        share = changed.wall_seconds / first.wall_seconds
        net_share = (changed.wall_seconds - start.wall_seconds) / (first.wall_seconds - start.wall_seconds)
        yield line(
            f"{name}: {share:.1%} of the first time, of {MAX_OF_FIRST:.0%} ({net_share:.1%} without the"
            f" start; {changed.cpu_seconds / first.cpu_seconds:.1%} of its CPU time)",
            share <= MAX_OF_FIRST,
        )
    if queries:
        slowest = min(queries, key=lambda one: one.times_faster)
        yield line(
            f"every query is at least {slowest.times_faster:.0f} times faster on the table"
            f" ({slowest.name}, {slowest.engine}), of {FEWEST_TIMES_FASTER}",
            slowest.times_faster >= FEWEST_TIMES_FASTER,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--conversations", type=int, default=10_000, metavar="N")
    parser.add_argument(
        "--messages", type=float, default=20.0, metavar="N", help="mean per generated conversation"
    )
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="conversations as .jsonl or .jsonl.gz, instead of generated ones",
    )
    parser.add_argument(
        "--lake", metavar="URL", help="where to write the lake; by default a temporary folder"
    )
    parser.add_argument("--queries", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


class Bench:
    """A lake whose conversations are written without a gateway."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.conversations: list[Conversation] = []
        self._runs = 0

    async def write(self, sources: Iterator[Any]) -> None:
        """Write all conversations, each as one part."""
        async with open_lake(self.url, now=START) as lake:
            entries: list[ConversationEntry] = []

            async def write(source: Any) -> None:
                items = [orjson.loads(source.render(ordinal)) for ordinal in range(source.size)]
                if not items:
                    return
                organization, conversation = source.senders.organization_id, source.senders.conversation_id
                rows, total = _rows_of(items, organization, conversation, "run_0", START)
                part = await lake.add_part(organization, conversation, 0, to_parquet(rows, {}), rows.num_rows)
                one = Conversation(organization, conversation, part)
                self.conversations.append(one)
                entries.append(_entry("run_0", one, [part], rows.num_rows, total))
                if len(entries) == ENTRIES_AT_A_TIME:
                    await self._record(lake, entries)

            await run_bounded(SIDE_BY_SIDE, (partial(write, source) for source in sources))
            await self._record(lake, entries)

    async def grow(self) -> None:
        """Add a message to 1 % of the conversations."""
        async with open_lake(self.url, now=None) as lake:
            for one in self._chosen(1):
                ((_, old),) = await lake.read_parts([one.part])
                rows = old.slice(old.num_rows - 1)
                number = len(await lake.list_parts(one.organization_id, one.conversation_id))
                index = SCHEMA.get_field_index("message_id")
                rows = rows.set_column(index, SCHEMA.field(index), pa.array([f"msg_new_{number}"]))
                body = to_parquet(rows, {})
                await lake.add_part(one.organization_id, one.conversation_id, number, body, 1)

    async def edit(self) -> None:
        """Change the text of a message of 1 % of the conversations, in any month."""
        async with open_lake(self.url, now=None) as lake:
            for one in self._chosen(2):
                part = (await lake.list_parts(one.organization_id, one.conversation_id))[0]
                ((_, rows),) = await lake.read_parts([part])
                index = SCHEMA.get_field_index("content")
                texts = rows.column(index).to_pylist()
                texts[len(texts) // 2] = '{"text":"edited"}'
                rows = rows.set_column(index, SCHEMA.field(index), pa.array(texts, pa.string()))
                await lake.replace_part(part, to_parquet(rows, {}))

    def _chosen(self, seed: int) -> list[Conversation]:
        count = max(1, round(len(self.conversations) * SHARE_CHANGED))
        return Random(seed).sample(self.conversations, count)

    async def _record(self, lake: Lake, entries: list[ConversationEntry]) -> None:
        if entries:
            self._runs += 1
            rows = conversation_rows(entries)
            entries.clear()
            started_at = START + timedelta(seconds=self._runs)
            await Journal(lake, "run_0", started_at).add("conversations", rows)

    def compact(self) -> Measured:
        """Compact the lake in a separate process."""
        program = Path(sys.executable).parent / "imbrace-lake"
        command = [str(program), "compact", "--lake", self.url, "--json"]
        began, before = time.monotonic(), os.times()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process, watched(process.pid) as peaks:
            out, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"the compaction failed: {err.decode()}{out.decode()[:1_000]}")
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        report = orjson.loads(out)["tables"][0]
        return Measured(time.monotonic() - began, cpu, peaks.together_bytes, report)

    def line_of(self, name: str, found: Measured, first: Measured) -> str:
        """Return one line of the table."""
        report = found.report
        return (
            f"| {name} | {report['conversations']:,} | {report['rows']:,}"
            f" | {found.wall_seconds:.1f} s | {found.wall_seconds / first.wall_seconds:.1%}"
            f" | {found.cpu_seconds:.1f} s | {found.cpu_seconds / first.cpu_seconds:.1%}"
            f" | {found.memory_bytes / 1e6:.0f} MB | {report['objects_read']:,}"
            f" | {report['written_bytes'] / 1e6:.1f} MB |"
        )


def _rows_of(
    items: Sequence[dict[str, Any]], organization: str, conversation: str, run_id: str, seen_at: datetime
) -> tuple[pa.Table, str]:
    """Return the rows of a part, and their content hash."""
    origin = Origin(organization, conversation, run_id, seen_at)
    rows = to_rows(items, [item["_id"] for item in items], origin)
    total = content_hash(rows)
    return rows.select(SCHEMA.names).sort_by(
        [("created_at", "ascending"), ("message_id", "ascending")]
    ), total


def _entry(
    run_id: str, one: Conversation, parts: Sequence[Part], messages: int, total: str
) -> ConversationEntry:
    return ConversationEntry(
        run_id=run_id,
        organization_id=one.organization_id,
        conversation_id=one.conversation_id,
        status="complete",
        finished_at=START,
        distinct_messages=messages,
        server_count=messages,
        content_hash=total,
        parts=tuple(parts),
    )


def run_queries(url: str, one: Conversation) -> Iterator[Query]:
    """Run each query on the parts and on the table, and yield its cost; the answers must be equal."""
    from deltalake import DeltaTable

    folder = f"{url}/tables/messages"
    day = "created_at >= TIMESTAMPTZ '2026-01-15 00:00:00+00'"
    day += " AND created_at < TIMESTAMPTZ '2026-01-16 00:00:00+00'"
    queries = {
        "count and latest per conversation": (
            "SELECT count(*), sum(n), max(latest) FROM (SELECT conversation_id, count(*) AS n,"
            " max(created_at) AS latest FROM {source} WHERE NOT is_deleted GROUP BY conversation_id)"
        ),
        "one conversation": "SELECT count(*), max(created_at) FROM {source} WHERE conversation_id = '{one}'",
        "one day": "SELECT count(*) FROM {source} WHERE {day}",
        "LIKE '%doctor%'": "SELECT count(*) FROM {source} WHERE text LIKE '%doctor%'",
    }
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"CREATE VIEW parts AS FROM read_parquet('{url}/messages/**/*.parquet')")
    for name, query in queries.items():
        filled = query.replace("{one}", one.conversation_id).replace("{day}", day)

        def ask(source: str, query: str = filled) -> object:
            return connection.execute(query.replace("{source}", source)).fetchall()

        def ask_table(ask: Callable[[str], object] = ask) -> object:
            connection.register("messages", DeltaTable(folder).to_pyarrow_dataset())
            return ask("messages")

        def ask_files(ask: Callable[[str], object] = ask) -> object:
            return ask(f"read_parquet({DeltaTable(folder).file_uris()})")

        slow, expected = _cpu(partial(ask, "parts"), is_repeated=False)
        for engine, ask_engine in (("DuckDB, Arrow data set", ask_table), ("DuckDB, files", ask_files)):
            fast, found = _cpu(ask_engine)
            if found != expected:
                raise SystemExit(f"{name}: table and parts give different answers")
            yield Query(name, engine, slow, fast)
    like = polars.col("text").str.contains("doctor", literal=True)

    def count(rows: polars.LazyFrame) -> object:
        return rows.filter(like).select(polars.len()).collect().item()

    slow, expected = _cpu(
        lambda: count(polars.scan_parquet(f"{url}/messages/**/*.parquet")), is_repeated=False
    )
    fast, found = _cpu(lambda: count(polars.scan_delta(folder)))
    if found != expected:
        raise SystemExit("Polars: table and parts give different answers")
    yield Query("LIKE '%doctor%'", "Polars", slow, fast)


def _cpu(work: Callable[[], object], *, is_repeated: bool = True) -> tuple[float, object]:
    """Return the CPU time of some work, all threads included, and its result.

    Args:
        work: The work.
        is_repeated: Do it twice and leave out the first time, which reads files and modules from the disk.
    """
    if is_repeated:
        work()
    began = time.process_time()
    found = work()
    return max(time.process_time() - began, 0.001), found


if __name__ == "__main__":
    main()
