"""Shards: a run that is too large for one process, cut into runs of their own.

The run writes a manifest for each shard into the lake. A shard is a run like any other, with its own
journal and its own rows in the ledgers. What became of its conversations is read from there and from
nowhere else::

    shards/<run>/<time of the cut>-<number>.json
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from imbrace_lake.errors import ImbraceLakeError, StoreError, UsageError, WalkIncomplete
from imbrace_lake.export.drift import DriftMode
from imbrace_lake.export.run import RunContext
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import last_of_each, read_run
from imbrace_lake.lake.ledger_schema import ConversationEntry, RunTotals, conversation_rows, entry_of
from imbrace_lake.policy import ReadPolicy, Window

FOLDER = "shards/"
MOST_IN_ONE = 20_000
# One request of the orchestrator lists them all.
MOST_SHARDS = 100
RETENTION = timedelta(days=7)


class Manifest(BaseModel):
    """What one shard is to do; it holds no phone number.

    Attributes:
        run_id: The run that it is a part of.
        organization_id: Whose conversations they are.
        shard: Its number among the shards of the run, from 1.
        planned_at: When the run was cut.
        window, policy, drift, chunk_size, accept_repeats: As the run has them.
        tolerated_share: As in `close_run`.
        conversation_ids: What to export; no other shard of the run has any of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    organization_id: str
    shard: int
    planned_at: datetime
    window: Window
    policy: ReadPolicy
    drift: DriftMode
    chunk_size: int | None
    tolerated_share: float
    accept_repeats: bool = False
    conversation_ids: tuple[str, ...]

    @property
    def key(self) -> str:
        """Where it is in the lake; another cut of the same run has other keys."""
        return f"{FOLDER}{self.run_id}/{self.planned_at:%Y%m%dT%H%M%S%fZ}-{self.shard:05d}.json"


