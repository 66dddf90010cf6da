"""The three spellings of a conversation id lead to one partition, in new lakes and in old ones."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.plan import Plan, make_plan
from imbrace_lake.export.resolve import resolve
from imbrace_lake.export.run import RunContext
from imbrace_lake.gateway.ids import canonical_conversation_id, canonical_conversation_ids, other_spellings
from imbrace_lake.gateway.models import parse_links
from imbrace_lake.lake.freshness import Freshness, read_freshness
from imbrace_lake.lake.lake import Lake
from imbrace_lake.phones.numbers import PhoneNumber
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.conftest import client_of
from tests.core.lake_runs import Bench, settings_for
from tests.core.runs_of import exporting
from tests.gateways import gateway_of

UUID = "0b8e6f3c-5d1a-4c7e-9f20-3a4b5c6d7e8f"
CANONICAL = f"conv_{UUID}"
SPELLINGS = [UUID, CANONICAL, f"tcu_{UUID}", UUID.upper(), f"conv_{UUID.upper()}", f"tcu_{UUID.upper()}"]
OTHERS = [one for one in SPELLINGS if one != CANONICAL]


@given(st.uuids(), st.sampled_from(["", "conv_", "tcu_"]), st.booleans())
def test_every_spelling_of_a_conversation_has_one_canonical_form(
    uuid: Any, prefix: str, is_upper: bool
) -> None:
    spelled = prefix + (str(uuid).upper() if is_upper else str(uuid))

    assert canonical_conversation_id(spelled) == f"conv_{uuid}"
    assert canonical_conversation_ids([f"tcu_{uuid}", spelled, str(uuid)]) == [f"conv_{uuid}"]


@pytest.mark.parametrize(
    "other",
    [
        "", "conv_", "conv_8", "007", "con_" + UUID, "u_" + UUID, "conv_conv_" + UUID, "conv_tcu_" + UUID,
        "conv-" + UUID, UUID.replace("-", ""), "{" + UUID + "}", UUID[:-1], UUID + "0", UUID + "\n",
        " " + UUID,
        "conv_" + UUID.replace("b", "g"), "conv_" + UUID.replace("0", "\u0660"),
    ],
)  # fmt: skip
def test_an_id_of_another_form_is_unchanged(other: str) -> None:
    assert canonical_conversation_id(other) == other


def test_another_spelling_is_used_only_if_the_canonical_one_is_not_stored() -> None:
    assert other_spellings([UUID, f"tcu_{UUID}", "conv_8"]) == {CANONICAL: UUID}
    assert other_spellings([f"tcu_{UUID}", CANONICAL]) == {}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("shape", ["array", "envelope"])
def test_links_give_the_canonical_id(shape: str, spelling: str) -> None:
    phone = PhoneNumber("+886911425977")
    links = [{"link": f"https://x/?conv_id={one}"} for one in (spelling, CANONICAL, f"tcu_{UUID}")]
    answer: Any = [{"phone_number": "886911425977", "conversation_links": links}]
    if shape == "envelope":
        answer = {
            "data": [
                {"phone_number": "886911425977", "conversation_id": one} for one in (spelling, f"tcu_{UUID}")
            ]
        }

    found = parse_links(json.dumps(answer).encode(), [phone])

    assert [link.conversation_id for link in found.links] == [CANONICAL]


@pytest.mark.parametrize("spelling", ["tcu", "bare", "mixed"])
def test_the_ids_are_the_same_in_every_spelling_of_the_links(spelling: str) -> None:
    async def resolved(box: Sandbox) -> dict[str, list[str]]:
        phones = [PhoneNumber(phone) for phone in box.links]
        async with client_of(box) as gateway:
            found = await resolve(gateway, phones)
        return {phone: [*one.conversation_ids] for phone, one in found.items()}

    with Sandbox(SandboxOptions(conversations=20, id_spelling=spelling)) as box:
        assert asyncio.run(resolved(box)) == {phone: [*ids] for phone, ids in box.links.items()}


# -- new lakes ------------------------------------------------------------------------------------


@contextmanager
def serving(conversation_id: str, named: str = CANONICAL) -> Iterator[Sandbox]:
    """Serve one conversation of 120 messages."""
    with Sandbox(SandboxOptions(conversations=0, sizes=(120,))) as other:
        items = [{**item, "conversation_id": named} for item in other.truth(next(iter(other.conversations)))]
    with Sandbox(SandboxOptions(conversations=0)) as box:
        box.put(items, conversation_id=conversation_id)
        yield box


def partitions(lake: str) -> list[str]:
    return sorted(path.name for path in Path(lake).glob("messages/org=*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("named", [UUID, CANONICAL, f"tcu_{UUID.upper()}"])
def test_all_spellings_make_one_partition_of_a_new_lake(tmp_path: Path, named: str) -> None:
    with serving(CANONICAL, named) as box:
        bench = Bench(box, str(tmp_path / "lake"))

        assert dict(bench.run(SPELLINGS).totals.conversations) == {"complete": 1}
        for spelling in SPELLINGS:
            assert dict(bench.run([spelling]).totals.conversations) == {"unchanged": 1}

        assert partitions(bench.lake) == [f"conv={CANONICAL}"]
        assert set(bench.rows().column("conversation_id").to_pylist()) == {CANONICAL}
        # The spelling of the item is kept.
        assert not bench.differences([CANONICAL])


# -- lakes of earlier versions ---------------------------------------------------------------------


def old_lake(box: Sandbox, lake: Path, *spellings: str) -> Bench:
    """Make a lake as earlier versions did, which made a separate conversation of every spelling."""

    async def export(run: RunContext) -> None:
        await export_chunk(run, "chunk", spellings)

    exporting(box, lake, export)
    return Bench(box, str(lake), now=datetime.now(UTC))


@pytest.fixture(params=OTHERS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Bench]]:
    """Return a spelling, and a lake whose only conversation has it."""
    with serving(request.param) as box:
        yield request.param, old_lake(box, tmp_path / "lake", request.param)


def ages(bench: Bench) -> list[Freshness]:
    async def read(lake: Lake) -> list[Freshness]:
        return await read_freshness(lake, bench.box.options.organization_id, bench.now)

    return bench.look(read)


@pytest.mark.slow
def test_an_old_partition_stays_the_partition_of_its_conversation(old: tuple[str, Bench]) -> None:
    spelling, bench = old

    for one in SPELLINGS:
        assert dict(bench.run([one]).totals.conversations) == {"unchanged": 1}
    bench.box.append(spelling, 3)
    bench.box.edit(spelling, 1)
    grown = bench.run([CANONICAL])

    assert dict(grown.totals.conversations) == {"complete": 1}
    assert grown.totals.messages_new == 3
    assert partitions(bench.lake) == [f"conv={spelling}"]
    assert set(bench.rows().column("conversation_id").to_pylist()) == {spelling}
    assert {row["conversation_id"] for row in bench.ledger("conversations")} == {spelling}
    assert not bench.differences([spelling])
    assert bench.verify().is_sound
    assert [one.conversation_id for one in ages(bench)] == [spelling]


def test_a_walk_of_an_old_partition_finds_no_edit_where_nothing_changed(old: tuple[str, Bench]) -> None:
    _, bench = old
    bench.settings = {"rewalk_days": 0.0}

    assert bench.run([CANONICAL]).totals.written_bytes == 0
    assert bench.ledger("revisions") == []


def test_a_plan_counts_a_conversation_of_an_old_partition_as_known(old: tuple[str, Bench]) -> None:
    _, bench = old

    settings = settings_for(bench.box, bench.lake)

    async def look() -> Plan:
        async with gateway_of(settings) as gateway:
            return await make_plan(settings, gateway, None, SPELLINGS)

    plan = asyncio.run(look())

    assert (plan.conversations, plan.known, plan.new) == (1, 1, 0)


def test_a_run_records_what_it_found_once_in_the_spelling_of_the_lake(old: tuple[str, Bench]) -> None:
    spelling, bench = old

    async def find(run: RunContext) -> list[str]:
        return await run.record_found([*SPELLINGS, "conv_8"])

    assert exporting(bench.box, Path(bench.lake), find, "run_2") == [spelling, "conv_8"]


def test_of_two_partitions_of_an_old_lake_the_canonical_one_is_continued(tmp_path: Path) -> None:
    with serving(CANONICAL) as box:
        box.put(box.truth(CANONICAL), conversation_id=f"tcu_{UUID}")
        bench = old_lake(box, tmp_path / "lake", f"tcu_{UUID}", CANONICAL)
        box.append(CANONICAL, 2)

        assert dict(bench.run(SPELLINGS).totals.conversations) == {"complete": 1}

        counts = Counter(bench.rows().column("conversation_id").to_pylist())
        assert counts == {CANONICAL: 122, f"tcu_{UUID}": 120}
        assert [one.conversation_id for one in ages(bench)] == [CANONICAL]


def test_a_conversation_that_was_gone_in_an_old_spelling_is_not_reported_as_gone_again(
    tmp_path: Path,
) -> None:
    with serving(f"tcu_{UUID}") as box:
        empty = box.put([], conversation_id="11111111-5d1a-4c7e-9f20-3a4b5c6d7e8f")
        bench = old_lake(box, tmp_path / "lake", empty)
        box.vanish(empty)

        summary = bench.run([f"conv_{empty}"])

        assert dict(summary.totals.conversations) == {"gone": 1}
        assert summary.dead_letter_count == 0
