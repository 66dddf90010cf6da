"""Compact the parts of a lake into the table of messages.

A step reads some of the changed conversations, as many as fit into memory, and commits once: rows of new
parts are added in new files, sorted; of files with edited or deleted rows, copies without these rows are
written. Then the step is proven from a fresh snapshot. Two compactions race for the next version of the
table: the loser begins again with what is still missing. A kill leaves files that no version names; later
compactions delete them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.concurrency import read_ahead, run_bounded
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import READ_AT_A_TIME, Lake, Part, partition_key
from imbrace_lake.lake.ledger_schema import ConversationEntry
from imbrace_lake.lake.memory import in_groups
from imbrace_lake.lake.schema import with_digests
from imbrace_lake.lake.spellings import superseded
from imbrace_lake.printable import plural
from imbrace_lake.tables.cleaning import (
    AS_OF,
    GRACE,
    RUN,
    STATE_FOLDER,
    STATE_PROPERTY,
    check_files,
    recorded,
)
from imbrace_lake.tables.compaction import Compaction
from imbrace_lake.tables.delta_log import DeltaLog, Snapshot, TableFile
from imbrace_lake.tables.report import TableReport
from imbrace_lake.tables.rows import (
    FILE_BYTES,
    MESSAGES_TABLE,
    NO_MONTH,
    STATISTICS,
    FileWriter,
    Spill,
    in_lake_schema,
    iter_file,
    month_name,
    months_of,
    properties_of,
    table_rows,
    write_sorted,
)
from imbrace_lake.tables.rows_hash import RowsHash, hash_of_file
from imbrace_lake.tables.state import (
    NOTHING,
    Changes,
    ReadPart,
    Sums,
    TableState,
    content_hash_of,
    folder_of,
    plus,
    read_state,
    sums_by_conversation,
    sums_by_month,
)

FOLDER = "tables/messages/"
# The number of the version whose steps were all proven.
PROVEN_KEY = f"{STATE_FOLDER}proven-messages"
# Parts of changed conversations of one step, and their number: a conversation takes 6 kB of memory in a step.
STEP_BYTES, STEP_CONVERSATIONS = 2**30, 16_384
# Conversations whose ledger entries are in memory at a time.
COMPARED_CONVERSATIONS = 4_096
# Parts in memory at a time.
READ_BYTES, READ_FOLDERS = 2**20, 32
LARGE_BYTES = 4 * 2**20
# Batches of a file that are read while a row group is encoded; usually they are one row group.
BATCHES_AHEAD = 6
# More files than this that are smaller than `SMALL_BYTES` are merged.
MAX_SMALL_FILES = 8
SMALL_BYTES = FILE_BYTES // 8
# Lost parts that a difference names.
MAX_NAMES = 3

# The columns of the ledger `conversations` with which the table is compared.
_COMPARED = ["distinct_messages", "content_hash", "parts"]

# Organization and conversation.
Names: TypeAlias = tuple[str, str]
# Yields the rows of a part, in `SCHEMA`; can be called again.
Source: TypeAlias = Callable[[], Iterator[pa.Table]]
# The months of conversations whose rows are replaced; None for all rows.
Drops: TypeAlias = Mapping[Names, frozenset[int] | None]


def messages_log(lake: Lake) -> DeltaLog:
    """Return the log of the table of messages."""
    return DeltaLog(lake.store, FOLDER, MESSAGES_TABLE, properties_of(STATISTICS))


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of a file without the rows to remove: the original, and the hash of the rows of the copy."""

    original: TableFile
    rows_hash: str


