"""The cost of a lake's age: `python -m benchmarks.ledger` makes a lake of 10,000 hourly runs.

It writes the ledgers directly, without a gateway and without messages. Then each command reads them in a
separate process. The table has the ledger objects and bytes that were read, the time, and the peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pyarrow as pa
from pydantic import SecretStr

from benchmarks.environment import machine
from benchmarks.memory import most_memory_bytes
from imbrace_lake.check import check_lake
from imbrace_lake.export.rerun import read_missed
from imbrace_lake.export.run import close_run, open_run, utc_now
from imbrace_lake.gateway.factory import open_gateway
from imbrace_lake.lake.checkpoint import FOLDER, MAX_AFTER_CHECKPOINT, write_checkpoint
from imbrace_lake.lake.conversation_states import read_every_id
from imbrace_lake.lake.freshness import read_freshness
from imbrace_lake.lake.lake import Lake, Part, open_lake
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import (
    LEDGERS,
    PHONES,
    ConversationEntry,
    RunTotals,
    conversation_rows,
    run_row,
)
from imbrace_lake.settings import Settings
from imbrace_lake.store.atomic_files import AtomicFiles

ORGANIZATION = "org_benchmark"
MAX_OBJECTS = 30
OBJECT_ROWS = 20_000
FAILED = 3
HOUR = timedelta(hours=1)
FOLDERS = (*LEDGERS, "journal", FOLDER.rstrip("/"))


@dataclass(slots=True)
class Cost:
    """The ledger objects that one command read, and the peak memory of its process."""

    objects: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0


# -- the lake -------------------------------------------------------------------------------------


def run_id_of(number: int) -> str:
    """Return the id of the run with a number, from 0."""
    return str(UUID(int=number + 1))


def make_lake(folder: Path, runs: int, conversations: int) -> None:
    """Make a lake whose last run was an hour ago, and whose last checkpoint is some runs older.

    Args:
        folder: The lake's folder.
        runs: The number of runs, one per hour. Each read every conversation, and a few failed.
        conversations: The number of conversations in the lake, one for each phone number.
    """
    # The lake need not survive a power failure, and syncing would take most of the time.
    with patch("os.fsync"):
        asyncio.run(_make_lake(folder, runs, conversations))


async def _make_lake(folder: Path, runs: int, conversations: int) -> None:
    now = utc_now()
    begun_at = now - runs * HOUR
    tables = [
        _entries(range(start, min(conversations, start + OBJECT_ROWS)), begun_at)
        for start in range(0, conversations, OBJECT_ROWS)
    ]
    phones = [_phones(table) for table in tables]
    # The worst moment for a reader: with one more object, a run writes the next checkpoint.
    objects_per_run = 2 * len(tables)
    beyond = min(runs - 1, (MAX_AFTER_CHECKPOINT - 1) // objects_per_run)
    async with open_lake(str(folder), now=begun_at) as lake:
        for number in range(runs):
            await _add_run(lake, number, begun_at + number * HOUR, tables, phones)
            if number == runs - 1 - beyond:
                await write_checkpoint(lake, begun_at + number * HOUR)


async def _add_run(
    lake: Lake, number: int, at: datetime, tables: list[pa.Table], phones: list[pa.Table]
) -> None:
    run_id = run_id_of(number)
    journal = Journal(lake, run_id, at)
    keys = [await journal.add("conversations", _of_run(table, run_id, finished_at=at)) for table in tables]
    keys += [await journal.add("phones", _of_run(table, run_id, resolved_at=at)) for table in phones]
    row = {
        "run_id": run_id, "organization_id": ORGANIZATION, "status": "partial",
        "started_at": at, "finished_at": at, "objects": keys,
    }  # fmt: skip
    await journal.add("runs", run_row(row, RunTotals()))


def _entries(numbers: range, at: datetime) -> pa.Table:
    """Return the entries of conversations; the first few have failed."""
    entries = []
    for number in numbers:
        one = str(UUID(int=(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128))
        digest = f"{number:032x}"
        part = Part(f"messages/org={ORGANIZATION}/conv={one}/part-00000.parquet", 9_999, 100, 2 * digest)
        entries.append(
            ConversationEntry(
                "", ORGANIZATION, one, "failed" if number < FAILED else "unchanged", at,
                is_dead_letter=number < FAILED, server_count=100, distinct_messages=100,
                last_message_at=at, proven_until=at, full_walk_at=at, proof_method="count",
                content_hash=digest, head_hash=digest, newest_message_id=one, head_messages=100,
                parts=(part,), requests=1, started_at=at,
            )
        )  # fmt: skip
    return conversation_rows(entries)


def _phones(entries: pa.Table) -> pa.Table:
    rows = [
        {
            "run_id": "", "organization_id": ORGANIZATION, "position": position, "status": "resolved",
            "phone_hash": one * 2, "conversation_ids": [one],
        }
        for position, one in enumerate(entries.column("conversation_id").to_pylist())
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PHONES)


def _of_run(table: pa.Table, run_id: str, **times: datetime) -> pa.Table:
    """Return the rows as another run would have written them."""
    for name, value in {"run_id": run_id, **times}.items():
        index = table.schema.get_field_index(name)
        column = pa.repeat(pa.scalar(value, table.schema.field(name).type), table.num_rows)
        table = table.set_column(index, table.schema.field(name), column)
    return table


# -- the commands ---------------------------------------------------------------------------------


async def _idle_run(settings: Settings) -> None:
    """Use the ledgers as a run does that finds every conversation unchanged."""
    run_id = str(UUID(int=2**100 + time.time_ns()))
    async with (
        open_gateway(settings.gateway_options(), settings.new_limiter(), nullcontext()) as gateway,
        open_run(settings, gateway, run_id) as run,
    ):
        await run.load_prior_state("everything")
        ids = await read_every_id(
            run.lake, run.organization_id, run.prior.partitions, run.prior.recorded_ids()
        )
        for start in range(0, len(ids), OBJECT_ROWS):
            states = run.prior.states.of_each(ids[start : start + OBJECT_ROWS])
            await run.journal.note_entries(f"chunk-{start}", states.values())
        await close_run(run, {}, Counter())


async def _rerun(settings: Settings) -> None:
    async with _lake(settings) as lake:
        runs = len(await lake.store.list("runs/"))
        missed = await read_missed(
            lake,
            run_id_of(runs // 2),
            utc_now(),
            organization_id=settings.require("organization"),
            tolerated_unreadable=0.0,
        )
        if len(missed.conversation_ids) != FAILED:
            raise AssertionError(f"{len(missed.conversation_ids)} dead letters")


async def _check(settings: Settings) -> None:
    wrong = [one for one in await check_lake(settings) if one.verdict in ("error", "skipped")]
    if wrong:
        raise AssertionError(wrong)


async def _freshness(settings: Settings) -> None:
    async with _lake(settings) as lake:
        await read_freshness(lake, ORGANIZATION, datetime.now(UTC))


async def _write_checkpoint(settings: Settings) -> None:
    """Make a checkpoint from the whole history."""
    async with _lake(settings) as lake:
        for stored in await lake.store.list(FOLDER):
            await lake.store.delete(stored.key)
        await write_checkpoint(lake, utc_now())


def _lake(settings: Settings) -> AbstractAsyncContextManager[Lake]:
    return open_lake(settings.require("lake"), now=None)


COMMANDS: dict[str, Callable[[Settings], Coroutine[Any, Any, None]]] = {
    "rerun of a run": _rerun,
    "check": _check,
    "freshness, and the ages of verify": _freshness,
    "idle run": _idle_run,
}
REBUILD: dict[str, Callable[[Settings], Coroutine[Any, Any, None]]] = {
    "checkpoint made from the whole history": _write_checkpoint,
}


def measure(name: str, folder: Path) -> Cost:
    """Use the ledgers as one command does, and count the objects that it reads."""
    settings = Settings(
        _env_file=None, token=SecretStr("api_benchmark"), organization=ORGANIZATION, lake=str(folder),
        gateway="http://127.0.0.1:9",
    )  # fmt: skip
    cost = Cost()
    with _counting(cost):
        began = time.perf_counter()
        asyncio.run({**COMMANDS, **REBUILD}[name](settings))
        cost.seconds = time.perf_counter() - began
    cost.memory_bytes = most_memory_bytes()
    return cost


@contextmanager
def _counting(cost: Cost) -> Iterator[None]:
    """Count the ledger objects that are read from a local lake."""
    read, copy = AtomicFiles.read, AtomicFiles.copy

    def count(key: str, size_bytes: int) -> None:
        if key.partition("/")[0] in FOLDERS:
            cost.objects += 1
            cost.size_bytes += size_bytes

    def counting_read(disk: AtomicFiles, key: str) -> bytes | None:
        body = read(disk, key)
        count(key, len(body or b""))
        return body

    def counting_copy(disk: AtomicFiles, key: str, path: Path) -> bool:
        is_there = copy(disk, key, path)
        count(key, path.stat().st_size if is_there else 0)
        return is_there

    with patch.object(AtomicFiles, "read", counting_read), patch.object(AtomicFiles, "copy", counting_copy):
        yield


def main() -> None:
    """Make the lake and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--conversations", type=int, default=2_000)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="imbrace-ledger-") as folder:
        lake = Path(folder, "lake")
        began = time.perf_counter()
        make_lake(lake, arguments.runs, arguments.conversations)
        made = f"{arguments.runs:,} runs over {arguments.conversations:,} conversations"
        print(f"{made}, made in {time.perf_counter() - began:.0f} s\n", flush=True)
        print("| | objects read | MB | time | peak memory |\n|---|--:|--:|--:|--:|")
        # One process for each, because the peak memory of a process never shrinks.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
            for name in (*COMMANDS, *REBUILD):
                cost = processes.submit(measure, name, lake).result()
                is_much = name in COMMANDS and cost.objects > MAX_OBJECTS
                print(
                    f"| {name} | {cost.objects:,}{' (too many)' * is_much} | {cost.size_bytes / 1e6:.1f}"
                    f" | {cost.seconds:.2f} s | {cost.memory_bytes / 1e6:.0f} MB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
