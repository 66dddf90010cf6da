"""Runs with almost no memory make the same lake as any other run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from imbrace_lake.gateway import id_set
from imbrace_lake.lake import diff as diff_module
from imbrace_lake.lake import lake as lake_module
from imbrace_lake.lake import ledger as ledger_module
from imbrace_lake.lake import sorting
from imbrace_lake.policy import Window
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.kills import Killing
from tests.core.lake_runs import Bench
from tests.core.test_ingest import OpenBench, is_equal, open_bench, s3_options
from tests.core.timeline import Amounts, Timeline
from tools.seaweed import Seaweed

pytestmark = pytest.mark.slow

__all__ = ["open_bench"]

# About ten messages: every page is spilled, every part is read from a file, and there are many slices.
LITTLE = {"memory_megabytes": 0.01}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "BATCH_ROWS", 50)
    monkeypatch.setattr(sorting, "MAX_REPEATED", 70)
    monkeypatch.setattr(lake_module, "BATCH_ROWS", 60)
    monkeypatch.setattr(diff_module, "MAX_SLICES", 8)
    monkeypatch.setattr(id_set, "MAX_IN_SET", 90)


def content(bench: Bench) -> pa.Table:
    """Return all rows in a fixed order, without the runs that wrote them."""
    rows = bench.rows().drop_columns(["run_id"])
    keys = ["conversation_id", "message_id"]
    return rows.sort_by([(key, "ascending") for key in keys]).combine_chunks()


def reported(bench: Bench) -> list[dict[str, Any]]:
    """Return the ledger rows without run ids and the values that depend on them."""
    ours = ("run_id", "parts", "replaced_by_run_id")
    found = []
    for ledger in ("conversations", "revisions"):
        rows = [{key: value for key, value in row.items() if key not in ours} for row in bench.ledger(ledger)]
        found += sorted(rows, key=lambda row: sorted((key, str(value)) for key, value in row.items()))
    return found


def parts(bench: Bench) -> list[tuple[str, int]]:
    return sorted(
        (part["key"], part["rows"]) for row in bench.ledger("conversations") for part in row["parts"] or ()
    )


# The other tests have a local lake.
@pytest.fixture(params=["local", "s3"] if IS_FULL else ["s3"])
def benches(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Bench, Bench]]:
    """Return two lakes of one gateway; the runs of the second have little memory."""
    options = SandboxOptions(conversations=0, sizes=(300, 130, 7, 1, 0), surprises=0.1)
    with ExitStack() as stack:
        box = stack.enter_context(Sandbox(options))
        roomy = Bench(box, str(tmp_path / "roomy"))
        if request.param == "local":
            yield roomy, Bench(box, str(tmp_path / "narrow"), settings=LITTLE)
            return
        s3: Seaweed = request.getfixturevalue("s3")
        bucket = request.getfixturevalue("bucket")
        yield roomy, Bench(box, f"s3://{bucket}/lake", store=s3_options(s3), settings=LITTLE)


def test_a_series_of_runs_makes_the_same_lake_with_little_memory_as_with_much(
    benches: tuple[Bench, Bench],
) -> None:
    roomy, narrow = benches
    box = roomy.box
    rng = Random(5)
    first = next(iter(box.conversations))
    for number in range(6):
        for bench in benches:
            bench.now += timedelta(days=31 if number >= 4 else 0)
            bench.run()

        assert content(narrow).equals(content(roomy))
        assert reported(narrow) == reported(roomy)
        assert parts(narrow) == parts(roomy)

        for one in [*box.conversations][:3]:
            ids = [item["_id"] for item in box.truth(one)]
            box.edit(one, rng.sample(ids, min(len(ids), (3, 200, 0, 40, 5, 0)[number])))
            box.append(one, (2, 0, 130, 1, 0, 0)[number])
            box.delete(one, min(3, len(ids)) if number in (1, 3) else 0)
        if number == 2:
            box.delete(first, 170)
    for bench in benches:
        assert is_equal(bench)


def test_edits_of_all_messages_are_replaced_with_little_memory(
    open_bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "groups_of", partial(ledger_module.groups_of, most_bytes=1))
    monkeypatch.setattr(sorting, "BATCH_ROWS", 10)
    bench = open_bench(LITTLE, conversations=0, sizes=(300,))
    one = next(iter(bench.box.conversations))
    bench.run()
    bench.box.edit(one, [item["_id"] for item in bench.box.truth(one)])
    bench.now += timedelta(days=31)

    bench.run()

    assert is_equal(bench)
    assert len({row["message_id"] for row in bench.ledger("revisions")}) == 300
    assert len(list(Path(bench.lake, "revisions").iterdir())) > 1


def test_conversations_that_change_during_runs_are_right_in_the_end_with_little_memory(
    open_bench: OpenBench,
) -> None:
    bench = open_bench(LITTLE, conversations=2, sizes=(260, 150))
    for _ in range(2):
        bench.box.set_options(churn_inserts=0.4, churn_deletes=0.3, churn_edits=0.3)
        bench.run()
        bench.box.set_options(churn_inserts=0.0, churn_deletes=0.0, churn_edits=0.0)
        bench.now += timedelta(days=31)

        bench.run()

        assert is_equal(bench)


def test_a_window_and_then_the_rest_with_little_memory(open_bench: OpenBench) -> None:
    bench = open_bench(LITTLE, conversations=0, sizes=(500,))
    one = next(iter(bench.box.conversations))
    times = sorted(item["created_at"] for item in bench.box.truth(one))
    since, until = (bench.now.fromisoformat(times[position]) for position in (100, 350))

    bench.run([one], window=Window(since, until))

    found = {row["created_at"] for row in bench.messages(one).values()}
    assert found == {at for at in map(bench.now.fromisoformat, times) if since <= at < until}
    bench.run([one])
    assert is_equal(bench)


def test_spilled_files_are_removed_after_a_run(open_bench: OpenBench) -> None:
    bench = open_bench(LITTLE, conversations=0, sizes=(300,))

    bench.run()

    assert not list(Path(bench.lake, ".tmp").glob("spill-*"))


def test_runs_that_are_killed_while_they_spill_leave_the_lake_as_without_kills(
    open_bench: OpenBench, tmp_path: Path
) -> None:
    bench = open_bench(lake="base", conversations=20, sizes=(600, 330), messages_max=60)
    bench.now -= timedelta(hours=2)
    bench.run([*bench.box.conversations][1:])
    Timeline(bench.box, Random(4), Amounts(grow=3, edit_near=3, edit_far=0, lose=2, vanish=0)).next_round()
    killing = Killing(bench, tmp_path, settings={"max_in_flight": 2, **LITTLE})

    rng = Random(9)
    for _ in range(8 if IS_FULL else 2):
        killing.kill_once(rng)
