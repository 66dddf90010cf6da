"""Find the conversations and numbers that an earlier run missed, for a rerun."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import DamagedObject, InputError, UsageError
from imbrace_lake.export.recovery import (
    OUTCOME_COLUMNS,
    ClosedRun,
    check_organization,
    close_if_dead,
    read_shards,
)
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import last_of_each, read_run
from imbrace_lake.lake.ledger_schema import SAME_PHONE
from imbrace_lake.policy import Reading
from imbrace_lake.printable import ADDRESS_WITHOUT_CREDENTIALS, plural

_UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
RUN_ID = rf"^\s*(?:\S*/flow-run/)?{_UUID}(?:[/?#]\S*)?\s*$"
"""Matches the id of a run, and the address of its page in either interface of Prefect."""


def run_id_of(text: str) -> str:
    """Return the id of a run that is given by its id or by the address of its page.

    Raises:
        UsageError: It is neither, or the address has credentials; the message does not repeat it.
    """
    if not re.search(ADDRESS_WITHOUT_CREDENTIALS, text):
        raise UsageError(
            "this address contains credentials, which Prefect would store: give the id of the run"
        )
    found = re.search(rf"/flow-run/({_UUID})", text) or re.search(f"({_UUID})", text)
    if found is None or not re.search(RUN_ID, text):
        raise UsageError("give the id of a run, or the address of its page")
    # The ledgers have ids in lower case.
    return found[1].lower()


@dataclass(slots=True)
class Missed:
    """The conversations and numbers that a run missed.

    Attributes:
        conversation_ids: Its dead letters.
        phones: The numbers that it could not resolve, in E.164.
        reading: What the run read of each conversation; None if the lake has not recorded it.
        lost: Sentences about missed input that a rerun cannot export.
        closed: The run itself, if it was killed and has just been closed.
    """

    conversation_ids: list[str]
    phones: list[str]
    reading: Reading | None
    lost: list[str] = field(default_factory=list)
    closed: ClosedRun | None = None


async def read_missed(
    lake: Lake, run_id: str, now: datetime, *, organization_id: str, tolerated_unreadable: float
) -> Missed:
    """Find the conversations and numbers that a run missed; a killed run is closed first.

    Args:
        lake: The lake.
        run_id: The run.
        now: The time.
        organization_id: The organization that a rerun reads.
        tolerated_unreadable: The share of unreadable input that does not count as missed.

    Raises:
        InputError: The lake does not know the run, the run is under way or of another organization, or a
            rerun cannot export any of the missing input.
        DamagedObject: An object of the run is damaged or missing, so the result would be incomplete.
    """
    closed = await close_if_dead(lake, run_id, organization_id, now)
    try:
        runs = (await read_run(lake, "runs", run_id, is_strict=True)).to_pylist()
        check_organization(run_id, organization_id, [each["organization_id"] for each in runs])
        await _check_complete(lake, runs)
        columns = [*OUTCOME_COLUMNS, "organization_id"]
        conversations = await read_run(lake, "conversations", run_id, columns, is_strict=True)
        columns = [*SAME_PHONE, "phone", "status", "resolved_at", "organization_id"]
        phones = await read_run(lake, "phones", run_id, columns, is_strict=True)
    except DamagedObject as exc:
        raise DamagedObject(
            f"the failures of run {run_id} are not known, because {exc}. Without a copy, export its complete"
            " list again"
        ) from exc
    # Its row can be missing.
    for table in (conversations, phones):
        check_organization(run_id, organization_id, table.column("organization_id").unique().to_pylist())
    conversations = conversations.select(OUTCOME_COLUMNS)
    # A run that was closed as dead and then started again has two rows, in any order.
    row: dict[str, Any] = max(runs, key=lambda each: each["finished_at"], default={})
    totals, recorded = json.loads(row.get("totals") or "{}"), json.loads(row.get("parameters") or "null")
    parameters = recorded or {}
    conversations = last_of_each(conversations, ["conversation_id"], "finished_at")
    own = Counter(conversations.column("status").to_pylist())
    # The other outcomes are in the rows of its shards. Earlier versions named these in `parameters`, and
    # repeated their dead letters in the rows of the run.
    if Counter(totals.get("conversations")) - own and "shards" not in parameters:
        began, ended = min(each["started_at"] for each in runs), max(each["finished_at"] for each in runs)
        by_shards = await read_shards(lake, run_id, began, ended)
        conversations = last_of_each(
            pa.concat_tables([conversations, by_shards]), ["conversation_id"], "finished_at"
        )
    phones = last_of_each(phones, SAME_PHONE, "resolved_at")
    if not runs and not conversations.num_rows and not phones.num_rows:
        raise unknown_run(lake, run_id)
    dead = conversations.filter(conversations.column("is_dead_letter"))
    errors = phones.filter(pc.equal(phones.column("status"), "error")).column("phone")
    missed = Missed(
        dead.column("conversation_id").unique().to_pylist(),
        errors.drop_null().to_pylist(),
        Reading.of(recorded),
        _lost(totals, parameters, conversations, phones, tolerated_unreadable),
        closed,
    )
    if missed.lost and not missed.conversation_ids and not missed.phones:
        raise InputError(f"a rerun of {run_id} cannot export anything: {'; '.join(missed.lost)}")
    return missed


async def _check_complete(lake: Lake, runs: Sequence[dict[str, Any]]) -> None:
    """Check that every object in these rows of the ledger `runs` exists.

    Raises:
        DamagedObject: An object is missing.
    """
    for key in [key for row in runs for key in row["objects"] or ()]:
        if await lake.store.head(key) is None:
            raise DamagedObject(f"{lake.url}/{key} is missing: restore it from a copy")


def unknown_run(lake: Lake, run_id: str) -> InputError:
    """Return the error for a run that is not in the lake."""
    return InputError(
        f"the lake at {lake.url} has no run {run_id}: check the id; a run that failed before it read anything"
        " is not in the lake, so start it again with its list"
    )


def _lost(
    totals: dict[str, Any],
    parameters: dict[str, Any],
    conversations: pa.Table,
    phones: pa.Table,
    tolerated_unreadable: float,
) -> list[str]:
    lost: list[str] = parameters.get("lost", [])
    if not totals:
        lost.append("its row in runs/ is missing: export its input again")
    if totals.get("found", 0) is None:
        lost.append("it ended before it had found all its conversations: start it again with its input")
    outcomes = sum(totals.get("conversations", {}).values())
    if totals.get("found") is not None and totals["found"] != outcomes:
        lost.append(
            f"its accounts do not add up ({totals['found']:,} found, {plural(outcomes, 'outcome')}): export"
            " its input again"
        )
    if "shards" not in parameters and conversations.num_rows < outcomes:
        count = outcomes - conversations.num_rows
        lost.append(
            f"of its {plural(outcomes, 'outcome')}, the ledger has lost {count:,}: export its input again"
        )
    entries = parameters.get("entries", 0)
    if phones.num_rows < entries:
        count = entries - phones.num_rows
        listed = plural(entries, "entry", "entries")
        lost.append(f"of the {listed} of its list, the ledger lacks {count:,}: export its list again")
    masked = phones.filter(pc.equal(phones.column("status"), "error")).column("phone").null_count
    if masked:
        numbers = plural(
            masked, "number that it could not resolve is", "numbers that it could not resolve are"
        )
        lost.append(f"{numbers} masked in the lake: export its list again")
    unreadable = Counter(phones.column("status").to_pylist())["invalid"]
    if unreadable > tolerated_unreadable * phones.num_rows:
        lost.append(
            f"{plural(unreadable, 'entry', 'entries')} of its input could not be read: correct the list and"
            " export it"
        )
    return lost
