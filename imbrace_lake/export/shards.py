"""Shards: the parts of a run that is too large for one process.

The run writes a list of conversations for each shard into the lake. A shard is an ordinary backfill of its
list, whose row in the ledger `runs` names that run as its parent. The run learns the outcomes of the
conversations from the rows of its shards in the ledgers, and only from there::

    shards/<run>/<time of the split>-<number>.parquet
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import ImbraceLakeError, InputError, StoreError, WalkIncomplete, fatal_of
from imbrace_lake.export.run import SHARDS, RunContext
from imbrace_lake.lake.lake import READ_AT_A_TIME, Lake
from imbrace_lake.lake.ledger import last_of_each, read_run
from imbrace_lake.lake.ledger_schema import RunTotals, entry_of
from imbrace_lake.lake.parquet import encode

MAX_IN_ONE = 20_000
# One request of the orchestrator lists them all.
MAX_SHARDS = 100
RETENTION = timedelta(days=7)
_COLUMNS = ["run_id", "organization_id", "conversation_id", "status", "reason", "is_dead_letter",
            "distinct_messages", "new_messages", "finished_at"]  # fmt: skip


@dataclass(slots=True)
class Shard:
    """A part of a run, exported by another run.

    Attributes:
        number: Its number among the shards of the run, from 1.
        key: The list of its conversations in the lake.
        conversation_ids: Its conversations; no other shard of the run has any of them.
        run_id: The run that exports them; empty until it is started.
        totals: What that run has done so far.
        is_over: Whether that run has ended, or is lost, and its results are counted.
        sign, heard_at: Its last sign of life, and when that came, in seconds of `time.monotonic`.
    """

    number: int
    key: str
    conversation_ids: Sequence[str]
    run_id: str = ""
    totals: RunTotals = field(default_factory=RunTotals)
    is_over: bool = False
    sign: object = None
    heard_at: float = 0.0


def shard_count(conversations: int, chosen_size: int | None = None) -> int:
    """Return the number of shards: one up to 20,000 conversations, or by the chosen size."""
    return min(MAX_SHARDS, max(1, -(-conversations // (chosen_size or MAX_IN_ONE))))


def split_evenly(conversation_ids: Iterable[str], count: int) -> list[list[str]]:
    """Split into parts whose sizes differ by at most one; the same ids make the same parts in any order."""
    ids = sorted(conversation_ids)
    return [ids[len(ids) * number // count : len(ids) * (number + 1) // count] for number in range(count)]


async def plan_shards(
    run: RunContext, conversation_ids: Sequence[str], chosen_size: int | None
) -> list[Shard]:
    """Write the lists of a run's shards; another attempt of the run keeps its lists and adds the rest."""
    store, now = run.lake.store, run.clock()
    own, old = [], []
    for meta in await store.list(SHARDS):
        if meta.key.startswith(f"{SHARDS}{run.run_id}/"):
            own.append(meta.key)
        elif now - meta.modified_at > RETENTION:
            old.append(meta.key)
    await run_bounded(min(READ_AT_A_TIME, len(old)), (partial(store.delete, key) for key in old))
    shards = [
        Shard(number, key, await read_list(run.lake, key, run.organization_id))
        for number, key in enumerate(sorted(own), 1)
    ]
    listed = {one for shard in shards for one in shard.conversation_ids}
    rest = [one for one in conversation_ids if one not in listed]
    parts = split_evenly(rest, shard_count(len(rest), chosen_size)) if rest else []
    for number, ids in enumerate(parts, len(shards) + 1):
        # The time makes a run that ended and is started again start new shards.
        key = f"{SHARDS}{run.run_id}/{now:%Y%m%dT%H%M%S%fZ}-{number:05d}.parquet"
        organizations = pa.array([run.organization_id] * len(ids), pa.string())
        rows = pa.table({"organization_id": organizations, "conversation_id": pa.array(ids, pa.string())})
        await store.create(key, encode(rows, {}, compression="zstd", use_dictionary=["organization_id"]))
        shards.append(Shard(number, key, ids))
    run.accounts.found = [one for shard in shards for one in shard.conversation_ids]
    # Shards record every conversation again, also one that an earlier attempt has exported without shards.
    run.accounts.recorded.clear()
    return shards


