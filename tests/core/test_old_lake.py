"""This version reads, verifies and extends a lake of the first version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from imbrace_lake.lake.schema import SCHEMA_VERSION, to_item
from imbrace_lake.verify.part import judge_part
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import START, Bench, by_message
from tests.fixtures.make_lake import GATEWAY, LAKE

ORGANIZATION = "org_sandbox"
GATEWAY_THEN: dict[str, Any] = json.loads(GATEWAY.read_text())
TRUTH: dict[str, list[dict[str, Any]]] = GATEWAY_THEN["conversations"]
VANISHED: list[str] = GATEWAY_THEN["vanished"]
EMPTY, SINGLE, GROWN, EDITED, SHRUNK, GONE = TRUTH


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Serve the conversations from which the old lake was made, and copy that lake."""
    shutil.copytree(LAKE, tmp_path / "lake")
    with Sandbox(SandboxOptions(conversations=0)) as box:
        for one, items in TRUTH.items():
            box.put(items, conversation_id=one)
        for one in VANISHED:
            box.vanish(one)
        yield Bench(box, str(tmp_path / "lake"), now=START.replace(day=2))


def test_every_message_is_read_as_the_gateway_sent_it(bench: Bench) -> None:
    rows = by_message(bench.rows())

    live = {message: to_item(row) for message, row in rows.items() if not row["is_deleted"]}
    assert live == {(one, item["_id"]): item for one, items in TRUTH.items() for item in items}
    assert [message[0] for message, row in rows.items() if row["is_deleted"]] == [SHRUNK]


def test_the_ledgers_are_read(bench: Bench) -> None:
    revision = bench.ledger("revisions")[0]
    edited = {item["_id"]: item for item in TRUTH[EDITED]}[revision["message_id"]]

    assert [row["status"] for row in bench.ledger("runs")] == ["complete", "complete"]
    assert len(bench.ledger("conversations")) == 2 * len(TRUTH)
    assert to_item(revision)["content"] != edited["content"]
    assert bench.ledger("shapes")


def test_the_old_lake_is_verified(bench: Bench) -> None:
    found = bench.verify()

    assert found.is_sound
    assert (found.parts, found.unrecorded) == (6, 0)


def test_each_part_is_verified_separately(bench: Bench) -> None:
    for path in Path(bench.lake, "messages").glob("**/*.parquet"):
        report = judge_part(path)
        assert (report.problem, report.claim, report.rows > 0) == (None, None, True)


def test_an_unchanged_conversation_costs_one_request_and_no_write(bench: Bench) -> None:
    before = bench.look(lambda lake: lake.store.list("messages/"))

    summary = bench.run()

    assert dict(summary.totals.conversations) == {"unchanged": len(TRUTH) - 1, "gone": 1}
    assert summary.totals.requests == len(TRUTH)
    assert bench.look(lambda lake: lake.store.list("messages/")) == before


@pytest.mark.slow
def test_engines_read_the_extended_lake_with_old_and_new_parts(bench: Bench) -> None:
    bench.box.append(SINGLE, 3)
    bench.box.append(EMPTY, 2)
    bench.box.delete(GROWN, 2)
    bench.box.edit(SHRUNK, 1)
    bench.box.restore(GONE)

    bench.run()

    assert not bench.differences()
    assert not bench.wrong_hashes()
    assert bench.verify().is_sound
    with duckdb.connect() as connection:
        query = f"SELECT count(*), count(DISTINCT message_id) FROM '{bench.lake}/messages/**/*.parquet'"  # noqa: S608
        assert connection.sql(query).fetchall() == [(bench.rows().num_rows,) * 2]
        for ledger in ("conversations", "runs", "revisions"):
            files = f"read_parquet('{bench.lake}/{ledger}/*.parquet')"
            counted = connection.sql(f"SELECT count(*) FROM {files}").fetchall()  # noqa: S608
            assert counted == [(len(bench.ledger(ledger)),)]


def test_the_lake_keeps_the_schema_version_that_made_it(bench: Bench) -> None:
    async def version(lake: Any) -> int:
        return int(lake.schema_version)

    assert bench.look(version) == 1 <= SCHEMA_VERSION
