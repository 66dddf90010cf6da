"""Two concurrent runs over the same conversations, while these change."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.core.lake_runs import Bench, by_message

MOVING = {"churn_inserts": 0.3, "churn_deletes": 0.1, "churn_edits": 0.3}
STILL = dict.fromkeys(MOVING, 0.0)


def contend(bench: Bench, ids: Sequence[str], rng: Random) -> None:
    """Add, delete and edit messages during two concurrent runs; assert that no message is lost."""
    box = bench.box
    for one in ids:
        box.append(one, rng.randint(1, 150))
        box.edit(one, 1)
        if rng.random() < 0.3:
            box.delete(one, 2)
    there = {one: {item["_id"] for item in box.truth(one)} for one in ids}
    box.set_options(**MOVING)

    summaries = bench.run_two(ids)

    box.set_options(**STILL)
    assert [summary.status for summary in summaries] == ["complete", "complete"]
    found = by_message(bench.rows())
    for one in ids:
        still_there = there[one] & {item["_id"] for item in box.truth(one)}
        assert all((one, message_id) in found for message_id in still_there)
    assert bench.verify().is_sound, bench.verify().differences

    bench.run(ids)

    # Edits of older messages than the look-back are found by the next full walk.
    assert bench.differences(ids).keys() <= {"other version"}
    assert not bench.wrong_hashes()
    assert bench.verify().is_sound


def settle(bench: Bench, ids: Sequence[str]) -> None:
    """Walk all conversations in full; assert that the lake then equals the gateway."""
    bench.settings["rewalk_days"] = 0.0
    bench.run(ids)

    assert not bench.differences(ids)
    assert not bench.wrong_hashes()