def shard_count(conversations: int, chosen_size: int | None = None) -> int:
    """How many shards a run has: one up to 20,000 conversations, or as many as the chosen size asks for."""
    return min(MOST_SHARDS, max(1, -(-conversations // (chosen_size or MOST_IN_ONE))))


def split_evenly(conversation_ids: Iterable[str], count: int) -> list[list[str]]:
    """Cut into parts of equal size, give or take one; the same ids make the same parts in any order."""
    ids = sorted(conversation_ids)
    return [ids[len(ids) * number // count : len(ids) * (number + 1) // count] for number in range(count)]


async def plan_shards(
    run: RunContext,
    conversation_ids: Sequence[str],
    chosen_size: int | None,
    *,
    chunk_size: int | None,
    tolerated_share: float,
) -> list[Manifest]:
    """Write the manifests of a run; another try of the run keeps those that are there and adds the rest."""
    now = run.clock()
    own, old = [], []
    for meta in await run.lake.store.list(FOLDER):
        if meta.key.startswith(f"{FOLDER}{run.run_id}/"):
            own.append(meta.key)
        elif now - meta.modified_at > RETENTION:
            old.append(meta.key)
    await asyncio.gather(*(run.lake.store.delete(key) for key in old))
    manifests = [await read_manifest(run.lake, key) for key in own]
    given = {one for manifest in manifests for one in manifest.conversation_ids}
    rest = [one for one in conversation_ids if one not in given]
    parts = split_evenly(rest, shard_count(len(rest), chosen_size)) if rest else []
    for number, ids in enumerate(parts, len(manifests) + 1):
        manifest = Manifest(
            run_id=run.run_id,
            organization_id=run.organization_id,
            shard=number,
            planned_at=now,
            window=run.window,
            policy=run.policy,
            drift=run.drift,
            chunk_size=chunk_size,
            tolerated_share=tolerated_share,
            accept_repeats=run.accept_repeats,
            conversation_ids=tuple(ids),
        )
        await run.lake.store.create(manifest.key, manifest.model_dump_json().encode())
        manifests.append(manifest)
    run.accounts.found = [one for each in manifests for one in each.conversation_ids]
    return manifests


async def read_manifest(lake: Lake, key: str) -> Manifest:
    """Read what a shard is to do.

    Raises:
        UsageError: There is no such manifest.
        StoreError: It is damaged.
    """
    try:
        return Manifest.model_validate_json(await lake.store.get(key))
    except FileNotFoundError:
        raise UsageError(
            f"the lake at {lake.url} has no {key}: either the run of this shard has ended, or the worker"
            " uses another lake than that run: give both the same lake"
        ) from None
    except ValidationError:
        raise StoreError(f"{lake.url}/{key} is damaged: start the run of this shard anew") from None


async def drop_manifests(lake: Lake, manifests: Iterable[Manifest]) -> None:
    """Remove the manifests of a run that has ended."""
    await asyncio.gather(*(lake.store.delete(manifest.key) for manifest in manifests))


async def collect_results(
    run: RunContext, manifest: Manifest, shard_run_id: str, state: str
) -> tuple[RunTotals, pa.Table]:
    """Collect a shard's results from the ledgers.

    What failed in it, and what it has recorded nothing of, becomes a dead letter of the run as well.

    Args:
        run: The run that the shard is a part of.
        manifest: What the shard was to do.
        shard_run_id: The run that did it, in the ledgers.
        state: How that run stands, for people.

    Returns:
        What the shard adds to the totals of the run; its dead letters, as rows of the run.
    """
    # All is read before anything is counted: a look that fails is taken again.
    rows = await read_run(run.lake, "conversations", shard_run_id)
    ends = await read_run(run.lake, "runs", shard_run_id)
    shapes = await read_run(run.lake, "shapes", shard_run_id)
    totals = sum_totals(RunTotals(**json.loads(one)) for one in ends.column("totals").to_pylist())
    # A journal that was just closed is there twice; a shard that was started again may have two rows.
    rows = last_of_each(rows, ["conversation_id", "finished_at"], "finished_at")
    latest = last_of_each(rows, ["conversation_id"], "finished_at")
    latest = latest.filter(pc.is_in(latest.column("conversation_id"), pa.array(manifest.conversation_ids)))
    recorded = set(latest.column("conversation_id").to_pylist())
    missing = [one for one in manifest.conversation_ids if one not in recorded]
    # Whoever closes the journal of a killed run does not know its parameters.
    has_ended = bool(ends.filter(pc.is_valid(ends.column("parameters"))).num_rows)
    details = "; ".join([state, *filter(None, ends.column("reason").to_pylist())])
    reason = f"not reached: shard {manifest.shard} (run {shard_run_id or 'not started'}): {details}"
    dead = [
        replace(entry_of(row), run_id=run.run_id)
        for row in latest.filter(latest.column("is_dead_letter")).to_pylist()
    ]
    dead += [
        ConversationEntry(
            run.run_id,
            run.organization_id,
            one,
            "not_reached",
            run.clock(),
            reason=reason,
            is_dead_letter=True,
        )
        for one in missing
    ]
    new_shapes = zip(
        shapes.column("shape").to_pylist(), shapes.column("conversation_id").to_pylist(), strict=True
    )
    totals.conversations = dict(
        Counter(latest.column("status").to_pylist()) + Counter(not_reached=len(missing))
    )
    totals.messages_new = pc.sum(rows.column("new_messages")).as_py() or 0
    totals.messages_total = pc.sum(latest.column("distinct_messages")).as_py() or 0
    found = totals, conversation_rows(dead)
    run.lost_shards += not has_ended or bool(missing)
    run.add_dead_letters(dead)
    run.accounts.recorded.update(manifest.conversation_ids)
    errors = {"failed": ImbraceLakeError, "incomplete": WalkIncomplete}
    run.errors.update({one.conversation_id: errors[one.status] for one in dead if one.status in errors})
    run.shapes.new.update(new_shapes)
    return found


def sum_totals(totals: Iterable[RunTotals]) -> RunTotals:
    """Add totals up, field by field."""
    total = RunTotals()
    for one in totals:
        for field in fields(RunTotals):
            before, more = getattr(total, field.name), getattr(one, field.name)
            if before is None or more is None:
                before, more = before or 0, more or 0
            both = dict(Counter(before) + Counter(more)) if isinstance(before, dict) else before + more
            setattr(total, field.name, both)
    return total


def aggregate_into(run: RunContext, own: RunTotals, shards: Iterable[RunTotals]) -> None:
    """Add the totals of its shards to a run's own.

    Args:
        run: Which.
        own: What the run itself had done before it had shards.
        shards: What each of them has done so far.
    """
    total = sum_totals([own, *shards])
    progress, traffic = run.progress, run.gateway.traffic
    progress.statuses = Counter(total.conversations)
    progress.messages_new, progress.messages_total = total.messages_new, total.messages_total
    progress.written_bytes = total.written_bytes
    progress.days = Counter({date.fromisoformat(day): count for day, count in total.days.items()})
    traffic.requests, traffic.retries, traffic.size_bytes = (
        total.requests,
        total.retries,
        total.received_bytes,
    )
    run.gateway.limiter.counts.rate_limited = total.refusals
