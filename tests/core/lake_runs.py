"""Runs of the core against the fake gateway, and the lake that a reader then sees."""

from __future__ import annotations

import asyncio
import threading
import uuid
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.drift import DriftMode
from imbrace_lake.export.recovery import work_fingerprint
from imbrace_lake.export.run import RunContext, RunSummary, close_run
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.hashes import content_hash
from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.lake.ledger_schema import Ledger
from imbrace_lake.lake.schema import SCHEMA, to_item, with_digests
from imbrace_lake.policy import Window
from imbrace_lake.settings import Settings, load_settings
from imbrace_lake.store.factory import StoreOptions
from imbrace_lake.verify.findings import Verification
from imbrace_lake.verify.objects import verify_objects
from imbrace_lake.verify.part import judge_part
from imbrace_sandbox import Sandbox
from tests.gateways import open_run

T = TypeVar("T")

Message = tuple[str, str]
"""Conversation id and message id."""
Row = dict[str, Any]

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Bench:
    """A fake gateway, a lake, and runs from one to the other.

    Attributes:
        now: The clock of the next run; every run advances it by a second.
        settings: All settings but the addresses.
    """

    box: Sandbox
    lake: str
    now: datetime = START
    store: StoreOptions | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, ids: Iterable[str] | None = None, **options: Any) -> RunSummary:
        """Export conversations, all of the gateway by default; see `run_once`."""
        self.now += timedelta(seconds=1)
        chosen = list(self.box.conversations if ids is None else ids)
        settings = settings_for(self.box, self.lake, **self.settings)
        return asyncio.run(run_once(settings, chosen, now=self.now, store=self.store, **options))

    def run_two(self, ids: Iterable[str], **options: Any) -> list[RunSummary]:
        """Export the same conversations in two runs at the same time, each with its own event loop."""
        self.now += timedelta(seconds=1)
        chosen = list(ids)
        settings = settings_for(self.box, self.lake, **self.settings)
        both = threading.Barrier(2)

        def one_of_two() -> RunSummary:
            both.wait()
            return asyncio.run(run_once(settings, chosen, now=self.now, store=self.store, **options))

        with ThreadPoolExecutor(2) as threads:
            return [each.result() for each in [threads.submit(one_of_two) for _ in range(2)]]

    def look(self, job: Callable[[Lake], Coroutine[Any, Any, T]]) -> T:
        """Run a job with the open lake."""

        async def inside() -> T:
            async with open_lake(self.lake, now=None, options=self.store) as lake:
                return await job(lake)

        return asyncio.run(inside())

    def rows(self) -> pa.Table:
        """Return the rows of all messages."""
        if self.store is None:
            return ds.dataset(f"{self.lake}/messages", format="parquet", schema=SCHEMA).to_table()

        async def read(lake: Lake) -> pa.Table:
            org = self.box.options.organization_id
            partitions = await lake.list_partitions(org)
            found = partitions.of_each(org, self.box.conversations)
            parts = [part for one in self.box.conversations for part in found.get(one, ())]
            return pa.concat_tables([rows for _, rows in await lake.read_parts(parts)])

        return self.look(read)

    def messages(self, conversation_id: str) -> dict[str, dict[str, Any]]:
        """Return the rows of a conversation by message id."""
        return {one: row for (owner, one), row in by_message(self.rows()).items() if owner == conversation_id}

    def ledger(self, ledger: Ledger) -> list[dict[str, Any]]:
        """Return the rows of a ledger."""
        rows: list[dict[str, Any]] = self.look(lambda lake: read_ledger(lake, ledger)).to_pylist()
        return rows

    def verify(self) -> Verification:
        """Compare every object with its hash."""
        return self.look(verify_objects)

    def differences(
        self, ids: Iterable[str] | None = None, rows: dict[Message, Row] | None = None
    ) -> Counter[str]:
        """Compare the lake with the gateway, message by message; return a line per difference."""
        chosen = set(self.box.conversations if ids is None else ids)
        live: dict[str, dict[str, Row]] = {one: {} for one in chosen}
        found: Counter[str] = Counter()
        for (owner, one), row in (by_message(self.rows()) if rows is None else rows).items():
            if not row["is_deleted"] and owner in live:
                live[owner][one] = to_item(row)
        for one in chosen:
            truth = {item["_id"]: item for item in self.box.truth(one)}
            found["missing"] += len(truth.keys() - live[one].keys())
            found["extra"] += len(live[one].keys() - truth.keys())
            found["other version"] += sum(
                live[one][key] != truth[key] for key in truth.keys() & live[one].keys()
            )
        return +found

    def wrong_hashes(self) -> list[str]:
        """Return conversations and parts whose content hash or count differs from that of their live rows."""
        states = self.look(lambda lake: read_states(lake, self.box.options.organization_id))
        rows = self.rows()
        rows = with_digests(rows.filter(pc.invert(rows.column("is_deleted"))))
        rows = rows.sort_by("conversation_id")
        ids = rows.column("conversation_id").to_pylist()
        wrong = []
        for entry in states:
            first, end = bisect_left(ids, entry.conversation_id), bisect_right(ids, entry.conversation_id)
            own = (end - first, content_hash(rows.slice(first, end - first).combine_chunks()))
            if entry.status != "gone" and own != (entry.distinct_messages, entry.content_hash):
                wrong.append(entry.conversation_id)
        return wrong + self.look(_unproven_parts)


async def _unproven_parts(lake: Lake) -> list[str]:
    """Return parts whose rows contradict their claim."""
    keys = [part.key for part in await lake.list_below()]
    return [key for key in keys if judge_part(await lake.store.get(key)).problem is not None]


def by_message(rows: pa.Table) -> dict[Message, Row]:
    """Return the rows by conversation and message; assert that each message is there once."""
    found = {(row["conversation_id"], row["message_id"]): row for row in rows.to_pylist()}
    assert len(found) == rows.num_rows, "a message is in the lake twice"
    return found


def settings_for(box: Sandbox, lake: str, **more: Any) -> Settings:
    """Return the settings of a run against a fake gateway."""
    options = box.options
    return load_settings(
        token=options.token, organization=options.organization_id, gateway=box.url, lake=lake, **more
    )


async def run_once(
    settings: Settings,
    ids: Iterable[str],
    *,
    run_id: str | None = None,
    now: datetime | None = None,
    window: Window | None = None,
    drift: DriftMode = "evolve",
    store: StoreOptions | None = None,
    prepare: Callable[[RunContext], object] = lambda run: None,
) -> RunSummary:
    """Run an export of some conversations in the core, from opening to summary.

    Args:
        settings: With the gateway and the lake.
        ids: The conversations.
        run_id: A new id by default.
        now: The constant time of the run's clock; the real time by default.
        window, drift: Those of the run.
        store: Options of an S3 store.
        prepare: Called when the run has read the state of the lake.
    """
    chosen = list(ids)
    async with open_run(
        settings, run_id or str(uuid.uuid4()), window=window, drift=drift, store_options=store
    ) as run:
        if now is not None:
            fixed = now
            run.clock = lambda: fixed
            run.started_at = fixed
            run.journal = Journal(run.lake, run.run_id, fixed)
        await run.load_prior_state(work_fingerprint(chosen, run.organization_id, run.window, run.policy))
        prepare(run)
        await export_chunk(run, "chunk-1-of-1", run.prior.as_stored(chosen))
        return await close_run(run, {}, Counter())
