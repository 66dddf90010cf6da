"""Runs in child processes that are killed at a chosen moment and started again."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from imbrace_lake.lake.schema import CONTENT
from imbrace_lake.settings import Settings
from imbrace_lake.store.contract import TEMPORARY
from imbrace_sandbox import Sandbox
from tests.core.lake_runs import Bench, run_once, settings_for

# Every child is forked from a server process that has already imported these modules.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def work(settings: Settings, ids: Sequence[str]) -> None:
    """Run one export, in the child process."""
    summary = asyncio.run(run_once(settings, ids))
    # Without exit handlers, which belong to the process that the child was forked from.
    os._exit(0 if summary.status == "complete" else 1)


@dataclass
class Reader:
    """A reader that polls some conversations: each must have its state from before or from after the run.

    Attributes:
        before, after: Message ids by conversation.
        polls: The number of times that all were read.
        wrong: Descriptions of any other state.
    """

    lake: Path
    before: dict[str, frozenset[str]]
    after: dict[str, frozenset[str]]
    polls: int = 0
    wrong: list[str] = field(default_factory=list)

    def poll(self) -> None:
        """Read the conversations once, as any engine does: list the objects, then read them."""
        folders = [path for path in self.lake.glob("messages/*/*") if path.name[5:] in self.after]
        files = [str(path) for folder in folders for path in folder.glob("**/*.parquet")]
        rows = ds.dataset(files).to_table(columns=["conversation_id", "message_id"]) if files else None
        seen: dict[str, list[str]] = defaultdict(list)
        for row in rows.to_pylist() if rows else ():
            seen[row["conversation_id"]].append(row["message_id"])
        for one, after in self.after.items():
            ids = frozenset(seen[one])
            if len(ids) < len(seen[one]):
                self.wrong.append(f"{one}: {len(seen[one]) - len(ids)} messages twice")
            if ids not in (self.before.get(one, frozenset()), after):
                self.wrong.append(f"{one}: {len(ids)} messages, neither before nor after")
        self.polls += 1

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Poll while the block runs."""
        stop = threading.Event()

        def read() -> None:
            # A reader that pauses less takes a core away from the runs.
            pause = 0.05
            while not stop.wait(pause):
                began = time.monotonic()
                self.poll()
                pause = max(0.05, 3 * (time.monotonic() - began))

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.poll()


@dataclass
class Killing:
    """An outdated lake, and copies of it in which runs are killed.

    Attributes:
        bench: The gateway, and the lake that is copied.
        pages: The number of pages that an uninterrupted run reads.
        costs: For each kill, the number of pages that the killed and the resumed run read together.
    """

    bench: Bench
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    pages: int = 0
    costs: list[int] = field(default_factory=list)
    polls: int = 0

    def __post_init__(self) -> None:
        self._ids = list(self.bench.box.conversations)
        self._before = _ids_of(self.bench)
        unkilled = self._copy("unkilled")
        with counting(self.bench.box) as count:
            process = self._start(unkilled)
            process.join()
            self.pages = count.pages
        assert process.exitcode == 0
        self._result = _values(unkilled)
        self._revisions = _revisions(unkilled)
        after = _ids_of(unkilled)
        self._changed = {one: ids for one, ids in after.items() if ids != self._before.get(one)}

    def kill_once(self, rng: Random) -> None:
        """Kill a run at a random moment and start it again; assert that the lake is as without the kill."""
        while True:
            lake = self._copy("killed")
            page = rng.randint(1, self.pages + self.pages // 10)
            # After the last page the run writes its ledgers.
            delay = rng.uniform(0, 0.05) if page < self.pages else rng.uniform(0, 0.3)
            reader = Reader(Path(lake.lake), self._before, self._changed)
            with reader.reading(), counting(self.bench.box, min(page, self.pages)) as count:
                process = self._start(lake)
                _wait_for(count, process)
                time.sleep(delay)
                process.kill()
                _wait_until_gone(process)
                if _has_ended(lake):
                    continue  # the run ended before it was killed
                again = self._start(lake)
                again.join()
                assert again.exitcode == 0
            break
        self.costs.append(count.pages)
        self.polls += reader.polls
        assert not reader.wrong, reader.wrong[:3]
        assert _values(lake).equals(self._result)
        assert _revisions(lake) == self._revisions
        assert lake.verify().is_sound
        # A run that is killed between creating a folder and its first object leaves the folder empty.
        assert not [path for path in Path(lake.lake, "journal").rglob("*") if path.is_file()]

    @property
    def read_again(self) -> list[float]:
        """Return the share of pages that were read again, for each kill."""
        return [cost / self.pages - 1 for cost in self.costs]

    def _copy(self, name: str) -> Bench:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        # Objects are never changed in place, so hard links will do.
        shutil.copytree(
            self.bench.lake, target, copy_function=os.link, ignore=shutil.ignore_patterns(TEMPORARY)
        )
        return Bench(self.bench.box, str(target))

    def _start(self, lake: Bench) -> ForkServerProcess:
        settings = settings_for(lake.box, lake.lake, **self.settings)
        process = _context.Process(target=work, args=(settings, self._ids))
        process.start()
        return process


@dataclass
class _Count:
    pages: int = 0
    reached: threading.Event = field(default_factory=threading.Event)


@contextmanager
def counting(box: Sandbox, wanted: float = math.inf) -> Iterator[_Count]:
    """Count the requested pages, and set an event at the wanted number."""
    count = _Count()

    def on_page(conversation_id: str, number: int) -> None:
        count.pages += 1
        if count.pages >= wanted:
            count.reached.set()

    box.before_page(on_page)
    try:
        yield count
    finally:
        box.before_page(None)


def _wait_for(count: _Count, process: ForkServerProcess) -> None:
    while not count.reached.wait(0.01):
        if not process.is_alive():
            return


def _wait_until_gone(process: ForkServerProcess) -> None:
    """Wait until the process id is free: a killed process keeps it for a moment."""
    process.join()
    while Path(f"/proc/{process.pid}").exists():
        time.sleep(0.005)


def _has_ended(lake: Bench) -> bool:
    """Return whether the run under way has written its row in `runs`."""
    return len(list(Path(lake.lake, "runs").glob("*"))) > 1


def _ids_of(bench: Bench) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for conversation_id, message_id in _keys(bench):
        found[conversation_id].add(message_id)
    return {one: frozenset(ids) for one, ids in found.items()}


def _keys(bench: Bench) -> Iterator[tuple[str, str]]:
    rows = bench.rows().select(["conversation_id", "message_id"]).to_pylist()
    return ((row["conversation_id"], row["message_id"]) for row in rows)


def _values(bench: Bench) -> pa.Table:
    """Return the rows of all messages in a fixed order."""
    keys = ["conversation_id", "message_id"]
    rows = bench.rows().select([*keys, *CONTENT, "is_deleted"])
    return rows.sort_by([(key, "ascending") for key in keys]).combine_chunks()


def _revisions(bench: Bench) -> set[tuple[str, str, str]]:
    """Return replaced versions; the killed run and the next one may both have recorded the same one."""
    rows = bench.ledger("revisions")
    return {(row["conversation_id"], row["message_id"], row["content"]) for row in rows}