@dataclass(slots=True)
class _Step:
    """The changes of one step, as they are collected.

    Attributes:
        folder: A folder for temporary files.
        spill: The rows to add.
        names: Organization and conversation, by folder.
        parts: All parts of each changed conversation, by folder.
        drops: The months whose rows are removed, by folder; None for all months.
        added, removed: The expected sums of the rows that are added and removed, by folder.
        files: New files, and which of them are copies.
        gone: The files that are removed.
        wrong: Conversations whose rows in the table were not those that its state records.
    """

    folder: Path
    spill: Spill
    names: dict[str, Names] = field(default_factory=dict)
    parts: dict[str, list[ReadPart]] = field(default_factory=dict)
    drops: dict[str, frozenset[int] | None] = field(default_factory=dict)
    added: dict[str, Sums] = field(default_factory=dict)
    removed: dict[str, Sums] = field(default_factory=dict)
    files: list[tuple[TableFile, _Copy | None]] = field(default_factory=list)
    gone: list[TableFile] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)


class MessagesCompaction(Compaction[TableState]):
    """One compaction of the messages of a lake.

    Args:
        lake: The lake; exports and other compactions may be under way.
        clock: Returns the time.
        grace: How long files of earlier versions are kept for their readers.
        on_progress: Receives the number of finished conversations and of all changed ones.
    """

    def __init__(
        self,
        lake: Lake,
        clock: Callable[[], datetime],
        *,
        grace: timedelta = GRACE,
        on_progress: Callable[[int, int], None] = lambda done, all: None,
    ) -> None:
        super().__init__(lake, messages_log(lake), TableReport("messages"), clock, grace)
        self._on_progress = on_progress
        self._states: dict[str, ConversationStates] = {}
        self._keys: dict[Names, str] = {}
        self._proven: int | None = None
        # Conversations to write again; a conflict with another compaction must not forget them.
        self._wrong: set[str] = set()

    # -- the course of a compaction ---------------------------------------------------------------

    async def plan(self) -> TableReport:
        """Find out what a compaction would read and write, and which losses are known; write nothing."""
        report = self.report
        report.is_dry_run = True
        snapshot = await self._log.read()
        await check_files(self._store, self._log, self._folder, snapshot)
        state = await self._state_of(snapshot)
        changes = (state or TableState()).changes(await self._lake.list_below())
        files: set[TableFile] = set()
        if snapshot is not None:
            known = (state or TableState()).of_folders(changes.folders)
            for folder, parts in changes.folders.items():
                there = {one.key for one in parts} - changes.new
                replaced = [one for key, one in known.get(folder, {}).items() if key not in there]
                months = frozenset(month for one in replaced for month in one.months)
                files.update(_overlapping(snapshot.files, months))
        self.report.describe(snapshot)
        report.conversations, report.changed = changes.folder_count, len(changes.folders)
        report.objects_read = len(changes.new)
        report.files_removed = len(files)
        copied = sum(one.size_bytes for one in files)
        report.read_bytes = changes.new_bytes + copied
        report.written_bytes = copied + changes.new_bytes // 3
        new_files = len(files) + -(-changes.new_bytes // 3 // FILE_BYTES)
        # A file is read to copy it and written, then read again for the proof; a commit, and the state.
        report.requests = len(changes.new) + 3 * new_files + (4 if changes.folders else 0)
        if state is not None:
            self._report_unlike(await self._compare_with_ledger(state, _still_unlike(state, changes)))
        return report

    async def _run_once(self) -> tuple[Snapshot | None, TableState | None]:
        report = self.report
        now = self._clock()
        final = await self._properties(now)
        snapshot = await self._log.read()
        state = await self._state_of(snapshot)
        self._states = {}
        self._proven = await self._proven_version()
        if snapshot is not None and state is not None:
            rows = sum(one.rows for one in snapshot.files)
            # The last compaction was killed between a commit and its proof, or another one is under way; or
            # the log was damaged, and names fewer or more files.
            if self._proven != snapshot.version or rows != state.row_count():
                await self._check_all(snapshot, state)
        changes = (state or TableState()).changes(await self._lake.list_below())
        report.conversations = changes.folder_count
        done = {} if state is None or snapshot is None else dict(snapshot.configuration)
        is_rebuilt = snapshot is not None and state is None
        state = state or TableState()
        steps = [*_steps(changes)]
        unlike = _still_unlike(state, changes)
        if not steps and done.get(RUN) == final[RUN] and AS_OF in done and not self._wrong:
            await self._set_proven(snapshot)
            self._report_unlike(await self._compare_with_ledger(state, unlike))
            return snapshot, state
        changed, finished = len(changes.folders), 0
        # The list of a step is freed with the step.
        changes.folders = {}
        steps = steps or [{}]
        while steps:
            # All files are replaced in one commit, so that readers never meet a part of the messages.
            portions, steps = (steps, []) if is_rebuilt else (steps[:1], steps[1:])
            count = sum(map(len, portions))
            state, snapshot, found = await self._step(
                snapshot,
                state,
                portions,
                changes,
                recorded(done) if steps else final,
                now,
                is_rebuilt=is_rebuilt,
            )
            self._wrong |= found
            self._keys.clear()
            report.changed += count
            finished += count
            self._on_progress(finished, changed)
        if self._wrong:
            state, snapshot = await self._repair(snapshot, state, final, now)
        state, snapshot = await self._merge_small(snapshot, state, final, now)
        await self._set_proven(snapshot)
        self._report_unlike(await self._compare_with_ledger(state, unlike))
        return snapshot, state

    async def _proven_version(self) -> int | None:
        """Return the version up to which all steps were proven."""
        try:
            return int(await self._store.get(PROVEN_KEY))
        except (FileNotFoundError, ValueError):
            return None

    async def _set_proven(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and not self._wrong and snapshot.version != self._proven:
            await self._store.overwrite(PROVEN_KEY, str(snapshot.version).encode())

    async def _check_all(self, snapshot: Snapshot, state: TableState) -> None:
        """Compare the rows of all conversations with the state."""
        found: dict[str, Sums] = {}
        with TemporaryDirectory(prefix="tables-", dir=self._store.temporary_directory()) as temporary:
            for file in snapshot.files:
                path = await self._download(file, Path(temporary))
                self.report.read_bytes += file.size_bytes
                for folder, sums in (await self._in_thread(self._sums_of_file, path)).items():
                    found[folder] = plus(found.get(folder, NOTHING), sums)
                path.unlink()
        expected = state.conversation_sums()
        for folder in sorted(found.keys() | expected.keys()):
            if found.get(folder, NOTHING) != expected.get(folder, NOTHING):
                self._wrong.add(folder)
                self._differs(folder, "has other rows than its parts")

    async def _repair(
        self,
        snapshot: Snapshot | None,
        state: TableState,
        properties: Mapping[str, str],
        now: datetime,
    ) -> tuple[TableState, Snapshot | None]:
        """Write conversations again whose rows differed from the parts."""
        folders: dict[str, list[Part]] = {folder: [] for folder in sorted(self._wrong)}
        for part in await self._lake.list_below():
            if folder_of(part.key) in folders:
                folders[folder_of(part.key)].append(part)
        changes = Changes(folders, {one.key for some in folders.values() for one in some})
        state, snapshot, again = await self._step(
            snapshot, state, [folders], changes, properties, now, forced=frozenset(folders)
        )
        self._wrong = again
        self.report.is_repaired = not again
        return state, snapshot

    async def _state_of(self, snapshot: Snapshot | None) -> TableState | None:
        """Return the state of a version; None if it is lost, an empty one if there is no table."""
        if snapshot is None:
            return TableState()
        key = snapshot.configuration.get(STATE_PROPERTY, "")
        return await read_state(self._store, key) if key else None

    # -- one step ---------------------------------------------------------------------------------

    async def _step(
        self,
        before: Snapshot | None,
        state: TableState,
        portions: list[dict[str, list[Part]]],
        changes: Changes,
        properties: Mapping[str, str],
        now: datetime,
        *,
        forced: frozenset[str] = frozenset(),
        is_rebuilt: bool = False,
    ) -> tuple[TableState, Snapshot | None, set[str]]:
        """Bring some conversations up to date with one commit, and prove it.

        Args:
            before, state: The newest version of the table.
            portions: The parts of the conversations, by folder; emptied, as each is read after the other.
            changes: The new parts.
            properties: Properties of the new version.
            now: The time.
            forced: Conversations of which all rows are written again.
            is_rebuilt: Replace all files.

        Returns:
            The new state and snapshot, and the conversations whose rows in the table are wrong.

        Raises:
            ObjectExists: Another compaction committed first; nothing was changed.
        """
        with TemporaryDirectory(prefix="tables-", dir=self._store.temporary_directory()) as temporary:
            step = _Step(Path(temporary), Spill(Path(temporary)))
            new_state = state
            while portions:
                await self._read(step, state, portions.pop(0), changes, forced)
                new_state = new_state.with_folders(step.parts)
                # They are in the state now, where they take less memory.
                step.parts.clear()
            files = () if before is None else before.files
            if is_rebuilt:
                step.gone += files
            else:
                await self._copy_without(step, files, forced)
            written = await self._in_thread(write_sorted, step.spill, step.folder, now)
            for file, path in written:
                await self._upload(file, path)
                step.files.append((file, None))
            added = [file for file, _ in step.files]
            # Before the commit, so that no kill makes later compactions forget what differs.
            problems = await self._compare_with_ledger(new_state, step.names)
            new_state.unlike_ledger |= {
                folder: step.names[folder] for folder, problem in problems.items() if problem is not None
            }
            rows = [sum(sums[0] for sums in some.values()) for some in (step.added, step.removed)]
            after = await self._commit(
                before, new_state, added, step.gone, properties, now, rows=(rows[0], rows[1])
            )
            wrong = step.wrong | await self._prove(step)
        self._report_unlike(problems)
        report = self.report
        report.unproven += sum(problem is None for problem in problems.values())
        return new_state, after, wrong

    # -- reading the changed conversations --------------------------------------------------------

    async def _read(
        self,
        step: _Step,
        state: TableState,
        folders: Mapping[str, Sequence[Part]],
        changes: Changes,
        forced: frozenset[str],
    ) -> None:
        """Read the changed conversations, and collect their new rows and the rows to remove."""
        known = state.of_folders(folders)
        # Also without a new part, as in a copy of a lake: what was lost is still reported.
        step.names |= {one: state.unlike_ledger[one] for one in folders if one in state.unlike_ledger}
        for some in _groups(folders):
            wanted: list[tuple[str, Part]] = []
            for folder in some:
                old = known.get(folder, {})
                listed = {one.key for one in folders[folder]}
                is_appended = folder not in forced and all(
                    key in listed and key not in changes.new for key in old
                )
                wanted += [
                    (folder, part) for part in folders[folder] if not is_appended or part.key not in old
                ]
            jobs = (partial(self._source, part, step.folder) for _, part in wanted)
            sources = await run_bounded(min(READ_AT_A_TIME, len(wanted)), jobs)
            read: dict[str, dict[str, tuple[Part, Source]]] = {}
            for (folder, _), (part, source) in zip(wanted, sources, strict=True):
                read.setdefault(folder, {})[part.key] = (part, source)
            for folder in some:
                await self._in_thread(
                    self._add, step, folder, folders[folder], known.get(folder, {}), read.get(folder, {}),
                    is_forced=folder in forced,
                )  # fmt: skip

    async def _source(self, part: Part, folder: Path) -> tuple[Part, Source]:
        self.report.objects_read += 1
        self.report.requests += 1
        self.report.read_bytes += part.size_bytes
        if part.size_bytes <= LARGE_BYTES:
            ((read, rows),) = await self._lake.read_parts([part])
            return read, lambda: iter([rows])
        path = folder / f"part-{uuid4().hex}"
        read = await self._lake.download_part(part, path)
        return read, lambda: self._lake.iter_part(read, path)

    def _add(
        self,
        step: _Step,
        folder: str,
        listed: Sequence[Part],
        known: Mapping[str, ReadPart],
        read: Mapping[str, tuple[Part, Source]],
        *,
        is_forced: bool,
    ) -> None:
        """Collect the rows of one conversation to add and to remove."""
        parts: dict[str, ReadPart] = {one.key: known[one.key] for one in listed if one.key in known}
        drops: set[int] = {
            month for key, one in known.items() if key not in parts or is_forced for month in one.months
        }
        for key, (part, source) in read.items():
            old = known.get(key)
            part = replace(part, sha256=(part.sha256 or "")[:16])
            if old is not None and old.part.sha256 == part.sha256:
                # The same bytes, perhaps in a copy of the lake.
                parts[key] = ReadPart(part, old.months)
                continue
            parts[key] = ReadPart(part, self._sums(step, folder, source))
            if old is not None:
                both = old.months.keys() | parts[key].months.keys()
                other = {one for one in both if old.months.get(one) != parts[key].months.get(one)}
                # Only the form of the rows differs after a repair.
                drops |= other or both
        step.parts[folder] = [*parts.values()]
        if drops or is_forced:
            step.drops[folder] = None if is_forced else frozenset(drops)
            step.removed[folder] = _total(known.values(), drops)
        added = NOTHING
        for key, one in parts.items():
            is_new = is_forced or key not in known
            added = plus(added, _total([one], one.months.keys() if is_new else drops))
            if is_new or drops & one.months.keys():
                self._collect(step, read[key][1], None if is_new else frozenset(drops))
        step.added[folder] = added

    def _sums(self, step: _Step, folder: str, source: Source) -> dict[int, Sums]:
        """Return the sums of the rows of a part by month."""
        months: dict[int, Sums] = {}
        for rows in source():
            if rows.num_rows and folder not in step.names:
                first = rows.select(["organization_id", "conversation_id"]).slice(0, 1).to_pylist()[0]
                step.names[folder] = (first["organization_id"], first["conversation_id"])
            for month, sums in sums_by_month(with_digests(rows)).items():
                months[month] = plus(months.get(month, NOTHING), sums)
        return months or {NO_MONTH: NOTHING}

    @staticmethod
    def _collect(step: _Step, source: Source, months: frozenset[int] | None) -> None:
        """Collect the rows of a part, or those of some months."""
        for rows in source():
            if months is not None:
                rows = rows.filter(pa.array(np.isin(months_of(rows), [*months])))
            step.spill.add(table_rows(rows))

    # -- removing rows ----------------------------------------------------------------------------

    async def _copy_without(self, step: _Step, files: Iterable[TableFile], forced: frozenset[str]) -> None:
        """Write copies of files without the rows to remove."""
        if not step.drops:
            return
        months = frozenset(month for some in step.drops.values() for month in some or ())
        dropped: dict[str, Sums] = {}
        for file in files if forced else _overlapping(files, months):
            path = await self._download(file, step.folder)
            copied = RowsHash()
            copy = await self._in_thread(self._copy, step, path, dropped, copied)
            path.unlink()
            if copy is None:
                continue
            step.gone.append(file)
            self.report.read_bytes += file.size_bytes
            if copy.rows:
                written = copy.close(self._clock())
                await self._upload(written, copy.path)
                step.files.append((written, _Copy(file, copied.hexdigest())))
                copy.path.unlink()
            else:
                copy.abort()
        for folder, expected in step.removed.items():
            found = dropped.get(folder, NOTHING)
            if folder not in forced and found != expected:
                step.wrong.add(folder)
                self._differs(
                    folder,
                    f"had {plural(found[0], 'row')} where its state records {expected[0]:,}, or others",
                )

    def _copy(self, step: _Step, path: Path, dropped: dict[str, Sums], copied: RowsHash) -> FileWriter | None:
        """Write the copy of a file without the rows to remove; None if it has none of them.

        Args:
            step: The step.
            path: The file.
            dropped: The sums of the removed rows by folder, which are added.
            copied: The hash of the rows of the copy, which are added.
        """
        all_dropped = _drop_mask(path, self._drops_in(step, path))
        if not all_dropped.any():
            return None
        writer = FileWriter(step.folder / f"copy-{uuid4().hex}", MESSAGES_TABLE)
        # Encoding a row group takes as long as reading it.
        try:
            for rows in read_ahead(self._kept(path, all_dropped, dropped, copied), BATCHES_AHEAD):
                writer.add(rows)
        except BaseException:
            writer.abort()
            raise
        return writer

    def _kept(
        self, path: Path, all_dropped: np.ndarray[Any, Any], dropped: dict[str, Sums], copied: RowsHash
    ) -> Iterator[pa.Table]:
        """Yield the rows of a file that are not removed; `dropped` and `copied` as in `_copy`."""
        position = 0
        for rows in iter_file(path):
            mask = all_dropped[position:][: rows.num_rows]
            position += rows.num_rows
            if mask.any():
                gone = with_digests(in_lake_schema(rows.filter(pa.array(mask))))
                for names, sums in sums_by_conversation(gone).items():
                    folder = self._folder_of(*names)
                    dropped[folder] = plus(dropped.get(folder, NOTHING), sums)
                rows = rows.filter(pa.array(~mask))
            if rows.num_rows:
                copied.add(rows)
                yield rows

    def _drops_in(self, step: _Step, path: Path) -> Drops:
        """Return the months to remove of the conversations that may have rows in a file."""
        drops = {step.names[folder]: months for folder, months in step.drops.items() if folder in step.names}
        nameless = step.drops.keys() - step.names.keys()
        if nameless:
            # Conversations without parts, whose ids only the table knows.
            for rows in iter_file(path, ["organization_id", "conversation_id"]):
                distinct = rows.group_by(["organization_id", "conversation_id"]).aggregate([])
                for names in zip(*(one.to_pylist() for one in distinct.columns), strict=True):
                    folder = self._folder_of(*names)
                    if folder in nameless:
                        step.names[folder] = names
                        drops[names] = step.drops[folder]
        return drops

    def _folder_of(self, organization_id: str, conversation_id: str) -> str:
        """Return the folder of a conversation's parts."""
        pair = (organization_id, conversation_id)
        if pair not in self._keys:
            self._keys[pair] = partition_key(organization_id, conversation_id)
        return self._keys[pair]

    # -- the proof --------------------------------------------------------------------------------

    async def _prove(self, step: _Step) -> set[str]:
        """Compare the files in the store with the parts; return the conversations that are wrong."""
        wrong: set[str] = set()
        found: dict[str, Sums] = {}
        for file, copy in step.files:
            path = await self._download(file, step.folder)
            if copy is None:
                for folder, sums in (await self._in_thread(self._sums_of_file, path)).items():
                    found[folder] = plus(found.get(folder, NOTHING), sums)
            elif await self._in_thread(hash_of_file, path) != copy.rows_hash:
                # No conversation of this file is certain any more.
                original = await self._download(copy.original, step.folder)
                folders = {*(await self._in_thread(self._sums_of_file, original))}
                original.unlink()
                for folder in sorted(folders):
                    self._differs(folder, f"is not as before in the copy {file.path}")
                wrong |= folders
            path.unlink()
        for folder in sorted(step.added.keys() | found.keys()):
            one, other = found.get(folder, NOTHING), step.added.get(folder, NOTHING)
            if one != other:
                wrong.add(folder)
                self._differs(
                    folder, f"has {plural(one[0], 'new row')} where its parts have {other[0]:,}, or others"
                )
        return wrong

    def _sums_of_file(self, path: Path) -> dict[str, Sums]:
        """Return the sums of the rows of a data file, by folder of the conversation."""
        found: dict[str, Sums] = {}
        for rows in iter_file(path):
            for batch in rows.to_batches(max_chunksize=4_096):
                digests = with_digests(in_lake_schema(pa.Table.from_batches([batch])))
                for names, sums in sums_by_conversation(digests).items():
                    folder = self._folder_of(*names)
                    found[folder] = plus(found.get(folder, NOTHING), sums)
        return found

    async def _compare_with_ledger(
        self, state: TableState, names: Mapping[str, Names]
    ) -> dict[str, str | None]:
        """Compare rows and content hash of some conversations with the ledger's last proof.

        Args:
            state: The parts in the table.
            names: Organization and conversation, by folder.

        Returns:
            What differs, by folder; None if the ledger does not prove these parts.
        """
        for organization in {organization for organization, _ in names.values()}:
            if organization not in self._states:
                self._states[organization] = await read_states(self._lake, organization, _COMPARED)
        items = [*names.items()]
        problems: dict[str, str | None] = {}

        # Empty folders of spellings that are not continued.
        deleted: set[str] = set()

        async def compare(folder: str, parts: Sequence[ReadPart], entry: ConversationEntry | None) -> None:
            if entry is None or not _is_of(entry, parts):
                if folder in deleted:
                    return
                lost = [] if entry is None else await self._lost_parts(folder, parts, entry)
                problems[folder] = _lost(lost) if lost else None
                return
            sums = _total(parts, None)
            if (sums[3], content_hash_of(sums)) != (entry.distinct_messages, entry.content_hash):
                problems[folder] = (
                    f"has {plural(sums[3], 'message')} in its parts and in the table, and"
                    f" {entry.distinct_messages} in the ledger, or others: run `imbrace-lake verify`"
                )

        for start in range(0, len(items), COMPARED_CONVERSATIONS):
            by_organization: dict[str, dict[str, str]] = {}
            for folder, (organization, conversation) in items[start:][:COMPARED_CONVERSATIONS]:
                by_organization.setdefault(organization, {})[conversation] = folder
            for organization, own in by_organization.items():
                entries = self._states[organization].of_each(own)
                known = state.of_folders(own.values())
                empty = own.values() - known.keys()
                deleted = superseded(empty, state.folders()) if empty else set()
                comparisons = (
                    partial(compare, folder, [*known.get(folder, {}).values()], entries.get(conversation))
                    for conversation, folder in own.items()
                )
                await run_bounded(READ_FOLDERS, comparisons)
        return problems

    def _report_unlike(self, problems: Mapping[str, str | None]) -> None:
        for folder, problem in sorted(problems.items()):
            if problem is not None:
                self._differs(folder, problem)

    async def _lost_parts(
        self, folder: str, parts: Sequence[ReadPart], entry: ConversationEntry
    ) -> list[str]:
        """Return the keys of the parts that a ledger entry proves and the lake does not have."""
        missing = {one.key for one in entry.parts} - {one.part.key for one in parts}
        if not _is_proof(entry) or not missing:
            return []
        # A run may have added them and recorded them since the parts were listed.
        return sorted(missing - {one.key for one in await self._lake.list_below(f"{folder}/")})

    # -- few files --------------------------------------------------------------------------------

    async def _merge_small(
        self, before: Snapshot | None, state: TableState, properties: Mapping[str, str], now: datetime
    ) -> tuple[TableState, Snapshot | None]:
        """Merge small files into sorted ones, if there are too many.

        Raises:
            ObjectExists: Another compaction committed first; nothing was changed.
        """
        files = () if before is None else before.files
        small = [one for one in files if one.size_bytes < SMALL_BYTES]
        if before is None or len(small) <= MAX_SMALL_FILES:
            return state, before
        with TemporaryDirectory(prefix="tables-", dir=self._store.temporary_directory()) as temporary:
            step = _Step(Path(temporary), Spill(Path(temporary)), gone=small)
            for file in small:
                path = await self._download(file, step.folder)
                self.report.read_bytes += file.size_bytes
                for folder, sums in (await self._in_thread(self._spill_file, step, path)).items():
                    step.added[folder] = plus(step.added.get(folder, NOTHING), sums)
                path.unlink()
            for file, path in await self._in_thread(write_sorted, step.spill, step.folder, now):
                await self._upload(file, path)
                step.files.append((file, None))
            added = [file for file, _ in step.files]
            state = TableState(state.rows, dict(state.removed), dict(state.unlike_ledger))
            after = await self._commit(
                before, state, added, small, recorded(before.configuration), now, operation="OPTIMIZE"
            )
            wrong = await self._prove(step)
        if not wrong:
            return state, after
        self._wrong |= wrong
        return await self._repair(after, state, properties, now)

    def _spill_file(self, step: _Step, path: Path) -> dict[str, Sums]:
        for rows in iter_file(path):
            step.spill.add(rows.cast(MESSAGES_TABLE))
        return self._sums_of_file(path)


def _drop_mask(path: Path, drops: Drops) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return a mask of the rows of a file to remove."""
    conversations = pa.array({conversation for _, conversation in drops}, pa.string())
    masks = [np.zeros(0, bool)]
    for rows in iter_file(path, ["organization_id", "conversation_id", "created_at"]):
        found = np.zeros(rows.num_rows, bool)
        is_candidate = pc.is_in(rows.column("conversation_id"), value_set=conversations)
        candidates = np.flatnonzero(is_candidate.to_numpy())
        some = rows.take(pa.array(candidates))
        ids = (some.column(name).to_pylist() for name in ("organization_id", "conversation_id"))
        for index, names, month in zip(candidates, zip(*ids, strict=True), months_of(some), strict=True):
            months = drops.get(names, frozenset())
            found[index] = months is None or int(month) in months
        masks.append(found)
    return np.concatenate(masks)


def _still_unlike(state: TableState, changes: Changes) -> dict[str, Names]:
    """Return the unchanged conversations that differed from the ledger, by folder."""
    return {folder: names for folder, names in state.unlike_ledger.items() if folder not in changes.folders}


def _steps(changes: Changes) -> Iterator[dict[str, list[Part]]]:
    """Yield the changed conversations in steps of limited size."""
    items = changes.folders.items()
    for step in in_groups(
        items, lambda item: sum(one.size_bytes for one in item[1]), STEP_BYTES, STEP_CONVERSATIONS
    ):
        yield dict(step)


def _groups(folders: Mapping[str, Sequence[Part]]) -> Iterator[list[str]]:
    """Yield conversations whose parts are read at the same time."""

    def size_of(folder: str) -> int:
        # Larger ones go to files.
        return sum(one.size_bytes for one in folders[folder] if one.size_bytes <= LARGE_BYTES)

    return in_groups(folders, size_of, READ_BYTES, READ_FOLDERS)


def _overlapping(files: Iterable[TableFile], months: frozenset[int]) -> list[TableFile]:
    """Return the files that can have rows of some months."""
    names = {name for name in map(month_name, months) if name is not None}
    has_no_month = NO_MONTH in months
    return [
        file
        for file in files
        if (has_no_month and file.has_no_month)
        or any((file.first_month or "") <= name <= (file.last_month or "") for name in names)
    ]


def _total(parts: Iterable[ReadPart], months: Iterable[int] | None) -> Sums:
    """Return the sums of the rows of some parts, or of their rows in some months."""
    chosen = None if months is None else {*months}
    total = NOTHING
    for part in parts:
        for month, sums in part.months.items():
            if chosen is None or month in chosen:
                total = plus(total, sums)
    return total


def _lost(keys: Sequence[str]) -> str:
    """Return a sentence about lost parts."""
    names = ", ".join(key.rpartition("/")[2] for key in keys[:MAX_NAMES])
    more = f" and {len(keys) - MAX_NAMES} more" if len(keys) > MAX_NAMES else ""
    return f"has lost {names}{more}, which the ledger names: run `imbrace-lake verify`"


def _is_of(entry: ConversationEntry, parts: Sequence[ReadPart]) -> bool:
    """Return whether a ledger entry proves exactly these parts."""
    own = {one.part.key: one.part.sha256 for one in parts}
    recorded = {one.key: (one.sha256 or "")[:16] for one in entry.parts}
    return _is_proof(entry) and own == recorded


def _is_proof(entry: ConversationEntry) -> bool:
    """Return whether an entry states the last proven messages, as that of a gone conversation also does."""
    return entry.content_hash is not None
