"""What the compactions of all tables have in common: tries, commits, files, and the end."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

from imbrace_lake.errors import DamagedObject, ObjectExists, StoreUnavailable
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import run_of
from imbrace_lake.store.contract import Store
from imbrace_lake.tables.cleaning import AS_OF, GRACE, RUN, STATE_PROPERTY, TRIES, clean_up, damaged_file
from imbrace_lake.tables.delta_log import DeltaLog, Snapshot, TableFile
from imbrace_lake.tables.report import TableDifference, TableReport
from imbrace_lake.tables.rows import UnreadableFile

logger = logging.getLogger(__name__)


class State(Protocol):
    """What a version of a table contains.

    Attributes:
        removed: Keys of objects that only earlier versions need, and when they were replaced.
    """

    removed: dict[str, datetime]

    async def write(self, store: Store) -> str:
        """Write the state and return its key."""
        ...


S = TypeVar("S", bound=State)
T = TypeVar("T")


class Compaction(ABC, Generic[S]):
    """One compaction of one table.

    Args:
        lake: The lake; exports and other compactions may be under way.
        log: The log of the table.
        report: Its result, which is filled in.
        clock: Returns the time.
        grace: How long files of earlier versions are kept for their readers.
    """

    def __init__(
        self, lake: Lake, log: DeltaLog, report: TableReport, clock: Callable[[], datetime], grace: timedelta
    ) -> None:
        self._lake = lake
        self._store = lake.store
        self._log = log
        self._folder = log.folder
        self._clock = clock
        self._grace = grace
        # Allocators keep some tens of megabytes for each thread that has read a file.
        self._thread = ThreadPoolExecutor(1, "compaction")
        self.report = report
        # The data files that were read, by the path of the copy.
        self._downloaded: dict[Path, TableFile] = {}

    @abstractmethod
    async def plan(self) -> TableReport:
        """Find out what a compaction would read and write, and write nothing."""

    @abstractmethod
    async def _run_once(self) -> tuple[Snapshot | None, S | None]:
        """Bring the table up to date, and return its newest version and state.

        Raises:
            ObjectExists: Another compaction committed first.
        """

    async def run(self) -> TableReport:
        """Compact what has changed, prove it, and delete what no reader needs any more.

        Raises:
            DamagedObject: The log or a file of the table is damaged or missing.
            StoreUnavailable: Other compactions committed first, again and again.
        """
        report = self.report
        for _ in range(TRIES):
            try:
                snapshot, state = await self._run_once()
                break
            except ObjectExists:
                # What the other one did is in the table now.
                report.conflicts += 1
                logger.info("another compaction committed first table=%s", report.table)
            except UnreadableFile as exc:
                if exc.path not in self._downloaded:
                    raise
                file = self._downloaded[exc.path]
                raise damaged_file(self._store, self._folder, file, "is damaged") from exc
        else:
            raise StoreUnavailable(
                f"{self._store.url}/{self._folder}: other compactions kept committing, so try again"
            )
        report.describe(snapshot)
        if snapshot is not None and state is not None:
            report.files_deleted += await clean_up(
                self._store, self._log, self._folder, snapshot, state.removed, self._clock(), self._grace
            )
        return report

    async def _in_thread(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a function in the thread of this compaction."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **options))

    async def _properties(self, now: datetime) -> dict[str, str]:
        """Return the properties of a table that has everything that is in the lake now."""
        # Files of other programs, such as `.DS_Store`, have no run.
        runs = [run for meta in await self._store.list("runs/") if (run := run_of(meta.key))]
        return {AS_OF: now.isoformat(timespec="milliseconds"), RUN: runs[-1] if runs else ""}

    async def _commit(
        self,
        before: Snapshot | None,
        state: S,
        added: Sequence[TableFile],
        gone: Sequence[TableFile],
        properties: Mapping[str, str],
        now: datetime,
        *,
        rows: tuple[int, int] = (0, 0),
        operation: str = "WRITE",
    ) -> Snapshot:
        """Write the state, commit it with the files, and return the new version.

        Args:
            before: The version that is replaced; None creates the table.
            state: The state of the new version.
            added, gone: Data files.
            properties: Properties of the new version, without its state.
            now: The time.
            rows: How many rows come and go, for the report.
            operation: As for `DeltaLog.commit`.

        Raises:
            ObjectExists: Another compaction committed first, and nothing was changed; or it committed a newer
                version already, whose state this compaction does not know.
            DamagedObject: The store does not show the commit.
        """
        if before is not None and before.configuration.get(STATE_PROPERTY):
            state.removed[before.configuration[STATE_PROPERTY]] = now
        state.removed = {key: at for key, at in state.removed.items() if now - at <= self._grace + GRACE}
        state.removed |= {f"{self._folder}{one.path}": now for one in gone}
        key = await state.write(self._store)
        await self._log.commit(
            before, added, gone, {**properties, STATE_PROPERTY: key}, now, operation=operation
        )
        report = self.report
        report.commits += 1
        report.requests += 2
        report.files_added += len(added)
        report.files_removed += len(gone)
        report.rows_added += rows[0]
        report.rows_removed += rows[1]
        expected = {one.path for one in (() if before is None else before.files)}
        expected -= {one.path for one in gone}
        expected |= {one.path for one in added}
        version = 0 if before is None else before.version + 1
        after = await self._log.read()
        if after is None or after.version < version:
            raise DamagedObject(
                f"{self._store.url}/{self._folder} does not show version {version} after its commit"
            )
        if after.version > version:
            raise ObjectExists(f"version {after.version} of {self._store.url}/{self._folder}")
        if {one.path for one in after.files} != expected:
            raise DamagedObject(
                f"version {version} of {self._store.url}/{self._folder} does not name its files"
            )
        return after

    async def _upload(self, file: TableFile, path: Path) -> None:
        await self._store.create(f"{self._folder}{file.path}", path)
        self.report.written_bytes += file.size_bytes
        self.report.requests += 1

    async def _download(self, file: TableFile, folder: Path) -> Path:
        path = folder / f"read-{uuid4().hex}"
        try:
            await self._store.download(f"{self._folder}{file.path}", path)
        except FileNotFoundError:
            raise damaged_file(self._store, self._folder, file, "is missing") from None
        self.report.requests += 1
        self._downloaded[path] = file
        return path

    def _differs(self, name: str, problem: str) -> None:
        self.report.differences.append(TableDifference(name, problem))
        # A command shows the report, and a flow its artifact.
        logger.info("%s: %s", ascii(name)[1:-1], problem)