async def read_list(lake: Lake, key: str, organization_id: str) -> list[str]:
    """Read the list of a shard.

    Raises:
        InputError: There is no such list, or it is of another organization.
        StoreError: It is damaged.
    """
    try:
        rows = pq.read_table(io.BytesIO(await lake.store.get(key)))
        organizations = set(rows.column("organization_id").to_pylist())
        ids: list[str] = rows.column("conversation_id").to_pylist()
    except FileNotFoundError:
        raise InputError(
            f"the lake at {lake.url} has no {key}: either the run of this shard has ended, or the worker"
            " uses another lake than that run: give both the same lake"
        ) from None
    except (pa.ArrowException, OSError, LookupError):
        raise StoreError(f"{lake.url}/{key} is damaged: start the run of this shard again") from None
    if organizations != {organization_id}:
        raise InputError(
            f"this worker reads the organization {organization_id}, and the run of this shard reads"
            f" {', '.join(map(str, organizations))}: give both the same credentials"
        )
    return ids


async def collect_results(run: RunContext, shard: Shard, state: str, message: str = "") -> None:
    """Count the results of a shard that is over as results of its run.

    Args:
        run: The run that the shard is a part of.
        shard: The shard.
        state: How the run of the shard ended, which is the reason of conversations without an outcome.
        message: The message of its state, which gives the reason if the lake has none.
    """
    # Everything is read before anything is counted, so that after an error this can be repeated.
    rows = await read_run(run.lake, "conversations", shard.run_id, _COLUMNS)
    ends = await read_run(run.lake, "runs", shard.run_id)
    shapes = await read_run(run.lake, "shapes", shard.run_id)
    # A journal that was just closed is there twice; a shard that was started again may have two rows.
    rows = last_of_each(rows, ["conversation_id", "finished_at"], "finished_at")
    latest = last_of_each(rows, ["conversation_id"], "finished_at")
    latest = latest.filter(pc.is_in(latest.column("conversation_id"), pa.array(shard.conversation_ids)))
    recorded = latest.column("conversation_id").to_pylist()
    totals = sum((RunTotals(**json.loads(one)) for one in ends.column("totals").to_pylist()), RunTotals())
    if not ends.num_rows:
        # What its last sign of life had.
        totals = replace(shard.totals)
    totals.conversations = dict(Counter(latest.column("status").to_pylist()))
    totals.messages_new = pc.sum(rows.column("new_messages")).as_py() or 0
    totals.messages_total = pc.sum(latest.column("distinct_messages")).as_py() or 0
    dead = [entry_of(row) for row in latest.filter(latest.column("is_dead_letter")).to_pylist()]
    missing = [*{*shard.conversation_ids}.difference(recorded)]
    # The run that closes the journal of a killed run does not know its versions.
    has_ended = bool(ends.filter(pc.is_valid(ends.column("versions"))).num_rows)
    last: dict[str, Any] = max(ends.to_pylist(), key=lambda row: row["finished_at"], default={})
    # An error that also ended every other shard, or would have, ends the run.
    fatal = fatal_of(json.loads(last.get("parameters") or "{}"))
    reasons = [one for one in ends.column("reason").to_pylist() if one]
    if message and not reasons:
        # A shard that failed before it opened the lake has no row.
        reasons = [message]
    problem = f"shard {shard.number} (run {shard.run_id or 'not started'}): {'; '.join([state, *reasons])}"
    errors = {"failed": ImbraceLakeError, "incomplete": WalkIncomplete}
    new_shapes = zip(
        shapes.column("shape").to_pylist(), shapes.column("conversation_id").to_pylist(), strict=True
    )
    shard.totals, shard.is_over = totals, True
    if not has_ended or missing:
        run.failures.add_lost_shard(problem)
    run.failures.errors.update(
        {one.conversation_id: errors[one.status] for one in dead if one.status in errors}
    )
    run.failures.add_dead_letters(dead)
    if fatal is not None:
        run.failures.add_problem(fatal)
    run.accounts.recorded.update(recorded)
    run.accounts.reasons.update(dict.fromkeys(missing, f"not reached: {problem}"))
    run.shapes.new.update(new_shapes)
